"""Peak memory of a rank and whether it fits: three verdicts, `fits`, `pressure` and `oom`.

Owns bytes of weights and activations by stage. `pressure` is a point that fits only because the
allocator gives cached blocks back again and again: it ends, many times slower (25.3 s instead of 2.9 s for one decode
at 4096px on 80 GB).

    plan = plan_memory(point, model, topology, profile)
"""

from __future__ import annotations

from dataclasses import dataclass

from xdit_bench.config import VAE_SCALE, ModelSpec, Point
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.workload import BF16, Shard, latent_pixels, text_encoders, transformer_bytes, vae_decoder
from xdit_bench.topology.specs import Topology

CONTEXT_BYTES = 0.7e9  # CUDA context and library handles, outside the allocator
DIT_ROWS = 16.3  # hidden states a token alive at once; within 0.06 GB of four published A100 peaks
RESERVED = 1.75  # reserved over allocated activations of a decode: 69 GiB reserved at 3072px on one H100 80 GB
INDEX_LIMIT = 2**31 - 1  # elements of a tensor that cuDNN before 9.3 could address
TILE_OVERLAP = 0.25  # diffusers' tiled decode


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: weights on every rank, the peak of each rank, what the card or the cap leaves, and the fullest stage."""

    verdict: str
    parameters_bytes: int
    peak_bytes_per_rank: tuple[int, ...]
    cap_bytes: int
    stage: str

    @property
    def peak_bytes(self) -> int:
        """Peak of the fullest rank."""
        return max(self.peak_bytes_per_rank)


def plan_memory(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile) -> MemoryPlan:
    """Peaks of the denoising loop and of the decode on top of all weights (both text encoders stay resident)."""
    weights = transformer_bytes(model) + text_encoders(model).all_bytes + vae_decoder(model).weights_bytes
    cap = topology.gpu.memory_bytes - CONTEXT_BYTES
    if point.memory_cap_gb is not None:
        cap = min(cap, point.memory_cap_gb * 1e9)
    denoise = DIT_ROWS * BF16 * model.hidden * Shard.of(point, profile).tokens
    first = decode_bytes(point, model, profile)
    others = first if point.vae == "parallel" else 0.0
    peaks = [weights + max(denoise, first if rank == 0 else others) for rank in range(point.gpus)]
    stage = "vae" if first > denoise else "denoise"
    wanted = weights + max(denoise, first * (profile.vae.band_reserved if _banded(point, profile) else RESERVED))
    verdict = "oom" if max(peaks) > cap else "pressure" if wanted > cap else "fits"
    return MemoryPlan(verdict, round(weights), tuple(round(peak) for peak in peaks), round(cap), stage)


def decode_bytes(point: Point, model: ModelSpec, profile: EngineProfile) -> float:
    """Peak of the decode on a rank that decodes, beyond the weights."""
    pixels = float(point.height * point.width)
    if point.vae == "none":
        return 0.0
    if point.vae == "tiled":
        side = min(int(model.vae["sample_size"]), point.height) * min(int(model.vae["sample_size"]), point.width)
        return _plain(side, model, profile) + 3 * 4 * pixels
    if _banded(point, profile):
        return profile.vae.band_bytes + _scaled(profile.vae.band_bytes_per_pixel * pixels / point.gpus, model)
    return _plain(pixels, model, profile)


def _banded(point: Point, profile: EngineProfile) -> bool:
    """Whether the decode runs in row bands; vae=parallel on one GPU does where the engine's band code is the better."""
    return point.vae == "parallel" and (point.gpus > 1 or profile.vae.banded_alone)


def _plain(pixels: float, model: ModelSpec, profile: EngineProfile) -> float:
    vae = profile.vae
    beyond = vae.index_limit and pixels * vae_decoder(model).wide_channels > INDEX_LIMIT
    return _scaled((vae.fallback_bytes_per_pixel if beyond else vae.plain_bytes_per_pixel) * pixels, model)


def _scaled(full_width_bytes: float, model: ModelSpec) -> float:
    return full_width_bytes * vae_decoder(model).wide_channels / 256


def tile_areas(point: Point, model: ModelSpec) -> list[int]:
    """Latent pixels of each tile of diffusers' tiled decode; one tile where the image is no larger than it."""
    tile = int(model.vae["sample_size"]) // VAE_SCALE
    height, width = point.height // VAE_SCALE, point.width // VAE_SCALE
    if height <= tile and width <= tile:
        return [latent_pixels(point)]
    stride = int(tile * (1 - TILE_OVERLAP))
    return [
        min(tile, height - y) * min(tile, width - x) for y in range(0, height, stride) for x in range(0, width, stride)
    ]
