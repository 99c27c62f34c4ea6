"""The ladder of our engine: from the plain one up, what each rung saved, beside what it was predicted to save.

Owns which two points make a rung and when one pays; reads predictions from the study's sweep file. Only times of one
sitting make a rung: from sitting to sitting a step differs by more than many a rung saves.

    for rung in ladder(group):
        print(rung.name, rung.saved_s, rung.predicted_s, rung.pays)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xdit_bench.reporting.entry import Entry, Size, number
from xdit_bench.reporting.peers import shipped_bounds
from xdit_bench.reporting.study import Group
from xdit_bench.results.schema import Record, interval
from xdit_bench.rungs import ENGINE, RUNGS, settled

PLAIN = "plain"
MEMORY_BYTES = 1e9  # of peak memory freed: a rung that saves so much pays whatever its time

Split = tuple[int, int]  # ulysses, ring
Engine = tuple[str, ...]  # execution, attention, what is left out


@dataclass(frozen=True)
class Rung:
    """One gain of one split at one size: the engine below it, the engine with it, and the whole engine without it.

    The plain engine stands on nothing; where only the whole engine was taken apart there is no `entry`.
    """

    name: str
    size: Size
    split: Split
    below: Entry | None
    entry: Entry | None
    whole: Entry | None
    left_out: Entry | None
    predicted_s: float | None

    @property
    def factors(self) -> str:
        """`u2r1`."""
        return f"u{self.split[0]}r{self.split[1]}"

    @property
    def saved_s(self) -> float | None:
        """Seconds a step, measured; negative for a rung that costs."""
        return _saved(self.below, self.entry)

    @property
    def saved_at_the_top_s(self) -> float | None:
        """Seconds a step that the whole engine would lose without this rung."""
        return _saved(self.left_out, self.whole)

    @property
    def saved_bytes(self) -> float | None:
        """Peak memory of the fullest GPU, freed."""
        before, after = (entry.peak_bytes if entry else None for entry in (self.below, self.entry))
        return before - after if before and after else None

    @property
    def pays(self) -> bool | None:
        """Whether the step is shorter by more than both intervals' halves; None where it is neither so much shorter
        nor so much longer."""
        return _pays(self.below, self.entry)

    @property
    def pays_at_the_top(self) -> bool | None:
        """As `pays`, of the whole engine with and without it."""
        return _pays(self.left_out, self.whole)

    @property
    def frees(self) -> bool:
        """Whether it pays by its memory."""
        return (self.saved_bytes or 0.0) >= MEMORY_BYTES


def ladder(group: Group) -> list[Rung]:
    """Every rung that a group's points allow, plain engine first, a size and a split after the other; empty where
    nothing was left out."""
    rungs: list[Rung] = []
    if not group.rungs:
        return rungs
    held = predictions(group.rungs[0].record)
    vae = Counter(entry.vae for entry in group.rungs).most_common(1)[0][0]
    sittings: dict[int, list[Entry]] = {}
    for entry in sorted((*group.entries, *group.rungs, *group.earlier), key=lambda entry: entry.record.time):
        if (entry.engine, entry.vae) == (ENGINE, vae) and entry.status != "infeasible":
            sittings.setdefault(group.sitting(entry), []).append(entry)
    for size in sorted({entry.size for entry in group.rungs}, key=lambda size: (size[0] * size[1], size)):
        here = [[entry for entry in sitting if entry.size == size] for sitting in sittings.values()]
        splits = {_split(entry) for sitting in here for entry in sitting}
        for split in sorted(splits, key=lambda split: (split[0] * split[1], -split[0])):
            found = [{_named(e): e for e in sitting if _split(e) == split} for sitting in here]
            rungs += _climb(group, size, split, found, held)
    return rungs


def _climb(
    group: Group, size: Size, split: Split, sittings: Sequence[Mapping[Engine, Entry]], held: Mapping[str, Any]
) -> Iterator[Rung]:
    """The rungs of one split: neighbours that differ in one gain and were both run, all in the sitting that has the
    most of them; and, of the last sitting that has both, the whole engine and the one without the gain."""
    names = tuple(RUNGS)
    chain = [_engine(group, split, names[k:]) for k in range(len(names) + 1)]
    found = max(reversed(sittings), key=lambda sitting: sum(engine in sitting for engine in set(chain)), default={})
    if chain[0] in found:
        yield Rung(PLAIN, size, split, None, found[chain[0]], None, None, None)
    for name, below, engine in zip(names, chain, chain[1:], strict=False):
        if engine == below:  # changes nothing in this split, so it has no such rung
            continue
        pair = (found.get(below), found.get(engine))
        top = (chain[-1], _engine(group, split, (name,)))
        whole, left_out = next(
            ((s[top[0]], s[top[1]]) for s in reversed(sittings) if all(e in s for e in top)), (None, None)
        )
        if all(pair) or whole:
            yield Rung(name, size, split, *pair, whole, left_out, _predicted_s(held, name, size, split))


def predictions(record: Record) -> Mapping[str, Any]:
    """What each rung was predicted to save, `{rung: {saves_ms: {side: {split: ms}}}}`, as the sweep file of the
    record's study says."""
    found = shipped_bounds(record.study).get("ladder")
    return found if isinstance(found, dict) else {}


def kept(rung: Rung, rungs: Iterable[Rung]) -> str:
    """Whether the rung stays, by what all rungs of that name in a study say: it pays here, or somewhere, or nowhere."""
    if rung.saved_s is None and rung.saved_at_the_top_s is None:
        return ""
    if rung.pays or rung.pays_at_the_top:
        return "yes" if rung.pays else "yes, at the top"
    if rung.frees:
        return "yes, for memory"
    alike = [o for o in rungs if o.name == rung.name and (o.pays or o.pays_at_the_top or o.frees)]
    best = max(alike, key=lambda o: max(o.saved_s or 0.0, o.saved_at_the_top_s or 0.0), default=None)
    cost = ", costs here" if rung.pays is False else ""
    if best is None:
        return f"no{cost}" if cost else "not shown"
    return f"yes, pays at {best.size[0]}px {best.factors}{cost}"


def _engine(group: Group, split: Split, out: Iterable[str]) -> Engine:
    """The engine without these rungs."""
    left = settled(
        "eager" if group.on_cpu else "graph", "auto", "+".join(out),
        ulysses=split[0], ring=split[1], transport=group.setting.transport, cpu=group.on_cpu,
    )  # fmt: skip
    return tuple(left.values())


def _named(entry: Entry) -> Engine:
    return entry.execution, entry.attention, entry.without


def _split(entry: Entry) -> Split:
    return entry.ulysses, entry.ring


def _predicted_s(held: Mapping[str, Any], name: str, size: Size, split: Split) -> float | None:
    side = size[0] if size[0] == size[1] else None
    saves = ((held.get(name) or {}).get("saves_ms") or {}).get(side) or {}
    found = number(saves.get(f"u{split[0]}r{split[1]}"))
    return None if found is None else found / 1e3


def _saved(before: Entry | None, after: Entry | None) -> float | None:
    if not before or not after or not (before.ok and after.ok and before.step_s and after.step_s):
        return None
    return before.step_s - after.step_s


def _pays(before: Entry | None, after: Entry | None) -> bool | None:
    saved = _saved(before, after)
    if saved is None or abs(saved) <= _half_s(before) + _half_s(after):
        return None
    return saved > 0


def _half_s(entry: Entry | None) -> float:
    """Half the 95 % interval of the step; of one that was timed too rarely nobody knows."""
    low, high = map(number, interval(entry.record.step_s)) if entry else (None, None)
    return (high - low) / 2 if low is not None and high is not None else math.inf
