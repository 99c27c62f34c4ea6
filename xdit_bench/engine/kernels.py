"""Fused Triton kernels for what lies between matrix products and attention, twins of `ops.TORCH`.

All are bound by memory: each reads and writes every row once, with float32 inside. Needs a CUDA GPU and the
package triton; importing this module needs the package. Leaves matrix products to cuBLAS, whose epilogue does GELU.

    ops = triton_ops()
"""

# Triton functions take pointers and constants, which have no Python types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from xdit_bench.engine.modulation import Affine
from xdit_bench.engine.ops import NORM_EPS, Ops
from xdit_bench.engine.weights import Linear, Pair

Product = Callable[[Tensor, Linear, Tensor], None]

NORM_ROWS, NORM_WARPS = 2, 4  # of a program of the norm kernel; best of 1 to 8 and 4 to 16 on an H200


@triton.jit
def _pick(text_row, image_row, columns, inside, is_text):
    """A row of the text's or of the image's modulation, float32."""
    text = tl.load(text_row + columns, mask=inside & is_text, other=0.0).to(tl.float32)
    image = tl.load(image_row + columns, mask=inside & (is_text == 0), other=0.0).to(tl.float32)
    return text + image


@triton.jit
def _norm_kernel(
    x, y, n, gate_text, gate_image, scale_text, scale_image, shift_text, shift_image,
    gate_stride, norm_stride, text, tokens, batch, width, eps,
    GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one kind share one load of their modulation, which else outweighs the tokens themselves."""
    block, sample = tl.program_id(0), tl.program_id(1)
    text_blocks = (text + ROWS - 1) // ROWS
    is_text = block < text_blocks
    first = tl.where(is_text, block * ROWS, text + (block - text_blocks) * ROWS)
    end = tl.where(is_text, text, tokens)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    modulation = sample * norm_stride
    scale = 1.0 + _pick(scale_text + modulation, scale_image + modulation, columns, inside, is_text)
    shift = _pick(shift_text + modulation, shift_image + modulation, columns, inside, is_text)
    if GATED:
        own = sample * gate_stride
        gate = _pick(gate_text + own, gate_image + own, columns, inside, is_text)
    for row in tl.static_range(ROWS):
        token = first + row
        here = inside & (token < end)
        offsets = (token.to(tl.int64) * batch + sample) * width + columns
        value = tl.load(x + offsets, mask=here, other=0.0).to(tl.float32)
        if GATED:
            value += gate * tl.load(y + offsets, mask=here, other=0.0).to(tl.float32)
            tl.store(x + offsets, value.to(x.dtype.element_ty), mask=here)
        centred = tl.where(inside, value - tl.sum(value, axis=0) / width, 0.0)
        variance = tl.sum(centred * centred, axis=0) / width
        normed = centred * tl.rsqrt(variance + eps) * scale + shift
        tl.store(n + offsets, normed.to(n.dtype.element_ty), mask=here)


@triton.jit
def _rotated(x, weight_text, weight_image, is_text, cos, sin, eps, HEADS: tl.constexpr, SIZE: tl.constexpr):
    """RMSNorm over each row of x `HEADS SIZE`, then RoPE over adjacent pairs."""
    columns = tl.arange(0, SIZE)
    weight = _pick(weight_text, weight_image, columns, columns < SIZE, is_text)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + eps)
    normed = x * inverse[:, None] * weight[None, :]
    even, odd = tl.split(tl.reshape(normed, (HEADS, SIZE // 2, 2)))
    turned = tl.join(even * cos[None, :] - odd * sin[None, :], odd * cos[None, :] + even * sin[None, :])
    return tl.reshape(turned, (HEADS, SIZE))


@triton.jit
def _rotate_kernel(
    heads, slabs, q_text, q_image, k_text, k_image, cos, sin,
    from_token, from_batch, from_part, to_slab, to_token, to_batch, to_part,
    first, text, batch, count, slab_heads, eps, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0), tl.program_id(1)
    token, sample = row // batch, row % batch
    is_text = token < text
    head = tl.arange(0, HEADS)
    column = tl.arange(0, SIZE)
    inside = (head < count)[:, None] & (column < SIZE)[None, :]
    token = token.to(tl.int64)
    source = token * from_token + sample * from_batch + part * from_part
    x = tl.load(heads + source + head[:, None] * SIZE + column[None, :], mask=inside, other=0.0)
    place = (head // slab_heads)[:, None] * to_slab + token * to_token + sample * to_batch + part * to_part
    place += (head % slab_heads)[:, None] * SIZE + column[None, :]
    half = tl.arange(0, SIZE // 2)
    c = tl.load(cos + token * (SIZE // 2) + half)
    s = tl.load(sin + token * (SIZE // 2) + half)
    if first + part == 0:
        turned = _rotated(x.to(tl.float32), q_text, q_image, is_text, c, s, eps, HEADS, SIZE)
        tl.store(slabs + place, turned.to(slabs.dtype.element_ty), mask=inside)
    elif first + part == 1:
        turned = _rotated(x.to(tl.float32), k_text, k_image, is_text, c, s, eps, HEADS, SIZE)
        tl.store(slabs + place, turned.to(slabs.dtype.element_ty), mask=inside)
    else:
        tl.store(slabs + place, x, mask=inside)


@triton.jit
def _merge_kernel(out, more, lse, more_lse, merged, total, tokens, heads, HEADS: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    column = tl.arange(0, SIZE)
    present = head < heads
    inside = present[:, None] & (column < SIZE)[None, :]
    place = (row // tokens * heads + head) * tokens + row % tokens
    first = tl.load(lse + place, mask=present, other=0.0)
    second = tl.load(more_lse + place, mask=present, other=0.0)
    largest = tl.maximum(first, second)
    a, b = tl.exp(first - largest), tl.exp(second - largest)
    tl.store(total + place, largest + tl.log(a + b), mask=present)
    offsets = row * heads * SIZE + head[:, None] * SIZE + column[None, :]
    left = tl.load(out + offsets, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(more + offsets, mask=inside, other=0.0).to(tl.float32)
    value = (left * a[:, None] + right * b[:, None]) / (a + b)[:, None]
    tl.store(merged + offsets, value.to(merged.dtype.element_ty), mask=inside)


def modulated_norm(x: Tensor, text: int, norm: Affine) -> Tensor:
    """Twin of `ops.modulated_norm`."""
    return _norm(x, x, text, norm.scale, norm, gated=False)


def gated_add_norm(x: Tensor, y: Tensor, text: int, gate: Pair, norm: Affine) -> tuple[Tensor, Tensor]:
    """Twin of `ops.gated_add_norm`; x is updated in place."""
    return x, _norm(x, y, text, gate, norm, gated=True)


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
    """Twin of `ops.rotate`; in place where that is allowed, v then staying where it is."""
    tokens, batch, parts, count, size = heads.shape
    in_place = ulysses == 1 and (heads.is_contiguous() or not packed)
    slabs = heads.unsqueeze(0) if in_place else heads.new_empty(ulysses, *heads.shape[:3], count // ulysses, size)
    moved = min(parts, 2 - first) if in_place else parts
    _rotate_kernel[(tokens * batch, moved)](
        heads, slabs, *norm_q, *norm_k, cos, sin, *heads.stride()[:3], *slabs.stride()[:4], first, text, batch, count,
        count // ulysses, NORM_EPS, HEADS=triton.next_power_of_2(count), SIZE=size, num_warps=4,
    )  # fmt: skip
    return slabs


def linear(x: Tensor, text: int, layer: Pair) -> Tensor:
    """Twin of `ops.linear`: text and image write into one tensor."""
    return _by_kind(x, text, layer, _linear)


def add_product(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Twin of `ops.add_product`, in place: out of place torch would first copy y."""
    y.flatten(0, 1).addmm_(x.flatten(0, 1), weight.t())
    return y


def merge(
    out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Twin of `ring.merge`."""
    batch, tokens, heads, size = out.shape
    merged = torch.empty(out.shape, dtype=dtype, device=out.device)
    total = torch.empty_like(lse, memory_format=torch.contiguous_format)
    _merge_kernel[(batch * tokens,)](
        out.contiguous(), more.contiguous(), lse.contiguous(), more_lse.contiguous(), merged, total, tokens, heads,
        HEADS=triton.next_power_of_2(heads), SIZE=size, num_warps=4,
    )  # fmt: skip
    return merged, total


def triton_ops(*, gelu_epilogue: bool = True) -> Ops:
    """The fused implementation."""
    product = _linear_gelu if gelu_epilogue else _linear_then_gelu

    def mlp_gelu(x: Tensor, text: int, layer: Pair) -> Tensor:
        return _by_kind(x, text, layer, product)

    def mlp(x: Tensor, text: int, first: Pair, second: Pair) -> Tensor:
        out = x.new_empty(*x.shape[:2], second.image.weight.shape[0])
        for part, one, two in _kinds(x, text, first, second):
            rows = x[part].flatten(0, 1)
            hidden = x.new_empty(rows.shape[0], one.weight.shape[0])
            product(rows, one, hidden)
            _linear(hidden, two, out[part].flatten(0, 1))
        return out

    return Ops(modulated_norm, gated_add_norm, rotate, linear, mlp_gelu, mlp, add_product, merge)


def _kinds(x: Tensor, text: int, *layers: Pair) -> list[tuple[Any, ...]]:
    """The tokens with layers of their own: a slice and its layers, for text and image or for both at once."""
    tokens = x.shape[0]
    if layers[0].text is layers[0].image:
        return [(slice(0, tokens), *(layer.image for layer in layers))]
    kinds = [
        (slice(0, text), *(layer.text for layer in layers)),
        (slice(text, tokens), *(layer.image for layer in layers)),
    ]
    return [kind for kind in kinds if kind[0].stop > kind[0].start]


def _by_kind(x: Tensor, text: int, layer: Pair, product: Product) -> Tensor:
    out = x.new_empty(*x.shape[:2], layer.image.weight.shape[0])
    for part, own in _kinds(x, text, layer):
        product(x[part].flatten(0, 1), own, out[part].flatten(0, 1))
    return out


def _linear(rows: Tensor, layer: Linear, out: Tensor) -> None:
    torch.addmm(layer.bias, rows, layer.weight.t(), out=out)


def _linear_gelu(rows: Tensor, layer: Linear, out: Tensor) -> None:
    """Bias and GELU in cuBLAS's epilogue, which is the tanh form."""
    torch.ops.aten._addmm_activation.out(layer.bias, rows, layer.weight.t(), use_gelu=True, out=out)


def _linear_then_gelu(rows: Tensor, layer: Linear, out: Tensor) -> None:
    _linear(rows, layer, out)
    torch.ops.aten.gelu_(out, approximate="tanh")


def _norm(x: Tensor, y: Tensor, text: int, gate: Pair, norm: Affine, *, gated: bool) -> Tensor:
    n = torch.empty_like(x)
    tokens, batch, width = x.shape
    blocks = triton.cdiv(text, NORM_ROWS) + triton.cdiv(tokens - text, NORM_ROWS)
    _norm_kernel[(blocks, batch)](
        x, y, n, *gate, *norm.scale, *norm.shift, gate.image.stride(0), norm.scale.image.stride(0), text, tokens,
        batch, width, NORM_EPS, GATED=gated, ROWS=NORM_ROWS, BLOCK=triton.next_power_of_2(width), num_warps=NORM_WARPS,
    )  # fmt: skip
    return n
