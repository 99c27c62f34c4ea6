"""Seconds of the VAE decode: plain on one GPU, tiled, or in row bands over all ranks of a point.

seconds = decode_s(point, model, topology, profile, network)
"""

from __future__ import annotations

from xdit_bench.config import SHARED_VAES, VAE_SCALE, ModelSpec, Point
from xdit_bench.predict.memory import TILE_OVERLAP, tile_areas, tile_grid
from xdit_bench.predict.network import Network
from xdit_bench.predict.profiles import PLAIN_VAE, EngineProfile, vae_profile
from xdit_bench.predict.roofline import slower_of, stream_s
from xdit_bench.predict.workload import BF16, band_share, latent_pixels, vae_decoder
from xdit_bench.topology.specs import PASSES, Topology

FUSED_TRAFFIC = (
    8 / 17
)  # norm with SiLU fused: a ResNet half reads for its moments, reads and writes for the convolution
OPS_PER_BLENDED_ROW = 6  # two slices, two products, a sum and a copy


def decode_s(
    point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network, lead_s: float = 0.0
) -> float:
    """Seconds from latents to pixels on the host; 0 for vae=none. The host has issued for `lead_s` of them before the
    device is done with denoising."""
    if point.vae == "none":
        return 0.0
    area, vae = latent_pixels(point), vae_profile(point, profile)
    ranks = point.gpus if point.vae in SHARED_VAES else 1
    banded = point.vae in SHARED_VAES and vae.channels_last and (ranks > 1 or vae.banded_alone)
    launches = vae.host_ops if banded else PLAIN_VAE.host_ops
    if point.vae == "tiled":
        tiles = tile_areas(point, model)
        work = sum(_layers_s(tile, model, topology) + _mid_s(tile, model, topology) for tile in tiles)
        launches *= len(tiles)
        work += _blend_ops(*tile_grid(point, model), model) * topology.op_s(ranks)
    else:
        work = _layers_s(area * (band_share(point) if ranks > 1 else 1.0), model, topology, banded)
        work += _mid_s(area, model, topology, banded) / (ranks if vae.mid_sharded else 1)
    if ranks > 1:
        work += vae.exchanges * network.all_gather_s(0.0).seconds  # halo rows and statistics: latency alone
        # keys and values of the mid block to every rank, or the image that each has made a band of
        held = 2.0 * vae_decoder(model).mid_channels if vae.mid_sharded else 3.0 * VAE_SCALE**2
        work += network.all_gather_s(BF16 * held * area / ranks).seconds
        launches += vae.exchanges * vae.ops_per_exchange
    work = slower_of(work, max(0.0, launches * topology.op_s(ranks) - lead_s))
    cold = topology.host["vae_cold_start_s"].value if vae.cold else 0.0
    return work + vae.to_host_s_per_pixel * point.height * point.width + cold


def _layers_s(area: float, model: ModelSpec, topology: Topology, banded: bool = False) -> float:
    """Convolutions and activations of `area` latent pixels."""
    vae = vae_decoder(model)
    share = topology.efficiency["conv_nhwc" if banded else "conv"].value
    traffic = vae.traffic_bytes * (FUSED_TRAFFIC if banded else 1.0)
    flops = vae.fused_conv_flops if banded else vae.conv_flops
    speed = PASSES if banded and PASSES in topology.efficiency else "memory"
    return area * flops / (topology.gpu.peak_flops * share) + stream_s(topology, area * traffic, speed)


def _mid_s(area: int, model: ModelSpec, topology: Topology, banded: bool = False) -> float:
    """The mid block's one-head attention over all latent pixels."""
    share = topology.efficiency["vae_attention_blocked" if banded else "vae_attention"].value
    return 4.0 * area**2 * vae_decoder(model).mid_channels / (topology.gpu.peak_flops * share)


def _blend_ops(rows: int, columns: int, model: ModelSpec) -> float:
    """Launches of diffusers' blending: a loop over the rows, or the columns, of every seam between two tiles."""
    seams = float(rows * (columns - 1) + columns * (rows - 1))
    return seams * TILE_OVERLAP * int(model.vae["sample_size"]) * OPS_PER_BLENDED_ROW
