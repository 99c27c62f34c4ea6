"""The memory of a row-band decode: three slabs that every large tensor lives in, and the rows a chunk has.

A band is the only large thing a stage needs: its input, what the first convolution made of it, and, where the
channels change, its output. Three slabs hold them in turn, sized before anything runs, so that the peak is
known and the allocator never has to search (a fragmented cache is what slows a decode down on a full card).

    slabs = Slabs(slab_elements(parts, rows, width), dtype, device)
    band = slabs.take(0, rows, width, channels)      # rows+2 width channels, uninitialized
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from xdit_bench.engine.mesh import split_sizes
from xdit_bench.engine.vae_parts import DecoderParts, Resnet, UpBlock

SLABS = 3
# a tensor's rows in one chunk: fewer bytes hit the cache more often, but half of it keeps the host too busy on one rank
CHUNK_BYTES = 128 << 20


class Slabs:
    """Three flat buffers, viewed as bands of rows with a halo row at both ends."""

    def __init__(self, elements: list[int], dtype: torch.dtype, device: torch.device) -> None:
        self._buffers = [torch.empty(count, dtype=dtype, device=device) for count in elements]

    def take(self, slot: int, rows: int, width: int, channels: int) -> Tensor:
        """Slab `slot` as rows+2 width channels. What it held is lost."""
        count = band_elements(rows, width, channels)
        assert count <= self._buffers[slot].numel(), f"slab {slot} is too small for {rows + 2}x{width}x{channels}"
        return self._buffers[slot][:count].view(rows + 2, width, channels)

    def flat(self, slot: int) -> Tensor:
        """All of slab `slot`."""
        return self._buffers[slot]


def others(slot: int) -> tuple[int, int]:
    """The two slabs that a stage whose input lies in `slot` may write."""
    first, second = (i for i in range(SLABS) if i != slot)
    return first, second


def band_elements(rows: int, width: int, channels: int) -> int:
    """Elements of a band with its two halo rows."""
    return (rows + 2) * width * channels


def recomputed(blocks: list[UpBlock], index: int) -> bool:
    """Whether the upsampled input of block `index + 1` is computed twice instead of stored.

    It is where the last block narrows it: stored, at full resolution and with all its channels, it would be the
    largest tensor of the decode, twice any other.
    """
    return index == len(blocks) - 2 and blocks[index + 1].resnets[0].shortcut is not None


def slab_elements(parts: DecoderParts, rows: int, width: int) -> list[int]:
    """Elements of each slab for a band of `rows` x `width` latents: the decode's own walk, with sizes alone."""
    sizes, slot = [0] * SLABS, 0

    def need(where: int, channels: int) -> None:
        sizes[where] = max(sizes[where], band_elements(rows, width, channels))

    def resnet(block: Resnet) -> None:
        nonlocal slot
        first, second = others(slot)
        need(first, len(block.conv1.weight))
        if block.shortcut is not None:
            need(second, len(block.conv2.weight))
            slot = second

    need(slot, len(parts.conv_in.weight))
    for part in parts.mid:
        if isinstance(part, Resnet):
            resnet(part)
    for index, block in enumerate(parts.blocks):
        for part in block.resnets:
            resnet(part)
        if block.upsample is not None:
            rows, width = 2 * rows, 2 * width
            if not recomputed(parts.blocks, index):
                slot = others(slot)[0]
                need(slot, len(block.upsample.bias))
    return sizes


def chunks(rows: int, row_bytes: int, limit: int) -> list[tuple[int, int]]:
    """Rows [start, stop) of chunks of about equal size, each of at most `limit` bytes (and of at least one row)."""
    count = min(rows, -(-rows * row_bytes // limit))
    stops = [0]
    for size in split_sizes(rows, count):
        stops.append(stops[-1] + size)
    return list(pairwise(stops))
