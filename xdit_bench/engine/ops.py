"""The arithmetic between matrix products and attention, in plain torch: the truth the fused kernels are held to.

Tokens lead, `S B h`; the first `text` tokens are text. A Pair holds what differs between text and image. What
a function may overwrite it says; the result is what it returns. `TORCH` runs anywhere, `kernels.triton_ops()` on GPUs.

    x, n = TORCH.gated_add_norm(x, y, text, gate, norm)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.engine.modulation import Affine
from xdit_bench.engine.ring import Merge, merge
from xdit_bench.engine.weights import Pair

NORM_EPS = 1e-6  # of every norm in diffusers' FLUX.1


class Ops(NamedTuple):
    """One implementation of each operation."""

    modulated_norm: Callable[[Tensor, int, Affine], Tensor]
    gated_add_norm: Callable[[Tensor, Tensor, int, Pair, Affine], tuple[Tensor, Tensor]]
    rotate: Callable[..., Tensor]
    linear: Callable[[Tensor, int, Pair], Tensor]
    linear_gelu: Callable[[Tensor, int, Pair], Tensor]
    mlp: Callable[[Tensor, int, Pair, Pair], Tensor]
    add_product: Callable[[Tensor, Tensor, Tensor], Tensor]
    merge: Merge


def modulated_norm(x: Tensor, text: int, norm: Affine) -> Tensor:
    """LayerNorm without weights, then `* (1 + scale) + shift`."""
    normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return normed * (1 + by_token(norm.scale, text, x)) + by_token(norm.shift, text, x)


def gated_add_norm(x: Tensor, y: Tensor, text: int, gate: Pair, norm: Affine) -> tuple[Tensor, Tensor]:
    """`x + gate * y`, and the next block's modulated norm of it; may overwrite x."""
    x = x + by_token(gate, text, x) * y
    return x, modulated_norm(x, text, norm)


def rotate(
    heads: Tensor,
    first: int,
    text: int,
    norm_q: Pair,
    norm_k: Pair,
    cos: Tensor,
    sin: Tensor,
    ulysses: int,
    packed: bool,
) -> Tensor:
    """RMSNorm over the head and RoPE (adjacent pairs) of the queries and keys in heads `S B n H D`, the parts from
    `first` on of q, k and v; cos and sin are `S D/2`.

    Returns slabs of heads as the exchange sends them, `U S B n H/U D`, contiguous where they are `packed`. May
    overwrite heads.
    """
    made = []
    for part, weights in zip(heads.unbind(2), (norm_q, norm_k, None)[first:], strict=False):
        if weights is None:
            made.append(part)
            continue
        weight = torch.where(_is_text(text, heads).view(-1, 1), weights.text, weights.image)  # S D
        normed = F.rms_norm(part, part.shape[-1:], eps=NORM_EPS) * weight[:, None, None]
        even, odd = normed[..., ::2].float(), normed[..., 1::2].float()
        c, s = cos[:, None, None], sin[:, None, None]
        turned = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(-2)
        made.append(turned.to(heads.dtype))
    whole = torch.stack(made, dim=2)
    slabs = whole.view(*heads.shape[:3], ulysses, -1, heads.shape[4]).permute(3, 0, 1, 2, 4, 5)
    return slabs.contiguous() if packed else slabs


def linear(x: Tensor, text: int, layer: Pair) -> Tensor:
    """Text tokens through one layer, image tokens through another; all at once where they are the same."""
    if layer.text is layer.image:
        return F.linear(x, *layer.image)
    return torch.cat([F.linear(x[:text], *layer.text), F.linear(x[text:], *layer.image)])


def linear_gelu(x: Tensor, text: int, layer: Pair) -> Tensor:
    """`linear`, then GELU in its tanh form."""
    return F.gelu(linear(x, text, layer), approximate="tanh")


def mlp(x: Tensor, text: int, first: Pair, second: Pair) -> Tensor:
    """`linear_gelu` through the first layer, `linear` through the second."""
    return linear(linear_gelu(x, text, first), text, second)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`y + x @ weight.T`; may overwrite y."""
    return torch.addmm(y.flatten(0, 1), x.flatten(0, 1), weight.t()).view_as(y)


def by_token(pair: Pair, text: int, x: Tensor) -> Tensor:
    """The Pair's text part for text tokens and image part for image tokens: broadcasts with x `S B h`."""
    image: Tensor = pair.image
    if pair.text is pair.image:
        return image
    chosen: Tensor = torch.where(_is_text(text, x).view(-1, 1, 1), pair.text, image)
    return chosen


def _is_text(text: int, x: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) < text


TORCH = Ops(modulated_norm, gated_add_norm, rotate, linear, linear_gelu, mlp, add_product, merge)
