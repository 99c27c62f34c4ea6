"""Draws the OOM frontier: the largest image that fits, a panel a memory cap, a bar a VAE mode and GPU count.

Owns drawing alone; what fits is `frontier`'s.

    figure = frontier(family, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting.frontier import MODES, Limit, Row, limits, order
from xdit_bench.reporting.marks import bar_style, legend, legend_patch, starts_row
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import CYCLE, INK, PAPER, Layout, panels

LABEL = 32  # characters; a record from elsewhere may name anything as its engine
CHARACTER = 0.04  # of the largest side: the width of a character in the narrowest panel
APART = 0.05  # of the axis: a failure closer to the bar's end is in the caption alone


def frontier(family: Sequence[Group], layout: Layout) -> Figure:
    """A bar to the largest side that fits; a cross at the smallest that ran out, where that is not the next."""
    found = limits(family)
    groups = list({id(limit.group): limit.group for limit in found}.values())
    rows = sorted({limit.row for limit in found}, key=order)
    figure, axes = panels(len(groups), layout, height=0.17 * len(rows) + 0.85)
    figure.set_figwidth(layout.width)
    side = max(max(limit.fits, limit.fails) for limit in found)
    for axis, group in zip(axes, groups, strict=True):
        for limit in found:
            if limit.group is group:
                _bar(axis, limit, rows.index(limit.row), side)
        axis.set_title(_title(group, short=len(groups) > 1 and layout.columns > 1))
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlim(0, 1.55 * side)
        axis.set_xticks(_ticks(side, 4.5 if layout.columns == 1 or len(groups) == 1 else 2.5))
        first = starts_row(axis) or len({engine for engine, _, _ in rows}) == 1  # rows are the same in every panel
        barless = {limit.row for limit in found if not limit.fits}  # no colour tells their VAE mode
        labels = [(_label(row, group, rows) + (f", {row[1]}" if row in barless else ""))[:LABEL] for row in rows]
        axis.set_yticks(range(len(rows)), labels if first else [""] * len(rows))
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("largest side that fits, pixels")
    modes = list(dict.fromkeys(vae for _, vae, _ in rows))
    legend(figure, [legend_patch(groups[0], _colour(mode), f"vae={mode}") for mode in modes])
    return figure


def _bar(axis: Axes, limit: Limit, y: int, side: int) -> None:
    axis.barh(y, limit.fits, 0.72, **bar_style(limit.group, _colour(limit.vae)))
    said, end = limit.said, limit.fits
    pressed = bool(limit.best and limit.best.verdict == "pressure")
    if pressed:
        said += ", pressure"
    if limit.fails - limit.fits > APART * side:
        axis.plot(limit.fails, y, marker="x", color=INK, linestyle="none", markersize=4)
        between = limit.fails >= limit.fits + 0.4 * side  # room for the number between the two
        least = 0.35 if between else max(0.35, CHARACTER * len(said))
        narrow = 0 < limit.fits < least * side  # holds no number
        fits = said if limit.open or pressed else f"{said} fits"
        axis.annotate(f"OOM; {fits}" if narrow else "OOM", (limit.fails, y), (4, 0), textcoords="offset points",
                      va="center", fontsize=6)  # fmt: skip
        if narrow:
            return
        if not between:
            axis.annotate(said, (end, y), (-3, 0), textcoords="offset points", ha="right", va="center", fontsize=6,
                          color="white" if limit.group.setting.source == "measured" else INK)  # fmt: skip
            return
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4}  # over the grid's lines
    axis.annotate(said, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6, bbox=box)


def _colour(mode: str) -> str:
    return CYCLE[MODES.index(mode) if mode in MODES else len(MODES)]


def _title(group: Group, *, short: bool) -> str:
    cap = group.setting.memory_cap_gb
    if cap is not None:
        return f"{cap:g} GB (capped)"
    capacity = next((e.limit_bytes for e in group.entries if e.limit_bytes), None)
    known = f"{capacity / 1e9:.0f} GB" if capacity else ""
    return known or "whole card" if short else f"whole card, {known}" if known else "whole card"


def _label(row: Row, group: Group, rows: Sequence[Row]) -> str:
    several = len({engine for engine, _, _ in rows}) > 1
    return f"{f'{row[0]}, ' if several else ''}{group.count(row[2])}"


def _ticks(side: int, most: float) -> list[int]:
    """As many round sizes as there is room for."""
    step = next(s for s in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384) if side / s <= most or s == 16384)
    return list(range(0, side + 1, step))
