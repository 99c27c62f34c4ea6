"""The ranks of one point and their groups. The only place where a process group is created.

Leaves what is sent through them to `collectives`.

    connect(rank, world_size, store_file, device)      # once a process
    mesh = build_mesh(ulysses=2, ring=2, device=device)  # a point uses the first ulysses * ring ranks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Mesh:
    """Ulysses x ring ranks. `group` holds all of them; a group of one rank is None.

    Rank `i` of the mesh sits at ring position `i // ulysses` and Ulysses position `i % ulysses`: the all-to-all runs
    between neighbouring GPUs, the ring across them.
    """

    ulysses: int
    ring: int
    rank: int
    device: torch.device
    group: ProcessGroup | None = None
    ulysses_group: ProcessGroup | None = None
    ring_group: ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Ranks of the mesh."""
        return self.ulysses * self.ring

    @property
    def ulysses_rank(self) -> int:
        """Position on the Ulysses axis."""
        return self.rank % self.ulysses

    @property
    def ring_rank(self) -> int:
        """Position on the ring axis."""
        return self.rank // self.ulysses

    def rank_at(self, ulysses_rank: int, ring_rank: int) -> int:
        """Mesh rank (equals global rank: a point uses the first ranks) at a position of both axes."""
        return ring_rank * self.ulysses + ulysses_rank


def connect(rank: int, world_size: int, store_file: str, device: torch.device, *, timeout_s: float = 600.0) -> None:
    """Joins the process group of all ranks: NCCL on GPUs, gloo beside it for host-side agreement.

    The ranks meet through a file, so that nothing listens beyond this machine; those of several machines through
    `tcp://<host>:<port>` in its place.
    """
    dist.init_process_group(
        backend="cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo",
        init_method=store_file if "://" in store_file else f"file://{store_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )


def build_mesh(ulysses: int, ring: int, device: torch.device) -> Mesh | None:
    """The mesh of the first `ulysses * ring` ranks; None on ranks outside it. Collective over all ranks."""
    size = ulysses * ring
    if not dist.is_initialized():
        assert size == 1, "a mesh of several ranks needs connect() first"
        return Mesh(1, 1, 0, device)
    rank = dist.get_rank()

    def group(ranks: list[int]) -> ProcessGroup | None:
        if len(ranks) == 1:
            return None
        made = dist.new_group(ranks)  # every rank of the world takes part, members or not
        return made if rank in ranks else None

    mesh = Mesh(ulysses, ring, rank if rank < size else 0, device)
    whole = group(list(range(size)))
    ulysses_group = ring_group = None
    for r in range(ring):
        made = whole if ring == 1 else group([mesh.rank_at(u, r) for u in range(ulysses)])
        ulysses_group = ulysses_group or made
    for u in range(ulysses):
        made = whole if ulysses == 1 else group([mesh.rank_at(u, r) for r in range(ring)])
        ring_group = ring_group or made
    if rank >= size:
        return None
    return Mesh(ulysses, ring, rank, device, whole, ulysses_group if ulysses > 1 else None,
                ring_group if ring > 1 else None)  # fmt: skip


def slowest(seconds: Sequence[float], mesh: Mesh) -> list[float]:
    """Of each measurement the seconds of the mesh's slowest rank. Collective, so that all ranks choose alike."""
    if mesh.group is None:
        return list(seconds)
    of_all = torch.tensor(seconds, dtype=torch.float64, device=mesh.device)
    dist.all_reduce(of_all, dist.ReduceOp.MAX, group=mesh.group)
    return [float(value) for value in of_all]


def split_sizes(total: int, parts: int) -> list[int]:
    """Static uneven split: the first `total % parts` parts hold one more. `split_sizes(10, 4) == [3, 3, 2, 2]`."""
    base, more = divmod(total, parts)
    return [base + (i < more) for i in range(parts)]


def own_range(total: int, mesh: Mesh) -> range:
    """Positions of this rank's part of `split_sizes`, which lie one behind the other."""
    sizes = split_sizes(total, mesh.size)
    start = sum(sizes[: mesh.rank])
    return range(start, start + sizes[mesh.rank])
