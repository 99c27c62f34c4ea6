"""Exchanges through symmetric memory: each rank copies straight into its peers' buffers, then all meet at a barrier.

The copies run on the GPUs' copy engines and leave every multiprocessor to the matrix products beside them; a
persistent product next to NCCL's kernels waits for the processors they hold. Needs GPUs of one host that reach each
other. Same interface as `collectives.DistributedCarrier`.

    carrier = SymmetricCarrier(mesh)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor
from torch.distributed import ProcessGroup

from xdit_bench.engine.collectives import DistributedCarrier, Pending
from xdit_bench.engine.mesh import Mesh


class _Arrival:
    """Makes a device's current stream wait for what a side stream has done so far."""

    def __init__(self, stream: torch.cuda.Stream, index: int | None) -> None:
        self.event, self.index = torch.cuda.Event(), index  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        torch.cuda.current_stream(self.index).wait_event(self.event)


class SymmetricCarrier(DistributedCarrier):
    """Why no peer overwrites what is still read: a rank writes into a buffer again only after a later barrier of the
    same axis, which the reader enters once its stream has passed the reading. Between two `scatter`s lies a `gather`
    and the other way round; a ring has no such pair, so its ranks also meet before they write."""

    holds_processors = False

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self.stream = torch.cuda.Stream(mesh.device, priority=-1)  # type: ignore[no-untyped-call]
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # recorded anew for each exchange
        self.boxes: dict[tuple[Any, ...], tuple[Any, list[Tensor]]] = {}

    @property
    def held_bytes(self) -> int:
        """See Carrier."""
        return sum(views[0].nbytes for _, views in self.boxes.values())

    def scatter(self, slabs: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier. Keys and values and queries of a ring differ in shape, so they have buffers of their own."""
        own = self.mesh.ulysses_rank
        sends = [(peer, sum(rows[:own]), slab) for peer, slab in enumerate(slabs.chunk(len(rows)))]
        return self._send("scatter", self.mesh.ulysses_group, own, (sum(rows), *slabs.shape[1:]), sends, slabs)

    def gather(self, whole: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier."""
        own = self.mesh.ulysses_rank
        parts = torch.split(whole, list(rows))
        sends = [(peer, own * rows[peer], part) for peer, part in enumerate(parts)]
        shape = (len(rows) * max(rows), *whole.shape[1:])
        pending = self._send("gather", self.mesh.ulysses_group, own, shape, sends, whole)
        pending.received = pending.received[: len(rows) * rows[own]]
        return pending

    def shift(self, block: Tensor, rows: Sequence[int], hop: int) -> Pending:
        """See Carrier. Two slots take turns: a block is passed on and attended to while the next arrives."""
        own, slots = self.mesh.ring_rank, min(2, max(1, self.mesh.ring - 1))
        start, arriving = hop % 2 * max(rows), rows[(own - hop - 1) % self.mesh.ring]
        sends = [((own + 1) % self.mesh.ring, start, block)]
        shape = (slots * max(rows), *block.shape[1:])
        pending = self._send("keys", self.mesh.ring_group, own, shape, sends, block, meet_first=True)
        pending.received = pending.received.narrow(0, start, arriving)
        return pending

    def collect(self, own: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier."""
        position = self.mesh.ring_rank
        sends = [(peer, sum(rows[:position]), own) for peer in range(self.mesh.ring)]
        shape = (sum(rows), *own.shape[1:])
        return self._send("keys", self.mesh.ring_group, position, shape, sends, own, meet_first=True)

    def close(self) -> None:
        """See Carrier."""
        self.boxes.clear()

    def _send(
        self,
        name: str,
        group: ProcessGroup | None,
        own: int,
        shape: tuple[int, ...],
        sends: Sequence[tuple[int, int, Tensor]],
        sent: Tensor,
        *,
        meet_first: bool = False,
    ) -> Pending:
        """Puts each (peer, first row, block) into the peers' buffers, farther peers last, and meets them; arrives a
        tensor of `shape`.

        Eager images of 1024px wait for their host, which issues this 171 times a step: a stream looked up by its
        device's index, set without a context, and an event that is recorded again take a third of what torch's
        convenient ways do (9 us for 30, on a slow host of two H200s).
        """
        assert group is not None
        handle, views = self._box(name, group, shape, sent.dtype)
        self.sent_bytes += sum(block.nbytes for peer, _, block in sends if peer != own)
        current = torch.cuda.current_stream(self.mesh.device.index)
        self._ready.record(current)
        self.stream.wait_event(self._ready)
        torch.cuda.set_stream(self.stream)
        try:
            if meet_first:
                handle.barrier(channel=0)
            for peer, start, block in sorted(sends, key=lambda send: (send[0] - own - 1) % len(views)):
                views[peer].narrow(0, start, block.shape[0]).copy_(block, non_blocking=True)
            handle.barrier(channel=0)
        finally:
            torch.cuda.set_stream(current)
        return Pending(views[own].narrow(0, 0, shape[0]), sent, [_Arrival(self.stream, self.mesh.device.index)])

    def _box(
        self, name: str, group: ProcessGroup, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Any, list[Tensor]]:
        """This exchange's buffer on every rank of the group, or a larger one of the same that there is; made on first
        use, by all ranks in step."""
        sort = name, shape[1:], dtype
        for (*other, rows), box in self.boxes.items():
            if (*other,) == sort and rows >= shape[0]:
                return box
        memory = symmetric_memory.empty(*shape, dtype=dtype, device=self.mesh.device)
        # torch zeroes the buffer's signals on this rank's stream: behind much queued work that would wipe out what
        # a peer has signalled since, and the barrier would wait for ever
        torch.cuda.synchronize(self.mesh.device)
        handle = rendezvous(memory, group)
        views = [handle.get_buffer(peer, shape, dtype) for peer in range(dist.get_world_size(group))]
        self.boxes[*sort, shape[0]] = handle, views
        return handle, views


_made = 0  # rendezvous that this process has taken part in


def rendezvous(memory: Tensor, group: ProcessGroup) -> Any:
    """torch's, counted."""
    global _made
    _made += 1
    return symmetric_memory.rendezvous(memory, group)


def catch_up(mesh: Mesh) -> None:
    """Makes every rank of the mesh have taken part in as many rendezvous, those behind by some of their own.

    torch names what ranks tell each other by how many their process has made, with any group: ranks that a smaller mesh
    left out would wait for other names than the rest writes, for ever (pytorch/pytorch#196082, September 2026).
    """
    most = torch.tensor([_made], device=mesh.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=mesh.group)
    for _ in range(int(most) - _made):
        rendezvous(symmetric_memory.empty(1, dtype=torch.uint8, device=mesh.device), _alone())


@cache
def _alone() -> ProcessGroup:
    """A group of this rank, which no other has to know of."""
    made = dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
    assert isinstance(made, ProcessGroup)
    return made


def working_carrier(mesh: Mesh) -> SymmetricCarrier | None:
    """A carrier that has just moved numbers rightly over both axes on every rank, or None on all of them."""
    if not _one_host(mesh):
        return None
    works = torch.ones(1, device=mesh.device)
    carrier = None
    try:
        catch_up(mesh)
        carrier = SymmetricCarrier(mesh)
        works.fill_(float(_moves_rightly(carrier)))
    except (RuntimeError, ImportError, AttributeError, ValueError, TypeError):  # of a private part of torch
        works.zero_()
    dist.all_reduce(works, dist.ReduceOp.MIN, group=mesh.group)
    return carrier if works.item() else None


def _one_host(mesh: Mesh) -> bool:
    """Whether all ranks share a host, told by its boot."""
    boot = int(hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:15], 16)
    boots = torch.empty(mesh.size, dtype=torch.int64, device=mesh.device)
    dist.all_gather_into_tensor(boots, torch.tensor([boot], device=mesh.device), group=mesh.group)
    return bool((boots == boot).all())


def _moves_rightly(carrier: SymmetricCarrier) -> bool:
    mesh, right = carrier.mesh, True
    if mesh.ulysses_group is not None:
        rows = [2] * mesh.ulysses
        sent = torch.full((sum(rows), 4), float(mesh.ulysses_rank), device=mesh.device)
        expected = torch.arange(mesh.ulysses, device=mesh.device).repeat_interleave(2)
        right = bool((carrier.scatter(sent, rows).wait()[:, 0] == expected).all())
    if mesh.ring_group is not None:
        own = torch.full((2, 4), float(mesh.ring_rank), device=mesh.device)
        arrived = carrier.shift(own, [2] * mesh.ring, 0).wait()
        right = right and bool((arrived == (mesh.ring_rank - 1) % mesh.ring).all())
    return right
