"""USP attention of one point: Ulysses outside, ring inside (arXiv:2405.07719), as stages a block can work between.

Owns the buffers' layout and the choice between ring and gathered keys. Leaves projections, norm and RoPE to the
block.

    sent = attention.start(slabs); ...; back = attention.attend(sent); ...; y = attention.finish(back)
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from xdit_bench.engine.attention import Kernel
from xdit_bench.engine.collectives import Carrier, DistributedCarrier, Pending
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.ring import Merge, gathered_attention, merge, ring_attention
from xdit_bench.engine.shares import Shares
from xdit_bench.engine.ulysses import gather_heads, join_heads, scatter_heads

GATHERED_BYTES = 512 << 20  # keys and values of all ring positions that may lie on one rank


class UspAttention:
    """Attention of all tokens to all tokens over the ranks of a mesh."""

    def __init__(
        self,
        mesh: Mesh,
        shares: Shares,
        kernel: Kernel,
        *,
        merge: Merge = merge,
        carrier: Carrier | None = None,
        overlap: bool = True,
    ) -> None:
        self.mesh, self.kernel, self.merge, self.overlap = mesh, kernel, merge, overlap
        self.carrier: Carrier = carrier or DistributedCarrier(mesh)
        self.gather_keys = False
        self.rows = [shares.tokens(mesh.rank_at(u, mesh.ring_rank)) for u in range(mesh.ulysses)]
        self.ring_rows = [sum(shares.tokens(mesh.rank_at(u, r)) for u in range(mesh.ulysses)) for r in range(mesh.ring)]

    def start(self, slabs: tuple[Tensor, ...]) -> list[Pending]:
        """Begins the exchange of heads: slabs `U S B n H/U D`, q, k and v in one tensor (n = 3), or on a ring queries
        and keys with values, of which the latter leave first: the ring waits for them."""
        return [self._begun(scatter_heads(slab, self.rows, self.mesh, self.carrier)) for slab in reversed(slabs)]

    def attend(self, sent: list[Pending]) -> Pending:
        """Waits for the heads, attends, and begins the exchange back."""
        if self.mesh.ring == 1:
            q, k, v = sent[0].wait().transpose(0, 1).unbind(2)
            out = self.kernel(q, k, v)[0]
        else:
            kv = sent[0].wait()
            q = sent[1].wait().transpose(0, 1)[:, :, 0]
            out = self._ring(q, kv, self.gather_keys)
        return self._begun(gather_heads(out.transpose(0, 1).contiguous(), self.rows, self.mesh, self.carrier))

    def finish(self, back: Pending) -> Tensor:
        """This rank's tokens with all heads, `S B H*D`."""
        return join_heads(back.wait(), self.mesh)

    def choose_keys(self, way: str, q: Tensor, kv: Tensor) -> None:
        """How a ring moves its keys: `ring`, `gathered`, or `auto`, which times both on q and kv on GPUs, while all
        keys together are small; all ranks take what suits the slowest."""
        small = sum(self.ring_rows) * kv[0].numel() * kv.element_size() <= GATHERED_BYTES
        if way != "auto" or self.mesh.ring == 1 or not small or q.device.type != "cuda":
            self.gather_keys = way == "gathered"
            return
        seconds = torch.tensor([self._time_keys(gathered, q, kv) for gathered in (False, True)], device=q.device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX, group=self.mesh.group)
        self.gather_keys = bool(seconds[1] < seconds[0])

    def _time_keys(self, gathered: bool, q: Tensor, kv: Tensor, repeats: int = 5) -> float:
        taken = []
        for _ in range(repeats + 2):
            torch.cuda.synchronize(q.device)
            start = time.perf_counter()
            self._ring(q, kv, gathered)
            torch.cuda.synchronize(q.device)
            taken.append(time.perf_counter() - start)
        return sorted(taken[2:])[repeats // 2]

    def _ring(self, q: Tensor, kv: Tensor, gathered: bool) -> Tensor:
        if gathered:
            return gathered_attention(q, kv, self.ring_rows, self.kernel, self.carrier)
        return ring_attention(q, kv, self.ring_rows, self.kernel, self.mesh, self.carrier, self.merge)

    def _begun(self, pending: Pending) -> Pending:
        if not self.overlap:
            pending.wait()
        return pending
