"""Groups of entries that may share a curve, their baselines and speedups.

Owns the rules of fairness: what shares a curve, what a speedup stands on, what counts as success. Draws and
writes nothing.

    groups = group_records(records)
    best = groups[0].best((1024, 1024), gpus=2)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from xdit_bench.predict.advice import SITTING_ERROR, from_record, ties
from xdit_bench.reporting.entry import Entry, Size, number, pick, seconds_or_inf
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest, sittings

MACHINE_WORD = 32  # characters of a fact that tells two machines apart


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
class Speedup:
    """A ratio of medians and what it stands on; `two_sittings` where they were measured so."""

    value: float
    base: Entry
    over: str
    two_sittings: bool = False

    @property
    def rebased(self) -> bool:
        """One GPU did not fit, so the ratio stands on several."""
        return self.base.gpus > 1


@dataclass(frozen=True)
class Group:
    """Entries that may share a curve, and the engine whose scaling the figures show.

    `rungs` are our engine with gains left out: experiments, which stand in the ladder and in no other comparison; it
    alone looks at `earlier` too, measurements of points that were measured again. `sittings` are by a record's time.
    `apart` are the words that tell it from other groups of the report, empty where its machine and model do.
    """

    setting: Setting
    entries: tuple[Entry, ...]
    rungs: tuple[Entry, ...] = ()
    earlier: tuple[Entry, ...] = ()
    apart: str = ""
    sittings: Mapping[str, int] = field(default_factory=dict)

    def sitting(self, entry: Entry) -> int:
        """Which sitting of its machine a measurement is of, as they followed one another; 0 of all predictions."""
        return self.sittings.get(entry.record.time, 0)

    def in_two_sittings(self, one: Entry, other: Entry) -> bool:
        """Whether two measurements are of two sittings: their ratio errs by what hosts differ."""
        return self.sitting(one) != self.sitting(other)

    @property
    def on_cpu(self) -> bool:
        """Measured on CPU ranks: the times say nothing about a GPU."""
        return self.entries[0].record.machine.get("device") == "cpu"

    @property
    def decode_alone(self) -> bool:
        """Points of 0 steps: one decode each, cold, to see whether it fits. They stand in no ratio and no ranking."""
        return self.setting.steps == 0

    def count(self, gpus: int) -> str:
        """`1 GPU`, `4 GPUs`, or ranks where a CPU was measured."""
        return f"{gpus} {'rank' if self.on_cpu else 'GPU'}{'' if gpus == 1 else 's'}"

    @cached_property
    def engine(self) -> str:
        """The engine with the most successes on several GPUs; `usp` where that ties, the baseline only when alone."""
        score: Counter[str] = Counter()
        for entry in self.entries:
            score[entry.engine] += (1000 if entry.gpus > 1 else 1) if entry.ok else 0
        return max(sorted(score), key=lambda name: (score[name] > 0 and name != "stock", score[name], name == "usp"))

    @cached_property
    def _decodes(self) -> dict[Size, str]:
        """The decode that competes at each size: exact, so that no point wins by leaving it out. Where every exact
        decode failed it is the time without one, and the panel says so."""
        tried: dict[Size, dict[str, bool]] = {}
        for entry in self.entries:
            if entry.engine == self.engine:
                kinds = tried.setdefault(entry.size, {})
                kinds[entry.decode] = kinds.get(entry.decode, False) or entry.ok
        order = ("exact", "none", "approximate")
        return {
            size: next((k for k in order if kinds.get(k)), None) or next(k for k in order if k in kinds)
            for size, kinds in tried.items()
        }

    def decode(self, size: Size) -> str:
        """What the times of a size hold: an exact decode, an approximate one, or none."""
        return self._decodes.get(size, "exact")

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
        return tuple(e for e in self.entries if e.engine == self.engine and e.decode == self.decode(e.size))

    @cached_property
    def _cells(self) -> dict[tuple[Size, int], list[Entry]]:
        cells: dict[tuple[Size, int], list[Entry]] = {}
        for entry in self._competing:
            cells.setdefault((entry.size, entry.gpus), []).append(entry)
        return cells

    def cell(self, size: Size, gpus: int, keep: Callable[[Entry], bool] = lambda _: True) -> Entry | None:
        """What a figure shows for a size and GPU count: the fastest success, else the failure that says most."""
        return pick(entry for entry in self._cells.get((size, gpus), []) if keep(entry))

    def split(self, size: Size, ulysses: int, ring: int) -> Entry | None:
        """What a figure shows for one factorization: in the execution of the size's best, where it was tried so.
        Another's success would hide a failure, and stand as a slow split beside faster ones."""
        tried = [e for e in self._cells.get((size, ulysses * ring), []) if e.ulysses == ulysses]
        best = self.best(size)
        alike = [e for e in tried if best and e.execution == best.execution and e.status != "infeasible"]
        return pick(alike or tried)

    def splits(self, size: Size) -> list[Entry]:
        """What a figure shows for each factorization that was tried at a size, by GPUs, Ulysses first."""
        tried = {(e.gpus, -e.ulysses, e.ulysses, e.ring) for e in self._competing if e.size == size}
        found = (self.split(size, ulysses, ring) for *_, ulysses, ring in sorted(tried))
        return [entry for entry in found if entry]

    def absent(self, size: Size, gpus: int | None = None) -> str:
        """Why nothing of a size, or a count of GPUs, competes: what was run or failed instead, in words."""
        others = [entry for entry in self.entries if entry.size == size and gpus in (None, entry.gpus)]
        if any(entry.ok for entry in others):
            return "tiles alone" if all(e.decode == "approximate" for e in others if e.ok) else "not run"
        failed = pick(others)
        return f"{failed.engine}: {failed.outcome}" if failed else "not run"

    def best(self, size: Size, gpus: int | None = None) -> Entry | None:
        """The fastest success of the engine, over all GPU counts where `gpus` is None."""
        counts = self.gpu_counts if gpus is None else (gpus,)
        entries = [entry for count in counts if (entry := self.cell(size, count)) and entry.ok]
        return min(entries, key=seconds_or_inf, default=None)

    def faster(self, entry: Entry) -> Entry | None:
        """Another engine's faster success of the same size and decode: a report must not hide it."""
        others = [e for e in self.entries if e.ok and (e.size, e.decode) == (entry.size, entry.decode)]
        fastest = min(others, key=seconds_or_inf, default=entry)
        return fastest if fastest.engine != entry.engine and seconds_or_inf(fastest) < seconds_or_inf(entry) else None

    def tie(self, entry: Entry) -> Entry | None:
        """Another factorization of the same GPU count whose interval overlaps that of the best (or whose images, where
        there are too few for one), or which differs by no more than sittings do where it was another; of predictions
        one that differs by less than their errors do, as what is common to both cancels."""
        others = [e for e in self._cells[entry.size, entry.gpus] if e.ok and e.factors != entry.factors]
        runner_up = min(others, key=seconds_or_inf, default=None)
        if runner_up and all("errors_s" in e.record.telemetry for e in (entry, runner_up)):
            return runner_up if ties(from_record(entry.record), from_record(runner_up.record)) else None
        if runner_up and self.in_two_sittings(entry, runner_up):
            nearer = math.log(seconds_or_inf(runner_up) / seconds_or_inf(entry)) <= math.hypot(*[SITTING_ERROR] * 2)
            return runner_up if nearer else None
        return runner_up if runner_up and runner_up.ends_s[0] <= entry.ends_s[1] else None

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
        return self._stock.get((size, decode or self.decode(size)))

    def gain(self, entry: Entry) -> Speedup | None:
        """What a user gains: over plain diffusers on one GPU. None where that has no time, or either is cold."""
        base = None if self.decode_alone else self.stock(entry.size, entry.decode)
        if base is None or not base.ok:
            return None
        pressed = " under memory pressure" if base.verdict == "pressure" else ""
        return self._ratio(entry, base, f"stock on {self.count(1)}{pressed}")

    @cached_property
    def _kin(self) -> dict[tuple[Any, ...], list[Entry]]:
        kin: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries:
            if entry.ok:
                kin.setdefault(_kind(entry), []).append(entry)
        return kin

    def scaling(self, entry: Entry) -> Speedup | None:
        """Over the same engine and execution on one GPU, or on the fewest GPUs that fit; None where either is cold."""
        kin = self._kin.get(_kind(entry), [])
        if not kin or self.decode_alone:
            return None
        fewest = min(e.gpus for e in kin)
        alike = [e for e in kin if e.gpus == fewest]
        alike = [e for e in alike if not e.cold] or alike
        alike = [e for e in alike if e.attention == entry.attention] or alike
        base = min([e for e in alike if e.vae == entry.vae] or alike, key=seconds_or_inf)
        if base.gpus > 1 and not self._one_failed(entry):
            return None  # one GPU was not tried: a ratio over two would pass for a speedup
        note = "" if base.gpus == 1 else f" ({self.count(1)} failed)"
        return self._ratio(entry, base, f"{entry.runner} on {self.count(base.gpus)}{note}")

    def _one_failed(self, entry: Entry) -> bool:
        return any(e.gpus == 1 and e.size == entry.size and e.engine == entry.engine and not e.ok for e in self.entries)

    def baseline(self, size: Size) -> tuple[Entry, str] | None:
        """The dashed line: stock on one GPU, else the engine on one GPU, else on the fewest GPUs that fit."""
        stock = self.stock(size)
        if stock and stock.ok:
            return stock, f"{self.count(1)}, stock{', pressed' if stock.verdict == 'pressure' else ''}"
        why = f" (stock: {stock.outcome})" if stock else ""
        for gpus in self.gpu_counts:
            entry = self.cell(size, gpus)
            if entry and entry.ok:
                one = self.cell(size, 1)
                if gpus > 1 and (one is None or one.ok) and not stock:
                    return None  # one GPU was not tried
                why_not_one = f" ({self.count(1)}: {one.outcome})" if one and not one.ok else why
                best = self.best(size)
                other = best is not None and best.execution != entry.execution  # scaling stands on the best's own
                return entry, f"{self.count(gpus)}, {entry.runner if other else entry.engine}{why_not_one}"
        return None

    def over_baseline(self, size: Size) -> Speedup | None:
        """The best over the dashed line; None where it is the line itself, or either is cold."""
        baseline, best = self.baseline(size), self.best(size)
        return self._ratio(best, *baseline) if baseline and best and best is not baseline[0] else None

    def _ratio(self, entry: Entry, base: Entry, over: str) -> Speedup | None:
        if entry.total_s is None or base.total_s is None or entry.cold or base.cold:
            return None
        return Speedup(base.total_s / entry.total_s, base, over, self.in_two_sittings(entry, base))


def spread(sizes: Sequence[Size], count: int) -> list[Size]:
    """The smallest, the largest and what lies between, where there is room for `count` sizes only."""
    if len(sizes) <= count:
        return list(sizes)
    return [sizes[round(index * (len(sizes) - 1) / (count - 1))] for index in range(count)]


def whole_card(groups: Iterable[Group], group: Group, entry: Entry) -> Entry | None:
    """The success of a capped entry's point without its cap, where it was run."""
    setting, point = group.setting._replace(memory_cap_gb=None), {**entry.record.point, "memory_cap_gb": None}
    others = (e for other in groups if other.setting == setting for e in other.entries)
    return next((e for e in others if e.ok and e is not entry and e.record.point == point), None)


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups that may share a curve: measured before predicted, then the one with the most successes first."""
    records = list(records)
    kept = newest(records)
    grouped: dict[Setting, list[Entry]] = {}
    for record in kept:
        grouped.setdefault(_setting(record), []).append(Entry.of(record))
    last = {id(record) for record in kept}
    earlier: dict[Setting, list[Entry]] = {}
    for record in records:
        if record.source == "measured" and id(record) not in last:
            earlier.setdefault(_setting(record), []).append(Entry.of(record))
    machines: dict[str, list[Record]] = {}
    for record in records:
        if record.source == "measured":
            machines.setdefault(record.fingerprint, []).append(record)
    when = {fingerprint: sittings(taken) for fingerprint, taken in machines.items()}
    groups = (
        _group(setting, found, earlier.get(setting, ()), grouped, when.get(setting.fingerprint, {}))
        for setting, found in grouped.items()
    )
    return sorted(groups, key=_rank)


def _setting(record: Record) -> Setting:
    point = record.point
    return Setting(
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


def _group(
    setting: Setting,
    entries: Sequence[Entry],
    earlier: Sequence[Entry],
    among: Mapping[Setting, Sequence[Entry]],
    when: Mapping[str, int],
) -> Group:
    whole = tuple(entry for entry in entries if not entry.without)
    rungs = tuple(entry for entry in entries if entry.without)
    if not whole:  # nothing to keep the rungs apart from
        whole, rungs = rungs, ()
    return Group(setting, whole, rungs, tuple(earlier), _apart(setting, among), when)


def _apart(setting: Setting, among: Mapping[Setting, Sequence[Entry]]) -> str:
    """What tells it from others of the same model, topology, transport and cap."""
    said = {
        "steps": f"{setting.steps} step{'s' * (setting.steps != 1)}",
        "text_tokens": f"{setting.text_tokens} text token{'s' * (setting.text_tokens != 1)}",
        "dtype": setting.dtype,
        "weights": setting.weights,
    }
    unsaid = {"fingerprint": "", **dict.fromkeys(said, "")}

    def known(other: Setting) -> tuple[object, ...]:
        return other._replace(**unsaid), other.steps == 0  # type: ignore[arg-type]

    alike = [other for other in among if known(other) == known(setting)]
    words = [word for key, word in said.items() if len({getattr(other, key) for other in alike}) > 1]
    machines = {other.fingerprint: among[other][0].record for other in alike}
    if setting.source == "measured" and len(machines) > 1:
        words.append(_machine_apart(machines[setting.fingerprint], list(machines.values())))
    return " ".join(words)


def _machine_apart(record: Record, among: Sequence[Record]) -> str:
    """`driver 570.1`: the first short fact that tells a machine from others of its topology, else its fingerprint."""
    for name in ("gpu", "gpus", "driver", "torch", "cpu", "cores"):
        values = [(other.machine | other.software).get(name) for other in among]
        if len(set(map(str, values))) == len(values) and all(len(str(value)) <= MACHINE_WORD for value in values):
            return f"{name} {(record.machine | record.software)[name]}"
    return f"machine {record.fingerprint[:8]}"


def _rank(group: Group) -> tuple[Any, ...]:
    setting = group.setting
    succeeded = sum(entry.ok for entry in group.entries)
    return (
        group.decode_alone,
        succeeded == 0,
        setting.source != "measured",
        setting.memory_cap_gb is not None,
        setting.transport != "p2p",
        -succeeded,
        setting.topology,
        -setting.steps,  # nearer to what is served than fewer
        -setting.text_tokens,
        tuple(str(part) for part in setting),
    )


def _kind(entry: Entry) -> tuple[Any, ...]:
    return entry.size, entry.engine, entry.execution, entry.decode
