"""How fast ranks exchange tensors: the collectives that sequence parallelism lives on, at a few sizes.

rows = probe_collectives(None, torch.device("cuda", 0))
rows[0]  # {"collective": "all_to_all", "bytes": 65536, "seconds": 4.1e-05, "bytes_per_s": ...}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from xdit_bench.measure.stats import quantile
from xdit_bench.measure.timers import agree, synchronize

SIZES = {"cuda": (2**16, 2**20, 2**24, 2**28), "cpu": (2**16, 2**20, 2**22)}
LINK_BYTES = 2**24  # about what keys and values of 1024px weigh on one of two GPUs
WARMUPS = 3
TRIES = 12
CALLS = 4  # of a link's exchange in a row, as `calibrate` takes it: one alone waits for the host as well
Exchange = Callable[[], None]


def probe_collectives(group: ProcessGroup | None, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of one exchange (median of the slowest rank's) and bytes/s one rank sends. Collective over the group
    (None: all ranks). `bytes` is what one rank sends in all."""
    rows = []
    for size in SIZES[device.type]:
        for name, (exchange, sent) in _exchanges(group, device, size).items():
            seconds = _time(exchange, group, device)
            rows.append({"collective": name, "bytes": sent, "seconds": seconds, "bytes_per_s": sent / seconds})
    return rows


def probe_link(groups: Mapping[str, ProcessGroup | None], device: torch.device) -> dict[str, dict[str, float]]:
    """What one exchange of `LINK_BYTES` takes now, of `calls` in a row: the bytes one rank sends, and median seconds of
    the slowest rank.

    `groups` are those of the axes by what travels on them, `all_to_all` or `ring`, None for an axis of one rank.
    Collective over all of them.
    """
    found = {}
    for name, group in groups.items():
        if group is not None:
            exchange, sent = _exchanges(group, device, LINK_BYTES)[name]
            seconds = _time(exchange, group, device, CALLS)
            found[name] = {"bytes": float(sent), "seconds": seconds, "calls": float(CALLS)}
    return found


def _exchanges(group: ProcessGroup | None, device: torch.device, size: int) -> dict[str, tuple[Exchange, int]]:
    """Each exchange and the bytes a rank sends in it; `size` bytes is the tensor a rank holds."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    elements = size // 2 // ranks * ranks
    held = torch.ones(elements, dtype=torch.bfloat16, device=device)
    other = torch.empty_like(held)
    shard = held[: elements // ranks]
    following, previous = (_global(group, (rank + step) % ranks) for step in (1, -1))

    def ring() -> None:
        operations = [
            dist.P2POp(dist.isend, held, following, group),
            dist.P2POp(dist.irecv, other, previous, group),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return {
        "all_to_all": (lambda: _call(dist.all_to_all_single, other, held, group), elements * 2 * (ranks - 1) // ranks),
        "ring": (ring, elements * 2),
        "all_gather": (
            lambda: _call(dist.all_gather_into_tensor, other, shard, group),
            elements * 2 * (ranks - 1) // ranks,
        ),
    }


def _call(collective: Any, output: torch.Tensor, given: torch.Tensor, group: ProcessGroup | None) -> None:
    collective(output, given, group=group)


def _global(group: ProcessGroup | None, rank: int) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


def _time(exchange: Exchange, group: ProcessGroup | None, device: torch.device, calls: int = 1) -> float:
    world = dist.group.WORLD if group is None else group
    samples = []
    for attempt in range(WARMUPS + TRIES):
        agree(world, [0.0])
        begun = time.perf_counter()
        for _ in range(calls):
            exchange()
        synchronize(device)
        (slowest,) = agree(world, [(time.perf_counter() - begun) / calls])
        if attempt >= WARMUPS:
            samples.append(slowest)
    return quantile(samples, 0.5)
