"""Exact attention with one wide head (D = 512 in FLUX), as matrix products with an online softmax between them.

No fused kernel is fast at this head size, matrix products are: a block of scores `q Kb` is written by one GEMM,
turned into weights in place, and multiplied with the values by another. Statistics and the output are float32
(online softmax: Milakov and Gimelshein, arXiv:1805.02867). Owns nothing about ranks: keys may come in parts.

    out = blocked_attention(q, [(k0, v0), (k1, v1)], ops, scratch)
"""

from __future__ import annotations

import torch
from torch import Tensor

from xdit_bench.engine.vae_operations import Operations

# 132 output tiles of 128x128 in the second product: one wave on the 132 multiprocessors of an H100 or H200
QUERIES_A_BLOCK = 4224
KEYS_A_BLOCK = 8192


def blocked_attention(q: Tensor, parts: list[tuple[Tensor, Tensor]], ops: Operations, scratch: Tensor) -> Tensor:
    """Softmax(q kᵀ / √D) v over the keys of all parts. `q` M D, each part `k` n D and `v` n D -> M D.

    `scratch` (flat, q's dtype) holds the scores of one block: it bounds the memory, and at least M elements are needed.
    """
    out = torch.empty_like(q)
    scale = q.shape[1] ** -0.5
    for rows, target in zip(torch.split(q, QUERIES_A_BLOCK), torch.split(out, QUERIES_A_BLOCK), strict=True):
        accumulator = torch.zeros(rows.shape, dtype=torch.float32, device=q.device)
        peak = torch.full((len(rows),), -torch.inf, dtype=torch.float32, device=q.device)
        total = torch.zeros_like(peak)
        keys_a_block = min(KEYS_A_BLOCK, scratch.numel() // len(rows))
        for keys, values in parts:
            for k, v in zip(torch.split(keys, keys_a_block), torch.split(values, keys_a_block), strict=True):
                scores = torch.mm(rows, k.t(), out=scratch[: len(rows) * len(k)].view(len(rows), len(k)))
                ops.softmax_(scores, scale, accumulator, peak, total)
                add_product_(accumulator, scores, v)
        target.copy_(accumulator / total[:, None])
    return out


def add_product_(accumulator: Tensor, a: Tensor, b: Tensor) -> None:
    """`accumulator += a @ b` in float32, whatever the dtype of `a` and `b`."""
    if a.dtype == torch.float32:
        accumulator.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(accumulator, a, b, out_dtype=torch.float32, out=accumulator)
    else:
        accumulator.add_(a.float() @ b.float())
