"""What the ranks of a row-band decode tell each other: halo rows, GroupNorm moments, keys and values, pixels.

Bands are `R+2 W C`: R rows of this rank between one halo row above and one below.

    parts = exchange(band, moments, mesh)       # fills band[0] and band[-1]; all ranks' moments, 3 G P
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.engine.mesh import Mesh


def exchange(band: Tensor | None, moments: Tensor | None, mesh: Mesh) -> Tensor | None:
    """One collective: the neighbours' rows into the halo of `band`, and every rank's `moments` (3 G 1 -> 3 G P).

    Either argument may be None. Without moments the band is about to enter a convolution as it is, so that rows
    beyond the image's edge become zeros; with them it is normalized first, which writes those zeros itself.
    Rows go to all ranks, not to the neighbours alone: a second collective costs more than the bytes it would save.
    """
    if band is not None and moments is None:
        if mesh.rank == 0:
            band[0].zero_()
        if mesh.rank == mesh.size - 1:
            band[-1].zero_()
    if mesh.size == 1:
        return moments
    rows = [] if band is None else [_bytes(band[1]), _bytes(band[-2])]
    sent = torch.cat(rows + ([] if moments is None else [_bytes(moments)]))
    received = sent.new_empty(mesh.size, len(sent))
    dist.all_gather_into_tensor(received.view(-1), sent, group=mesh.group)
    if band is not None:
        row = len(rows[0])
        if mesh.rank > 0:
            _bytes(band[0]).copy_(received[mesh.rank - 1, row : 2 * row])
        if mesh.rank < mesh.size - 1:
            _bytes(band[-1]).copy_(received[mesh.rank + 1, :row])
    if moments is None:
        return None
    tail = received[:, len(sent) - moments.numel() * 4 :].view(torch.float32)
    return tail.view(mesh.size, *moments.shape[:2]).permute(1, 2, 0).contiguous()


def gather_tokens(x: Tensor, counts: list[int], mesh: Mesh, rooms: Sequence[Tensor] = ()) -> list[Tensor]:
    """Every rank's tokens, `counts[p]` C each, in one part where all have as many, else one part a rank.

    They are written into the first of `rooms` (flat, x's dtype) that can hold them, into memory of their own else.
    """
    if mesh.size == 1:
        return [x]
    longest = max(counts)
    sent = x if len(x) == longest else F.pad(x, (0, 0, 0, longest - len(x)))
    shape = (mesh.size * longest, x.shape[1])
    room = next((room for room in rooms if room.numel() >= math.prod(shape)), None)
    received = x.new_empty(shape) if room is None else room[: math.prod(shape)].view(shape)
    dist.all_gather_into_tensor(received, sent, group=mesh.group)
    if len(received) == sum(counts):
        return [received]
    return [part[:count] for part, count in zip(torch.split(received, longest), counts, strict=True)]


def gather_rows(rows: Tensor, starts: list[int], total: int, mesh: Mesh) -> Tensor | None:
    """All ranks' rows on rank 0, `total` rows; None elsewhere. `starts` has P+1 entries."""
    if mesh.size == 1:
        return rows
    whole = None
    if mesh.rank > 0:
        transfers = [dist.P2POp(dist.isend, rows, 0, group=mesh.group)]
    else:
        whole = rows.new_empty(total, *rows.shape[1:])
        whole[: starts[1]] = rows
        parts = [whole[start:stop] for start, stop in pairwise(starts[1:])]
        transfers = [dist.P2POp(dist.irecv, part, p + 1, group=mesh.group) for p, part in enumerate(parts)]
    # batched on both sides: NCCL gives a lone send a communicator of its own, where the batch would not listen
    for work in dist.batch_isend_irecv(transfers):
        work.wait()
    return whole


def _bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)
