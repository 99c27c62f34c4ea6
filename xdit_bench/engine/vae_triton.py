"""The decode's arithmetic on NVIDIA GPUs: cuDNN's NHWC convolutions, everything between them in Triton kernels.

The contract, with shapes, is `vae_operations.Operations`; the truth is `vae_eager.py`, which also takes over
what these kernels leave out (group sizes that are no power of two). Statistics are float32 throughout.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from xdit_bench.engine import vae_eager
from xdit_bench.engine import vae_kernels as kernels
from xdit_bench.engine.vae_operations import HEADROOM
from xdit_bench.engine.vae_parts import Norm

TILE = 4096  # elements a program normalizes: 32 a thread at 4 warps
# moments keep three values an element: with half a tile 5 programs fit a multiprocessor, and 2640 are four full waves
MOMENTS_TILE = 2048
PROGRAMS = 2640


def convolve(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    rows, width = x.shape[0] - weight.shape[2] + 1, x.shape[1] - weight.shape[3] + 3
    out = x.new_empty(rows, width, len(weight)) if out is None else out
    torch.ops.aten.cudnn_convolution.out(
        x[None].permute(0, 3, 1, 2), weight, [0, 1], [1, 1], [1, 1], 1,
        True, False, torch.backends.cudnn.allow_tf32, out=out[None].permute(0, 3, 1, 2),
    )  # fmt: skip  # benchmark=True: cuDNN's first guess is not its fastest engine
    return out


def moments(x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    if not _powers_of_two(x.shape[-1], groups):
        return vae_eager.moments(x, bias, groups)
    return _launch_moments(x, None, bias, groups)


def add_(x: Tensor, y: Tensor, bias: Tensor, groups: int) -> Tensor:
    if not _powers_of_two(x.shape[-1], groups):
        return vae_eager.add_(x, y, bias, groups)
    return _launch_moments(x, y, bias, groups)


def merge(parts: Tensor) -> Tensor:
    _, groups, count = parts.shape
    out = parts.new_empty(3, groups, 1)
    kernels.merge[(groups,)](parts, out, groups, count, BLOCK=_block(count), num_warps=4)
    return out


def affine(parts: Tensor, norm: Norm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    _, groups, count = parts.shape
    scale, shift = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    size = len(norm.weight) // groups
    kernels.affine[(groups,)](
        parts, norm.weight, norm.bias, norm.bias if bias is None else bias, scale, shift, norm.eps, count, groups, size,
        HAS_BIAS=bias is not None, BLOCK=_block(count), SIZE=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
    return scale, shift


def normalize(x: Tensor, scale: Tensor, shift: Tensor, *, silu: bool, top: bool, bottom: bool) -> Tensor:
    rows, width, channels = x.shape
    out = torch.empty_like(x)
    columns = triton.next_power_of_2(channels)
    pixels = rows * width
    kernels.normalize[(triton.cdiv(pixels, TILE // columns),)](
        x, scale, shift, out, pixels, width if top else 0, pixels - width if bottom else pixels,
        SILU=silu, CHANNELS=channels, COLUMNS=columns, PIXELS=TILE // columns, num_warps=4,
    )  # fmt: skip
    return out


def shuffle(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    rows, width, channels = out.shape
    columns = triton.next_power_of_2(channels)
    kernels.shuffle[(triton.cdiv(rows * width, TILE // columns),)](
        x, bias, out, rows * width, width, CHANNELS=channels, COLUMNS=columns, PIXELS=TILE // columns, num_warps=4
    )
    return out


def to_uint8(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    count = out.numel()
    kernels.to_uint8[(triton.cdiv(count, 1024),)](x, bias, out, count, x.shape[-1], len(bias), BLOCK=1024)
    return out


def softmax_(scores: Tensor, summed: Tensor, product: Tensor, peak: Tensor, total: Tensor) -> None:
    keys, channels = scores.shape[1], summed.shape[1]
    kernels.softmax[(len(scores),)](
        scores, summed, product, peak, total, scores.stride(0), keys, channels, HEADROOM,
        KEYS=triton.next_power_of_2(keys), CHANNELS=triton.next_power_of_2(channels), num_warps=8,
    )  # fmt: skip


def _powers_of_two(channels: int, groups: int) -> bool:
    return channels & (channels - 1) == 0 and groups & (groups - 1) == 0 and channels <= MOMENTS_TILE


def _block(count: int) -> int:
    return min(4096, int(triton.next_power_of_2(count)))


def _launch_moments(x: Tensor, y: Tensor | None, bias: Tensor | None, groups: int) -> Tensor:
    channels = x.shape[-1]
    pixels, at_once = x.numel() // channels, MOMENTS_TILE // channels
    rounds = triton.cdiv(pixels, at_once * PROGRAMS)
    programs = triton.cdiv(pixels, at_once * rounds)
    out = torch.empty(3, groups, programs, dtype=torch.float32, device=x.device)
    kernels.moments[(programs,)](
        x, x if y is None else y, out if bias is None else bias, out, pixels, rounds, programs,
        ADD=y is not None, HAS_BIAS=bias is not None, GROUPS=groups, SIZE=channels // groups, PIXELS=at_once,
        num_warps=4,
    )  # fmt: skip
    return out
