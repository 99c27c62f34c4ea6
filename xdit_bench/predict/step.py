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
from xdit_bench.predict.roofline import (
    SHARPNESS,
    STRIDED_SHARE,
    attention_s,
    attention_tiles_s,
    gemm_s,
    rows_s,
    slower_of,
    stream_s,
)
from xdit_bench.topology.specs import AWAKE, SYMMETRIC, Topology

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


def attention_kernel(point: Point, topology: Topology, profile: EngineProfile) -> str:
    """A point's attention kernel: the one asked for, else the engine's best that the machine has.

    Raises Infeasible for a kernel the topology has no number for.
    """
    wanted = point.attention
    if wanted == "auto" or len(profile.attention) == 1:  # an engine of one kernel has no choice
        return fastest_kernel(topology, profile)
    if wanted not in topology.attention:
        have = ", ".join(topology.attention)
        raise Infeasible(f"topology={topology.name} has no number for attention={wanted}; it has {have}")
    return wanted


def fastest_kernel(topology: Topology, profile: EngineProfile) -> str:
    """The fastest attention kernel of the machine that the engine may pick; another where it has none of these."""
    kernels = topology.attention
    mine = [kernel for kernel in profile.attention if kernel in kernels]
    return max(mine, key=lambda kernel: kernels[kernel].value) if mine else next(iter(kernels))


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
        self.kernel = attention_kernel(self.point, self.topology, self.profile)
        self.calls = w.attentions(self.model, self.shard, self.point.ulysses)
        self.copies = self.network.transport == SYMMETRIC  # by copy engines, which leave the multiprocessors alone
        self.keys_first = self.profile.keys_first and self.point.gpus > 1

    def gpu_terms(self) -> dict[str, float]:
        """Seconds by term that occupy the device."""
        shard, profile = self.shard, self.profile
        gemms = w.transformer_gemms(
            self.model, shard.image, shard.text, fused=profile.fused_projections, keys_first=self.keys_first,
            split_out=profile.split_out,
        )  # fmt: skip
        awake = self._awake()
        terms = {
            "gemm": sum(gemm.count * gemm_s(self.topology, gemm) for gemm in gemms) / awake,
            "attention": sum(call.count * self._call_s(call) for call in self.calls) / awake,
            "modulation": stream_s(self.topology, w.modulation_bytes(self.model)),
            "elementwise": self._rows_s(self._all_blocks(profile.rows), shard.tokens),
            "kernel_gaps": self._all_blocks(profile.kernels) * self.topology.host["kernel_gap_s"].value,
        }
        if self.point.ulysses > 1:
            terms["all_to_all"], terms["pack"] = self._exchanges_s()
        if self.point.ring > 1:
            terms["ring"], terms["merge"], slowed = self._rings_s()
            terms["attention"] += slowed
        return terms

    def _awake(self) -> float:
        """Share of their speed that products and attention keep beside traffic on the links between GPUs, which draws
        on the power that limits both."""
        share = self.topology.efficiency.get(AWAKE)
        linked = self.point.gpus > 1 and self.network.transport in (SYMMETRIC, "p2p")
        return share.value if share and linked else 1.0

    def host_s(self) -> float:
        """Seconds the host needs to launch a step."""
        profile, blocks = self.profile, sum(self.blocks)
        ops = self._all_blocks(profile.host_ops)
        if self.point.ulysses > 1:
            puts = self.point.ulysses * profile.ops_per_put if self.copies else 0.0
            ops += blocks * len(profile.exchanges) * (profile.ops_per_collective + puts)
        if self.point.ring > 1:
            puts = profile.ops_per_put if self.copies else 0.0
            ops += blocks * (profile.ops_per_ring + (self.point.ring - 1) * (profile.ops_per_ring_step + puts))
        return ops * self.topology.op_s(self.point.gpus)

    def _all_blocks(self, pair: tuple[float, float]) -> float:
        return pair[0] * self.blocks[0] + pair[1] * self.blocks[1]

    def _rows_s(self, rows: float, tokens: int) -> float:
        return rows_s(self.topology, rows, tokens, self.row_bytes, fused=self.profile.fused_elementwise)

    def _call_s(self, call: w.Attention) -> float:
        return attention_s(self.topology, call, self.head_dim, self.kernel)

    def _exchanged_tokens(self) -> tuple[int, int]:
        """Tokens that travel in a double and in a single block: repeated text needs no exchange in a double block."""
        return self.shard.image if self.shard.repeated else self.shard.tokens, self.shard.tokens

    def _beside_s(self) -> tuple[float, float, float]:
        """Work that runs while heads or keys travel: a double block's projection of queries on their way there, and of
        a single block the first half of its MLP there, the second on the way back. None of it hides NCCL's kernels."""
        if not (self.profile.hides_exchanges and self.copies):
            return 0.0, 0.0, 0.0
        h, image, text, tokens = self.model.hidden, self.shard.image, self.shard.text, self.shard.tokens
        queries = sum((gemm_s(self.topology, w.Gemm(rows, h, h)) for rows in (image, text)), start=0.0)
        queries *= self.keys_first
        first, second = (gemm_s(self.topology, w.Gemm(tokens, *shape)) for shape in ((h, 4 * h), (4 * h, h)))
        return queries, first, second

    def _exchanges_s(self) -> tuple[float, float]:
        """All-to-alls around every attention, less what hides behind the work beside them, and the copies they need."""
        exposed = packed = 0.0
        queries, *halves = self._beside_s()
        profile = self.profile
        for single, (blocks, tokens) in enumerate(zip(self.blocks, self._exchanged_tokens(), strict=True)):
            besides = halves if single else (queries, 0.0)
            for beside, group in zip(besides, (profile.exchanges[:-1], profile.exchanges[-1:]), strict=True):
                moved = [rows * tokens * self.row_bytes for rows in group]
                transfers = [self.network.all_to_all_s(size) for size in moved]
                # of a double block's, what leaves before the queries' projection ends alone can hide behind it
                hideable = sum(t.seconds for t in (transfers if single else transfers[:1]))
                exposed += blocks * (sum(t.seconds for t in transfers) - min(beside, hideable))
                packed += blocks * self._rows_s(profile.pack_rows * sum(group), tokens)
                self.sent_bytes += blocks * sum(moved) * (1 - 1 / self.point.ulysses)
                self.limits["all_to_all"] = transfers[0].limit
            packed += blocks * self._rows_s(profile.send_rows, tokens)
            packed += blocks * stream_s(self.topology, profile.join_rows * tokens * self.row_bytes) / STRIDED_SHARE
        return exposed, packed

    def _rings_s(self) -> tuple[float, float, float]:
        """Keys and values of the other ring ranks: hop by hop beside the attention, or gathered before it; on a ring
        alone they leave before what runs beside an exchange. Seconds waited, of merges, and that attention takes longer
        in several calls and on the multiprocessors that NCCL leaves to it."""
        found = [0.0, 0.0, 0.0]
        queries, half, _ = self._beside_s() if self.point.ulysses == 1 else (0.0, 0.0, 0.0)
        for call, tokens, beside in zip(self.calls, self._exchanged_tokens(), (queries, half), strict=True):
            moved = 2 * self.row_bytes * tokens
            ways = [self._hops_s(call, moved, beside)]
            if moved * self.point.ring <= self.profile.gathered_bytes:
                ways.append((max(0.0, self.network.collect_s(moved).seconds - beside), 0.0, 0.0))
            found = [sum(pair) for pair in zip(found, (call.count * s for s in min(ways, key=sum)), strict=True)]
            self.sent_bytes += call.count * (self.point.ring - 1) * moved
            self.limits["ring"] = self.network.ring_step_s(moved).limit
        return found[0], found[1], found[2]

    def _hops_s(self, call: w.Attention, moved: float, beside: float) -> tuple[float, float, float]:
        """One attention whose keys come hop by hop, each beside the attention to the block before it."""
        steps, ring, sms = self.point.ring - 1, self.point.ring, self.topology.gpu.sms
        hop, step = self.network.ring_step_s(moved).seconds, self._call_s(call) / ring
        spared = self.profile.spared if self.kernel == "fa3" and not self.copies else 0
        slowed = step * spared / (sms - spared)
        hidden = (step + slowed) * (1.0 if self.copies or spared else self.profile.overlap)
        wait = max(0.0, hop - hidden - beside) + (steps - 1) * max(0.0, hop - hidden)
        again = attention_tiles_s(self.kernel, call.heads, call.queries, sms)  # every call begins its tiles anew
        merges = self._rows_s(steps * self.profile.merge_rows, self.shard.tokens)
        return wait, merges, steps * (slowed + again)


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
