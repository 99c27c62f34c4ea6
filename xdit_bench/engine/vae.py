"""Exact decode of an `AutoencoderKL` by row bands: any number of ranks (one included), any height, no seams.

Every rank holds a band of rows of every tensor. A convolution takes one row from each neighbour, a GroupNorm the
merged moments of all ranks (both come in one exchange), the mid-block's attention all keys and values. Within a
rank the band is computed in chunks of rows, so that only the raw tensors exist whole. Same result as
`AutoencoderKL.decode` up to rounding. Weights are `vae_parts.py`'s, arithmetic `vae_eager.py`'s and
`vae_triton.py`'s, memory `vae_memory.py`'s.

    decode = BandVae(pipe.vae, mesh, height=2048, width=2048)
    image = decode.decode(latents[:, :, slice(*decode.band)])      # uint8 on rank 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from xdit_bench.engine.graphs import LoopGraphs
from xdit_bench.engine.mesh import Mesh, split_sizes
from xdit_bench.engine.vae_attention import ALIGNED, QUERIES_A_BLOCK, attention_dtype, blocked_attention_
from xdit_bench.engine.vae_exchange import exchange, gather_rows, gather_tokens
from xdit_bench.engine.vae_memory import CHUNK_BYTES, Slabs, chunks, others, recomputed, slab_elements
from xdit_bench.engine.vae_operations import operations
from xdit_bench.engine.vae_parts import Conv, MidAttention, Norm, Resnet, read_decoder
from xdit_bench.errors import Infeasible


@dataclass
class _Band:
    """A tensor of this rank between two steps: `data` R+2 W C in slab `slot`, and its moments (3 G T, local).

    `upsample` set: the tensor is `data` after that upsample, computed by chunks wherever it is read.
    """

    data: Tensor
    slot: int
    moments: Tensor
    haloed: bool = False
    upsample: Conv | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows of this rank, width, channels."""
        rows, width, channels = self.data.shape
        return (rows - 2, width, channels) if self.upsample is None else (2 * rows - 4, 2 * width, channels)


class BandVae:
    """Row-band decode of one image size on the ranks of `mesh`. `band`: this rank's latent rows [start, stop).

    Raises Infeasible for a VAE this decode does not know, sizes that are not multiples of 16, and more ranks
    than rows of latents. The VAE's modules are not changed. `graph=True` replays a CUDA graph of the decode (one
    exception: the pixels' way to rank 0) where bands are small enough to be bound by the host's launches.
    """

    # largest slabs that a captured decode may hold on to between images; larger bands do not wait for the host
    captured_bytes: int = 1 << 30

    def __init__(self, vae: AutoencoderKL, mesh: Mesh, *, height: int, width: int, graph: bool = False) -> None:
        self._parts = read_decoder(vae)
        rows = height // self._parts.scale
        if height % 16 or width % 16:
            raise Infeasible(f"height and width must be multiples of 16, not {height} and {width}")
        if mesh.size > rows:
            raise Infeasible(f"{mesh.size} ranks cannot share {rows} rows of latents; use at most {rows} ranks")
        self._mesh = mesh
        self._counts = split_sizes(rows, mesh.size)
        self._starts = [0, *accumulate(self._counts)]
        self.band = (self._starts[mesh.rank], self._starts[mesh.rank + 1])
        self._width = width // self._parts.scale
        # several ranks have fewer rows each: half the chunk is as many chunks on two, and less memory
        self.chunk_bytes = CHUNK_BYTES if mesh.size == 1 else CHUNK_BYTES // 2
        weight = self._parts.conv_in.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._ops = operations(self._device)
        self._slab_sizes = slab_elements(self._parts, self.band[1] - self.band[0], self._width)
        # by the largest band, as all ranks have to agree: a capture runs the exchanges once more
        largest = slab_elements(self._parts, max(self._counts), self._width)
        self.small = sum(largest) * self._dtype.itemsize <= self.captured_bytes
        self._graphs = LoopGraphs(self._decode_band) if graph and self.small and self._device.type == "cuda" else None

    def decode(self, latents: Tensor) -> Tensor | None:
        """This rank's latents, 1 16 h w (unscaled decoder input) -> uint8 height width 3 on rank 0, None elsewhere."""
        assert len(latents) == 1, "one image at a time"
        pixels = (self._graphs or self._decode_band)(latents)
        starts = [start * self._parts.scale for start in self._starts]
        return gather_rows(pixels, starts, starts[-1], self._mesh)

    def decode_float(self, latents: Tensor) -> Tensor:
        """This rank's latents, B 16 h w -> its pixel rows, B 3 8h 8w in the compute dtype. For parity."""
        bias = self._parts.conv_out.bias
        images = torch.empty(len(latents), len(bias), *self._pixels, dtype=self._dtype, device=self._device)
        for image, one in zip(images.permute(0, 2, 3, 1), latents, strict=True):

            def write(a: int, b: int, x: Tensor, image: Tensor = image) -> None:
                image[a:b] = x[..., : len(bias)].float() + bias

            self._decode(one, write)
        return images

    def close(self) -> None:
        """Drops the copies of the weights, and the captured decode."""
        if self._graphs is not None:
            self._graphs.clear()
        del self._parts

    @property
    def _pixels(self) -> tuple[int, int]:
        return (self.band[1] - self.band[0]) * self._parts.scale, self._width * self._parts.scale

    def _decode_band(self, latents: Tensor) -> Tensor:
        """This rank's latents, 1 16 h w -> its rows of pixels, 8h 8w 3 uint8."""
        rows, width = self._pixels
        bias = self._parts.conv_out.bias
        pixels = torch.empty(rows, width, len(bias), dtype=torch.uint8, device=self._device)
        self._decode(latents[0], lambda a, b, x: self._ops.to_uint8(x, bias, pixels[a:b]))
        return pixels

    @torch.no_grad()
    def _decode(self, latents: Tensor, sink: Callable[[int, int, Tensor], object]) -> None:
        """Runs the decoder on C h w; `sink` takes the rows [a, b) of its padded output without bias, n W 8."""
        self._slabs = Slabs(self._slab_sizes, self._dtype, self._device)
        try:
            self._run(latents, sink)
        finally:
            del self._slabs  # also when memory ran out: the next point needs it

    def _run(self, latents: Tensor, sink: Callable[[int, int, Tensor], object]) -> None:
        x = self._conv_in(latents)
        for part in self._parts.mid:
            x = self._resnet(part, x) if isinstance(part, Resnet) else self._attention(part, x)
        for index, block in enumerate(self._parts.blocks):
            for resnet in block.resnets:
                x = self._resnet(resnet, x)
            if block.upsample is not None:
                x = self._upsample(block.upsample, x, store=not recomputed(self._parts.blocks, index))
        scale, shift = self._affine(self._parts.norm_out, x)
        for a, b in self._chunks(x):
            z = self._normalize(x, a, b, scale, shift)
            sink(a, b, self._ops.convolve(z, self._parts.conv_out.weight))

    def _conv_in(self, latents: Tensor) -> _Band:
        _, rows, width = latents.shape
        assert (rows, width) == (self.band[1] - self.band[0], self._width), "these latents are not this rank's band"
        latents = latents.to(self._dtype)
        if (conv := self._parts.post_quant) is not None:
            latents = F.conv2d(latents[None], conv.weight, conv.bias.to(self._dtype))[0]
        haloed = latents.new_empty(rows + 2, width, len(latents))
        haloed[1:-1] = latents.permute(1, 2, 0)
        exchange(haloed, None, self._mesh)
        conv = self._parts.conv_in
        data = self._slabs.take(0, rows, width, len(conv.weight))
        made = self._ops.convolve(haloed, conv.weight, data[1:-1])
        groups = self._parts.norm_out.groups
        return _Band(data, 0, self._ops.add_(made, torch.zeros_like(made), conv.bias, groups))

    def _resnet(self, block: Resnet, x: _Band) -> _Band:
        """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), or the narrowed x; chunk by chunk, twice over the band."""
        rows, width, _ = x.shape
        first, second = others(x.slot)
        middle = self._slabs.take(first, rows, width, len(block.conv1.weight))
        out, slot = x.data, x.slot
        if block.shortcut is not None:
            out, slot = self._slabs.take(second, rows, width, len(block.conv2.weight)), second
        moments = []
        scale, shift = self._affine(block.norm1, x)
        for a, b in self._chunks(x):
            raw = self._read(x, a, b)
            z = self._ops.normalize(raw, scale, shift, silu=True, top=self._top(a), bottom=self._bottom(b, rows))
            made = self._ops.convolve(z, block.conv1.weight, middle[a + 1 : b + 1])
            moments.append(self._ops.moments(made, block.conv1.bias, block.norm2.groups))
            if block.shortcut is not None:
                torch.mm(raw[1:-1].flatten(0, 1), block.shortcut, out=out[a + 1 : b + 1].flatten(0, 1))
        inner = _Band(middle, first, torch.cat(moments, -1))
        moments = []
        scale, shift = self._affine(block.norm2, inner, block.conv1.bias)
        for a, b in self._chunks(inner):
            z = self._normalize(inner, a, b, scale, shift)
            y = self._ops.convolve(z, block.conv2.weight)
            moments.append(self._ops.add_(out[a + 1 : b + 1], y, block.conv2.bias, block.norm1.groups))
        return _Band(out, slot, torch.cat(moments, -1))

    def _attention(self, block: MidAttention, x: _Band) -> _Band:
        """x + out(attention(norm(x))): queries of this rank, keys and values of all."""
        rows, width, channels = x.shape
        inside = x.data[1:-1]
        scale, shift = self._affine(block.norm, x, halo=False)
        kind = attention_dtype(self._dtype)
        tokens = self._ops.normalize(inside, scale, shift, silu=False, top=False, bottom=False).flatten(0, 1).to(kind)
        free = sorted((self._slabs.flat(slot).view(kind) for slot in others(x.slot)), key=Tensor.numel)
        counts = [n * width for n in self._counts]
        pairs = gather_tokens(_linear(tokens, block.key_value), counts, self._mesh, free)
        mixed = _linear(tokens, block.query)
        del tokens
        scratch = next(slab for slab in reversed(free) if slab.data_ptr() != pairs[0].data_ptr())
        least = min(len(mixed), QUERIES_A_BLOCK) * ALIGNED
        if scratch.numel() < least:  # of a decoder whose slabs are no wider than the keys
            scratch = mixed.new_empty(least)
        halves = [(pair[:, :channels], pair[:, channels:]) for pair in pairs]
        blocked_attention_(mixed, halves, self._ops, scratch)
        del pairs, halves
        y = F.linear(mixed.to(self._dtype), block.out[0]).view(rows, width, channels)
        return _Band(x.data, x.slot, self._ops.add_(inside, y, block.out[1].float(), block.norm.groups))

    def _upsample(self, conv: Conv, x: _Band, *, store: bool) -> _Band:
        """Nearest 2x and its convolution. `store=False` yields a band that recomputes its rows when read."""
        exchange(x.data, None, self._mesh)
        groups = self._parts.norm_out.groups
        made = _Band(x.data, x.slot, x.moments, haloed=True, upsample=conv)
        rows, width, channels = made.shape
        if store:
            made.slot = others(x.slot)[0]
            out = self._slabs.take(made.slot, rows, width, channels)
        moments = []
        for a, b in self._chunks(made):
            pixels = self._read(made, a, b, out[a : b + 2] if store else None)
            moments.append(self._ops.moments(pixels[1:-1], None, groups))
        made.moments = torch.cat(moments, -1)
        if store:
            made.data, made.upsample = out, None
        return made

    def _read(self, x: _Band, a: int, b: int, out: Tensor | None = None) -> Tensor:
        """Rows [a, b) of a band with one more on both sides, as they are: n+2 W C."""
        if x.upsample is None:
            return x.data[a : b + 2]
        _, width, channels = x.shape
        corners = self._ops.convolve(x.data[a // 2 : b // 2 + 2], x.upsample.weight)
        out = corners.new_empty(b - a + 2, width, channels) if out is None else out
        return self._ops.shuffle(corners, x.upsample.bias, out)

    def _affine(self, norm: Norm, x: _Band, bias: Tensor | None = None, halo: bool = True) -> tuple[Tensor, Tensor]:
        """The one exchange of a half: halo rows and moments. Scale and shift (C) of the norm over the whole image."""
        if self._mesh.size == 1:
            return self._ops.affine(x.moments, norm, bias)
        band = x.data if halo and not x.haloed else None
        everyones = exchange(band, self._ops.merge(x.moments), self._mesh)
        assert everyones is not None
        return self._ops.affine(everyones, norm, bias)

    def _normalize(self, x: _Band, a: int, b: int, scale: Tensor, shift: Tensor) -> Tensor:
        """SiLU(norm) of rows [a, b) and one more on both sides; zeros beyond the image."""
        raw, rows = self._read(x, a, b), x.shape[0]
        return self._ops.normalize(raw, scale, shift, silu=True, top=self._top(a), bottom=self._bottom(b, rows))

    def _chunks(self, x: _Band) -> list[tuple[int, int]]:
        rows, width, channels = x.shape
        step = 1 if x.upsample is None else 2  # an upsampled pair of rows is computed together
        row_bytes = step * width * channels * self._dtype.itemsize
        return [(a * step, b * step) for a, b in chunks(rows // step, row_bytes, self.chunk_bytes)]

    def _top(self, a: int) -> bool:
        return a == 0 and self._mesh.rank == 0

    def _bottom(self, b: int, rows: int) -> bool:
        return b == rows and self._mesh.rank == self._mesh.size - 1


def _linear(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = layer
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
