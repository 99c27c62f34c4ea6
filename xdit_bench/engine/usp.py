"""USP attention of one point: Ulysses outside, ring inside (arXiv:2405.07719), as stages a block can work between.

Owns the buffers' layout and the choice between ring and gathered keys. Leaves projections, norm and RoPE to the
block.

    sent = attention.start(slabs, beside=True); ...; back = attention.attend(sent); ...; y = attention.finish(back)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from xdit_bench.engine.attention import Kernel
from xdit_bench.engine.collectives import Carrier, DistributedCarrier, Pending
from xdit_bench.engine.mesh import Mesh, slowest
from xdit_bench.engine.ring import Merge, gathered_attention, merge, ring_attention, start_keys
from xdit_bench.engine.shares import Shares
from xdit_bench.engine.ulysses import gather_heads, join_heads, scatter_heads

GATHERED_BYTES = 1 << 30  # keys and values of all ring positions that may lie on one rank: of 4096px, twice


@dataclass
class Sent:
    """Heads on their way over the Ulysses axis, in the order they left, and keys with values on the ring's if they have
    left already."""

    heads: list[Pending]
    keys: Pending | None
    gathered: bool


class Gathered(NamedTuple):
    """Where a ring gathers all keys for one attention call instead of attending block by block."""

    beside: bool  # a single block's, which travel beside half its MLP
    alone: bool  # a double block's, which travel beside the projection of its queries at most


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
        keys_first: bool = True,
    ) -> None:
        self.mesh, self.kernel, self.merge = mesh, kernel, merge
        self.overlap, self.keys_first = overlap, keys_first
        self.carrier: Carrier = carrier or DistributedCarrier(mesh)
        self.gathered = Gathered(False, False)
        self.rows = [shares.tokens(mesh.rank_at(u, mesh.ring_rank)) for u in range(mesh.ulysses)]
        self.ring_rows = [sum(shares.tokens(mesh.rank_at(u, r)) for u in range(mesh.ulysses)) for r in range(mesh.ring)]

    def start(self, slabs: tuple[Tensor, ...], *, beside: bool) -> Sent:
        """Begins the exchange of heads: slabs `U S B n H/U D`, q, k and v in one tensor on a mesh of one rank, else
        keys with values, then queries (or these later, by `send`); on a ring alone keys go on their way at once.

        `beside` says that the block has half an MLP to compute before `attend`.
        """
        gathered = self.gathered.beside if beside else self.gathered.alone
        sent = Sent([], None, gathered)
        for slab in slabs:
            self.send(sent, slab)
        return sent

    def send(self, sent: Sent, slab: Tensor) -> None:
        """The next slab: first keys with values, then queries."""
        sent.heads.append(self._begun(scatter_heads(slab, self.rows, self.mesh, self.carrier)))
        if len(sent.heads) == 1 and self.mesh.ring > 1 and self.mesh.ulysses == 1:
            sent.keys = self._start_keys(sent.heads[0].wait(), sent.gathered)

    def attend(self, sent: Sent) -> Pending:
        """Waits for the heads, attends, and begins the exchange back."""
        heads = [pending.wait() for pending in sent.heads]
        kv, q = heads if len(heads) == 2 else (heads[0][:, :, 1:], heads[0][:, :, :1])
        q = q.transpose(0, 1)[:, :, 0]
        if self.mesh.ring == 1:
            out = self.kernel(q, *kv.transpose(0, 1).unbind(2))[0]
        else:
            keys = sent.keys or self._start_keys(kv, sent.gathered)
            if sent.gathered:
                out = gathered_attention(q, keys, self.kernel)
            else:
                out = ring_attention(q, kv, keys, self.ring_rows, self.kernel, self.mesh, self.carrier, self.merge)
        return self._begun(gather_heads(out.transpose(0, 1).contiguous(), self.rows, self.mesh, self.carrier))

    def finish(self, back: Pending) -> Tensor:
        """This rank's tokens with all heads, `S B H*D`."""
        return join_heads(back.wait(), self.mesh)

    def choose_keys(
        self, way: str, slabs: tuple[Tensor, ...], half_mlp: Callable[[], object], queries: Callable[[], object]
    ) -> None:
        """How a ring moves its keys: `ring`, `gathered`, or `auto`: the faster on GPUs, while all keys together are
        small. slabs are keys with values, then queries; `half_mlp` and `queries` (their projection) are what the two
        kinds of block do while keys travel."""
        kv = slabs[0]
        small = sum(self.ring_rows) * kv[0, 0].numel() * kv.element_size() <= GATHERED_BYTES
        if way == "auto" and self.mesh.ring > 1 and small and kv.is_cuda:
            self.gathered = Gathered(
                self.gathering_is_faster(slabs, half_mlp, beside=True),
                self.gathering_is_faster(slabs, queries, beside=False),
            )
            if not any(self.gathered):
                self.carrier.close()  # what arrived whole; where any does, a hop's block has room there too
        else:
            self.gathered = Gathered(way == "gathered", way == "gathered")

    def gathering_is_faster(self, slabs: tuple[Tensor, ...], work: Callable[[], object], *, beside: bool) -> bool:
        """Times an exchange and attention both ways, with a single block's work beside it or a double block's; all
        ranks answer for the slowest."""
        gathers, hops = slowest([self._time(gathered, slabs, work, beside) for gathered in (True, False)], self.mesh)
        return gathers < hops

    def _time(
        self, gathered: bool, slabs: tuple[Tensor, ...], work: Callable[[], object], beside: bool, runs: int = 7
    ) -> float:
        """Median seconds, after two runs to warm up."""
        self.gathered = Gathered(gathered, gathered)
        split = not beside and self.keys_first  # a double block projects its queries while keys travel
        taken = []
        for _ in range(runs):
            start = time.perf_counter()
            sent = self.start(slabs[:1] if split else slabs, beside=beside)
            if beside or split:
                work()
            if split:
                self.send(sent, slabs[1])
            self.finish(self.attend(sent))[0, 0, 0].item()  # waits for the device
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[2:])

    def _start_keys(self, kv: Tensor, gathered: bool) -> Pending:
        return self._begun(start_keys(kv, self.ring_rows, self.carrier, gathered=gathered))

    def _begun(self, pending: Pending) -> Pending:
        if not self.overlap:
            pending.wait()
        return pending
