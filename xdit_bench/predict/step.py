"""Seconds of one denoising step, term by term: compute of the fullest rank, exposed exchanges, the launch floor.

Owns `(gpu^6 + host^6)^(1/6)` and what stands in each of the two; `model` adds the stages up.

    step = denoising_step(point, model, topology, profile, network)
    step.terms["all_to_all"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import Infeasible
from xdit_bench.predict import workload as w
from xdit_bench.predict.network import Network
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.roofline import SHARPNESS, attention_s, gemm_s, rows_s, slower_of, stream_s
from xdit_bench.topology.specs import Topology

CLASSES = {  # class of error of each term
    "gemm": "compute", "attention": "compute", "modulation": "compute", "elementwise": "compute", "merge": "compute",
    "kernel_gaps": "compute", "pack": "compute", "all_to_all": "network", "ring": "network", "launch": "host",
}  # fmt: skip
WORDS = {
    "gemm": "matrix products", "attention": "attention", "modulation": "reading the modulation's weights",
    "elementwise": "memory traffic of elementwise kernels", "merge": "merging partial attention outputs",
    "kernel_gaps": "gaps between kernels", "pack": "copies around the exchanges",
    "launch": "launching operations from the host",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step: seconds, what comes once an image, seconds by term (they add up to `seconds`), standard errors by
    class, bytes a rank sends, and the largest term in words."""

    seconds: float
    once_s: float
    terms: Mapping[str, float]
    errors: Mapping[str, float]
    sent_bytes: float
    bottleneck: str


def denoising_step(
    point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network
) -> Step:
    """One step of the fullest rank. Raises Infeasible where the topology lacks a number."""
    work = _Work(point, model, topology, profile, network)
    gpu, host = work.gpu_terms(), work.host_s()
    once = gpu.pop("modulation") / point.gpus if profile.modulation_once else 0.0  # its weights are shared out
    on_gpu = sum(gpu.values())
    seconds = slower_of(on_gpu, host)
    terms = {**gpu, "launch": seconds - on_gpu}
    errors = _errors(topology, terms, on_gpu, host, seconds)
    return Step(seconds, once, terms, errors, work.sent_bytes, _bottleneck(terms, work.limits))


def attention_share(point: Point, topology: Topology, profile: EngineProfile) -> float:
    """Share of peak of a point's attention kernel: the one asked for, else the engine's best that the machine has.

    Raises Infeasible for a kernel the topology has no number for.
    """
    kernels = topology.attention
    preferred = sorted((k for k in profile.attention if k in kernels), key=lambda k: -kernels[k].value)
    wanted = point.attention
    if wanted == "auto" or len(profile.attention) == 1:  # an engine of one kernel has no choice
        wanted = preferred[0] if preferred else next(iter(topology.attention))
    if wanted not in topology.attention:
        have = ", ".join(topology.attention)
        raise Infeasible(f"topology={topology.name} has no number for attention={wanted}; it has {have}")
    return topology.attention[wanted].value


@dataclass
class _Work:
    """A point's step on a machine. `sent_bytes` and `limits` (the link a term waits for) fill as terms are computed."""

    point: Point
    model: ModelSpec
    topology: Topology
    profile: EngineProfile
    network: Network
    sent_bytes: float = 0.0
    limits: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shard = w.Shard.of(self.point, self.profile)
        self.blocks = w.blocks(self.model)
        self.row_bytes = float(w.BF16 * self.model.hidden)
        self.head_dim = int(self.model.transformer["attention_head_dim"])
        self.share = attention_share(self.point, self.topology, self.profile)
        self.calls = w.attentions(self.model, self.shard, self.point.ulysses)
        self.exchanges = self.profile.ring_exchanges if self.point.ring > 1 else self.profile.exchanges

    def gpu_terms(self) -> dict[str, float]:
        """Seconds by term that occupy the device."""
        shard, profile = self.shard, self.profile
        gemms = w.transformer_gemms(self.model, shard.image, shard.text, fused=profile.fused_projections)
        terms = {
            "gemm": sum(gemm.count * gemm_s(self.topology, gemm) for gemm in gemms),
            "attention": sum(call.count * self._call_s(call) for call in self.calls),
            "modulation": stream_s(self.topology, w.modulation_bytes(self.model)),
            "elementwise": self._rows_s(self._all_blocks(profile.rows), shard.tokens),
            "kernel_gaps": self._all_blocks(profile.kernels) * self.topology.host["kernel_gap_s"].value,
        }
        if self.point.ulysses > 1:
            terms["all_to_all"], terms["pack"] = self._exchanges_s()
        if self.point.ring > 1:
            terms["ring"], terms["merge"] = self._rings_s()
        return terms

    def host_s(self) -> float:
        """Seconds the host needs to launch a step."""
        profile, blocks = self.profile, sum(self.blocks)
        ops = self._all_blocks(profile.host_ops)
        if self.point.ulysses > 1:
            ops += blocks * len(self.exchanges) * profile.ops_per_collective
        if self.point.ring > 1:
            ops += blocks * (profile.ops_per_ring + (self.point.ring - 1) * profile.ops_per_ring_step)
        return ops * self.topology.host["op_s"].value

    def _all_blocks(self, pair: tuple[float, float]) -> float:
        return pair[0] * self.blocks[0] + pair[1] * self.blocks[1]

    def _rows_s(self, rows: float, tokens: int) -> float:
        return rows_s(self.topology, rows, tokens, self.row_bytes, fused=self.profile.fused_elementwise)

    def _call_s(self, call: w.Attention) -> float:
        return attention_s(self.topology, call, self.head_dim, self.share)

    def _exchanged_tokens(self) -> tuple[int, int]:
        """Tokens that travel in a double and in a single block: repeated text needs no exchange in a double block."""
        return self.shard.image if self.shard.repeated else self.shard.tokens, self.shard.tokens

    def _exchanges_s(self) -> tuple[float, float]:
        """All-to-alls around every attention, less what hides behind a single block's MLP, and the copies they need."""
        exposed = packed = 0.0
        hidden = self.profile.overlap * self._mlp_s() / 2 if self.profile.hides_exchanges else 0.0
        for blocks, tokens, beside in zip(self.blocks, self._exchanged_tokens(), (0.0, hidden), strict=True):
            for group in (self.exchanges[:-1], self.exchanges[-1:]):  # towards the heads, and back
                moved = [rows * tokens * self.row_bytes for rows in group]
                transfers = [self.network.all_to_all_s(size) for size in moved]
                exposed += blocks * max(0.0, sum(t.seconds for t in transfers) - beside)
                packed += blocks * self._rows_s(self.profile.pack_rows * sum(group), tokens)
                self.sent_bytes += blocks * sum(moved) * (1 - 1 / self.point.ulysses)
                self.limits["all_to_all"] = transfers[0].limit
        return exposed, packed

    def _rings_s(self) -> tuple[float, float]:
        """Keys and values of the other ring ranks: step by step beside the attention, or gathered before it; on a ring
        alone those of a single block leave before its MLP."""
        exposed = merged = 0.0
        steps = self.point.ring - 1
        alone = self.profile.hides_exchanges and self.point.ulysses == 1
        early = self.profile.overlap * self._mlp_s() / 2 if alone else 0.0
        for call, tokens, beside in zip(self.calls, self._exchanged_tokens(), (0.0, early), strict=True):
            moved = 2 * self.row_bytes * tokens
            hop = self.network.ring_step_s(moved)
            hidden = self.profile.overlap * self._call_s(call) / self.point.ring
            wait = max(0.0, steps * max(0.0, hop.seconds - hidden) - beside)
            merge = self._rows_s(steps * self.profile.merge_rows, self.shard.tokens)
            if self.profile.gathers_keys:
                gather = max(0.0, hop.latency_s + steps * (hop.seconds - hop.latency_s) - beside)
                wait, merge = (gather, 0.0) if gather < wait + merge else (wait, merge)
            exposed, merged = exposed + call.count * wait, merged + call.count * merge
            self.sent_bytes += call.count * steps * moved
            self.limits["ring"] = hop.limit
        return exposed, merged

    def _mlp_s(self) -> float:
        """The two products of a single block's MLP."""
        h, tokens = self.model.hidden, self.shard.tokens
        return gemm_s(self.topology, w.Gemm(tokens, h, 4 * h)) + gemm_s(self.topology, w.Gemm(tokens, 4 * h, h))


def _errors(
    topology: Topology, terms: Mapping[str, float], gpu: float, host: float, seconds: float
) -> dict[str, float]:
    """Standard errors of a step by class, carried through the soft maximum of GPU and host."""
    relative = {name: number.value for name, number in topology.uncertainty.items()}
    to_gpu, to_host = ((part / seconds) ** (SHARPNESS - 1) for part in (gpu, host))
    errors = {"compute": 0.0, "network": 0.0, "host": relative["host"] * host * to_host}
    for name, value in terms.items():
        if CLASSES[name] != "host":
            errors[CLASSES[name]] += relative[CLASSES[name]] * value * to_gpu
    return errors


def _bottleneck(terms: Mapping[str, float], limits: Mapping[str, str]) -> str:
    name = max(terms, key=lambda term: terms[term])
    share = f"{100 * terms[name] / sum(terms.values()):.0f} % of a step"
    if name in limits:
        return f"{'all-to-all' if name == 'all_to_all' else 'ring exchange'} crosses the {limits[name]} ({share})"
    return f"{WORDS[name]} ({share})"
