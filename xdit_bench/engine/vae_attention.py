"""Exact attention with one wide head (D = 512 in FLUX), as matrix products with an online softmax between them.

No fused kernel is fast at this head size, matrix products are: a block of scores is written by one product, turned
into weights in place, and multiplied with the values by another. Statistics and output sums are float32 (online
softmax: Milakov and Gimelshein, arXiv:1805.02867). Owns nothing about ranks: keys may come in parts.

    out = blocked_attention(q, [(k0, v0), (k1, v1)], ops, scratch)
"""

from __future__ import annotations

import torch
from torch import Tensor

from xdit_bench.engine.vae_operations import Operations

# 132 output tiles of 128x128 in the second product: one wave on the 132 multiprocessors of an H100 or H200
QUERIES_A_BLOCK = 4224
KEYS_A_BLOCK = 8192


def attention_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 for bfloat16: as fast, eight times as precise, and behind a norm its range is enough."""
    return torch.float16 if dtype == torch.bfloat16 else dtype


def blocked_attention(q: Tensor, parts: list[tuple[Tensor, Tensor]], ops: Operations, scratch: Tensor) -> Tensor:
    """Softmax(q kᵀ / √D) v over the keys of all parts. `q` M D, each part `k` n D and `v` n D -> M D.

    `scratch` (flat, q's dtype) holds the scores of one block: it bounds the memory, and at least M elements are needed.
    """
    out = torch.empty_like(q)
    for rows, target in zip(torch.split(q, QUERIES_A_BLOCK), torch.split(out, QUERIES_A_BLOCK), strict=True):
        scaled = rows * rows.shape[1] ** -0.5
        summed, product = torch.zeros(2, *rows.shape, dtype=torch.float32, device=q.device)
        peak = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=q.device)
        total = torch.zeros_like(peak)
        keys_a_block = min(KEYS_A_BLOCK, scratch.numel() // len(rows))
        for keys, values in parts:
            for k, v in zip(torch.split(keys, keys_a_block), torch.split(values, keys_a_block), strict=True):
                scores = scratch[: len(rows) * len(k)].view(len(rows), len(k))
                torch.mm(scaled, k.t(), out=scores)
                ops.softmax_(scores, summed, product, peak, total)
                _multiply(scores, v, product)
        target.copy_((summed + product) / total[:, None])
    return out


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """`out = a @ b` in float32, whatever the dtype of `a` and `b`."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)
