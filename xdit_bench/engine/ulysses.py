"""Ulysses: heads for sequence. Each rank of the axis gives away all heads but its own and gets every token's.

Tokens lead (`S B ...`) so that blocks of unequal length arrive one after another and need no repacking.

    heads = start_scatter_heads(send, rows, mesh).wait()     # DeepSpeed Ulysses, arXiv:2309.14509
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xdit_bench.engine.collectives import Pending, start_all_to_all
from xdit_bench.engine.mesh import Mesh


def start_scatter_heads(send: Tensor, rows: Sequence[int], mesh: Mesh) -> Pending:
    """U S B n H/U D, one slab a destination  ->  sum(rows) B n H/U D, tokens of all Ulysses ranks in their order.

    `rows[u]` is S of Ulysses rank u. On an axis of one rank this is a view.
    """
    if mesh.ulysses_group is None:
        return Pending(send[0])
    return start_all_to_all(send.flatten(0, 1), [send.shape[1]] * mesh.ulysses, rows, mesh.ulysses_group)


def start_gather_heads(out: Tensor, rows: Sequence[int], mesh: Mesh) -> Pending:
    """sum(rows) B H/U D  ->  U S B H/U D flattened to U*S: own tokens, a slab for each Ulysses rank's heads."""
    if mesh.ulysses_group is None:
        return Pending(out)
    return start_all_to_all(out, rows, [rows[mesh.ulysses_rank]] * mesh.ulysses, mesh.ulysses_group)


def finish_gather_heads(pending: Pending, mesh: Mesh) -> Tensor:
    """What `start_gather_heads` began  ->  S B H*D of this rank's tokens."""
    received = pending.wait()
    if mesh.ulysses == 1:
        return received.flatten(2)
    slabs = received.view(mesh.ulysses, -1, *received.shape[1:])
    return slabs.permute(1, 2, 0, 3, 4).flatten(2)
