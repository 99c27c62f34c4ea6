"""One record as a report reads it: its numbers made safe, its success judged.

Owns what counts as a number and as a success; what may be compared with what is `study`'s.

    entry = Entry.of(record)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from xdit_bench.errors import ResultsError
from xdit_bench.predict.advice import ends
from xdit_bench.predict.utilisation import utilisation
from xdit_bench.results.schema import STAGES, Record, interval

Size = tuple[int, int]  # height, width in pixels

# what `total` holds beside text and denoising; points of unequal decode never compete for "best"
DECODES = {"none": "none", "tiled": "approximate"}


def number(value: Any) -> float | None:
    """A finite real number, or None: NaN, infinity, their names as strings and booleans are no metric."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True)
class Entry:
    """One record with its numbers made safe: seconds and bytes are finite floats or None."""

    record: Record
    size: Size
    ulysses: int
    ring: int
    engine: str
    execution: str
    attention: str
    without: str
    vae: str
    status: str
    total_s: float | None
    low_s: float | None
    high_s: float | None
    stages: dict[str, float]
    step_s: float | None
    peak_bytes: float | None
    parameters_bytes: float | None
    energy_j: float | None
    parity_l2: float | None
    fp32_l2: float | None

    @classmethod
    def of(cls, record: Record) -> Entry:
        """Raises ResultsError when the point's numbers are not numbers."""
        point = record.point
        try:
            sizes = [int(point[key]) for key in ("height", "width", "ulysses", "ring")]
        except (TypeError, ValueError) as error:
            raise ResultsError(
                f"record {record.run_id}: height, width, ulysses and ring must be numbers ({error})"
            ) from error
        wrong = record.status == "ok" and record.parity.get("ok") is False
        total = _statistics(record.latency_s.get("total"))
        low, high = (number(end) for end in interval(total))
        peaks = [number(value) for value in record.memory.get("peak_bytes_per_rank") or []]
        peak = number(record.memory.get("peak_bytes")) or max((value for value in peaks if value), default=None)
        return cls(
            record=record,
            size=(sizes[0], sizes[1]),
            ulysses=sizes[2],
            ring=sizes[3],
            engine=str(point["engine"]),
            execution=str(point["execution"]),
            attention=str(point["attention"]),
            without=str(point.get("without") or ""),
            vae=str(point["vae"]),
            status="incorrect" if wrong else record.status,
            total_s=number(total.get("median")) if record.status == "ok" else None,
            low_s=low,
            high_s=high,
            stages=_stages(record),
            step_s=number(_statistics(record.step_s).get("median")),
            peak_bytes=peak,
            parameters_bytes=number(record.memory.get("parameters_bytes")),
            energy_j=number(record.telemetry.get("energy_j_per_image")),
            parity_l2=_distance(record.parity.get("latents_rel_l2")),
            fp32_l2=_distance(record.parity.get("fp32_rel_l2")),
        )

    @property
    def ok(self) -> bool:
        """A time that may be compared: the point ran, and its image is right."""
        return self.status == "ok" and self.total_s is not None

    @property
    def ends_s(self) -> tuple[float, float]:
        """Where the median of a success may lie: see `predict.advice.ends`."""
        return ends(self.record.latency_s["total"])

    @property
    def cold(self) -> bool:
        """Timed without a warm-up: such an image is not like those after it, so its time makes no ratio."""
        return self.record.telemetry.get("warmup_s") == []

    @property
    def gpus(self) -> int:
        """Ranks of the point."""
        return self.ulysses * self.ring

    @property
    def factors(self) -> str:
        """`u2r1`."""
        return f"u{self.ulysses}r{self.ring}"

    @property
    def terms(self) -> dict[str, float]:
        """Seconds of a step by what they went to: classes of kernels, or terms of the model."""
        found = {str(key): number(value) for key, value in self.record.attribution.items() if key != "utilisation"}
        return {key.removesuffix("_s"): value for key, value in found.items() if value and value > 0}

    @property
    def utilisation(self) -> float | None:
        """Share of the GPUs' bf16 peak that a step reached (`predict.utilisation`)."""
        return utilisation(self.record.point, self.step_s) if self.ok and self.step_s else None

    @property
    def kernel(self) -> str:
        """The attention kernel: `fa3`, or `auto: fa3` where the engine chose it."""
        chosen = (self.record.telemetry.get("choices") or {}).get("attention")
        return f"auto: {chosen}" if self.attention == "auto" and chosen else self.attention

    @property
    def runner(self) -> str:
        """Engine and execution: `usp/graph`, and the gains that were left out."""
        less = f" without {self.without.replace('+', ', ')}" if self.without else ""
        return f"{self.engine}/{self.execution}{less}"

    @property
    def decode(self) -> str:
        """What the total's VAE stage is: exact, approximate (tiles) or none."""
        return DECODES.get(self.vae, "exact")

    @property
    def capped(self) -> bool:
        """Measured below a memory cap on a larger card."""
        return self.record.point.get("memory_cap_gb") is not None

    @property
    def verdict(self) -> str:
        """Memory: fits, pressure, oom or empty."""
        return str(self.record.memory.get("verdict") or "")

    @property
    def outcome(self) -> str:
        """The status as a bar's label: `OOM`, `timeout`; `too large` of what was left out as a smaller size ran out of
        memory (else what is skipped failed to start, and says so)."""
        too_large = self.status == "skipped" and not self.record.failure
        return "OOM" if self.status == "oom" else "too large" if too_large else self.status

    @property
    def reason(self) -> str:
        """Why the point is no success, empty for one that is."""
        if self.status == "incorrect" and self.record.status == "ok":
            return f"parity failed: relative L2 of the latents {self.record.parity.get('latents_rel_l2')}"
        return self.record.reason

    @property
    def limit_bytes(self) -> float | None:
        """Memory the point had: the cap where one was set, else the card's capacity."""
        cap = number(self.record.point.get("memory_cap_gb"))
        card = number(self.record.memory.get("cap_bytes")) or number(self.record.machine.get("capacity_bytes"))
        return cap * 1e9 if cap else card


def pick(entries: Iterable[Entry]) -> Entry | None:
    """The fastest success; without one the failure that says most (memory first, rules last)."""
    order = ("oom", "incorrect", "timeout", "crashed", "unstable", "skipped", "infeasible")
    listed = list(entries)
    if succeeded := [entry for entry in listed if entry.ok]:
        return min(succeeded, key=seconds_or_inf)
    return min(listed, key=lambda e: order.index(e.status) if e.status in order else len(order), default=None)


def seconds_or_inf(entry: Entry) -> float:
    """The total, or infinity for a point without one: the key of "fastest"."""
    return entry.total_s if entry.total_s is not None else math.inf


def _statistics(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _distance(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0 else None


def _stages(record: Record) -> dict[str, float]:
    found = {}
    for stage in STAGES:
        value = number(_statistics(record.latency_s.get(stage)).get("median"))
        if value is not None:
            found[stage] = value
    return found
