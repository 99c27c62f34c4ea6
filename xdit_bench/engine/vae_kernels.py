"""Triton kernels of the row-band decode: every step between two convolutions. `vae_triton.py` launches them.

Tiles are `pixels x channels` of a channels-last tensor; statistics and arithmetic are float32.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moments(
    x_ptr, y_ptr, bias_ptr, out_ptr, pixels, rounds, programs,
    ADD: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    # Sums of distances, and of their squares, from the first tile's mean of each channel: nothing large cancels.
    # Channels join their group at the end, so that the loop holds whole vectors and never talks across threads.
    pid = tl.program_id(0)
    channel = tl.arange(0, GROUPS * SIZE)
    pixel = tl.arange(0, PIXELS)[:, None]
    start = pid.to(tl.int64) * rounds * PIXELS
    left = tl.minimum(pixels - start, rounds * PIXELS).to(tl.int32)
    offsets = pixel * (GROUPS * SIZE) + channel[None, :]
    x_ptr += start * (GROUPS * SIZE)
    y_ptr += start * (GROUPS * SIZE)
    bias = tl.zeros((1, GROUPS * SIZE), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channel)[None, :]
    reference = tl.zeros((GROUPS * SIZE,), tl.float32)
    first = tl.zeros((PIXELS, GROUPS * SIZE), tl.float32)
    second = tl.zeros((PIXELS, GROUPS * SIZE), tl.float32)
    ahead = tl.load(x_ptr + offsets, mask=pixel < left, other=0.0)
    for i in range(rounds):
        inside = pixel < left - i * PIXELS
        value = ahead.to(tl.float32)
        # one tile ahead: alone, a tile's loads are too few to keep the memory busy
        ahead = tl.load(x_ptr + PIXELS * GROUPS * SIZE + offsets, mask=pixel < left - (i + 1) * PIXELS, other=0.0)
        if ADD:
            value += tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32) + bias
            tl.store(x_ptr + offsets, value, mask=inside)
            value = value.to(x_ptr.dtype.element_ty).to(tl.float32)
        else:
            value += bias
        if i == 0:
            reference = tl.sum(tl.where(inside, value, 0.0), 0) / tl.minimum(left, PIXELS).to(tl.float32)
        value = tl.where(inside, value - reference[None, :], 0.0)
        first += value
        second += value * value
        x_ptr += PIXELS * GROUPS * SIZE
        y_ptr += PIXELS * GROUPS * SIZE
    n = left.to(tl.float32)
    drift = tl.sum(first, 0) / n
    spread = tl.reshape(tl.maximum(tl.sum(second, 0) - n * drift * drift, 0.0), (GROUPS, SIZE))
    mean = tl.reshape(reference + drift, (GROUPS, SIZE))
    group_mean = tl.sum(mean, 1) / SIZE
    away = mean - group_mean[:, None]
    out_ptr += tl.arange(0, GROUPS) * programs + pid
    tl.store(out_ptr, tl.zeros((GROUPS,), tl.float32) + n * SIZE)
    tl.store(out_ptr + GROUPS * programs, group_mean)
    tl.store(out_ptr + 2 * GROUPS * programs, tl.sum(spread + n * away * away, 1))


@triton.jit
def _merged(parts_ptr, group, groups, count, BLOCK: tl.constexpr):
    # count, mean and M2 of one group over all parts; means are summed as distances from the first
    parts_ptr += group * count
    means_ptr = parts_ptr + groups * count
    origin = tl.load(means_ptr)
    total = tl.zeros((BLOCK,), tl.float32)
    drift = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, count, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        n = tl.load(parts_ptr + offsets, mask=offsets < count, other=0.0)
        total += n
        drift += n * (tl.load(means_ptr + offsets, mask=offsets < count, other=0.0) - origin)
    all_count = tl.sum(total, 0)
    mean = origin + tl.sum(drift, 0) / all_count
    spread = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, count, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        n = tl.load(parts_ptr + offsets, mask=offsets < count, other=0.0)
        away = tl.load(means_ptr + offsets, mask=offsets < count, other=0.0) - mean
        spread += tl.load(means_ptr + groups * count + offsets, mask=offsets < count, other=0.0) + n * away * away
    return all_count, mean, tl.sum(spread, 0)


@triton.jit
def merge(parts_ptr, out_ptr, groups, count, BLOCK: tl.constexpr):
    group = tl.program_id(0)
    total, mean, spread = _merged(parts_ptr, group, groups, count, BLOCK)
    tl.store(out_ptr + group, total)
    tl.store(out_ptr + groups + group, mean)
    tl.store(out_ptr + 2 * groups + group, spread)


@triton.jit
def affine(
    parts_ptr, weight_ptr, beta_ptr, bias_ptr, scale_ptr, shift_ptr, eps, count, groups, size,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    total, mean, spread = _merged(parts_ptr, group, groups, count, BLOCK)
    channel = tl.arange(0, SIZE)
    inside = channel < size
    channel += group * size
    scale = tl.load(weight_ptr + channel, mask=inside) / tl.sqrt(spread / total + eps)
    offset = tl.zeros((SIZE,), tl.float32) + mean
    if HAS_BIAS:
        offset -= tl.load(bias_ptr + channel, mask=inside)
    tl.store(scale_ptr + channel, scale, mask=inside)
    tl.store(shift_ptr + channel, tl.load(beta_ptr + channel, mask=inside) - offset * scale, mask=inside)


@triton.jit
def normalize(
    x_ptr, scale_ptr, shift_ptr, out_ptr, pixels, low, high,
    SILU: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * PIXELS
    channel = tl.arange(0, COLUMNS)[None, :]
    pixel = tl.arange(0, PIXELS)[:, None]
    inside = start + pixel < pixels
    known = tl.full((1, COLUMNS), True, tl.int1)
    if CHANNELS != COLUMNS:
        known = channel < CHANNELS
        inside = inside & known
    offsets = pixel * CHANNELS + channel
    value = tl.load(x_ptr + start * CHANNELS + offsets, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(scale_ptr + channel, mask=known) + tl.load(shift_ptr + channel, mask=known)
    if SILU:
        value = value / (1.0 + tl.exp2(value * -1.4426950408889634))
    value = tl.where((start + pixel >= low) & (start + pixel < high), value, 0.0)
    tl.store(out_ptr + start * CHANNELS + offsets, value, mask=inside)


@triton.jit
def shuffle(
    x_ptr, bias_ptr, out_ptr, pixels, width,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, COLUMNS)[None, :]
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row = pixel // width
    column = pixel % width + 1  # the corner grid starts half a low-resolution pixel further left
    corner = (row // 2) * (width // 2 + 1) + column // 2
    block = corner * 4 + (row % 2) * 2 + column % 2
    inside = pixel < pixels
    known = tl.full((1, COLUMNS), True, tl.int1)
    if CHANNELS != COLUMNS:
        known = channel < CHANNELS
        inside = inside & known
    value = tl.load(x_ptr + block * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + pixel * CHANNELS + channel, value + tl.load(bias_ptr + channel, mask=known), mask=inside)


@triton.jit
def to_uint8(x_ptr, bias_ptr, out_ptr, count, padded, colors, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    kind = x_ptr.dtype.element_ty
    value = tl.load(x_ptr + offsets // colors * padded + offsets % colors, mask=inside, other=0.0).to(tl.float32)
    value = (value + tl.load(bias_ptr + offsets % colors, mask=inside, other=0.0)).to(kind).to(tl.float32)
    value = (value * 0.5 + 0.5).to(kind).to(tl.float32)
    value = tl.minimum(tl.maximum(value, 0.0), 1.0) * 255.0
    value = (value + 12582912.0) - 12582912.0  # 1.5 * 2**23: rounds to the nearest, halves to even
    tl.store(out_ptr + offsets, value.to(tl.uint8), mask=inside)


@triton.jit
def softmax(
    scores_ptr, summed_ptr, product_ptr, peak_ptr, total_ptr, stride, keys, channels, headroom,
    KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, KEYS)
    inside = column < keys
    scores_ptr += row * stride
    score = tl.load(scores_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
    before = tl.load(peak_ptr + row)
    higher = tl.maximum(before, tl.max(score, 0))
    weight = tl.exp2((score - higher) * 1.4426950408889634) * headroom
    tl.store(scores_ptr + column, weight, mask=inside)
    fade = tl.exp2((before - higher) * 1.4426950408889634)
    tl.store(total_ptr + row, tl.load(total_ptr + row) * fade + tl.sum(weight, 0))
    tl.store(peak_ptr + row, higher)
    channel = tl.arange(0, CHANNELS)
    known = channel < channels
    summed_ptr += row * channels + channel
    summed = tl.load(summed_ptr, mask=known) + tl.load(product_ptr + row * channels + channel, mask=known)
    tl.store(summed_ptr, summed * fade, mask=known)
