"""Draws the OOM frontier: the largest image that fits, by memory cap, VAE mode and GPU count.

Owns the frontier's rule: only points that were run count, nothing is interpolated.

    figure = frontier(groups, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from xdit_bench.reporting.entry import Entry
from xdit_bench.reporting.marks import bar_style
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import CYCLE, INK, PAPER, Layout, panels


@dataclass(frozen=True)
class Limit:
    """The largest square side that fits and the smallest that ran out, pixels; 0 where there is none."""

    group: Group
    engine: str
    vae: str
    gpus: int
    fits: int
    fails: int

    @property
    def label(self) -> str:
        """`48 GB cap, usp, vae=single, 2 GPUs`."""
        cap = self.group.setting.memory_cap_gb
        head = [f"{cap:g} GB cap"] if cap is not None else []
        return ", ".join([*head, self.engine, f"vae={self.vae}", self.group.count(self.gpus)])


def limits(groups: Sequence[Group]) -> list[Limit]:
    """A limit for each cap, engine, VAE mode and GPU count; empty where nothing ran out of memory."""
    found: list[Limit] = []
    for group in groups:
        rows: dict[tuple[str, str, int], list[Entry]] = {}
        for entry in group.entries:
            if entry.size[0] == entry.size[1] and entry.status != "infeasible":
                rows.setdefault((entry.engine, entry.vae, entry.gpus), []).append(entry)
        for (engine, vae, gpus), entries in sorted(rows.items()):
            fits = max((e.size[0] for e in entries if e.ok), default=0)
            # some split of these GPUs fits where another fails: the failure is the split's, not the size's
            fails = min((e.size[0] for e in entries if e.status == "oom" and e.size[0] > fits), default=0)
            found.append(Limit(group, engine, vae, gpus, fits, fails))
    return found if any(limit.fails for limit in found) else []


def frontier(groups: Sequence[Group], layout: Layout) -> Figure:
    """A bar to the largest side that fits, a cross at the smallest that ran out of memory."""
    rows = limits(groups)
    caps = sorted({row.group.setting.memory_cap_gb or 0.0 for row in rows})
    figure, (axis,) = panels(1, layout, height=0.19 * len(rows) + 1.0)
    figure.set_figwidth(layout.width)
    for y, row in enumerate(rows):
        colour = CYCLE[caps.index(row.group.setting.memory_cap_gb or 0.0) % len(CYCLE)]
        axis.barh(y, row.fits, 0.7, **bar_style(row.group, colour))
        if row.fails:
            axis.plot(row.fails, y, marker="x", color=INK, linestyle="none")
            axis.annotate("OOM", (row.fails, y), (5, 0), textcoords="offset points", va="center", fontsize=6)
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        said, side = (f"{row.fits}px", -3) if row.fits else ("nothing fits", 3)
        axis.annotate(said, (row.fits, y), (side, 0), textcoords="offset points", ha="right" if row.fits else "left",
                      va="center", fontsize=6, bbox=box)  # fmt: skip
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1.12 * max(max(row.fits, row.fails) for row in rows))
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("side of the largest square image that fits, pixels")
    return figure
