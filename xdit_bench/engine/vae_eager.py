"""The decode's arithmetic in plain torch: any device, and the truth for the Triton twin.

The contract, with shapes, is `vae_operations.Operations`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.engine.vae_operations import HEADROOM
from xdit_bench.engine.vae_parts import Norm


def convolve(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    pixels = F.conv2d(x[None].permute(0, 3, 1, 2), weight, padding=(0, 1))[0].permute(1, 2, 0)
    return pixels.contiguous() if out is None else out.copy_(pixels)


def moments(x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    values = x.float() if bias is None else x.float() + bias
    values = values.view(-1, groups, x.shape[-1] // groups)
    variance, mean = torch.var_mean(values, dim=(0, 2), correction=0)
    count = torch.full_like(mean, values.shape[0] * values.shape[2])
    return torch.stack((count, mean, variance * count))[..., None]


def merge(parts: Tensor) -> Tensor:
    count, mean, m2 = parts.unbind()
    total = count.sum(-1, keepdim=True)
    merged = (mean * (count / total)).sum(-1, keepdim=True)
    return torch.stack((total, merged, (m2 + count * (mean - merged).square()).sum(-1, keepdim=True)))


def affine(parts: Tensor, norm: Norm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    count, mean, m2 = merge(parts).squeeze(-1).unbind()
    repeat = len(norm.weight) // norm.groups
    scale = norm.weight * torch.rsqrt(m2 / count + norm.eps).repeat_interleave(repeat)
    offset = mean.repeat_interleave(repeat)
    return scale, norm.bias - (offset if bias is None else offset - bias) * scale


def normalize(x: Tensor, scale: Tensor, shift: Tensor, *, silu: bool, top: bool, bottom: bool) -> Tensor:
    y = torch.addcmul(shift, x.float(), scale)
    y = (F.silu(y) if silu else y).to(x.dtype)
    if top:
        y[0].zero_()
    if bottom:
        y[-1].zero_()
    return y


def add_(x: Tensor, y: Tensor, bias: Tensor, groups: int) -> Tensor:
    x.copy_(x.float() + y.float() + bias)
    return moments(x, None, groups)


def shuffle(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    n, wide, fourfold = x.shape
    pixels = x.view(n, wide, 2, 2, fourfold // 4).permute(0, 2, 1, 3, 4).reshape(2 * n, 2 * wide, fourfold // 4)
    return out.copy_(pixels[:, 1:-1].float() + bias)


def to_uint8(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    pixels = (x[..., : len(bias)].float() + bias).to(x.dtype)
    return out.copy_(((pixels / 2 + 0.5).clamp(0, 1).float() * 255).round())


def softmax_(scores: Tensor, summed: Tensor, product: Tensor, peak: Tensor, total: Tensor) -> None:
    higher = torch.maximum(peak, scores.amax(1).float())
    weights = torch.exp(scores.float() - higher[:, None]) * HEADROOM
    fade = torch.exp(peak - higher)
    scores.copy_(weights)
    total.mul_(fade).add_(weights.sum(1))
    summed.add_(product).mul_(fade[:, None])
    peak.copy_(higher)
