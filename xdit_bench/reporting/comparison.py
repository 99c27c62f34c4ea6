"""Two sets of records, point by point: ratio, interval, test and verdict.

Owns the statistics and the rule of what is a regression; reads no files and exits no process (see the verb `compare`).

    rows = compare(base_records, new_records, threshold=0.02)
    bad = [row for row in rows if row.regression]
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xdit_bench.config import Point
from xdit_bench.reporting.entry import number
from xdit_bench.results.schema import METRICS, Metric, Record, dig
from xdit_bench.results.store import newest

ALPHA = 0.01  # of the two-sided Mann-Whitney test; the threshold stands beside it, both must be passed
FEW = 0.11  # the smallest p that so few samples can have, above which not even complete separation is a verdict
BEYOND_CHANCE = 0.10  # of so few, wholly apart, a verdict all the same: five times what sittings differ
Z95 = 1.959964
SLOWER, FASTER, SAME = "slower", "faster", "same"
NEWLY_FAILING, FIXED, NOT_COMPARABLE = "newly failing", "fixed", "not comparable"
DIFFERS = "differs: "  # begins the note of a point that both sides hold of unlike machines
VERDICTS = (NEWLY_FAILING, SLOWER, "larger", FASTER, "smaller", FIXED, SAME, NOT_COMPARABLE)
REGRESSIONS = (NEWLY_FAILING, SLOWER, "larger")
# what the fingerprint is made of; only these can make two machines unequal
MACHINE_FIELDS = ("device", "gpus", "gpu", "gpu_kinds", "links", "pcie", "driver", "cpu", "cores", "topology")
MACHINE = "machine"  # all of these at once: one machine beside another, whatever their topologies are called


@dataclass(frozen=True)
class Row:
    """One point's verdict. `ratio` is new over base with its 95 % interval, `p` is of the Mann-Whitney test."""

    point: dict[str, Any]
    source: str
    verdict: str
    base: float | None = None
    new: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    samples: tuple[int, int] = (0, 0)
    note: str = ""

    @property
    def regression(self) -> bool:
        """Slower (or larger) by more than the threshold, or failing where it did not."""
        return self.verdict in REGRESSIONS


def label(row: Row) -> str:
    """A point in one phrase."""
    return f"{Point.from_dict(row.point).label} on {row.point['topology']}"


def compare(
    base: Iterable[Record],
    new: Iterable[Record],
    *,
    threshold: float = 0.02,
    metric: str = "total_s",
    allow: Collection[str] = (),
) -> list[Row]:
    """A row for every point of either side, the worst first.

    Points are joined by their identity less machine and code. Unequal fingerprints are not comparable, unless all
    that differs is named in `allow` (`driver`, `torch`, ...; `machine` for all but the software, the topology's name
    included). A point that succeeded in `base` and is not in `new` is newly failing: a gate must not pass because
    points vanished. One that `new` holds on another topology, or a second machine never ran, is not comparable.
    """
    across = MACHINE in allow
    allowed = frozenset([*allow, *(MACHINE_FIELDS if across else ())])  # MACHINE too: a vanished point is no failure
    ours, theirs = _by_point(base, across), _by_point(new, across)
    moved: dict[tuple[str, str], str] = {}  # what succeeded on a topology that the other side has no such point of
    for key, records in theirs.items():
        if key not in ours and records[-1].status == "ok":
            moved.setdefault(_anywhere(records[-1]), str(records[-1].point["topology"]))
    rows = []
    for key in dict.fromkeys([*ours, *theirs]):
        left = ours.get(key, [])
        elsewhere = moved.get(_anywhere(left[-1])) if left else None
        rows += _join(left, theirs.get(key, []), METRICS[metric], threshold, allowed, elsewhere)
    return sorted(rows, key=lambda row: (VERDICTS.index(row.verdict), -abs(math.log(row.ratio)) if row.ratio else 0.0))


def _by_point(records: Iterable[Record], across: bool) -> dict[str, list[Record]]:
    """The newest record of each point on each machine; `across` machines, those of one point stand together."""
    found: dict[str, list[Record]] = {}
    for record in newest(records):
        found.setdefault(_key(record, across), []).append(record)
    return found


def _key(record: Record, across: bool) -> str:
    point = {**record.point, "topology": None} if across else record.point
    return json.dumps(point, sort_keys=True, default=str)


def _anywhere(record: Record) -> tuple[str, str]:
    return _key(record, across=True), record.source


def _join(
    base: list[Record],
    new: list[Record],
    metric: Metric,
    threshold: float,
    allow: frozenset[str],
    elsewhere: str | None,
) -> list[Row]:
    """Rows of one point: each machine with itself, then with one of its topology, then with any that `allow` lets it.
    `elsewhere` is a topology that the new side holds the point on."""
    rows = []
    # a results folder that is kept holds BASE's own records: beside newer ones they say nothing of what was measured
    own = {(record.run_id, record.time) for record in base}
    latest = max((record.time for record in new), default="")
    new = [record for record in new if (record.run_id, record.time) not in own or record.time == latest]
    left, waiting, across = list(base), list(new), MACHINE in allow
    for near in (_one_machine, _one_topology, _any_machine):
        for record in list(waiting):
            partner = next((o for o in left if near(o, record) and not differences(o, record, allow)), None)
            if partner is not None:
                left.remove(partner)
                waiting.remove(record)
                rows.append(_pair(partner, record, metric, threshold, across=across))
    for record in waiting:
        unlike = differences(base[-1], record, allow) if base else ["no record in BASE"]
        note = f"{DIFFERS if base else ''}{'; '.join(unlike)}" if unlike else "BASE has it of fewer machines"
        rows.append(Row(record.point, record.source, NOT_COMPARABLE, new=_value(record, metric), note=note))
    for record in left if len(left) > len(waiting) else ():
        value, verdict = _value(record, metric), NOT_COMPARABLE
        if any(other.source == record.source for other in new):
            note = "no record of this machine in NEW"
        elif elsewhere is not None and not across:
            note = f"NEW has it on {elsewhere}; --allow {MACHINE} compares machines"
        elif _failure(record, metric) is not None:
            value, note = None, "failed in BASE, no record in NEW"
        else:
            note = "no record in NEW"
            verdict = NOT_COMPARABLE if across else NEWLY_FAILING
        rows.append(Row(record.point, record.source, verdict, base=value, note=note))
    return rows


def _one_machine(base: Record, new: Record) -> bool:
    return _one_topology(base, new) and base.fingerprint == new.fingerprint


def _one_topology(base: Record, new: Record) -> bool:
    return bool(base.point["topology"] == new.point["topology"])


def _any_machine(base: Record, new: Record) -> bool:
    return True


def _pair(base: Record, new: Record, metric: Metric, threshold: float, *, across: bool) -> Row:
    """The verdict, with both topologies where they differ. What another machine is too small for is no failure."""
    row = judge(base, new, metric, threshold)
    if across and new.status in ("infeasible", "skipped"):
        row = replace(row, verdict=NOT_COMPARABLE)
    was, is_ = base.point["topology"], new.point["topology"]
    return row if was == is_ else replace(row, point={**row.point, "topology": f"{was} to {is_}"})


def differences(base: Record, new: Record, allow: Collection[str] = ()) -> list[str]:
    """Why two records of one point are not of one kind of machine; empty where they are.

    A prediction has no machine: the same topology may be predicted by another version of the model.
    """
    if base.source != new.source:
        return [f"source {base.source} -> {new.source}"]
    if base.source == "predicted" or base.fingerprint == new.fingerprint:
        return []
    found = []
    for name in MACHINE_FIELDS:
        was, is_ = base.machine.get(name), new.machine.get(name)
        if was != is_:
            found.append((name, f"{name} {_short(was)} -> {_short(is_)}"))
    for name in sorted({*base.software, *new.software} - {"xdit_bench", "code"}):
        was, is_ = base.software.get(name), new.software.get(name)
        if was != is_:
            found.append((name, f"{name} {_short(was)} -> {_short(is_)}"))
    if not found:
        found.append(("fingerprint", "fingerprint, and no recorded field says why"))
    return [text for name, text in found if name not in allow]


def judge(base: Record, new: Record, metric: Metric, threshold: float) -> Row:
    """The verdict of one point that both sides hold."""
    was, now = _failure(base, metric), _failure(new, metric)
    if was and now:
        why = was if was == now else f"{was} -> {now}"
        return Row(new.point, new.source, NOT_COMPARABLE, note=f"fails in both: {why}")
    if now:
        return Row(new.point, new.source, NEWLY_FAILING, base=_value(base, metric), note=now)
    if was:
        return Row(new.point, new.source, FIXED, new=_value(new, metric), note=f"was: {was}")
    olds, news = _samples(base, metric), _samples(new, metric)
    before, after = _value(base, metric) or math.nan, _value(new, metric) or math.nan
    low: float | None
    high: float | None
    if olds and news:
        ratio, low, high = shift(olds, news)
        p: float | None = mann_whitney(olds, news)
        least = smallest_p(len(olds), len(news))
        clear = _apart(olds, news) and abs(math.log(ratio)) > math.log1p(max(threshold, BEYOND_CHANCE))
        if least > FEW and not clear and not 1 / (1 + threshold) <= ratio <= 1 + threshold:
            few = f"{len(olds)} and {len(news)} samples tell no chance from a change; measure.repeats=5 would"
            return Row(
                new.point, new.source, NOT_COMPARABLE, before, after, ratio, samples=(len(olds), len(news)), note=few
            )
        sure = p is not None and p <= max(ALPHA, least)
        note = ""
        if least > FEW:  # no interval of 95 % is made of so few
            low = high = None
            note = f"{len(olds)} and {len(news)} samples make no interval; measure.repeats=5 would"
    else:
        ratio, low, high, p, sure, note = after / before, None, None, None, True, "no samples: the medians alone decide"
    worse, better = (SLOWER, FASTER) if metric.unit == "s" else ("larger", "smaller")
    verdict = SAME
    if sure and ratio > 1 + threshold:
        verdict = worse
    elif sure and ratio < 1 / (1 + threshold):
        verdict = better
    elif high is not None and high > 1 + threshold:
        note = f"up to {100 * (high - 1):.1f} % may hide in the noise: measure.repeats={2 * len(news)} would tell"
    return Row(new.point, new.source, verdict, before, after, ratio, low, high, p, (len(olds), len(news)), note)


def shift(base: Sequence[float], new: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of new over base and its 95 % interval, free of any distribution.

    Hodges and Lehmann's estimate on logarithms (the median of all pairwise ratios) with Moses' interval, which
    inverts the Mann-Whitney test (Hollander and Wolfe, Nonparametric Statistical Methods, 4.2 and 4.3).
    """
    logs = sorted(math.log(n) - math.log(b) for n in new for b in base)
    count = len(logs)
    middle = (logs[(count - 1) // 2] + logs[count // 2]) / 2
    spread = Z95 * math.sqrt(count * (len(base) + len(new) + 1) / 12)
    cut = max(0, min((count - 1) // 2, math.floor(count / 2 - spread) - 1))
    return math.exp(middle), math.exp(logs[cut]), math.exp(logs[count - 1 - cut])


def _apart(base: Sequence[float], new: Sequence[float]) -> bool:
    return min(new) > max(base) or max(new) < min(base)


def mann_whitney(base: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney test; 1 where every sample is equal."""
    from scipy.stats import mannwhitneyu  # a second to import, and a report needs none of it

    p = float(mannwhitneyu(base, new, alternative="two-sided").pvalue)
    return p if math.isfinite(p) else 1.0


def smallest_p(base: int, new: int) -> float:
    """The smallest p so many samples can give: with few, complete separation has to be enough."""
    return 2 / math.comb(base + new, new) * (1 + 1e-9)


def _failure(record: Record, metric: Metric) -> str | None:
    """Why a record is no success in this metric, or None. A missing, zero or non-finite number never passes."""
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    if record.parity.get("ok") is False:
        return f"incorrect: relative L2 {record.parity.get('latents_rel_l2')}"
    value = dig(vars(record), metric.path)
    good = number(value)
    if good is None or good <= 0:
        return f"{metric.path} is {value!r}"
    bad = [sample for sample in _raw_samples(record, metric) if (number(sample) or 0.0) <= 0]
    return f"{metric.path.removesuffix('.median')}.samples hold {bad[0]!r}" if bad else None


def _value(record: Record, metric: Metric) -> float | None:
    return number(dig(vars(record), metric.path))


def _samples(record: Record, metric: Metric) -> list[float]:
    return [float(sample) for sample in _raw_samples(record, metric)]


def _raw_samples(record: Record, metric: Metric) -> list[Any]:
    head, _, tail = metric.path.rpartition(".")
    found = dig(vars(record), f"{head}.samples") if tail == "median" else None
    return list(found) if isinstance(found, list | tuple) else []


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
