"""The few exchanges between ranks that sequence parallelism needs, over sizes both ends know beforehand.

Owns how bytes move; knows nothing of heads or attention. Every exchange starts at once and is waited for later,
so that work on the default stream can go on beside it.

    pending = start_all_to_all(send, send_rows, recv_rows, mesh.ulysses_group)
    received = pending.wait()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

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


def start_all_to_all(send: Tensor, send_rows: Sequence[int], recv_rows: Sequence[int], group: ProcessGroup) -> Pending:
    """Sends `send_rows[p]` rows (dim 0) to group rank p and receives `recv_rows[p]` from it, both contiguous in p."""
    received = send.new_empty(sum(recv_rows), *send.shape[1:])
    work = dist.all_to_all_single(received, send, list(recv_rows), list(send_rows), group=group, async_op=True)
    return Pending(received, send, [work])


def start_shift(send: Tensor, recv_rows: int, mesh: Mesh) -> Pending:
    """Sends a block to the next ring position and receives the previous one's, `recv_rows` rows (dim 0)."""
    received = send.new_empty(recv_rows, *send.shape[1:])
    to, source = (mesh.rank_at(mesh.ulysses_rank, (mesh.ring_rank + hop) % mesh.ring) for hop in (1, -1))
    ops = [
        dist.P2POp(dist.isend, send, to, mesh.ring_group),
        dist.P2POp(dist.irecv, received, source, mesh.ring_group),
    ]
    return Pending(received, send, dist.batch_isend_irecv(ops))


def start_ring_gather(own: Tensor, rows: Sequence[int], mesh: Mesh) -> Pending:
    """Every ring position's block on all of them, in ring order: `sum(rows)` rows. Blocks may differ in size."""
    received = own.new_empty(sum(rows), *own.shape[1:])
    blocks = torch.split(received, list(rows))
    blocks[mesh.ring_rank].copy_(own)
    ops = []
    for hop in range(1, mesh.ring):
        to, source = (mesh.ring_rank + hop) % mesh.ring, (mesh.ring_rank - hop) % mesh.ring
        ops.append(dist.P2POp(dist.isend, own, mesh.rank_at(mesh.ulysses_rank, to), mesh.ring_group))
        ops.append(dist.P2POp(dist.irecv, blocks[source], mesh.rank_at(mesh.ulysses_rank, source), mesh.ring_group))
    return Pending(received, own, dist.batch_isend_irecv(ops))


def all_gather_uneven(own: Tensor, rows: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """Every rank's block, dim 0, in rank order, on all ranks; blocks are padded to the largest on the way."""
    if group is None:
        return own
    padded = own.new_zeros(max(rows), *own.shape[1:])
    padded[: own.shape[0]] = own
    blocks = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(blocks, padded, group=group)
    return torch.cat([block[:count] for block, count in zip(blocks, rows, strict=True)])
