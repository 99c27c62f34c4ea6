"""How far the model is from what was published and what was measured, and which of the study's facts it reproduces.

Owns errors, leave-one-out errors, regret and facts. Published and measured sets are never pooled.

    report = validate(data_dir("published"), Path("results"))
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.advice import Option, advise, from_prediction, ties
from xdit_bench.predict.compared import Row, Set, picture
from xdit_bench.predict.measured import compare_study
from xdit_bench.predict.memory import plan_memory
from xdit_bench.predict.model import predict
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.profiles import find
from xdit_bench.predict.published import Latency, is_memory, read_latencies, read_peaks
from xdit_bench.results.store import studies
from xdit_bench.topology.specs import Topology, load

FIT_AT_LEAST = 6  # samples of a machine, with free numbers, that a leave-one-out error means anything for


@dataclass(frozen=True)
class Fact:
    """A statement of the study and whether the model says so: reproduced, tie, or not reproduced."""

    text: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Report:
    """Everything `python -m xdit_bench.validate` prints."""

    latencies: tuple[Set, ...]
    peaks: tuple[Set, ...]
    facts: tuple[Fact, ...] = field(default=())


def validate(published: Path, results: Path) -> Report:
    """Compares the model with every CSV of `published` and every measured study below `results`."""
    latencies: list[Set] = []
    peaks: list[Set] = []
    for path in sorted(published.glob("*.csv")):
        if is_memory(path):
            peaks.append(_published_peaks(path))
        else:
            latencies += _published_latencies(path)
    for folder, records in studies(results):
        for one, other in compare_study(folder, records):
            latencies.append(one)
            if other.rows or other.verdicts:
                peaks.append(other)
    return Report(tuple(latencies), tuple(peaks), tuple(facts()))


def _published_latencies(path: Path) -> list[Set]:
    from xdit_bench.predict.fit import fit, get, leave_one_out  # scipy: half a second that a prediction does not pay

    found = []
    rows = read_latencies(path)
    for name in dict.fromkeys(row.point.topology for row in rows):
        topology, mine = load(name), [row for row in rows if row.point.topology == name]
        compared = tuple(Row(r.point, r.seconds, predict(r.point, r.model, topology).total_s) for r in mine)
        left_out: list[float] = []
        fitted: list[tuple[str, float, float, float]] = []
        if topology.free and len(mine) >= FIT_AT_LEAST:
            samples = [(r.point, r.model, r.seconds) for r in mine]
            left_out, again = leave_one_out(topology, samples), fit(topology, samples)
            fitted = [(n.key, get(topology, n.key), get(again, n.key), n.prior) for n in topology.free]
        regrets = tuple(_published_regret(row, topology) for row in mine if row.point.gpus > 1)
        title = f"{path.stem}: {name}"
        found.append(Set(title, "published", compared, tuple(left_out), regrets, fitted=tuple(fitted)))
    return found


def _published_regret(row: Latency, topology: Topology) -> tuple[str, float]:
    """Only the best split of a GPU count was published: the regret is the model's own time for it over its pick's, 0 in
    a tie."""
    advice = advise(row.point, row.model, topology, row.point.gpus, exactly=True)
    theirs, pick = from_prediction(predict(row.point, row.model, topology)), advice.options[0]
    regret = 0.0 if ties(theirs, pick) else theirs.counted_s / pick.counted_s - 1
    return f"{picture(row.point)} {row.point.gpus} GPUs: {pick.split}, published {theirs.split}", regret


def _published_peaks(path: Path) -> Set:
    rows = []
    for peak in read_peaks(path):
        topology = load(peak.point.topology)
        plan = plan_memory(peak.point, peak.model, topology, find(peak.point.engine, peak.point.execution))
        rows.append(Row(peak.point, peak.bytes, plan.peak_bytes))
    return Set(f"{path.stem}: a100_nvlink", "published", tuple(rows))


def facts() -> Iterable[Fact]:
    """The study's statements (performance of FLUX.1 on 8xA100 and 8xL40, 2024)."""
    a100, l40, model = load("a100_nvlink"), load("l40_pcie"), load_model("flux_schnell")

    def option(topology: Topology, res: int, ulysses: int, ring: int, vae: str = "none") -> Option:
        return from_prediction(predict(_point(model, topology, res, ulysses, ring, vae), model, topology))

    for res in (1024, 2048, 4096):
        for gpus in (4, 8):
            yield _best(f"A100: pure Ulysses is best on {gpus} GPUs at {res}px", (gpus, 1), res, a100, model)
    yield _best("L40: u2r2 is best on 4 GPUs at 1024px", (2, 2), 1024, l40, model)
    yield _slower("L40: 8 GPUs are slower than 4 at 1024px", option(l40, 1024, 2, 4), option(l40, 1024, 2, 2))
    yield _slower("L40: 4 GPUs are slower than 8 at 2048px", option(l40, 2048, 2, 2), option(l40, 2048, 2, 4))
    for res, speedup, vae in ((1024, 2.3, "single"), (2048, 4.2, "single"), (4096, 7.4, "none")):
        one, eight = (option(a100, res, gpus, 1, vae) for gpus in (1, 8))
        ratio = one.seconds / eight.seconds
        error = math.hypot(*(math.hypot(*o.errors.values()) / o.seconds for o in (one, eight)))
        verdict = "reproduced" if abs(ratio / speedup - 1) <= error else "not reproduced"
        yield Fact(f"A100: {speedup}x on 8 GPUs at {res}px", verdict, f"{ratio:.2f}x, within {100 * error:.0f} %")
    for res, fits in ((2048, True), (3072, False), (4096, False)):
        yield _fits(f"A100: one GPU {'decodes' if fits else 'runs out of memory at'} {res}px", fits, res, a100, model)


def _point(model: ModelSpec, topology: Topology, res: int, ulysses: int, ring: int, vae: str) -> Point:
    return make_point(
        model, topology=topology.name, height=res, width=res, ulysses=ulysses, ring=ring, vae=vae, engine="xdit_2024",
        text_tokens=256,
    )  # fmt: skip


def _best(text: str, split: tuple[int, int], res: int, topology: Topology, model: ModelSpec) -> Fact:
    point = _point(model, topology, res, *split, "none")
    options = advise(point, model, topology, point.gpus, exactly=True).options
    theirs = next(option for option in options if (option.point.ulysses, option.point.ring) == split)
    others = [option for option in options if option is not theirs]
    tied = [option.split for option in others if ties(theirs, option)]
    faster = [option for option in others if option.counted_s < theirs.counted_s and not ties(theirs, option)]
    verdict = "not reproduced" if faster else "tie" if tied else "reproduced"
    return Fact(
        text, verdict, ", ".join(f"{o.split} {o.seconds:.2f} s{' (tie)' if o.split in tied else ''}" for o in options)
    )


def _slower(text: str, slow: Option, fast: Option) -> Fact:
    verdict = "tie" if ties(slow, fast) else "reproduced" if slow.seconds > fast.seconds else "not reproduced"
    return Fact(text, verdict, f"{slow.split} {slow.seconds:.2f} s, {fast.split} {fast.seconds:.2f} s")


def _fits(text: str, fits: bool, res: int, topology: Topology, model: ModelSpec) -> Fact:
    plan = plan_memory(_point(model, topology, res, 1, 1, "single"), model, topology, find("xdit_2024", "eager"))
    verdict = "reproduced" if (plan.verdict != "oom") is fits else "not reproduced"
    return Fact(text, verdict, f"{plan.verdict}: {plan.peak_bytes / 1e9:.1f} of {plan.cap_bytes / 1e9:.1f} GB")
