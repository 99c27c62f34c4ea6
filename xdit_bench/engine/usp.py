"""USP attention of one point: Ulysses outside, ring inside (arXiv:2405.07719), as stages a block can work between.

Owns the buffers' layout and the choice between ring and gathered keys. Leaves projections, norm and RoPE to the
block, which writes straight into `outgoing(...)`.

    out = attention.outgoing(qkv); rope(qkv, out.q, out.k, out.v)
    sent = attention.start(out); ...; back = attention.attend(sent); ...; y = attention.finish(back)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xdit_bench.engine.attention import Kernel
from xdit_bench.engine.collectives import Pending
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.ring import Merge, gathered_attention, merge, ring_attention
from xdit_bench.engine.shares import Shares
from xdit_bench.engine.ulysses import finish_gather_heads, start_gather_heads, start_scatter_heads


@dataclass
class Outgoing:
    """Where a block writes q, k and v, each `U S B H/U D` (views of `buffers`); v is None where it stays."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    buffers: tuple[Tensor, ...]


class UspAttention:
    """Attention of all tokens to all tokens over the ranks of a mesh."""

    def __init__(
        self, mesh: Mesh, shares: Shares, kernel: Kernel, *, gather_keys: bool = False, merge: Merge = merge
    ) -> None:
        self.mesh, self.kernel, self.gather_keys, self.merge = mesh, kernel, gather_keys, merge
        self.rows = [shares.tokens(mesh.rank_at(u, mesh.ring_rank)) for u in range(mesh.ulysses)]
        self.ring_rows = [sum(shares.tokens(mesh.rank_at(u, r)) for u in range(mesh.ulysses)) for r in range(mesh.ring)]

    def outgoing(self, qkv: Tensor) -> Outgoing:
        """Places for the rotated q and k and for v of qkv `S B 3 H D`. One GPU works in place; a ring keeps keys and
        values apart from queries, because only they travel."""
        tokens, batch, _, heads, size = qkv.shape
        ulysses = self.mesh.ulysses
        if self.mesh.size == 1:
            q, k, _ = qkv.unsqueeze(0).unbind(3)
            return Outgoing(q, k, None, (qkv,))
        shape = (ulysses, tokens, batch, 3, heads // ulysses, size)
        if self.mesh.ring == 1:
            packed = qkv.new_empty(shape)
            q, k, v = packed.unbind(3)
            return Outgoing(q, k, v, (packed,))
        queries = qkv.new_empty(*shape[:3], 1, *shape[4:])
        keys_values = qkv.new_empty(*shape[:3], 2, *shape[4:])
        k, v = keys_values.unbind(3)
        return Outgoing(queries[:, :, :, 0], k, v, (queries, keys_values))

    def start(self, out: Outgoing) -> list[Pending]:
        """Begins the exchange of heads; keys and values leave first, the ring waits for them."""
        if self.mesh.size == 1:
            return [Pending(out.buffers[0])]
        return [start_scatter_heads(buffer, self.rows, self.mesh) for buffer in reversed(out.buffers)]

    def attend(self, sent: list[Pending]) -> Pending:
        """Waits for the heads, attends, and begins the exchange back."""
        if self.mesh.ring == 1:
            q, k, v = sent[0].wait().transpose(0, 1).unbind(2)
            out = self.kernel(q, k, v)[0]
        else:
            kv = sent[0].wait()
            q = sent[1].wait().transpose(0, 1)[:, :, 0]
            if self.gather_keys:
                out = gathered_attention(q, kv, self.ring_rows, self.kernel, self.mesh)
            else:
                out = ring_attention(q, kv, self.ring_rows, self.kernel, self.mesh, self.merge)
        return start_gather_heads(out.transpose(0, 1).contiguous(), self.rows, self.mesh)

    def finish(self, back: Pending) -> Tensor:
        """This rank's tokens with all heads, `S B H*D`."""
        return finish_gather_heads(back, self.mesh)
