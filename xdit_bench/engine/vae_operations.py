"""The contract of a row-band decode's arithmetic: one chunk of rows at a time, `n W C` (channels last).

`vae_eager.py` keeps it in plain torch on any device, `vae_triton.py` with fused kernels on NVIDIA GPUs. Rows,
ranks and memory are `vae.py`'s.

    ops = operations(device)
    scale, shift = ops.affine(ops.moments(x, None, 32), norm, None)

*Moments* are `3 G T`: count, mean and M2 (the sum of squared distances from the mean) of G groups over T parts,
merged as in Chan, Golub and LeVeque (1979): a mean far from zero costs no digits, as it does in a sum of squares.
Convolutions leave their bias to the step that reads them next, which saves a pass over the tensor.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

from xdit_bench.engine.vae_parts import Norm

# a float16 weight 2^-24 below 1 is 0: this leaves 2^-32 of the largest, and cancels in the division by `total`
HEADROOM = 256.0


class Operations(Protocol):
    """What both twins offer."""

    def convolve(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """Convolution without bias; rows come with their halo, one column of zeros stands on both sides.

        `x` n+h-1 W C, `weight` K C h w -> n W' K with W' = W for w = 3 and W + 1 for w = 2.
        """

    def moments(self, x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Moments of `x + bias`: n W C -> 3 G T."""

    def merge(self, parts: Tensor) -> Tensor:
        """3 G T -> 3 G 1."""

    def affine(self, parts: Tensor, norm: Norm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift (C, float32) that normalize `x + bias` when applied to `x`; `parts` are of `x + bias`."""

    def normalize(self, x: Tensor, scale: Tensor, shift: Tensor, *, silu: bool, top: bool, bottom: bool) -> Tensor:
        """`x * scale + shift`, through SiLU or not; the first (`top`) or last row as zeros: it is beyond the image."""

    def add_(self, x: Tensor, y: Tensor, bias: Tensor, groups: int) -> Tensor:
        """`x += y + bias`; returns the moments of the sum."""

    def shuffle(self, x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """The fused upsample's n W+1 4C, ordered `u v C`, plus bias, to `out` 2n 2W C; the outermost columns go."""

    def to_uint8(self, x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """Padded pixels n W 8 plus bias, in -1..1, to n W 3 uint8, as diffusers' `VaeImageProcessor` rounds them."""

    def softmax_(self, scores: Tensor, summed: Tensor, product: Tensor, peak: Tensor, total: Tensor) -> None:
        """One step of an online softmax: scores M n become weights `HEADROOM * exp(score - peak)`, in place.

        Rows of scores may lie apart. `peak` (M) may rise; `summed` (M D) takes `product`, the last block's, and
        `total` (M) the new weights' sums, both rescaled from the old peak to the new.
        """


def operations(device: torch.device) -> Operations:
    """The twin for a device."""
    # Triton comes with CUDA builds of torch alone, so that its twin can not be imported everywhere
    name = "vae_triton" if device.type == "cuda" else "vae_eager"
    return cast(Operations, import_module(f"xdit_bench.engine.{name}"))
