"""Which split of a machine's GPUs to use: the best point, its runner-up, whether they tie, and what limits them.

Owns comparing predictions with their errors. Measured records of the same machine and point stand in for predictions
where there are any.

    advice = advise(point, model, topology, gpus=8)
    advice.best, advice.runner_up, advice.fewest(latency_s=5.0)
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import OutOfMemory, PointFailure
from xdit_bench.predict.model import Prediction, predict
from xdit_bench.predict.step import largest_part
from xdit_bench.results.schema import Record, interval
from xdit_bench.results.store import sittings
from xdit_bench.topology.specs import Topology

MODEL_ERROR = 0.02  # what two predictions of one machine err apart by, whatever they have in common
# of a time from sitting to sitting, one standard deviation: 31 points above 1024px that several of our studies hold
# differ by 1.4 % in graphs, 59 by 2.3 % eager; images up to 1024px, which a host may bind, by more
SITTING_ERROR = 0.02
FEW_ERROR = 0.01  # of a median of so few images that it has no interval, beyond their range
Z95 = 1.96


@dataclass(frozen=True)
class Option:
    """One split: seconds an image, peak memory, and whether it was measured. `errors` are standard errors by class."""

    point: Point
    seconds: float
    low: float
    high: float
    errors: Mapping[str, float]
    peak_bytes: float
    verdict: str
    bottleneck: str
    source: str

    @property
    def gpu_seconds(self) -> float:
        """GPU-seconds an image."""
        return self.point.gpus * self.seconds

    @property
    def counted_s(self) -> float:
        """Seconds to count on: under memory pressure that was not measured, the most it may take."""
        return self.high if self.source == "predicted" and self.verdict == "pressure" else self.seconds

    @property
    def split(self) -> str:
        """`u2r4`."""
        return f"u{self.point.ulysses}r{self.point.ring}"


@dataclass(frozen=True)
class Advice:
    """All options of a machine, fastest first, and why the other splits have none."""

    options: tuple[Option, ...]
    failures: Mapping[str, str]

    @property
    def best(self) -> Option:
        """The fastest; of those that tie with it and cost no more GPU-seconds, the one with the fewest GPUs."""
        fastest = self.options[0]
        tied = [o for o in self.options if ties(o, fastest) and o.gpu_seconds <= fastest.gpu_seconds]
        return min(tied, key=lambda option: (option.point.gpus, option.counted_s))

    @property
    def runner_up(self) -> Option | None:
        """The fastest of the others."""
        return next((option for option in self.options if option is not self.best), None)

    def fewest(self, latency_s: float) -> Option | None:
        """The option with the fewest GPUs that meets a latency, the fastest of these."""
        able = [option for option in self.options if option.counted_s <= latency_s]
        return min(able, key=lambda option: (option.point.gpus, option.counted_s)) if able else None


def splits(gpus: int) -> list[tuple[int, int]]:
    """All (ulysses, ring) of up to `gpus` GPUs."""
    return [(u, n // u) for n in range(1, gpus + 1) for u in range(1, n + 1) if n % u == 0]


def advise(
    point: Point,
    model: ModelSpec,
    topology: Topology,
    gpus: int | None = None,
    measured: Iterable[Record] = (),
    exactly: bool = False,
    ulysses_inner: bool = True,
) -> Advice:
    """Every split of up to `gpus` GPUs (default: all; `exactly`: of that many) of the point's picture on a machine.

    `ulysses_inner` is our engine's placement, see `Network`; measured records have no other.

    A topology with nothing to predict from has its measured records alone.
    """
    taken = [record for record in measured if record.status != "skipped"]
    of_sitting = sittings(taken)
    known: dict[tuple[object, ...], list[Record]] = {}
    for record in taken:
        known.setdefault(_key(Point.from_dict(record.point)), []).append(record)
    options: list[Option] = []
    failures: dict[str, str] = {}
    for ulysses, ring in splits(gpus or topology.gpus):
        if exactly and ulysses * ring != gpus:
            continue
        candidate = dataclasses.replace(point, ulysses=ulysses, ring=ring)
        try:
            ran = [record for record in known.get(_key(candidate), []) if record.status == "ok"]
            if why_not := _measured_failure(candidate, taken, known.get(_key(candidate), [])):
                raise OutOfMemory(why_not)
            options.append(
                from_record(*reversed(ran), sitting=of_sitting[ran[-1].time])
                if ran
                else from_prediction(predict(candidate, model, topology, ulysses_inner=ulysses_inner))
            )
        except PointFailure as failure:
            failures[f"u{ulysses}r{ring}"] = str(failure)
    return Advice(tuple(sorted(options, key=lambda option: option.counted_s)), failures)


def _measured_failure(point: Point, measured: Iterable[Record], same: Sequence[Record]) -> str | None:
    """Why a point can not be advised: what was measured last of its memory is that there is too little, or every run of
    the point itself failed. `measured` in the order of their times, `same` those of the very point."""
    last: Record | None = None
    for record in measured:
        other = Point.from_dict(record.point)
        if (record.status == "oom" and needs_no_more(other, point)) or (
            record.status == "ok" and needs_no_more(point, other)
        ):
            last = record
    if last and last.status == "oom":
        other = Point.from_dict(last.point)
        return f"measured: {last.reason}" + ("" if _key(other) == _key(point) else f" ({other.label})")
    if same and not any(record.status == "ok" for record in same):
        return f"measured: {same[-1].status}, {same[-1].reason}"
    return None


def needs_no_more(one: Point, other: Point) -> bool:
    """Whether a point needs no more memory a GPU than another of the same engine and decode, steps and prompt whatever:
    no larger an image on no fewer GPUs below no smaller a cap, op by op where the other is a graph."""
    free = ("height", "width", "ulysses", "ring", "memory_cap_gb", "seed", "prompt", "steps", "execution", "attention")
    if (one.steps == 0) != (other.steps == 0):  # a decode alone needs less, and holds more of the weights
        return False
    alike = dataclasses.replace(one, **{name: getattr(other, name) for name in free}) == other
    smaller = one.height <= other.height and one.width <= other.width and one.gpus >= other.gpus
    looser = (one.memory_cap_gb or math.inf) >= (other.memory_cap_gb or math.inf)
    return alike and smaller and looser and one.execution in ("eager", other.execution)


def from_prediction(prediction: Prediction) -> Option:
    """The option of a prediction."""
    total, memory = prediction.stages["total"], prediction.memory
    return Option(
        prediction.point, total.median, total.low, total.high, prediction.errors, memory.peak_bytes, memory.verdict,
        prediction.bottleneck, "predicted",
    )  # fmt: skip


def from_record(record: Record, *before: Record, sitting: int = 0) -> Option:
    """The option of a record; a measured one errs by where its median may lie and from sitting to sitting, of which
    the records `before` of the same point are others. `sitting` tells those of one machine apart."""
    total = record.latency_s["total"]
    median = float(total["median"])
    low, high = ends(total)
    errors = record.telemetry.get("errors_s") or {}
    if record.source == "measured":
        times = [median, *(one.total_s for one in before if one.total_s)]
        apart = max(SITTING_ERROR * median, statistics.stdev(times) if len(times) > 1 else 0.0)
        errors = {f"run {record.run_id}": (high - low) / (2 * Z95), f"sitting {sitting}": apart}
        spread = math.exp(Z95 * math.hypot(*errors.values()) / median)
        low, high = min(median / spread, *times), max(median * spread, *times)
    parts = {
        name.removesuffix("_s"): seconds
        for name, seconds in record.attribution.items()
        if name != "utilisation" and isinstance(seconds, int | float)
    }
    return Option(
        Point.from_dict(record.point), median, low, high, errors,
        float(record.memory.get("peak_bytes") or 0.0), str(record.memory.get("verdict", "")),
        largest_part(parts) if parts else "", record.source,
    )  # fmt: skip


def ends(total: Mapping[str, Any]) -> tuple[float, float]:
    """Where a median of seconds may lie: its interval, or of too few images for one their range and `FEW_ERROR`."""
    low, high = interval(total)
    if low is not None and high is not None:
        return float(low), float(high)
    taken = [float(sample) for sample in total.get("samples") or [total["median"]]]
    return min(taken) * (1 - FEW_ERROR), max(taken) * (1 + FEW_ERROR)


def ties(one: Option, other: Option) -> bool:
    """Whether two options are within the error of their difference.

    What both have in common cancels: a class of terms errs by the same factor in both, so that their ratio errs by what
    the two relative errors differ; `MODEL_ERROR` of the time is each prediction's own.
    """
    classes = {*one.errors, *other.errors}
    apart = [abs(one.errors.get(name, 0.0) / one.seconds - other.errors.get(name, 0.0) / other.seconds)
             for name in classes]  # fmt: skip
    own = MODEL_ERROR if "predicted" in (one.source, other.source) else 0.0
    if one.counted_s > one.seconds and other.counted_s > other.seconds:  # what pressure may add is in both
        times = one.seconds / other.seconds
    else:
        times = one.counted_s / other.counted_s
    return abs(math.log(times)) <= math.hypot(own, *apart)


def _key(point: Point) -> tuple[object, ...]:
    """What makes two points the same picture on the same ranks; prompt, seed and weights do not change a time."""
    return (
        point.model, point.height, point.width, point.steps, point.text_tokens, point.ulysses, point.ring, point.engine,
        point.execution, point.attention, point.vae, point.transport, point.topology, point.memory_cap_gb,
    )  # fmt: skip
