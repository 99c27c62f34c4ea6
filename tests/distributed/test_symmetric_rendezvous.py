"""Symmetric memory in a pool whose points use fewer ranks than it has: no rendezvous waits for ever.

Its copies need GPUs. Here is its rendezvous, as torch's: names counted by process, told through the group's own store.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory

from xdit_bench.engine import symmetric
from xdit_bench.engine.mesh import build_mesh, connect

MESHES = [(2, 1), (1, 4), (2, 2), (1, 2), (4, 1)]  # of four ranks: two are left out, and come back
WAIT = timedelta(seconds=5)


def stand_in() -> Any:
    """torch.distributed._symmetric_memory.rendezvous of one process, returning the ranks it has heard from."""
    numbers = count()

    def rendezvous(memory: torch.Tensor, group: dist.ProcessGroup) -> list[int]:
        del memory
        store, number = dist.distributed_c10d._get_process_group_store(group), next(numbers)
        store.set(f"{number}/{group.rank()}", "here")
        names = [f"{number}/{peer}" for peer in range(group.size())]
        store.wait(names, WAIT)
        return [int(name.split("/")[1]) for name in names]

    return rendezvous


def worker(rank: int, folder: str, catches_up: bool) -> None:
    connect(rank, 4, f"{folder}/store", torch.device("cpu"))
    symmetric_memory.rendezvous = stand_in()
    symmetric_memory.empty = torch.empty
    for ulysses, ring in MESHES:
        mesh = build_mesh(ulysses, ring, torch.device("cpu"))
        if mesh is None:
            continue
        if catches_up:
            symmetric.catch_up(mesh)
        for group, size in ((mesh.ulysses_group, ulysses), (mesh.ring_group, ring)):
            if group is not None:
                memory = torch.empty(4)
                assert symmetric.rendezvous(memory, group) == list(range(size))
    if rank == 0:
        Path(folder, "met").touch()


def run(folder: Path, *, catches_up: bool) -> bool:
    torch.multiprocessing.start_processes(worker, (str(folder), catches_up), nprocs=4, start_method="spawn")
    return (folder / "met").exists()


@pytest.mark.slow
def test_ranks_that_a_mesh_left_out_meet_the_others_in_the_next(tmp_path: Path) -> None:
    assert run(tmp_path, catches_up=True)


@pytest.mark.slow
def test_without_catching_up_they_would_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"[Tt]imeout"):
        run(tmp_path, catches_up=False)
