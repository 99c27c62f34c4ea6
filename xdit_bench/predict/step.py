"""Seconds of one denoising step, term by term: compute of the fullest rank, exposed exchanges, the launch floor.

Owns `(gpu^6 + host^6)^(1/6)` and what stands in each of the two; `model` adds the stages up.

    step, *_ = denoising_steps(point, model, topology, profile, network)
    step.terms["all_to_all"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import Infeasible
from xdit_bench.predict import workload as w
from xdit_bench.predict.network import Network, Transfer
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
AWAKE_S = 0.08  # that links stay awake: beside traffic every 0.2 s a GPU loses 0.4 of what it loses at 0.05 (two H200s)
EXCHANGES = {"all_to_all": "all-to-all", "ring": "ring exchange"}
WORDS = {
    "gemm": "matrix products", "attention": "attention", "modulation": "reading the modulation's weights",
    "elementwise": "memory traffic of elementwise kernels", "merge": "merging partial attention outputs",
    "kernel_gaps": "gaps between kernels", "pack": "copies around the exchanges",
    "launch": "launching operations from the host", "communication": "exchanges that nothing hides",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step: seconds, what comes once an image, by how many seconds the host is done with it before the device,
    seconds by term (they add up to `seconds`), standard errors by class, bytes a rank sends, and the largest term in
    words."""

    seconds: float
    once_s: float
    lead_s: float
    terms: Mapping[str, float]
    errors: Mapping[str, float]
    sent_bytes: float
    bottleneck: str


def denoising_steps(
    point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network
) -> list[Step]:
    """One step of the fullest rank, in each way that keys and values may travel a ring: hop by hop or gathered, in
    double and in single blocks. Raises Infeasible where the topology lacks a number."""
    ways = (False, True) if point.ring > 1 and profile.gathered_bytes else (False,)
    works = [_Work(point, model, topology, profile, network, (double, single)) for double in ways for single in ways]
    return [_step(work) for work in works]


def _step(work: _Work) -> Step:
    point, profile, topology = work.point, work.profile, work.topology
    gpu, host = work.gpu_terms(), work.host_s()
    once = gpu.pop("modulation") / point.gpus if profile.modulation_once else 0.0  # its weights are shared out
    once = slower_of(once, profile.once_ops * topology.op_s(point.gpus))
    on_gpu = sum(gpu.values())
    seconds = slower_of(on_gpu, host)
    terms = {**gpu, "launch": seconds - on_gpu}
    errors = _errors(topology, terms, work.network_error_s(), on_gpu, host, seconds)
    lead = seconds - host  # the soft maximum's: else a faster device would cost the decode more than it saves
    return Step(seconds, once, lead, terms, errors, work.bytes_sent(), largest_part(terms, work.limits))


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
    return max(mine or kernels, key=lambda kernel: kernels[kernel].value)


class _Way(NamedTuple):
    """How keys travel a ring: seconds waited, of merges, and added to attention; launches of the host."""

    seconds: tuple[float, float, float]
    ops: float


@dataclass
class _Work:
    """A point's step on a machine. `limits` (the link a term waits for) fills as terms are computed."""

    point: Point
    model: ModelSpec
    topology: Topology
    profile: EngineProfile
    network: Network
    gathers: tuple[bool, bool]
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
        terms = {
            "gemm": sum(gemm.count * gemm_s(self.topology, gemm) for gemm in gemms),
            "attention": sum(call.count * self._call_s(call) for call in self.calls),
            "modulation": stream_s(self.topology, w.modulation_bytes(self.model)),
            "elementwise": self._rows_s(self._all_blocks(profile.rows), shard.tokens),
            "kernel_gaps": self._all_blocks(profile.kernels) * self.topology.host["kernel_gap_s"].value,
        }
        beside = self._beside_links((terms["gemm"] + terms["attention"]) / sum(self.blocks))
        terms["gemm"] *= beside
        terms["attention"] *= beside
        if self.point.ulysses > 1:
            terms["all_to_all"], terms["pack"] = self._exposed_s(), self._packed_s()
        if self.point.ring > 1:
            terms["ring"], terms["merge"], slowed = self._rings_s()
            terms["attention"] += slowed
        return terms

    def network_error_s(self) -> float:
        """How much longer a step would wait for links that are slower by their standard error: what all but hides then
        shows."""
        return self._waits_s(1.0 + self.topology.uncertainty["network"].value) - self._waits_s()

    def _waits_s(self, slower: float = 1.0) -> float:
        """What a step takes for its exchanges over links so much slower."""
        exposed = self._exposed_s(slower) if self.point.ulysses > 1 else 0.0
        return exposed + (sum(self._rings_s(slower)) if self.point.ring > 1 else 0.0)

    def _beside_links(self, block_s: float) -> float:
        """How much longer products and attention take beside traffic on links between GPUs, which draws on the power
        that limits both. Links doze between blocks that are far apart."""
        share = self.topology.efficiency.get(AWAKE)
        if not share or self.point.gpus == 1 or self.network.transport not in (SYMMETRIC, "p2p"):
            return 1.0
        return 1.0 + (1.0 / share.value - 1.0) * min(1.0, AWAKE_S / block_s)

    def host_s(self) -> float:
        """Seconds the host needs to launch a step."""
        profile, blocks = self.profile, sum(self.blocks)
        ops = self._all_blocks(profile.host_ops) + profile.step_ops
        if self.point.gpus > 1:
            ops += blocks * profile.shared_ops
        if self.point.ulysses > 1:
            ops += blocks * len(profile.exchanges) * self._exchange_ops(self.point.ulysses, profile.ops_per_collective)
        if self.point.ring > 1:
            ops += sum(call.count * way.ops for call, way in zip(self.calls, self._ways(), strict=True))
        return ops * self.topology.op_s(self.point.gpus)

    def _exchange_ops(self, puts: int, by_nccl: float) -> float:
        """Launches of an exchange: of so many copies into peers' memory, else what NCCL's take."""
        if self.copies:
            return self.profile.ops_per_meeting + puts * self.profile.ops_per_put
        return by_nccl

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

    def _transfers(self) -> Iterator[tuple[int, list[Transfer], float, int]]:
        """The all-to-alls of an attention that run beside one piece of work: how many blocks have them, the transfers,
        seconds of that work, and how many of the transfers may hide behind it. Of a double block's, what leaves before
        the queries' projection ends alone can."""
        queries, *halves = self._beside_s()
        profile = self.profile
        for single, (blocks, tokens) in enumerate(zip(self.blocks, self._exchanged_tokens(), strict=True)):
            besides = halves if single else (queries, 0.0)
            for beside, group in zip(besides, (profile.exchanges[:-1], profile.exchanges[-1:]), strict=True):
                transfers = [self.network.all_to_all_s(rows * tokens * self.row_bytes) for rows in group]
                yield blocks, transfers, beside, len(transfers) if single else 1

    def _exposed_s(self, slower: float = 1.0) -> float:
        """All-to-alls around every attention, less what hides behind the work beside them, on links so much slower."""
        exposed = 0.0
        for blocks, transfers, beside, hideable in self._transfers():
            seconds = [slower * transfer.seconds for transfer in transfers]
            exposed += blocks * (sum(seconds) - min(beside, sum(seconds[:hideable])))
            self.limits["all_to_all"] = transfers[0].limit
        return exposed

    def _packed_s(self) -> float:
        """The copies that all-to-alls need."""
        packed, profile = 0.0, self.profile
        for blocks, tokens in zip(self.blocks, self._exchanged_tokens(), strict=True):
            packed += blocks * self._rows_s(profile.pack_rows * sum(profile.exchanges) + profile.send_rows, tokens)
            packed += blocks * stream_s(self.topology, profile.join_rows * tokens * self.row_bytes) / STRIDED_SHARE
        return packed

    def bytes_sent(self) -> float:
        """Bytes that a rank sends to others in a step."""
        sent = 0.0
        for blocks, tokens in zip(self.blocks, self._exchanged_tokens(), strict=True):
            rows = sum(self.profile.exchanges) * (1 - 1 / self.point.ulysses) + 2 * (self.point.ring - 1)
            sent += blocks * rows * tokens * self.row_bytes
        return sent

    def _rings_s(self, slower: float = 1.0) -> tuple[float, float, float]:
        """Over all attentions, on links so much slower: seconds that keys and values of other ring ranks are waited
        for, of merges, and that attention takes longer for them."""
        found = [0.0, 0.0, 0.0]
        for call, way in zip(self.calls, self._ways(slower), strict=True):
            found = [total + call.count * s for total, s in zip(found, way.seconds, strict=True)]
        self.limits["ring"] = self.network.ring_step_s(2 * self.row_bytes * self.shard.tokens).limit
        return found[0], found[1], found[2]

    def _ways(self, slower: float = 1.0) -> list[_Way]:
        """How keys and values travel a ring in each kind of block: hop by hop beside the attention, or (`gathers`) all
        before it, where a rank may hold them; on a ring alone they leave before what runs beside an
        exchange."""
        queries, half, _ = self._beside_s() if self.point.ulysses == 1 else (0.0, 0.0, 0.0)
        chosen, ring = [], self.point.ring
        kinds = zip(self.calls, self._exchanged_tokens(), (queries, half), self.gathers, strict=True)
        for call, tokens, beside, gathers in kinds:
            moved = 2 * self.row_bytes * tokens
            if gathers and moved * ring <= self.profile.gathered_bytes:
                wait = max(0.0, slower * self.network.collect_s(moved).seconds - beside)
                ops = self.profile.ops_per_ring + self._exchange_ops(ring, self.profile.ops_per_batch)
                chosen.append(_Way((wait, 0.0, 0.0), ops))
            else:
                chosen.append(self._block_by_block(call, moved, beside, slower))
        return chosen

    def _block_by_block(self, call: w.Attention, moved: float, beside: float, slower: float) -> _Way:
        """An attention in as many calls as the ring has ranks, its keys coming hop by hop, each beside the attention to
        the block before it, or all at once beside the first."""
        profile, steps, ring, sms = self.profile, self.point.ring - 1, self.point.ring, self.topology.gpu.sms
        step = self._call_s(call) / ring
        spared = profile.spared if self.kernel == "fa3" and not self.copies else 0
        slowed = step * spared / (sms - spared)
        hidden = (step + slowed) * (1.0 if self.copies or spared else profile.overlap)
        if profile.ring_gathers:
            wait = max(0.0, slower * self.network.ring_gather_s(moved).seconds - hidden - beside)
        else:
            hop = slower * self.network.ring_step_s(moved).seconds
            wait = max(0.0, hop - hidden - beside) + (steps - 1) * max(0.0, hop - hidden)
        again = attention_tiles_s(self.kernel, call.heads, call.queries, sms)  # every call begins its tiles anew
        merges = self._rows_s(steps * profile.merge_rows, self.shard.tokens)
        ops = profile.ops_per_ring + steps * (profile.ops_per_ring_step + self._exchange_ops(1, profile.ops_per_batch))
        return _Way((wait, merges, steps * (slowed + again)), ops)


def _errors(
    topology: Topology, terms: Mapping[str, float], network_s: float, gpu: float, host: float, seconds: float
) -> dict[str, float]:
    """Standard errors of a step by class, `network_s` the links', carried through the soft maximum of GPU and host."""
    relative = {name: number.value for name, number in topology.uncertainty.items()}
    to_gpu, to_host = ((part / seconds) ** (SHARPNESS - 1) for part in (gpu, host))
    computed = sum(value for name, value in terms.items() if CLASSES[name] == "compute")
    return {
        "compute": relative["compute"] * computed * to_gpu,
        "network": network_s * to_gpu,
        "host": relative["host"] * host * to_host,
    }


def largest_part(terms: Mapping[str, float], limits: Mapping[str, str] | None = None) -> str:
    """The largest of a step's terms in words, with its share. `limits` names what an exchange crosses; of a measured
    step it is not known."""
    waits = {name: terms[name] for name in EXCHANGES if name in terms}
    whole = {name: seconds for name, seconds in terms.items() if name not in waits} | {"exchanges": sum(waits.values())}
    name = max(whole, key=lambda term: whole[term])
    share = f"{100 * whole[name] / sum(terms.values()):.0f} % of a step"
    if name == "exchanges":
        longest = sorted((term for term in waits if waits[term] > 0), key=lambda term: -waits[term])
        links = dict.fromkeys((limits or {}).get(term, "links") for term in longest)
        one = f"{EXCHANGES[longest[0]]} crosses the {next(iter(links))} ({share})"
        return one if len(longest) == 1 else f"exchanges across the {' and the '.join(links)} ({share})"
    return f"{WORDS.get(name, name)} ({share})"
