"""The prediction of a point: seconds by stage and by term, memory, how sure it is, and what limits it.

Owns the sum `text + steps * (gpu^6 + host^6)^(1/6) + vae`; the terms come from `roofline`, `network`, `memory`.
Imports no torch and runs in well under a millisecond.

    prediction = predict(point, model, load("a100_nvlink"))
    prediction.stages["total"].median
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from xdit_bench.config import ModelSpec, Point, infeasible
from xdit_bench.errors import Infeasible, OutOfMemory
from xdit_bench.predict import decode, profiles
from xdit_bench.predict import workload as w
from xdit_bench.predict.memory import MemoryPlan, plan_memory
from xdit_bench.predict.network import Network
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.roofline import attention_s, gemm_s, rows_s, stream_s
from xdit_bench.topology.specs import Topology

SHARPNESS = 6.0  # how sharply the slower of GPU and host sets a step's time
Z90 = 1.645  # standard errors to the 5th and 95th percentile
TEXT_OPS = 2000  # cheapest-launch units of both text encoders, eager
TEXT_FIXED_S = 0.010  # tokens to the device and embeddings back
CLASSES = {  # class of error of each term
    "gemm": "compute", "attention": "compute", "modulation": "compute", "elementwise": "compute", "merge": "compute",
    "kernel_gaps": "compute", "pack": "compute", "all_to_all": "network", "ring": "network", "launch": "host",
}  # fmt: skip
WORDS = {
    "gemm": "matrix products", "attention": "attention", "modulation": "reading the modulation's weights",
    "elementwise": "memory traffic of elementwise kernels", "merge": "merging partial attention outputs",
    "kernel_gaps": "gaps between kernels", "pack": "copies around the exchanges", "launch": "launching operations from the host",
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """Seconds: the prediction and its 90 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def around(cls, seconds: float, relative_error: float) -> Interval:
        """A log-normal interval of a standard error."""
        spread = math.exp(Z90 * relative_error)
        return cls(seconds, seconds / spread, seconds * spread)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a point. `terms` are seconds a step by name (they add up to the step),
    `errors` absolute standard errors of the total by class of term, `comm_bytes` what a rank sends a step."""

    point: Point
    stages: Mapping[str, Interval]
    step: Interval
    terms: Mapping[str, float]
    errors: Mapping[str, float]
    memory: MemoryPlan
    comm_bytes: float
    bottleneck: str
    warnings: tuple[str, ...] = ()

    @property
    def total_s(self) -> float:
        """Seconds an image."""
        return self.stages["total"].median


def predict(point: Point, model: ModelSpec, topology: Topology, *, ulysses_inner: bool = True) -> Prediction:
    """Predicts a point on a machine.

    Raises Infeasible where a rule or missing numbers forbid it, OutOfMemory where it does not fit.
    """
    _check(point, model, topology)
    profile = profiles.find(point.engine, point.execution)
    memory = plan_memory(point, model, topology, profile)
    if memory.verdict == "oom":
        raise _out_of_memory(point, memory, topology)
    step = _step(
        point, model, topology, profile, Network(topology, point.transport, point.ulysses, point.ring, ulysses_inner)
    )
    text, text_error = _text(point, model, topology)
    denoise = point.steps * step.seconds + step.once_s
    vae = decode.decode_s(
        point, model, topology, profile, Network(topology, point.transport, point.ulysses, point.ring)
    )
    errors = {name: point.steps * seconds for name, seconds in step.errors.items()}
    denoise_error = math.hypot(*errors.values()) / denoise
    vae_error = topology.uncertainty["vae"].value
    errors["text"], errors["vae"] = text * text_error, vae * vae_error
    wider, warnings = _extrapolation(point, model, topology)
    if memory.verdict == "pressure":
        warnings.append(
            f"memory pressure: {memory.peak_bytes / 1e9:.1f} GB of {memory.cap_bytes / 1e9:.1f} GB at the peak; the allocator "
            f"may thrash and the decode take up to ten times as long"
        )
    total = text + denoise + vae
    stages = {
        "text": Interval.around(text, wider * text_error),
        "denoise": Interval.around(denoise, wider * denoise_error),
        **({"vae": Interval.around(vae, wider * vae_error)} if vae else {}),
        "total": Interval.around(total, wider * math.hypot(*errors.values()) / total),
    }
    if memory.verdict == "pressure" and memory.stage == "vae":
        for name in ("vae", "total"):
            stages[name] = replace(stages[name], high=stages[name].high + 9 * vae)
    return Prediction(
        point, stages, Interval.around(denoise / point.steps, wider * denoise_error), step.terms,
        {name: wider * error for name, error in errors.items()}, memory, step.comm_bytes, step.bottleneck, tuple(warnings),
    )  # fmt: skip


def _check(point: Point, model: ModelSpec, topology: Topology) -> None:
    if not topology.predictable:
        raise Infeasible(f"topology={topology.name} is measured only, nothing can be predicted on it; {topology.note}")
    if point.dtype == "fp32":
        raise Infeasible("predictions are for bf16, the published and calibrated format; dtype=fp32 has to be measured")
    reason = infeasible(point, model, gpus=topology.gpus)
    if reason:
        raise Infeasible(reason)
    most = profiles.find(point.engine, point.execution).max_gpus
    if most is not None and point.gpus > most:
        raise Infeasible(
            f"engine={point.engine} runs on {most} GPU; ulysses={point.ulysses} x ring={point.ring} needs {point.gpus}"
        )


def _out_of_memory(point: Point, memory: MemoryPlan, topology: Topology) -> OutOfMemory:
    what = (
        f"a cap of {memory.cap_bytes / 1e9:.1f} GB"
        if point.memory_cap_gb
        else f"the {memory.cap_bytes / 1e9:.1f} GB of {topology.gpu.name}"
    )
    remedy = "vae=parallel on more GPUs or vae=tiled" if memory.stage == "vae" else "more GPUs or a smaller image"
    return OutOfMemory(
        f"the {memory.stage} stage needs {memory.peak_bytes / 1e9:.1f} GB on rank 0, weights included, more than {what}; use {remedy}",
        stage=memory.stage, rank=0, bytes_asked=memory.peak_bytes, bytes_free=memory.cap_bytes - memory.parameters_bytes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Step:
    seconds: float
    once_s: float
    terms: dict[str, float]
    errors: dict[str, float]
    comm_bytes: float
    bottleneck: str


def attention_share(point: Point, topology: Topology, profile: EngineProfile) -> float:
    """Share of peak of the attention kernel of a point. Raises Infeasible for a kernel the topology has no number for."""
    wanted = point.attention if profile.attention != ("flash",) else "auto"
    if wanted == "auto":
        wanted = next((k for k in (*profile.attention, *topology.attention) if k in topology.attention), "flash")
    if wanted not in topology.attention:
        raise Infeasible(
            f"topology={topology.name} has no number for attention={wanted}; it has {', '.join(topology.attention)}"
        )
    return topology.attention[wanted].value


def _step(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile, network: Network) -> _Step:
    shard = w.Shard.of(point, profile)
    double, single = w.blocks(model)
    row_bytes = float(w.BF16 * model.hidden)
    fused = profile.fused_elementwise

    def per_block(pair: tuple[float, float]) -> float:
        return pair[0] * double + pair[1] * single

    terms = {
        "gemm": sum(
            g.count * gemm_s(topology, g)
            for g in w.transformer_gemms(model, shard.image, shard.text, fused=profile.fused_projections)
        ),
        "modulation": stream_s(topology, w.modulation_bytes(model)),
        "elementwise": rows_s(topology, per_block(profile.rows), shard.tokens, row_bytes, fused=fused),
        "kernel_gaps": per_block(profile.kernels) * topology.host["kernel_gap_s"].value,
    }
    once = terms.pop("modulation") if profile.modulation_once else 0.0
    head_dim = int(model.transformer["attention_head_dim"])
    share = attention_share(point, topology, profile)
    calls = w.attentions(model, shard, point.ulysses)
    terms["attention"] = sum(c.count * attention_s(topology, c, head_dim, share) for c in calls)
    host = per_block(profile.host_ops) * topology.host["op_s"].value
    sent, limits = 0.0, {}
    if point.ulysses > 1:
        exchanged = [(double, shard.image if shard.repeated else shard.tokens), (single, shard.tokens)]
        terms["all_to_all"] = terms["pack"] = 0.0
        for count, tokens in exchanged:
            for rows in profile.exchanges:
                transfer = network.all_to_all_s(rows * tokens * row_bytes)
                terms["all_to_all"] += count * transfer.seconds
                terms["pack"] += count * rows_s(topology, profile.pack_rows * rows, tokens, row_bytes, fused=fused)
                sent += count * rows * tokens * row_bytes * (point.ulysses - 1) / point.ulysses
                limits["all_to_all"] = transfer.limit
        host += (double + single) * len(profile.exchanges) * profile.ops_per_collective * topology.host["op_s"].value
    if point.ring > 1:
        terms["ring"] = terms["merge"] = 0.0
        hops = point.ring - 1
        for call in calls:
            tokens = shard.image if shard.repeated and call is calls[0] else shard.tokens
            transfer = network.ring_step_s(2 * tokens * row_bytes)
            hidden = profile.overlap * attention_s(topology, call, head_dim, share) / point.ring
            terms["ring"] += call.count * hops * max(0.0, transfer.seconds - hidden)
            terms["merge"] += call.count * rows_s(
                topology, hops * profile.merge_rows, shard.tokens, row_bytes, fused=fused
            )
            sent += call.count * hops * 2 * tokens * row_bytes
            limits["ring"] = transfer.limit
        host += (double + single) * hops * profile.ops_per_ring_step * topology.host["op_s"].value
    gpu = sum(terms.values())
    seconds = (gpu**SHARPNESS + host**SHARPNESS) ** (1 / SHARPNESS)
    terms["launch"] = seconds - gpu
    errors = _errors(topology, terms, gpu, host, seconds)
    return _Step(seconds, once, terms, errors, sent, _bottleneck(terms, limits, topology))


def _errors(
    topology: Topology, terms: Mapping[str, float], gpu: float, host: float, seconds: float
) -> dict[str, float]:
    """Standard errors of a step by class, carried through the soft maximum of GPU and host."""
    relative = {name: number.value for name, number in topology.uncertainty.items()}
    to_gpu, to_host = (gpu / seconds) ** (SHARPNESS - 1), (host / seconds) ** (SHARPNESS - 1)
    by_class = {"compute": 0.0, "network": 0.0}
    for name, value in terms.items():
        if CLASSES[name] in by_class:
            by_class[CLASSES[name]] += value
    return {
        **{c: relative[c] * value * to_gpu for c, value in by_class.items()},
        "host": relative["host"] * host * to_host,
    }


def _bottleneck(terms: Mapping[str, float], limits: Mapping[str, str], topology: Topology) -> str:
    name = max(terms, key=lambda term: terms[term])
    share = f"{100 * terms[name] / sum(terms.values()):.0f} % of a step"
    if name in limits:
        what = "all-to-all" if name == "all_to_all" else "ring exchange"
        return f"{what} crosses the {limits[name]} ({share})"
    return f"{WORDS[name]} ({share})"


def _text(point: Point, model: ModelSpec, topology: Topology) -> tuple[float, float]:
    """Seconds of the text encoders, on every rank, and their relative error."""
    text = w.text_encoders(model)
    compute = text.flops_per_token * point.text_tokens / (topology.gpu.peak_flops * topology.efficiency["gemm"].value)
    launches = TEXT_OPS * topology.host["op_s"].value
    return max(compute, stream_s(topology, text.bytes), launches) + TEXT_FIXED_S, 0.3


def _extrapolation(point: Point, model: ModelSpec, topology: Topology) -> tuple[float, list[str]]:
    """How much wider the interval is outside what was calibrated, and the warnings that say so."""
    low, high = topology.calibrated_tokens
    tokens, wider, warnings = point.image_tokens, 1.0, []
    if not low <= tokens <= high:
        beyond = math.log2(low / tokens if tokens < low else tokens / high)
        wider += beyond
        warnings.append(
            f"{point.width}x{point.height} pixels are {tokens} image tokens, outside the {low} to {high} that "
            f"{topology.name} was calibrated for: the interval is {wider:.1f} times as wide"
        )
    away = abs(math.log2(model.hidden / CALIBRATED_HIDDEN))
    if away > 0:
        wider += away
        warnings.append(
            f"{model.name} is {model.hidden} wide, calibrated was {CALIBRATED_HIDDEN}: read its times with care"
        )
    return wider, warnings


CALIBRATED_HIDDEN = 3072  # FLUX.1
