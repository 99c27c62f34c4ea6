"""Seconds of the VAE decode: plain on one GPU, tiled, or in row bands over all ranks of a point.

seconds = decode_s(point, model, topology, profile, network)
"""

from __future__ import annotations

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.memory import tile_areas
from xdit_bench.predict.network import Network
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.roofline import stream_s
from xdit_bench.predict.workload import BF16, latent_pixels, vae_decoder
from xdit_bench.topology.specs import Topology


def decode_s(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network) -> float:
    """Seconds from latents to pixels on the host; 0 for vae=none."""
    if point.vae == "none":
        return 0.0
    area, ranks = latent_pixels(point), point.gpus if point.vae == "parallel" else 1
    if point.vae == "tiled":
        work = sum(_bands(tile, 1, model, topology) + _mid(tile, model, topology) for tile in tile_areas(point, model))
    else:
        mid = _mid(area, model, topology) / (ranks if profile.vae.mid_sharded else 1)
        work = _bands(area, ranks, model, topology) + mid
    if ranks > 1:
        work += _exchanges(area, ranks, model, topology, profile, network)
    cold = topology.host["vae_cold_start_s"].value if profile.vae.cold else 0.0
    return work + profile.vae.to_host_s_per_pixel * point.height * point.width + cold


def _bands(area: int, ranks: int, model: ModelSpec, topology: Topology) -> float:
    """Convolutions and activations of one rank's share of `area` latent pixels."""
    vae = vae_decoder(model)
    rate = topology.gpu.peak_flops * topology.efficiency["conv"].value
    return area * vae.conv_flops / ranks / rate + stream_s(topology, area * vae.traffic_bytes / ranks)


def _mid(area: int, model: ModelSpec, topology: Topology) -> float:
    """The mid block's one-head attention over all latent pixels."""
    rate = topology.gpu.peak_flops * topology.efficiency["vae_attention"].value
    return 4.0 * area**2 * vae_decoder(model).mid_channels / rate


def _exchanges(
    area: int, ranks: int, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network
) -> float:
    """Halo rows and statistics (latency and launches), and K and V of the mid block to every rank."""
    small = network.all_gather_s(0.0).seconds + profile.ops_per_collective * topology.host["op_s"].value
    gathered = network.all_gather_s(2.0 * BF16 * area * vae_decoder(model).mid_channels / ranks).seconds
    return profile.vae.exchanges * small + gathered
