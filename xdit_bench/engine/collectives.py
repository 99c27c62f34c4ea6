"""The few exchanges between ranks that sequence parallelism needs, over sizes all ranks know beforehand.

Owns how bytes move; knows nothing of heads or attention. Every exchange starts at once and is waited for later, so
that work on the current stream can go on beside it. Blocks are rows (dim 0) and may differ in size.

    carrier = DistributedCarrier(mesh)
    received = carrier.scatter(slabs, rows).wait()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from xdit_bench.engine.mesh import Mesh


@dataclass
class Pending:
    """An exchange on its way. Holds what is sent until `wait`, so that nothing overwrites it meanwhile."""

    received: Tensor
    sent: Tensor | None = None
    works: Sequence[Any] = ()

    def wait(self) -> Tensor:
        """What arrived; on GPUs the current stream waits, not the host."""
        for work in self.works:
            work.wait()
        self.works, self.sent = (), None
        return self.received


class Carrier(Protocol):
    """A way to move blocks between the ranks of a mesh. Every rank of the axis calls in step."""

    holds_processors: bool  # while an exchange is on its way, as NCCL's kernels do
    sent_bytes: int  # begun to other ranks, of heads and keys alone; whoever reads it may set it back

    @property
    def held_bytes(self) -> int:
        """Of buffers outside torch's allocator."""

    def scatter(self, slabs: Tensor, rows: Sequence[int]) -> Pending:
        """Slab u of `U*S ...` goes to Ulysses rank u; arrive all ranks' slabs for this one, `rows[u]` rows each."""

    def gather(self, whole: Tensor, rows: Sequence[int]) -> Pending:
        """Inverse of `scatter`: `rows[u]` rows of `sum(rows) ...` go to Ulysses rank u; arrive U slabs of own rows."""

    def shift(self, block: Tensor, rows: Sequence[int], hop: int) -> Pending:
        """The block goes to the next ring position, at hop 0, 1, ...; arrives the block that started `hop + 1`
        positions back, of `rows[position]` rows."""

    def collect(self, own: Tensor, rows: Sequence[int]) -> Pending:
        """Every ring position's block on all of them, in ring order, `sum(rows) ...`."""

    def join(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """Every mesh rank's block on all of them, in rank order, `sum(rows) ...`; not overlapped with anything."""

    def spread(self, block: Tensor, source: int) -> Tensor:
        """Mesh rank `source`'s block on all of them; the others give one of its shape."""

    def total(self, block: Tensor) -> Tensor:
        """The sum of every mesh rank's block on all of them; may overwrite it."""

    def close(self) -> None:
        """Frees what the carrier holds."""


class DistributedCarrier:
    """`torch.distributed`: NCCL between GPUs of any number of hosts, gloo between CPU ranks."""

    holds_processors = True

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.sent_bytes = 0

    @property
    def held_bytes(self) -> int:
        """See Carrier."""
        return 0

    def scatter(self, slabs: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier."""
        return self._to_ulysses(slabs, [rows[self.mesh.ulysses_rank]] * len(rows), rows)

    def gather(self, whole: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier."""
        return self._to_ulysses(whole, rows, [rows[self.mesh.ulysses_rank]] * len(rows))

    def shift(self, block: Tensor, rows: Sequence[int], hop: int) -> Pending:
        """See Carrier."""
        ring, position = self.mesh.ring, self.mesh.ring_rank
        send, receive = [0] * ring, [0] * ring
        send[(position + 1) % ring] = block.shape[0]
        receive[(position - 1) % ring] = rows[(position - hop - 1) % ring]
        self.sent_bytes += block.nbytes
        return _all_to_all(block, send, receive, self.mesh.ring_group)

    def collect(self, own: Tensor, rows: Sequence[int]) -> Pending:
        """See Carrier."""
        self.sent_bytes += own.nbytes * (self.mesh.ring - 1)
        if len(set(rows)) == 1:
            whole = own.new_empty(sum(rows), *own.shape[1:])
            work = dist.all_gather_into_tensor(whole, own, group=self.mesh.ring_group, async_op=True)
            return Pending(whole, own, [work])
        copies = own.repeat(self.mesh.ring, *[1] * (own.dim() - 1))
        return _all_to_all(copies, [own.shape[0]] * self.mesh.ring, rows, self.mesh.ring_group)

    def join(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """See Carrier. Blocks are padded to the largest on the way."""
        if self.mesh.group is None:
            return own
        padded = own.new_zeros(max(rows), *own.shape[1:])
        padded[: own.shape[0]] = own
        blocks = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(blocks, padded, group=self.mesh.group)
        return torch.cat([block[:count] for block, count in zip(blocks, rows, strict=True)])

    def spread(self, block: Tensor, source: int) -> Tensor:
        """See Carrier."""
        if self.mesh.group is None:
            return block
        received = block.contiguous() if self.mesh.rank == source else torch.empty_like(block).contiguous()
        dist.broadcast(received, source, group=self.mesh.group)
        return received

    def total(self, block: Tensor) -> Tensor:
        """See Carrier."""
        if self.mesh.group is not None:
            dist.all_reduce(block, group=self.mesh.group)
        return block

    def close(self) -> None:
        """See Carrier; there is nothing to free."""

    def _to_ulysses(self, send: Tensor, send_rows: Sequence[int], recv_rows: Sequence[int]) -> Pending:
        self.sent_bytes += send.nbytes * (sum(send_rows) - send_rows[self.mesh.ulysses_rank]) // sum(send_rows)
        return _all_to_all(send, send_rows, recv_rows, self.mesh.ulysses_group)


def _all_to_all(
    send: Tensor, send_rows: Sequence[int], recv_rows: Sequence[int], group: dist.ProcessGroup | None
) -> Pending:
    """The rows of `send` in turn to each rank of the group, zero of them where one gets nothing; arrive the rows from
    each in turn. Also what goes to one rank alone is sent so: what isend and irecv have touched while a CUDA graph is
    captured, torch's allocator keeps until the graph is gone."""
    received = send.new_empty(sum(recv_rows), *send.shape[1:])
    work = dist.all_to_all_single(received, send, list(recv_rows), list(send_rows), group=group, async_op=True)
    return Pending(received, send, [work])
