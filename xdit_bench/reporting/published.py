"""Published points, and the points of ours that stand beside them.

Owns the rule of what may be compared; `predict.published` reads the files. Draws nothing.

    matches = match(group, load_published())
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdit_bench import data_dir
from xdit_bench.predict.published import MODEL, rows
from xdit_bench.reporting.entry import Entry
from xdit_bench.reporting.study import Group

COLUMNS = {"topology", "res", "ulysses", "ring", "latency_s"}


@dataclass(frozen=True)
class PublishedPoint:
    """One published figure: seconds an image. `vae` says what it holds: `no`, `cold` (first decode) or `yes`."""

    model: str
    topology: str
    res: int
    ulysses: int
    ring: int
    latency_s: float
    vae: str
    note: str


@dataclass(frozen=True)
class Match:
    """A published point and the fastest point of ours of the same machine, size, split and model."""

    published: PublishedPoint
    entry: Entry
    ours_s: float
    compared: str

    @property
    def ratio(self) -> float:
        """Ours over published; below 1 is faster."""
        return self.ours_s / self.published.latency_s


def load_published(folder: Path | None = None) -> list[PublishedPoint]:
    """Every latency of the shipped CSV files; files of another shape are left to others."""
    points: list[PublishedPoint] = []
    for path in sorted((folder or data_dir("published")).glob("*.csv")):
        points += [_point(row) for _, row in rows(path) if row.keys() >= COLUMNS and row["latency_s"]]
    return points


def _point(row: dict[str, str]) -> PublishedPoint:
    return PublishedPoint(
        model=row.get("model") or MODEL,
        topology=row["topology"],
        res=int(row["res"]),
        ulysses=int(row["ulysses"]),
        ring=int(row["ring"]),
        latency_s=float(row["latency_s"]),
        vae=row.get("vae", ""),
        note=row.get("note", ""),
    )


def match(group: Group, points: Iterable[PublishedPoint]) -> list[Match]:
    """Matches of a group, one for each published point and engine that covers it, in the published order.

    A published time without the VAE stands beside our time without it: the total of `vae=none`, else text plus
    denoising. A capped point or another link is another machine, and stands beside nothing.
    """
    setting = group.setting
    if setting.memory_cap_gb is not None or setting.transport != "p2p":
        return []
    found: list[Match] = []
    for point in points:
        if (point.model, point.topology) != (setting.model, setting.topology):
            continue
        cell = [
            e
            for e in group.entries
            if e.ok and e.size == (point.res, point.res) and (e.ulysses, e.ring) == (point.ulysses, point.ring)
        ]
        for engine in sorted({entry.engine for entry in cell}):
            best = _best(point, [entry for entry in cell if entry.engine == engine])
            if best:
                found.append(best)
    return found


def _best(point: PublishedPoint, entries: Sequence[Entry]) -> Match | None:
    options: list[Match] = []
    for entry in entries:
        if point.vae == "no":
            if entry.decode == "none" and entry.total_s:
                options.append(Match(point, entry, entry.total_s, "without VAE"))
            elif {"text", "denoise"} <= entry.stages.keys():
                options.append(Match(point, entry, entry.stages["text"] + entry.stages["denoise"], "without VAE"))
        elif entry.decode == "exact" and entry.total_s:
            held = "with VAE; published decode was cold" if point.vae == "cold" else "with VAE"
            options.append(Match(point, entry, entry.total_s, held))
    return min(options, key=lambda option: option.ours_s, default=None)
