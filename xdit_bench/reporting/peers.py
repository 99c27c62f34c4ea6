"""Our engine beside its peers: one step over the best peer's, ring over Ulysses, scaling, peak memory.

Owns which points are compared and the bounds they are held to; whether a bound is met is shown, never asserted.

    for row in compared(group):
        print(row.what, row.value, row.bound, row.met)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xdit_bench import data_dir
from xdit_bench.predict.advice import SITTING_ERROR
from xdit_bench.reporting.entry import Entry, Size, number
from xdit_bench.reporting.study import Group
from xdit_bench.rungs import ENGINE

OURS = ENGINE
AT_LEAST = ("scaling", "memory_gb")  # bounds from below; the others are from above
TIMED = ("peers", "peers_fa3", "ring", "scaling")
WHAT = {
    "peers": "step, peers as installed",
    "peers_fa3": "step, FA3 given to xfuser",
    "ring": "step, ring over Ulysses",
    "scaling": "speed of a step over one GPU",
    "memory_gb": "peak memory below the peers' lowest",
    "accuracy": "distance from the fp32 latents",
}


@dataclass(frozen=True)
class Compared:
    """One comparison: `value` is a ratio, or GB (1e9 bytes) for memory; None where every peer failed. Of the distance
    from fp32, ours is the farthest point and theirs plain diffusers on one GPU. `two_sittings`: a ratio
    of times that were measured so."""

    key: str
    size: Size
    gpus: int
    ours: Entry
    theirs: Entry | None
    value: float | None
    bound: float | None
    two_sittings: bool = False

    @property
    def what(self) -> str:
        """What is compared, in words."""
        return WHAT[self.key]

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.key in AT_LEAST

    @property
    def met(self) -> bool | None:
        """Whether the measured value keeps the bound; None where there is no bound or no value."""
        if self.bound is None or self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def near(self) -> bool:
        """Whether a ratio of times is as near to its bound as two sittings of one point are to each other."""
        if self.key not in TIMED or not self.bound or not self.value:
            return False
        return abs(math.log(self.value / self.bound)) <= SITTING_ERROR


def compared(group: Group) -> list[Compared]:
    """Every comparison that a group's points allow; none where it holds no engine beside ours."""
    held = shipped_bounds(group.entries[0].record.study)  # of `peers` alone, which runs every peer at its best
    rows: list[Compared] = []
    if not any(entry.engine != OURS and entry.ok and entry.step_s for entry in group.entries):
        return rows

    def add(key: str, ours: Entry, theirs: Entry | None, value: float | None) -> None:
        bound = bound_of(held, key, ours) if group.setting.source == "measured" else None
        apart = key in TIMED and theirs is not None and group.in_two_sittings(ours, theirs)
        rows.append(Compared(key, ours.size, ours.gpus, ours, theirs, value, bound, apart))

    for size in group.sizes:
        here = [entry for entry in group.entries if entry.size == size]
        alone = fastest(e for e in here if e.engine == OURS and e.gpus == 1)
        for gpus in sorted({entry.gpus for entry in here}):
            ours = fastest(e for e in here if e.engine == OURS and e.gpus == gpus)
            if ours is None:
                continue
            peers = [e for e in here if e.engine != OURS and e.gpus == gpus and e.status != "infeasible"]
            _beside_peers(ours, peers, add)
            # of the fastest's execution: a graph's step beside an eager one tells of launches, not of a split
            alike = [e for e in here if e.engine == OURS and e.execution == ours.execution]
            ring = fastest(e for e in alike if (e.ulysses, e.ring) == (1, gpus))
            ulysses = fastest(e for e in alike if (e.ulysses, e.ring) == (gpus, 1))
            if gpus > 1 and ring and ulysses:
                add("ring", ring, ulysses, _ratio(ring, ulysses))
            if gpus > 1 and alone:
                add("scaling", ours, alone, _ratio(alone, ours))
            farther = [e for e in here if e.engine == OURS and e.gpus == gpus and e.ok and e.fp32_l2]
            farthest = max(farther, key=lambda e: e.fp32_l2 or 0.0, default=None)
            plain = group.stock(size)
            if farthest and farthest.fp32_l2 and plain and plain.fp32_l2:
                add("accuracy", farthest, plain, farthest.fp32_l2 / plain.fp32_l2)
    return rows


def tried_compiled(group: Group) -> set[tuple[Size, int]]:
    """Sizes and GPU counts at which peers were measured compiled too: their best, where it ran."""
    if group.setting.source != "measured":
        return set()
    return {(e.size, e.gpus) for e in group.entries if e.engine != OURS and e.execution == "compile"}


def _beside_peers(ours: Entry, peers: list[Entry], add: Any) -> None:
    installed = [e for e in peers if not given_fa3(e)]
    best = fastest(installed)
    if installed:
        add("peers", ours, best, _ratio(ours, best) if best else None)
    if any(given_fa3(e) and e.ok for e in peers) and (best := fastest(peers)):
        add("peers_fa3", ours, best, _ratio(ours, best))
    like = [e for e in installed if e.ok and e.peak_bytes and e.vae == ours.vae]
    least = min(like, key=lambda e: e.peak_bytes or 0.0, default=None)
    if least and least.peak_bytes and ours.peak_bytes:
        add("memory_gb", ours, least, (least.peak_bytes - ours.peak_bytes) / 1e9)


def given_fa3(entry: Entry) -> bool:
    """A peer that was handed FlashAttention-3: as PyPI installs it, it finds none."""
    return entry.engine == "xfuser" and entry.attention == "fa3"


def runner(entry: Entry) -> str:
    """`engine/execution`; a peer that was given a kernel is another one than the peer as it is installed."""
    return f"{entry.runner}, FA3" if given_fa3(entry) else entry.runner


def fastest(entries: Iterable[Entry]) -> Entry | None:
    """The success with the shortest step."""
    timed = [entry for entry in entries if entry.ok and entry.step_s]
    return min(timed, key=lambda entry: entry.step_s or 0.0, default=None)


def shipped_bounds(study: str) -> Mapping[str, Any]:
    """The `bounds` of the sweep file of that name, read as data; empty where there is none."""
    path = data_dir("conf") / "sweeps" / f"{study}.yaml"
    if Path(study).name != study or not path.is_file():
        return {}
    found = yaml.safe_load(path.read_text(encoding="utf-8")).get("bounds")
    return found if isinstance(found, dict) else {}


def bound_of(bounds: Mapping[str, Any], key: str, entry: Entry) -> float | None:
    """Of comparison -> GPUs -> side of the image in pixels -> number."""
    side = entry.size[0] if entry.size[0] == entry.size[1] else None
    return number(((bounds.get(key) or {}).get(entry.gpus) or {}).get(side))


def _ratio(over: Entry, under: Entry) -> float | None:
    return over.step_s / under.step_s if over.step_s and under.step_s else None
