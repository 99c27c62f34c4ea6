"""Seconds of compute on one GPU: matrix products, attention and memory traffic, with efficiency by size.

Owns the roofline; counts come from `workload`, the GPU's numbers and calibrated shares of peak from its topology.

    seconds = gemm_s(topology, Gemm(m=1280, k=3072, n=12288))
"""

from __future__ import annotations

import math

from xdit_bench.predict.workload import BF16, Attention, Gemm
from xdit_bench.topology.specs import TAIL, Topology

HALF_WAVE = 0.5  # a GPU's tail that no file names: the A100's and L40's, whose published times it reproduces
TILES = ((128, 256, 1.0), (128, 128, 0.92), (64, 128, 0.80), (64, 64, 0.62))  # rows, columns, speed; CUTLASS's usual
ATTENTION_TILE = 128  # query rows a thread block holds in FlashAttention-2 and cuDNN at head size 128
# kernels of one thread block a multiprocessor, all tiles equally long: waves end together, and the last one is as long
# as a full one; FlashAttention-2's blocks share a multiprocessor and drift apart
WHOLE_WAVES = ("fa3", "cudnn")
TILE_S = 4e-6  # and what such a tile takes to begin and to be written, whatever its keys: traces of two H100s
STRIDED_SHARE = 0.45  # of streaming speed: torch's permuting copy of bf16, 1.3 of 3.35 TB/s in traces of two H100s
SHARPNESS = 6.0  # how sharply the slower of device and host sets a time
L2_SPEEDUP = 2.0  # elementwise kernels whose input and output stay in L2, against memory


def fill(tiles: float, sms: int, tail: float = HALF_WAVE) -> float:
    """Share of full speed that so many thread blocks reach: `waves` of work take max(1, waves) + `tail` waves of time.

    The tail is filling the pipeline and the last wave's expected emptiness; rounding waves up instead would trust that
    all blocks of a wave end together, which a GPU at its power limit does not do.
    """
    waves = tiles / sms
    return waves / (max(1.0, waves) + tail)


def gemm_quality(topology: Topology, m: int, n: int) -> float:
    """Speed of the best tile for an M x N result, relative to many full tiles of the largest kind.

    Hopper's kernels are persistent and begin a tile while the one before is written, so that they lose less of a wave.
    """
    known = topology.efficiency.get(TAIL)
    tail = known.value if known else HALF_WAVE
    best = 0.0
    for rows, columns, speed in TILES:
        tiles = -(-m // rows) * -(-n // columns)
        best = max(best, speed * fill(tiles, topology.gpu.sms, tail) * (m * n) / (tiles * rows * columns))
    return best


def gemm_s(topology: Topology, gemm: Gemm) -> float:
    """One product (not times its count): bound by the matrix units or by reading and writing its operands."""
    if gemm.m == 0:
        return 0.0
    gpu, share = topology.gpu, topology.efficiency["gemm"].value
    flops = 2.0 * gemm.m * gemm.k * gemm.n
    moved = BF16 * (gemm.m * gemm.k + gemm.k * gemm.n + gemm.m * gemm.n)
    return max(flops / (gpu.peak_flops * share * gemm_quality(topology, gemm.m, gemm.n)), stream_s(topology, moved))


def attention_quality(kernel: str, heads: float, queries: int, sms: int) -> float:
    """Share of a kernel's full speed that so many tiles of queries reach, `TILE_S` aside. A tile that queries do not
    fill takes as long as a full one."""
    tiles = _tiles(heads, queries)
    filled = queries / (ATTENTION_TILE * -(-queries // ATTENTION_TILE))
    return filled * (tiles / sms / math.ceil(tiles / sms) if kernel in WHOLE_WAVES else fill(tiles, sms))


def attention_tiles_s(kernel: str, heads: float, queries: int, sms: int) -> float:
    """Seconds of a call that do not depend on how many keys it has."""
    return math.ceil(_tiles(heads, queries) / sms) * TILE_S if kernel in WHOLE_WAVES else 0.0


def _tiles(heads: float, queries: int) -> float:
    return max(1.0, heads * -(-queries // ATTENTION_TILE))


def attention_s(topology: Topology, work: Attention, head_dim: int, kernel: str) -> float:
    """One attention call over all its keys (not times its count)."""
    shape = (kernel, work.heads, work.queries, topology.gpu.sms)
    flops = 4.0 * work.heads * head_dim * work.queries * work.keys
    speed = topology.gpu.peak_flops * topology.attention[kernel].value * attention_quality(*shape)
    return flops / speed + attention_tiles_s(*shape)


def slower_of(device_s: float, host_s: float) -> float:
    """Seconds of work that the host launches while the device runs: a soft maximum, since neither is even."""
    return float((device_s**SHARPNESS + host_s**SHARPNESS) ** (1 / SHARPNESS))


def stream_s(topology: Topology, moved_bytes: float, share: str = "memory") -> float:
    """Bytes read and written at streaming speed, or at another share of the memory's that the topology names."""
    return moved_bytes / (topology.gpu.memory_bytes_per_s * topology.efficiency[share].value)


def rows_s(topology: Topology, rows: float, tokens: int, row_bytes: float, *, fused: bool) -> float:
    """`rows` passes over `tokens` rows by elementwise kernels; what fits in L2 runs faster.

    Eager mixes fp32 casts and strided copies (share `elementwise`), fused kernels stream (share `memory`).
    """
    share = topology.efficiency["memory" if fused else "elementwise"].value
    half = topology.gpu.l2_bytes / 2
    sides = 4 if fused else 2  # input and output side by side; a fused norm reads and writes the residual stream too
    outside = min(1.0, max(0.0, (sides * tokens * row_bytes - half) / half))
    slow = 1 / L2_SPEEDUP + (1 - 1 / L2_SPEEDUP) * outside
    return rows * tokens * row_bytes * slow / (topology.gpu.memory_bytes_per_s * share)
