"""Exact attention with one wide head (D = 512 in FLUX), as matrix products with an online softmax between them.

No fused kernel is fast at this head size, matrix products are: a block of scores is written by one product, turned
into weights in place, and multiplied with the values by another. Statistics and output sums are float32 (online
softmax: Milakov and Gimelshein, arXiv:1805.02867). Owns nothing about ranks: keys may come in parts.

    blocked_attention_(q, [(k0, v0), (k1, v1)], ops, scratch)      # q now holds the result
"""

from __future__ import annotations

import torch
from torch import Tensor

from xdit_bench.engine.vae_operations import Operations

# The second product then has 264 output tiles of 128x128, two full waves on the 132 multiprocessors of an H100 or
# H200: 468 TFLOP/s on one H200 at 262144 keys, against 435 for half of both and 418 for a quarter of the keys.
QUERIES_A_BLOCK = 8448
KEYS_A_BLOCK = 16384
ALIGNED = 64  # keys: rows of scores that start off a 16-byte boundary slow both products down


def attention_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 for bfloat16: as fast, eight times as precise, and behind a norm its range is enough."""
    return torch.float16 if dtype == torch.bfloat16 else dtype


def blocked_attention_(q: Tensor, parts: list[tuple[Tensor, Tensor]], ops: Operations, scratch: Tensor) -> None:
    """`q` M D becomes softmax(q kᵀ / √D) v over the keys of all parts, each `k` n D and `v` n D.

    `scratch` (flat, q's dtype) holds the scores of one block and bounds the memory; 64 scores a query must fit.
    """
    for rows in torch.split(q, QUERIES_A_BLOCK):
        scaled = rows * rows.shape[1] ** -0.5
        summed, product = torch.zeros(2, *rows.shape, dtype=torch.float32, device=q.device)
        peak = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=q.device)
        total = torch.zeros_like(peak)
        for keys, values in parts:
            size = _block_size(len(keys), min(KEYS_A_BLOCK, scratch.numel() // len(rows)))
            block = scratch[: len(rows) * size].view(len(rows), size)
            for k, v in zip(torch.split(keys, size), torch.split(values, size), strict=True):
                scores = block[:, : len(k)]
                torch.mm(scaled, k.t(), out=scores)
                ops.softmax_(scores, summed, product, peak, total)
                _multiply(scores, v, product)
        rows.copy_((summed + product) / total[:, None])


def _block_size(keys: int, limit: int) -> int:
    """Keys a block: about equal blocks, as few as the limit allows, of a multiple of 64."""
    assert limit >= ALIGNED, f"the scratch holds {limit} scores a query; it must hold {ALIGNED}"
    blocks = -(-keys // (limit // ALIGNED * ALIGNED))
    return -(-keys // (blocks * ALIGNED)) * ALIGNED


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """`out = a @ b` in float32, whatever the dtype of `a` and `b`."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)
