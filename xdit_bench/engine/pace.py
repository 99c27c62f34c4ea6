"""How fast the ranks' cards are beside each other under load. Cards of one kind differ by some percent where power
bounds them: each runs at the clock its own silicon reaches.

    paces = relative_speeds(mesh)      # (0.98, 1.02): rank 1 does 4 % more matrix products a second
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from xdit_bench.engine.mesh import Mesh, slowest

SETTLE_S, MEASURE_S = 0.7, 0.8  # until clocks have come down to what the power limit allows; then the count
BATCH = 100  # products between two looks at the clock, a tenth of a millisecond each
SIDES = (4096, 3072, 3072)  # tokens, in, out: 66 MB

_known: dict[int, tuple[float, ...]] = {}  # by size of the mesh: a process keeps its card


def relative_speeds(mesh: Mesh) -> tuple[float, ...] | None:
    """Matrix products a second of every mesh rank while all of them compute, their mean 1; taken once a process.

    None for one rank and on CPUs, whose ranks share what they run on. Collective over the mesh.
    """
    if mesh.size == 1 or mesh.device.type != "cuda":
        return None
    new = 0.0 if mesh.size in _known else 1.0
    if slowest([new], mesh)[0]:  # on all ranks, or on none
        rates = torch.zeros(mesh.size, dtype=torch.float64, device=mesh.device)
        rates[mesh.rank] = _products_per_s(mesh.device)
        dist.all_reduce(rates, group=mesh.group)
        _known[mesh.size] = tuple(float(rate) for rate in rates / rates.mean())
    return _known[mesh.size]


def _products_per_s(device: torch.device) -> float:
    tokens, width, out = SIDES
    a, b = (torch.randn(side, width, dtype=torch.bfloat16, device=device) for side in (tokens, out))
    product = a.new_empty(tokens, out)

    def run(seconds: float) -> float:
        start, batches = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            for _ in range(BATCH):
                torch.mm(a, b.t(), out=product)
            torch.cuda.synchronize(device)
            batches += 1
        return batches * BATCH / taken

    run(SETTLE_S)
    return run(MEASURE_S)
