"""Ring attention: queries stay, blocks of keys and values travel, partial results merge by their log-sum-exp.

Blocks may differ in size. Two ways to move them: `ring_attention` overlaps each hop with the attention to the
block at hand; `gathered_attention` collects all blocks first and attends once, which wins while they are small.

    first = start_keys(kv, rows, carrier, gathered=False)
    out = ring_attention(q, kv, first, rows, kernel, mesh, carrier)   # Ring Attention, arXiv:2310.01889
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xdit_bench.engine.attention import Kernel, beside_exchange
from xdit_bench.engine.collectives import Carrier, Pending
from xdit_bench.engine.mesh import Mesh

Merge = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]


def merge(
    out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each: outputs `B S H D`, log-sum-exps `B H S`.

    Computes in float32 and returns the output in `dtype`: rounding after each hop would add up.
    """
    total = torch.logaddexp(lse, more_lse)
    share, more_share = ((part - total).exp().transpose(1, 2).unsqueeze(-1) for part in (lse, more_lse))
    return (out.float() * share + more.float() * more_share).to(dtype), total


def start_keys(kv: Tensor, rows: Sequence[int], carrier: Carrier, *, gathered: bool) -> Pending:
    """Sets keys and values off, before or beside other work: this position's block `K B 2 H D`, contiguous, to the next
    position, or to all. `rows[r]` is K of ring position r."""
    return carrier.collect(kv, rows) if gathered else carrier.shift(kv, rows, 0)


def ring_attention(
    q: Tensor,
    kv: Tensor,
    first: Pending,
    rows: Sequence[int],
    kernel: Kernel,
    mesh: Mesh,
    carrier: Carrier,
    merge: Merge = merge,
) -> Tensor:
    """Attention of q `B S H D` to the keys of all ring positions; `first` is the hop that `start_keys` began with kv.
    Returns `B S H D` in q's number format."""
    out: Tensor | None = None
    lse = q.new_empty(0)
    block, arriving = kv, first
    for hop in range(mesh.ring):
        last = hop + 1 == mesh.ring
        if hop > 0 and not last:
            arriving = carrier.shift(block, rows, hop)
        crowded = not last and carrier.holds_processors
        k, v = block.transpose(0, 1).unbind(2)
        part, part_lse = (beside_exchange(kernel) if crowded else kernel)(q, k, v)
        if out is None:
            out, lse = part, part_lse
        else:
            out, lse = merge(out, lse, part, part_lse, q.dtype if last else torch.float32)
        if not last:
            block = arriving.wait()
    assert out is not None
    return out


def gathered_attention(q: Tensor, first: Pending, kernel: Kernel) -> Tensor:
    """As `ring_attention`, with one attention call to the keys that `start_keys` has gathered."""
    k, v = first.wait().transpose(0, 1).unbind(2)
    return kernel(q, k, v)[0]
