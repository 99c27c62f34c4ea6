"""Records as a report reads them: entries, groups that may share a curve, baselines and speedups.

Owns the rules of fairness: what shares a curve, what a speedup stands on, what counts as success. Draws and
writes nothing.

    groups = group_records(records)
    best = groups[0].best((1024, 1024), gpus=2)
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from xdit_bench.errors import ResultsError
from xdit_bench.results.schema import STAGES, Record

Size = tuple[int, int]  # height, width in pixels

# what `total` holds beside text and denoising; points of unequal decode never compete for "best"
DECODES = {"none": "none", "tiled": "approximate"}


def number(value: Any) -> float | None:
    """A finite real number, or None: NaN, infinity, their names as strings and booleans are no metric."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


class Setting(NamedTuple):
    """What has to be equal for two points to share a curve or a speedup."""

    source: str
    fingerprint: str
    topology: str
    model: str
    steps: int
    text_tokens: int
    dtype: str
    weights: str
    transport: str
    memory_cap_gb: float | None


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

    @classmethod
    def of(cls, record: Record) -> Entry:
        """Raises ResultsError when the point's numbers are not numbers."""
        point = record.point
        try:
            sizes = [int(point[key]) for key in ("height", "width", "ulysses", "ring")]
        except (TypeError, ValueError) as error:
            raise ResultsError(f"record {record.run_id}: height, width, ulysses and ring must be numbers ({error})")
        wrong = record.status == "ok" and record.parity.get("ok") is False
        total = _statistics(record.latency_s.get("total"))
        low, high = _interval(total)
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
            parity_l2=number(record.parity.get("latents_rel_l2")),
        )

    @property
    def ok(self) -> bool:
        """A time that may be compared: the point ran, and its image is right."""
        return self.status == "ok" and self.total_s is not None

    @property
    def gpus(self) -> int:
        """Ranks of the point."""
        return self.ulysses * self.ring

    @property
    def factors(self) -> str:
        """`u2r1`."""
        return f"u{self.ulysses}r{self.ring}"

    @property
    def runner(self) -> str:
        """Engine and execution: `usp/graph`."""
        return f"{self.engine}/{self.execution}"

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
    def reason(self) -> str:
        """Why the point is no success, empty for one that is."""
        if self.status == "incorrect" and self.record.status == "ok":
            return f"parity failed: relative L2 of the latents {self.record.parity.get('latents_rel_l2')}"
        return self.record.reason

    @property
    def limit_bytes(self) -> float | None:
        """Memory the point had: the cap where one was set, else the card's capacity."""
        return number(self.record.memory.get("cap_bytes")) or number(self.record.machine.get("capacity_bytes"))


@dataclass(frozen=True)
class Speedup:
    """A ratio of medians and what it stands on."""

    value: float
    base: Entry
    over: str

    @property
    def rebased(self) -> bool:
        """One GPU did not fit, so the ratio stands on several."""
        return self.base.gpus > 1


@dataclass(frozen=True)
class Group:
    """Entries that may share a curve, and the engine whose scaling the figures show."""

    setting: Setting
    entries: tuple[Entry, ...]

    @cached_property
    def engine(self) -> str:
        """The engine with the most points that succeeded on several GPUs; `usp` where that ties."""
        score: Counter[str] = Counter()
        for entry in self.entries:
            score[entry.engine] += (1000 if entry.gpus > 1 else 1) if entry.ok else 0
        return max(sorted(score), key=lambda name: (score[name], name == "usp", name != "stock"))

    @cached_property
    def decode(self) -> str:
        """The decode that the figures hold: exact where there is one, so that no point wins by leaving it out."""
        kinds = {entry.decode for entry in self.entries if entry.engine == self.engine}
        return next(kind for kind in ("exact", "approximate", "none") if kind in kinds)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Image sizes, smallest first."""
        return tuple(sorted({e.size for e in self.entries}, key=lambda size: (size[0] * size[1], size)))

    @cached_property
    def gpu_counts(self) -> tuple[int, ...]:
        """GPU counts of the engine that were more than infeasible somewhere."""
        return tuple(sorted({e.gpus for e in self._competing if e.status != "infeasible"}))

    @cached_property
    def _competing(self) -> tuple[Entry, ...]:
        return tuple(e for e in self.entries if e.engine == self.engine and e.decode == self.decode)

    @cached_property
    def _cells(self) -> dict[tuple[Size, int], list[Entry]]:
        cells: dict[tuple[Size, int], list[Entry]] = {}
        for entry in self._competing:
            cells.setdefault((entry.size, entry.gpus), []).append(entry)
        return cells

    def cell(self, size: Size, gpus: int, keep: Callable[[Entry], bool] = lambda _: True) -> Entry | None:
        """What a figure shows for a size and GPU count: the fastest success, else the failure that says most."""
        return pick(entry for entry in self._cells.get((size, gpus), []) if keep(entry))

    def best(self, size: Size, gpus: int | None = None) -> Entry | None:
        """The fastest success of the engine, over all GPU counts where `gpus` is None."""
        counts = self.gpu_counts if gpus is None else (gpus,)
        entries = [entry for count in counts if (entry := self.cell(size, count)) and entry.ok]
        return min(entries, key=_seconds, default=None)

    def tie(self, entry: Entry) -> Entry | None:
        """Another factorization of the same GPU count whose interval overlaps that of the best."""
        others = [e for e in self._cells[entry.size, entry.gpus] if e.ok and e.factors != entry.factors]
        runner_up = min(others, key=_seconds, default=None)
        if runner_up and runner_up.low_s is not None and entry.high_s is not None and runner_up.low_s <= entry.high_s:
            return runner_up
        return None

    @cached_property
    def _stock(self) -> dict[tuple[Size, str], Entry]:
        found: dict[tuple[Size, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.engine == "stock" and entry.gpus == 1:
                found.setdefault((entry.size, entry.decode), []).append(entry)
        # what a user runs today: op by op where that was measured
        return {
            key: chosen
            for key, entries in found.items()
            if (chosen := pick([e for e in entries if e.execution == "eager"] or entries))
        }

    def stock(self, size: Size, decode: str | None = None) -> Entry | None:
        """The baseline's record, a success or not: plain diffusers on one GPU."""
        return self._stock.get((size, decode or self.decode))

    def gain(self, entry: Entry) -> Speedup | None:
        """What a user gains: over plain diffusers on one GPU. None where that has no time."""
        base = self.stock(entry.size, entry.decode)
        return _ratio(entry, base, "stock on 1 GPU") if base and base.ok else None

    @cached_property
    def _kin(self) -> dict[tuple[Any, ...], list[Entry]]:
        kin: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries:
            if entry.ok:
                kin.setdefault(_kind(entry), []).append(entry)
        return kin

    def scaling(self, entry: Entry) -> Speedup | None:
        """Over the same engine and execution on one GPU, or on the fewest GPUs that fit."""
        kin = self._kin.get(_kind(entry), [])
        if not kin:
            return None
        fewest = min(e.gpus for e in kin)
        alike = [e for e in kin if e.gpus == fewest]
        base = min([e for e in alike if e.vae == entry.vae] or alike, key=_seconds)
        if base.gpus > 1 and not self._one_failed(entry):
            return None  # one GPU was not tried: a ratio over two would pass for a speedup
        note = "" if base.gpus == 1 else " (1 GPU failed)"
        return _ratio(entry, base, f"{entry.runner} on {base.gpus} GPU{'s' if base.gpus > 1 else ''}{note}")

    def _one_failed(self, entry: Entry) -> bool:
        return any(e.gpus == 1 and e.size == entry.size and e.engine == entry.engine and not e.ok for e in self.entries)

    def baseline(self, size: Size) -> tuple[Entry, str] | None:
        """The dashed line: stock on one GPU, else the engine on one GPU, else on the fewest GPUs that fit."""
        stock = self.stock(size)
        if stock and stock.ok:
            return stock, "1 GPU, stock"
        why = f"; stock: {stock.status}" if stock else ""
        for gpus in self.gpu_counts:
            entry = self.cell(size, gpus)
            if entry and entry.ok:
                one = self.cell(size, 1)
                why_not_one = f"; 1 GPU: {one.status}" if one and not one.ok else why
                return (entry, f"{gpus} GPU{'s' if gpus > 1 else ''}, {entry.engine}{why_not_one}")
        return None


def pick(entries: Iterable[Entry]) -> Entry | None:
    """The fastest success; without one the failure that says most (memory first, rules last)."""
    order = ("oom", "incorrect", "timeout", "crashed", "unstable", "skipped", "infeasible")
    listed = list(entries)
    if succeeded := [entry for entry in listed if entry.ok]:
        return min(succeeded, key=_seconds)
    return min(listed, key=lambda e: order.index(e.status) if e.status in order else len(order), default=None)


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each point, source and machine, in the order the points first came.

    A point measured again by other code replaces its older record; within one file the later line is the newer.
    """
    found: dict[str, Record] = {}
    for record in records:
        found[json.dumps([record.point, record.source, record.fingerprint], sort_keys=True, default=str)] = record
    return list(found.values())


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups that may share a curve: measured before predicted, then the one with the most successes first."""
    grouped: dict[Setting, list[Entry]] = {}
    for record in newest(records):
        point = record.point
        setting = Setting(
            record.source,
            record.fingerprint,
            str(point["topology"]),
            str(point["model"]),
            int(point["steps"]),
            int(point["text_tokens"]),
            str(point["dtype"]),
            str(point["weights"]),
            str(point["transport"]),
            number(point.get("memory_cap_gb")),
        )
        grouped.setdefault(setting, []).append(Entry.of(record))
    groups = [Group(setting, tuple(entries)) for setting, entries in grouped.items()]
    return sorted(groups, key=_rank)


def _rank(group: Group) -> tuple[Any, ...]:
    setting = group.setting
    succeeded = sum(entry.ok for entry in group.entries)
    return (
        succeeded == 0,
        setting.source != "measured",
        setting.memory_cap_gb is not None,
        setting.transport != "p2p",
        -succeeded,
        tuple(str(part) for part in setting),
    )


def _seconds(entry: Entry) -> float:
    return entry.total_s if entry.total_s is not None else math.inf


def _kind(entry: Entry) -> tuple[Any, ...]:
    return entry.size, entry.engine, entry.execution, entry.decode


def _ratio(entry: Entry, base: Entry, over: str) -> Speedup | None:
    if entry.total_s is None or base.total_s is None:
        return None
    return Speedup(base.total_s / entry.total_s, base, over)


def _statistics(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _interval(statistics: dict[str, Any]) -> tuple[float | None, float | None]:
    """The 95 % interval of a measured median, or the span of a prediction; None where there is neither."""
    pair = statistics.get("ci95")
    if isinstance(pair, list | tuple) and len(pair) == 2:
        return number(pair[0]), number(pair[1])
    return number(statistics.get("low")), number(statistics.get("high"))


def _stages(record: Record) -> dict[str, float]:
    found = {}
    for stage in STAGES:
        value = number(_statistics(record.latency_s.get(stage)).get("median"))
        if value is not None:
            found[stage] = value
    return found
