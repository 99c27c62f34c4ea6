"""Seconds of communication: alpha-beta over the hierarchy of links, all groups of a placement at once.

Owns which bytes cross which link. A transfer from one GPU to another loads every domain it leaves and enters; the
fullest link sets the time (LogGP's bandwidth term, links shared by all concurrent groups).

    net = Network(topology, path(topology, point, profile.symmetric), ulysses=2, ring=2)
    net.all_to_all_s(bytes_per_rank), net.ring_step_s(bytes_per_rank)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from xdit_bench.config import Point
from xdit_bench.errors import Infeasible
from xdit_bench.topology.specs import SYMMETRIC, LinkSpec, Topology


class Transfer(NamedTuple):
    """Seconds of one collective, what sets them (a level's name), and the share that is latency."""

    seconds: float
    limit: str
    latency_s: float


def path(topology: Topology, point: Point, symmetric: bool) -> str:
    """The links a point's exchanges take: an engine that knows symmetric memory uses it under transport=p2p, where the
    topology has numbers for it and it joins all GPUs of the point; else its transport's, through NCCL."""
    levels = topology.levels(SYMMETRIC)
    works = symmetric and point.transport == "p2p" and levels and levels[-1].gpus >= point.gpus
    return SYMMETRIC if works else point.transport


@dataclass(frozen=True)
class Network:
    """The ranks of one point on the first GPUs of a machine; `transport` is a key of the topology's links.

    `ulysses_inner` puts the all-to-all between neighbours and the ring across them, as `engine.mesh.Mesh` does.
    """

    topology: Topology
    transport: str
    ulysses: int
    ring: int
    ulysses_inner: bool = True

    @property
    def levels(self) -> tuple[LinkSpec, ...]:
        """Links of this transport. Raises Infeasible where the topology has no numbers for it."""
        levels = self.topology.levels(self.transport)
        if not levels:
            have = ", ".join(self.topology.links) or "none"
            raise Infeasible(
                f"topology={self.topology.name} has no link numbers for transport={self.transport}; it has {have} "
                f"(python -m xdit_bench.calibrate measures them)"
            )
        return levels

    def rank(self, ulysses_rank: int, ring_rank: int) -> int:
        """GPU at a position of both axes."""
        return ring_rank * self.ulysses + ulysses_rank if self.ulysses_inner else ulysses_rank * self.ring + ring_rank

    def all_to_all_s(self, bytes_per_rank: float) -> Transfer:
        """Every Ulysses group exchanges at once; a rank keeps 1/ulysses of its `bytes_per_rank`."""
        chunk, span = bytes_per_rank / self.ulysses, range(self.ulysses)
        flows = [
            (self.rank(a, r), self.rank(b, r), chunk) for r in range(self.ring) for a in span for b in span if a != b
        ]
        return self._after_copies(self._time(flows, all_to_all=True), self.ulysses, chunk)

    def ring_step_s(self, bytes_per_rank: float) -> Transfer:
        """Every rank hands `bytes_per_rank` to its ring neighbour, all rings at once."""
        flows = [(self.rank(u, r), self.rank(u, (r + 1) % self.ring), bytes_per_rank)
                 for u in range(self.ulysses) for r in range(self.ring) if self.ring > 1]  # fmt: skip
        return self._time(flows, all_to_all=False)

    def all_gather_s(self, bytes_per_rank: float) -> Transfer:
        """All ranks gather everybody's `bytes_per_rank`, as a ring over all of them."""
        ranks = self.ulysses * self.ring
        flows = [(i, (i + 1) % ranks, bytes_per_rank * (ranks - 1)) for i in range(ranks) if ranks > 1]
        return self._time(flows, all_to_all=False)

    def collect_s(self, bytes_per_rank: float) -> Transfer:
        """Every ring rank sends its `bytes_per_rank` to all others of its ring, all rings at once."""
        span = range(self.ring)
        flows = [(self.rank(u, a), self.rank(u, b), bytes_per_rank) for u in range(self.ulysses) for a in span
                 for b in span if a != b]  # fmt: skip
        transfer = self._time(flows, all_to_all=self.ring > 2)  # two only swap, as neighbours of a ring do
        return self._after_copies(transfer, self.ring, bytes_per_rank)

    def ring_gather_s(self, bytes_per_rank: float) -> Transfer:
        """Every ring rank gets all others' `bytes_per_rank` in one collective, passed on around the ring."""
        flows = [(self.rank(u, r), self.rank(u, (r + 1) % self.ring), bytes_per_rank * (self.ring - 1))
                 for u in range(self.ulysses) for r in range(self.ring) if self.ring > 1]  # fmt: skip
        return self._time(flows, all_to_all=False)

    def own_copies_s(self, ranks: int, chunk: float) -> float:
        """What symmetric memory adds to an exchange between `ranks`: one copy engine serves the peers one by one, a
        kernel's gap apart, and last this rank's own chunk, read and written in its memory (traces of two H100s)."""
        if self.transport != SYMMETRIC or ranks < 2:
            return 0.0
        gap = self.topology.host["kernel_gap_s"].value
        memory = self.topology.gpu.memory_bytes_per_s * self.topology.efficiency["memory"].value
        return (ranks - 1) * gap + 2 * chunk / memory

    def _after_copies(self, transfer: Transfer, ranks: int, chunk: float) -> Transfer:
        more = self.own_copies_s(ranks, chunk)
        return transfer._replace(seconds=transfer.seconds + more)

    def _time(self, flows: Iterable[tuple[int, int, float]], *, all_to_all: bool) -> Transfer:
        load: dict[tuple[int, str, int], float] = defaultdict(float)  # level, direction, child domain -> bytes
        highest = -1
        levels = self.levels if (flows := list(flows)) else ()
        for source, target, size in flows:
            below = 1
            for number, level in enumerate(levels):
                load[number, "out", source // below] += size
                load[number, "in", target // below] += size
                highest = max(highest, number)
                if source // level.gpus == target // level.gpus:
                    break
                below = level.gpus
        if highest < 0:
            return Transfer(0.0, "", 0.0)
        top = levels[highest]
        latency = top.all_to_all_latency_s if all_to_all else top.latency_s

        def rate(number: int) -> float:
            return levels[number].all_to_all_bytes_per_s if all_to_all else levels[number].bytes_per_s

        seconds, number = max((size / rate(number), number) for (number, _, _), size in load.items())
        return Transfer(latency + seconds, levels[number].name, latency)
