"""Peak memory of a rank and whether it fits: three verdicts, `fits`, `pressure` and `oom`.

Owns bytes of weights and activations by stage. `pressure` is a point that fits only because the
allocator gives cached blocks back again and again, or because cuDNN makes do with less workspace: it ends, many times
slower (25.1 s instead of 2.9 s for one decode at 4096px on 80 GB, 122 s at 5376px).

    plan = plan_memory(point, model, topology, profile)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from xdit_bench.config import SHARED_VAES, VAE_SCALE, ModelSpec, Point
from xdit_bench.predict.network import path
from xdit_bench.predict.profiles import EngineProfile, VaeProfile, find, vae_profile
from xdit_bench.predict.workload import (
    BF16,
    Shard,
    band_share,
    latent_pixels,
    modulation_bytes,
    text_encoders,
    transformer_bytes,
    vae_decoder,
)
from xdit_bench.topology.specs import SYMMETRIC, Topology

CONTEXT_BYTES = 0.7e9  # CUDA context and library handles, outside the allocator
KERNEL_ROWS = 4  # hidden states a token that choosing an attention kernel holds: q, k, v and the output
RESERVED = 1.75  # reserved over allocated activations of a decode: 69 GiB reserved at 3072px on one H100 80 GB
# and at the least, as searches for the largest plain decode ended: below caps, 5248px fitted in 1.094 times what it
# then had in use and 2880px in 1.12, 5312 and 2944px ran out of 1.07; on a whole card, whose context is not known to
# 1 %, 5376px fitted in 1.15 and 5504px ran out of 1.098
LEAST_RESERVED = 1.09
SLAB_HOLDS = 8  # ranks whose slabs have room for all keys and values of the mid block (engine.vae_memory)
INDEX_LIMIT = 2**31 - 1  # elements of a tensor that cuDNN before 9.3 could address
TILE_OVERLAP = 0.25  # diffusers' tiled decode
NEAR = 0.05  # of the capacity: closer than that, either verdict may come true


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: weights on a rank while it runs, the peak of each rank, what the card or the cap allows, and the fullest
    stage; `load` or `prepare` where a rank can not even hold all weights, or these while it chooses an attention
    kernel: `loading_bytes`. `least_bytes` is the lowest peak that the fullest rank can end with, `needed_bytes` what
    its allocator needs for that; `cramped` where a decode has these and not the workspace of fast convolutions."""

    verdict: str
    parameters_bytes: int
    peak_bytes_per_rank: tuple[int, ...]
    cap_bytes: int
    stage: str
    loading_bytes: int = 0
    least_bytes: int = 0
    needed_bytes: int = 0
    cramped: bool = False

    @property
    def peak_bytes(self) -> int:
        """Peak of the fullest rank."""
        return max(self.peak_bytes_per_rank)

    @property
    def near(self) -> bool:
        """Whether what is needed is so near to what there is that it may fit or not."""
        return abs(max(self.needed_bytes, self.loading_bytes) / self.cap_bytes - 1) <= NEAR


def plan_memory(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile) -> MemoryPlan:
    """Peaks of the denoising loop and of the decode on top of the weights (both text encoders stay resident).

    Every rank has loaded all weights before an engine puts others' shares away, so that these have to fit too.
    Symmetric memory counts towards the peak; outside torch's allocator, it takes from what the card leaves to that.
    """
    loaded, text = weights_bytes(model), text_encoders(model)
    weights = loaded - (modulation_bytes(model) * (1 - 1 / point.gpus) if profile.shards_modulation else 0.0)
    if profile.shards_text:  # by width, or whole layers
        share = 1 / point.gpus if profile.text_graph else -(-text.layers // point.gpus) / text.layers
        weights -= text.layers_bytes * (1 - share)
    buffers = symmetric_bytes(point, model, topology, profile)
    card = topology.gpu.memory_bytes - CONTEXT_BYTES
    allowed = card if point.memory_cap_gb is None else min(card, point.memory_cap_gb * 1e9)
    cap = min(card, allowed + buffers)  # a cap binds torch's allocator alone
    row_bytes, tokens = BF16 * model.hidden, Shard.of(point, profile).tokens
    rows = profile.live_rows + received_rows(point, topology, profile)
    denoise = rows * row_bytes * tokens if point.steps else 0.0  # or a decode beside an engine at rest
    start = loaded + KERNEL_ROWS * row_bytes * tokens if point.steps else loaded
    first = decode_bytes(point, model, profile)
    others = first if point.vae in SHARED_VAES else 0.0
    held = weights + buffers
    peaks = [held + max(denoise, first if rank == 0 else others) for rank in range(point.gpus)]
    stage = "vae" if first > denoise else "denoise"
    vae = vae_profile(point, profile)
    wanted = held + max(denoise, first * (vae.band_reserved if _banded(point, vae) else RESERVED))
    lowest = decode_bytes(point, model, profile, least=True)
    spare = vae.band_least_reserved if _banded(point, vae) else LEAST_RESERVED
    needed = held + max(denoise, spare * lowest)
    if start > allowed:
        verdict, stage, cap = "oom", "load" if loaded > allowed else "prepare", allowed
    else:
        verdict = "oom" if needed > cap else "pressure" if wanted > cap else "fits"
    cramped = verdict == "pressure" and max(peaks) > cap
    if cramped:
        peaks = [min(peak, cap) for peak in peaks]
    of_ranks = tuple(round(peak) for peak in peaks)
    least = held + max(denoise, lowest)
    return MemoryPlan(
        verdict, round(weights), of_ranks, round(cap), stage, round(start), round(least), round(needed), cramped
    )


def largest_that_fits(point: Point, model: ModelSpec, topology: Topology, sizes: Iterable[int]) -> int | None:
    """The largest square of `sizes`, pixels, that the point ends with, under pressure or not; None where none does.

    Raises Infeasible for an engine without a profile.
    """
    profile = find(point.engine, point.execution)
    squares = (replace(point, height=size, width=size) for size in sorted(sizes, reverse=True))
    fitting = (square for square in squares if plan_memory(square, model, topology, profile).verdict != "oom")
    return next((square.height for square in fitting), None)


def weights_bytes(model: ModelSpec) -> float:
    """Of the whole pipeline's weights in bf16."""
    return transformer_bytes(model) + text_encoders(model).all_bytes + vae_decoder(model).weights_bytes


def symmetric_bytes(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile) -> float:
    """Buffers that peers write into (engine.symmetric), whole rows of the rank's tokens: keys with values, queries and
    the heads that come back; on a ring keys and values of up to two hops or, where it may gather, of all ranks."""
    if path(topology, point, profile.symmetric) != SYMMETRIC or point.gpus == 1 or not point.steps:
        return 0.0
    ring, row_bytes = point.ring, float(BF16 * model.hidden * Shard.of(point, profile).tokens)
    rows = 4 if point.ulysses > 1 else 0
    if ring > 1:
        gathers = 2 * ring * row_bytes <= profile.gathered_bytes
        rows += 2 * (ring if gathers else min(2, ring - 1))
    return rows * row_bytes


def received_rows(point: Point, topology: Topology, profile: EngineProfile) -> int:
    """Rows a token of the allocator's that hold what arrives, beyond `live_rows`: of usp what symmetric memory holds
    elsewhere, of the others a ring's gathered keys and values, which do not shrink with the ranks."""
    symmetric = path(topology, point, profile.symmetric) == SYMMETRIC
    if profile.symmetric and not symmetric:
        return (4 if point.ulysses > 1 else 0) + (2 * point.ring if point.ring > 1 else 0)
    return 2 * point.ring if profile.ring_gathers and point.ring > 1 else 0


def decode_bytes(point: Point, model: ModelSpec, profile: EngineProfile, *, least: bool = False) -> float:
    """Peak of the decode on a rank that decodes, beyond the weights; `least` with cuDNN's smallest workspace."""
    pixels, vae = float(point.height * point.width), vae_profile(point, profile)
    if point.vae == "none":
        return 0.0
    if point.vae == "tiled":
        side = min(int(model.vae["sample_size"]), point.height) * min(int(model.vae["sample_size"]), point.width)
        return _plain(side, model, vae, least) + 3 * 4 * pixels
    if _banded(point, vae):
        share = pixels * band_share(point)
        each = vae.band_least_bytes_per_pixel if least else vae.band_bytes_per_pixel
        if _beyond_index(share, model, vae):
            each = vae.band_bytes_per_pixel + vae.fallback_bytes_per_pixel - vae.plain_bytes_per_pixel
        held = _scaled(each * share, model)
        middle = _middle_bytes(point, model) if vae.mid_sharded else 0.0
        chunks = vae.chunks_bytes if point.gpus == 1 else vae.chunks_bytes / 2
        return held + vae.band_bytes + max(chunks, middle)
    return _plain(pixels, model, vae, least)


def _middle_bytes(point: Point, model: ModelSpec) -> float:
    """What the mid block's attention holds beside the slabs, in float16: normed tokens, queries, keys with values; on
    several ranks tokens, and keys with values until they are gathered. Those of the whole image lie in a slab, where
    one holds them."""
    whole = float(BF16 * latent_pixels(point) * vae_decoder(model).mid_channels)
    if point.gpus == 1:
        return 4 * whole
    return 3 * whole / point.gpus + (2 * whole if point.gpus > SLAB_HOLDS else 0.0)


def _banded(point: Point, vae: VaeProfile) -> bool:
    """Whether the decode is shared out; on one GPU it runs in bands where the engine's band code is the better."""
    return point.vae in SHARED_VAES and (point.gpus > 1 or vae.banded_alone)


def _plain(pixels: float, model: ModelSpec, vae: VaeProfile, least: bool) -> float:
    each = vae.least_bytes_per_pixel if least else vae.plain_bytes_per_pixel
    if _beyond_index(pixels, model, vae):  # what computes it then has no other way
        each = vae.fallback_bytes_per_pixel
    return _scaled(each * pixels, model)


def _beyond_index(pixels: float, model: ModelSpec, vae: VaeProfile) -> bool:
    """Whether a convolution over so many pixels has more elements than cuDNN could then address."""
    return vae.index_limit and pixels * vae_decoder(model).wide_channels > INDEX_LIMIT


def _scaled(full_width_bytes: float, model: ModelSpec) -> float:
    return full_width_bytes * vae_decoder(model).wide_channels / 256


def tile_grid(point: Point, model: ModelSpec) -> tuple[int, int]:
    """Rows and columns of tiles in diffusers' tiled decode."""
    heights, widths = _tile_sides(point, model)
    return len(heights), len(widths)


def tile_areas(point: Point, model: ModelSpec) -> list[int]:
    """Latent pixels of each tile of diffusers' tiled decode; one tile where the image is no larger than it."""
    heights, widths = _tile_sides(point, model)
    return [height * width for height in heights for width in widths]


def _tile_sides(point: Point, model: ModelSpec) -> tuple[list[int], list[int]]:
    """Heights of the rows of tiles and widths of the columns, in latent pixels."""
    tile, sides = int(model.vae["sample_size"]) // VAE_SCALE, (point.height // VAE_SCALE, point.width // VAE_SCALE)
    stride = int(tile * (1 - TILE_OVERLAP)) if max(sides) > tile else tile
    heights, widths = ([min(tile, side - start) for start in range(0, side, stride)] for side in sides)
    return heights, widths
