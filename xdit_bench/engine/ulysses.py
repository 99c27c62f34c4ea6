"""Ulysses: heads for sequence. Each rank of the axis gives away all heads but its own and gets every token's.

Tokens lead (`S B ...`) so that blocks of unequal length arrive one after another and need no repacking.

    heads = scatter_heads(slabs, rows, mesh, carrier).wait()     # DeepSpeed Ulysses, arXiv:2309.14509
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xdit_bench.engine.collectives import Carrier, Pending
from xdit_bench.engine.mesh import Mesh


def scatter_heads(slabs: Tensor, rows: Sequence[int], mesh: Mesh, carrier: Carrier) -> Pending:
    """U S B n H/U D, one slab a destination  ->  sum(rows) B n H/U D, tokens of all Ulysses ranks in their order.

    `rows[u]` is S of Ulysses rank u. On an axis of one rank this is a view.
    """
    if mesh.ulysses == 1:
        return Pending(slabs[0])
    return carrier.scatter(slabs.flatten(0, 1), rows)


def gather_heads(out: Tensor, rows: Sequence[int], mesh: Mesh, carrier: Carrier) -> Pending:
    """sum(rows) B H/U D  ->  U S B H/U D flattened to U*S: own tokens, a slab for each Ulysses rank's heads."""
    if mesh.ulysses == 1:
        return Pending(out)
    return carrier.gather(out, rows)


def join_heads(slabs: Tensor, mesh: Mesh) -> Tensor:
    """What `gather_heads` brings  ->  S B H*D of this rank's tokens."""
    if mesh.ulysses == 1:
        return slabs.flatten(2)
    return slabs.view(mesh.ulysses, -1, *slabs.shape[1:]).permute(1, 2, 0, 3, 4).flatten(2)
