"""The prediction of a point: seconds by stage and by term, memory, how sure it is, and what limits it.

Owns the sum `text + steps * step + vae` and its interval; the terms come from `step`, `decode` and `memory`.
Imports no torch and runs in a few milliseconds.

    prediction = predict(point, model, load("a100_nvlink"))
    prediction.stages["total"].median
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from xdit_bench.config import ModelSpec, Point, infeasible
from xdit_bench.errors import Infeasible, OutOfMemory, either
from xdit_bench.predict import profiles
from xdit_bench.predict.decode import decode_s
from xdit_bench.predict.memory import CONTEXT_BYTES, MemoryPlan, plan_memory
from xdit_bench.predict.network import Network, path
from xdit_bench.predict.step import Step, denoising_steps
from xdit_bench.predict.text import text_s
from xdit_bench.predict.workload import step_flops
from xdit_bench.topology.specs import BESIDE, Topology

Z90 = 1.645  # standard errors to the 5th and 95th percentile
TEXT_ERROR = 0.2  # relative standard error; on H100 and H200 what is counted comes out 10 to 20 % short of the stage
THRASHING = 9.0  # a decode under memory pressure takes up to so many times longer on top (25.3 s for 2.9 s)
CRAMPED = 20.0  # and where cuDNN's workspace does not fit either (19.6 s for 1.4 s, 122 s for 6.3 s)
CALIBRATED_HIDDEN = 3072  # FLUX.1
LED_STEPS = 1  # by which a host is ahead at most: CUDA queues 1024 launches, and a step of FLUX.1 has 650 to 3400
HELD_WHOLE = {  # stages before a rank has put others' shares of the weights away
    "load": "loads all weights first",
    "prepare": "holds all weights and the tokens that it chooses an attention kernel by",
}
BANDS_OR_TILES = {  # where a decode does not fit, of engines without vae=parallel
    "stock": "vae=tiled, or vae=parallel with engine=usp",
    "diffusers": "vae=tiled, or vae=parallel with engine=usp",
    "xfuser": "vae=distvae on more GPUs, or vae=tiled",
}


@dataclass(frozen=True)
class Interval:
    """Seconds: the prediction and its 90 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def around(cls, seconds: float, relative_error: float, least: float = 0.0) -> Interval:
        """A log-normal interval of a standard error, cut off at the `least` seconds that the hardware allows."""
        spread = math.exp(Z90 * relative_error)
        return cls(seconds, min(seconds, max(least, seconds / spread)), seconds * spread)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a point. `terms` are seconds a step by name (they add up to it, what comes once an image
    aside), `errors` absolute standard errors of the total by class of term, `comm_bytes` what a rank sends a step."""

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
    """Predicts a point on a machine; `ulysses_inner` is our engine's placement, see `Network`.

    Raises Infeasible where a rule or a missing number forbids it, OutOfMemory where it does not fit.
    """
    _check(point, model, topology)
    profile = profiles.find(point.engine, point.execution)
    memory = plan_memory(point, model, topology, profile)
    if memory.verdict == "oom":
        raise _out_of_memory(point, memory, topology)
    ranks = (point.ulysses, point.ring, ulysses_inner)
    links = Network(topology, path(topology, point, profile.symmetric), *ranks)
    decoding = Network(topology, point.transport, *ranks)
    text = text_s(point, model, topology, profile)

    def after(step: Step, machine: Topology = topology) -> float:
        lead = min(point.steps, LED_STEPS) * step.lead_s
        return decode_s(point, model, machine, profile, decoding, lead)

    def denoising_s(step: Step) -> float:
        return point.steps * step.seconds + step.once_s

    ways = denoising_steps(point, model, topology, profile, links)
    step = min(ways, key=lambda way: denoising_s(way) + after(way))
    denoise, vae = denoising_s(step), after(step)

    wider, warnings = _extrapolation(point, model, topology)
    # of launches and of the text stage no image token changes a thing
    errors = {name: (1.0 if name == "host" else wider) * point.steps * seconds for name, seconds in step.errors.items()}
    denoise_error = math.hypot(*errors.values()) / denoise
    slow = _slower_host(topology)  # these two stages are issued op by op too
    errors["text"] = math.hypot(TEXT_ERROR * text, text_s(point, model, slow, profile) - text)
    errors["vae"] = math.hypot(wider * topology.uncertainty["vae"].value * vae, after(step, slow) - vae)
    total = text + denoise + vae
    least = point.steps * step_flops(model, point) / (point.gpus * topology.gpu.peak_flops)
    stages = {
        "text": Interval.around(text, errors["text"] / text),
        "denoise": Interval.around(denoise, denoise_error, least),
        **({"vae": Interval.around(vae, errors["vae"] / vae)} if vae else {}),
        "total": Interval.around(total, math.hypot(*errors.values()) / total, least),
    }
    if memory.verdict == "pressure":
        warnings.append(_pressure(point, memory))
        longer = CRAMPED if memory.cramped else THRASHING
        for name in ("vae", "total"):  # a decode's reserve alone can press
            stages[name] = replace(stages[name], high=stages[name].high + longer * vae)
    if memory.near:
        needed = max(memory.needed_bytes, memory.loading_bytes)
        warnings.append(
            f"it needs {needed / 1e9:.1f} of {memory.cap_bytes / 1e9:.1f} GB: so near to what the card allows it may "
            "run out of memory; measure it before you rely on it"
        )
    return Prediction(
        point=point,
        stages=stages,
        step=Interval.around(denoise / point.steps, denoise_error, least / point.steps),
        terms=step.terms,
        errors=errors,
        memory=memory,
        comm_bytes=step.sent_bytes,
        bottleneck=_bottleneck(step, {"text encoders": text, "the VAE's decode": vae}, denoise),
        warnings=tuple(warnings),
    )


def _bottleneck(step: Step, others: Mapping[str, float], denoise: float) -> str:
    """What limits an image in words: of denoising what limits a step, unless another stage takes longer."""
    stage = max(others, key=lambda name: others[name])
    share = others[stage] / (denoise + sum(others.values()))
    return f"{stage} ({100 * share:.0f} % of an image)" if others[stage] > denoise else step.bottleneck


def _slower_host(topology: Topology) -> Topology:
    """With launches that take longer by their standard error."""
    longer = 1.0 + topology.uncertainty["host"].value
    launches = {key: number for key, number in topology.host.items() if key in ("op_s", BESIDE)}
    slow = {key: replace(number, value=longer * number.value) for key, number in launches.items()}
    return replace(topology, host={**topology.host, **slow})


def _check(point: Point, model: ModelSpec, topology: Topology) -> None:
    if not topology.predictable:
        note = topology.note or "its file says predict: false"
        raise Infeasible(f"topology={topology.name} is measured only, nothing can be predicted on it; {note}")
    if point.dtype == "fp32":
        raise Infeasible("predictions are for bf16, the published and calibrated format; dtype=fp32 has to be measured")
    if point.steps < 1:
        raise Infeasible("the performance model predicts whole images; steps=0, a decode alone, has to be measured")
    if point.without:
        raise Infeasible(f"the performance model knows the whole engine; without={point.without} has to be measured")
    reason = infeasible(point, model, gpus=topology.gpus)
    if reason:
        raise Infeasible(reason)
    profile = profiles.find(point.engine, point.execution)
    uneven = [n for n in (point.image_tokens, point.text_tokens) if n % point.gpus]
    if profile.even_shares and uneven:
        raise Infeasible(
            f"engine={point.engine} computes another image where {point.gpus} GPUs do not divide all tokens, here "
            f"{uneven[0]}; use engine=usp"
        )
    if profile.even_hybrids and uneven and point.ulysses > 1 and point.ring > 1:
        raise Infeasible(
            f"engine={point.engine} runs Ulysses with a ring where the GPUs divide all tokens; {point.gpus} do not "
            f"divide {uneven[0]}; use one of the two alone, or engine=usp"
        )
    if profile.even_hybrids and point.gpus > 1 and point.attention not in ("auto", *profile.attention):
        raise Infeasible(
            f"engine={point.engine} on several GPUs has attention={either(profile.attention)}; got {point.attention}; "
            "use one of these, or engine=usp"
        )
    most = profile.max_gpus
    if most is not None and point.gpus > most:
        raise Infeasible(f"engine={point.engine} runs on {most} GPU; this point needs {point.gpus}, use engine=usp")


def _out_of_memory(point: Point, memory: MemoryPlan, topology: Topology) -> OutOfMemory:
    what = f"the {memory.cap_bytes / 1e9:.1f} GB of {topology.gpu.name}"
    card = topology.gpu.memory_bytes - CONTEXT_BYTES
    capped = point.memory_cap_gb is not None and point.memory_cap_gb * 1e9 < card
    if capped:
        what = f"a cap of {point.memory_cap_gb:g} GB"
    if memory.stage in HELD_WHOLE:
        return OutOfMemory(
            f"every rank {HELD_WHOLE[memory.stage]}, {memory.loading_bytes / 1e9:.1f} GB, more than {what}; "
            f"use a {'larger cap' if capped else 'GPU with more memory'}",
            stage=memory.stage,
            rank=0,
            bytes_asked=memory.loading_bytes,
            bytes_free=memory.cap_bytes,
        )
    # where the peak by itself would fit, what the allocator wastes at the least does not
    needed = memory.peak_bytes if memory.peak_bytes > memory.cap_bytes else max(memory.peak_bytes, memory.needed_bytes)
    remedy = "more GPUs or a smaller image"
    if memory.stage == "vae":
        remedy = roomier_decode(point)
    return OutOfMemory(
        f"the {memory.stage} stage needs {needed / 1e9:.1f} GB on rank 0, weights included, "
        f"more than {what}; use {remedy}",
        stage=memory.stage,
        rank=0,
        bytes_asked=needed,
        bytes_free=memory.cap_bytes - memory.parameters_bytes,
    )


def _pressure(point: Point, memory: MemoryPlan) -> str:
    more = "twenty" if memory.cramped else "ten"
    return (
        f"memory pressure: {memory.peak_bytes / 1e9:.1f} GB of {memory.cap_bytes / 1e9:.1f} GB at the peak; the "
        f"allocator may thrash and the decode take up to {more} times as long; use {roomier_decode(point)}"
    )


def roomier_decode(point: Point) -> str:
    """What to use where a point's decode wants more memory than there is."""
    if point.engine == "usp" and point.vae != "parallel":
        return "vae=parallel"
    if point.vae == "tiled":
        return "a smaller image, or engine=usp with vae=parallel"
    return BANDS_OR_TILES.get(point.engine, "vae=parallel on more GPUs, or vae=tiled")


def _extrapolation(point: Point, model: ModelSpec, topology: Topology) -> tuple[float, list[str]]:
    """How much wider the interval is outside what was calibrated, and the warnings that say so."""
    low, high = topology.calibrated_tokens
    tokens, wider, warnings = point.image_tokens, 1.0, []
    if not low <= tokens <= high:
        wider += math.log2(low / tokens if tokens < low else tokens / high)
        warnings.append(
            f"{point.width}x{point.height} pixels are {tokens} image tokens, outside the {low} to {high} that "
            f"{topology.name} was calibrated for: the error of what they take is {wider:.3g} times as large"
        )
    away = abs(math.log2(model.hidden / CALIBRATED_HIDDEN))
    if away:
        wider += away
        warnings.append(
            f"{model.name} is {model.hidden} wide and the model was calibrated at {CALIBRATED_HIDDEN}: "
            f"the error of a step is {wider:.3g} times as large"
        )
    return wider, warnings
