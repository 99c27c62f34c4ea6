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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import OutOfMemory, PointFailure
from xdit_bench.predict.model import Prediction, predict
from xdit_bench.predict.step import largest_part
from xdit_bench.results.schema import Record, interval
from xdit_bench.topology.specs import Topology

MODEL_ERROR = 0.02  # what two predictions of one machine err apart by, whatever they have in common
# of a time from sitting to sitting, one standard deviation: 31 points above 1024px that several of our studies hold
# differ by 1.4 % in graphs, 59 by 2.3 % eager; images up to 1024px, which a host may bind, by more
SITTING_ERROR = 0.02
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
    known: dict[tuple[object, ...], list[Record]] = {}
    for record in measured:
        if record.status in ("ok", "oom"):
            known.setdefault(_key(Point.from_dict(record.point)), []).append(record)
    options: list[Option] = []
    failures: dict[str, str] = {}
    for ulysses, ring in splits(gpus or topology.gpus):
        if exactly and ulysses * ring != gpus:
            continue
        candidate = dataclasses.replace(point, ulysses=ulysses, ring=ring)
        try:
            taken = known.get(_key(candidate), [])
            if taken and taken[-1].status == "oom":
                raise OutOfMemory(f"measured: {taken[-1].reason}")
            sittings = [record for record in taken if record.status == "ok"]
            options.append(
                from_record(*reversed(sittings))
                if sittings
                else from_prediction(predict(candidate, model, topology, ulysses_inner=ulysses_inner))
            )
        except PointFailure as failure:
            failures[f"u{ulysses}r{ring}"] = str(failure)
    return Advice(tuple(sorted(options, key=lambda option: option.counted_s)), failures)


def from_prediction(prediction: Prediction) -> Option:
    """The option of a prediction."""
    total, memory = prediction.stages["total"], prediction.memory
    return Option(
        prediction.point, total.median, total.low, total.high, prediction.errors, memory.peak_bytes, memory.verdict,
        prediction.bottleneck, "predicted",
    )  # fmt: skip


def from_record(record: Record, *before: Record) -> Option:
    """The option of a record; a measured one errs by the interval of its median and from sitting to sitting, of which
    the records `before` of the same point are others."""
    total = record.latency_s["total"]
    median = float(total["median"])
    taken = [float(sample) for sample in total.get("samples") or [median]]  # spread, if too few for more
    ends = zip(interval(total), (min(taken), max(taken)), strict=True)
    low, high = (end if said is None else float(said) for said, end in ends)
    errors = record.telemetry.get("errors_s") or {}
    if record.source == "measured":
        times = [median, *(one.total_s for one in before if one.total_s)]
        sitting = max(SITTING_ERROR * median, statistics.stdev(times) if len(times) > 1 else 0.0)
        errors = {"run": (high - low) / (2 * Z95), f"sitting of {record.study}": sitting}
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
