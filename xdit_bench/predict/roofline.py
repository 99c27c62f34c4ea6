"""Seconds of compute on one GPU: matrix products, attention and memory traffic, with efficiency by size.

Owns the roofline; counts come from `workload`, the GPU's numbers and calibrated shares of peak from its topology.

    seconds = gemm_s(topology, Gemm(m=1280, k=3072, n=12288))
"""

from __future__ import annotations

from xdit_bench.predict.workload import BF16, Attention, Gemm
from xdit_bench.topology.specs import Topology

TILES = ((128, 256, 1.0), (128, 128, 0.92), (64, 128, 0.80), (64, 64, 0.62))  # rows, columns, speed; CUTLASS's usual
ATTENTION_TILE = 128  # query rows a thread block holds in FlashAttention-2 and cuDNN at head size 128
SHARPNESS = 6.0  # how sharply the slower of device and host sets a time
L2_SPEEDUP = 2.0  # elementwise kernels whose input and output stay in L2, against memory


def fill(tiles: float, sms: int) -> float:
    """Share of full speed that so many thread blocks reach: `waves` of work take max(1, waves) + 1/2 waves of time.

    The half wave is filling the pipeline and the last wave's expected emptiness; rounding waves up
    instead would trust that all blocks of a wave end together, which a GPU at its power limit does not do.
    """
    waves = tiles / sms
    return waves / (max(1.0, waves) + 0.5)


def gemm_quality(topology: Topology, m: int, n: int) -> float:
    """Speed of the best tile for an M x N result, relative to many full tiles of the largest kind."""
    best = 0.0
    for rows, columns, speed in TILES:
        tiles = -(-m // rows) * -(-n // columns)
        best = max(best, speed * fill(tiles, topology.gpu.sms) * (m * n) / (tiles * rows * columns))
    return best


def gemm_s(topology: Topology, gemm: Gemm) -> float:
    """One product (not times its count): bound by the matrix units or by reading and writing its operands."""
    if gemm.m == 0:
        return 0.0
    gpu, share = topology.gpu, topology.efficiency["gemm"].value
    flops = 2.0 * gemm.m * gemm.k * gemm.n
    moved = BF16 * (gemm.m * gemm.k + gemm.k * gemm.n + gemm.m * gemm.n)
    return max(flops / (gpu.peak_flops * share * gemm_quality(topology, gemm.m, gemm.n)), stream_s(topology, moved))


def attention_s(topology: Topology, work: Attention, head_dim: int, share: float) -> float:
    """One attention call over all its keys (not times its count); `share` of peak is the kernel's."""
    tiles = -(-work.queries // ATTENTION_TILE)
    quality = fill(max(1.0, work.heads * tiles), topology.gpu.sms)
    flops = 4.0 * work.heads * head_dim * work.queries * work.keys
    return flops / (topology.gpu.peak_flops * share * quality)


def slower_of(device_s: float, host_s: float) -> float:
    """Seconds of work that the host launches while the device runs: a soft maximum, since neither is even."""
    return float((device_s**SHARPNESS + host_s**SHARPNESS) ** (1 / SHARPNESS))


def stream_s(topology: Topology, moved_bytes: float) -> float:
    """Bytes read and written at streaming speed."""
    return moved_bytes / (topology.gpu.memory_bytes_per_s * topology.efficiency["memory"].value)


def rows_s(topology: Topology, rows: float, tokens: int, row_bytes: float, *, fused: bool) -> float:
    """`rows` passes over `tokens` rows by elementwise kernels; what fits in L2 runs faster.

    Eager mixes fp32 casts and strided copies (share `elementwise`), fused kernels stream (share `memory`).
    """
    share = topology.efficiency["memory" if fused else "elementwise"].value
    half = topology.gpu.l2_bytes / 2
    outside = min(1.0, max(0.0, (2 * tokens * row_bytes - half) / half))  # input and output side by side
    slow = 1 / L2_SPEEDUP + (1 - 1 / L2_SPEEDUP) * outside
    return rows * tokens * row_bytes * slow / (topology.gpu.memory_bytes_per_s * share)
