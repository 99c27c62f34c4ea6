"""Draws the OOM frontier: the largest image that fits, a panel a memory cap, a bar a VAE mode and GPU count.

Owns drawing alone; what fits is `frontier`'s.

    figure = frontier(family, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting.frontier import Limit, Row, limits
from xdit_bench.reporting.marks import bar_style
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import INK, MUTED, OVER_GRID, VAE_COLOURS, Layout

LABEL = 32  # characters; a record from elsewhere may name anything as its engine
CHARACTER, LETTER = 0.047, 0.055  # inches: the width of a character beside a bar, and before one
ROW, TITLE = 0.17, 0.25  # inches: the height of a bar with its space, and of a panel's title
TOP, FOOT, EDGE = 0.18, 0.38, 0.08  # what a figure says of itself, its axis' numbers and label, paper at the sides


def frontier(family: Sequence[Group], layout: Layout) -> Figure:
    """A bar to the largest side that fits; a cross at the smallest that ran out, where that is not the next.

    Panels lie below each other on one axis: each has the rows of its own, and its words the width of the page.
    """
    found = limits(family)
    groups = list({id(limit.group): limit.group for limit in found}.values())
    bars = [[limit for limit in found if limit.group is group] for group in groups]
    rows = [limit.row for limit in found]
    names = [[_label(limit, rows) for limit in of_group] for of_group in bars]
    left = LETTER * max(len(name) for of_group in names for name in of_group) + EDGE
    inches = layout.width - left - EDGE
    right = 0.0
    for _ in range(3):  # words between bar and cross take none of the axis, and fit there at some scales alone
        right = max(_reach(limit, inches, right) for limit in found)
    height = TOP + sum(TITLE + ROW * len(of_group) for of_group in bars) + FOOT
    # laid out by hand: matplotlib's solver gives rows of unequal height a last digit that differs from run to run
    figure, y = Figure(figsize=(layout.width, height)), height - TOP
    for group, of_group, named in zip(groups, bars, names, strict=True):
        y -= TITLE + ROW * len(of_group)
        box = (left / layout.width, y / height, inches / layout.width, ROW * len(of_group) / height)
        axis = figure.add_axes(box)
        for index, limit in enumerate(of_group):
            _bar(axis, limit, index, right / inches)
        axis.set_title(_title(group))
        axis.set_ylim(len(of_group) - 0.5, -0.5)
        axis.set_xlim(0, right)
        axis.set_xticks(_ticks(right, 2.2 * inches))
        axis.set_yticks(range(len(of_group)), named)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelbottom=group is groups[-1])
    axis.set_xlabel("largest side that fits, pixels")
    return figure


def _said(limit: Limit) -> str:
    """What stands beside a bar."""
    said = limit.said
    if limit.open:  # the caption and the table say why
        said = f"≥ {limit.fits}px" if limit.fits else "not found yet"
    elif not limit.fits and limit.fails:
        said = f"nothing from {limit.smallest}px on"
    return said + limit.cost


def _crossed(limit: Limit) -> bool:
    """Whether what ran out is not the next size."""
    return bool(limit.fails) and (limit.open or limit.fails - limit.fits > 0.05 * limit.fails)


def _between(limit: Limit, pixels_an_inch: float) -> bool:
    """Whether the limit's words have room between its bar and its cross."""
    return limit.fails - limit.fits > pixels_an_inch * (CHARACTER * len(_said(limit)) + 0.1)


def _reach(limit: Limit, inches: float, right: float) -> float:
    """Pixels that an axis of so many inches has to hold for the limit and the words after it, where it now holds
    `right`: words are as long at any scale."""
    if _crossed(limit):
        between = _between(limit, max(right, limit.fails) / inches)
        end, words = limit.fails, "OOM" if between else f"OOM; {_said(limit)}"
    else:
        end, words = limit.fits, _said(limit)
    return max(end, limit.fits) / (1 - min(0.7, (CHARACTER * len(words) + 0.1) / inches))


def _bar(axis: Axes, limit: Limit, y: int, pixels_an_inch: float) -> None:
    if limit.fits:  # the edge of a bar of no length would show
        axis.barh(y, limit.fits, 0.72, **bar_style(limit.group, VAE_COLOURS.get(limit.vae, MUTED)))
    said = _said(limit)
    words: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 6, "bbox": OVER_GRID}
    if _crossed(limit):
        axis.plot(limit.fails, y, marker="x", color=INK, linestyle="none", markersize=4)
        between = _between(limit, pixels_an_inch)
        axis.annotate("OOM" if between else f"OOM; {said}", (limit.fails, y), (4, 0), **words)
        if not between:
            return
    axis.annotate(said, (limit.fits, y), (3, 0), **words)


def _title(group: Group) -> str:
    cap = group.setting.memory_cap_gb
    if cap is not None:
        return f"{cap:g} GB (capped)"
    capacity = next((e.limit_bytes for e in group.entries if e.limit_bytes), None)
    return f"whole card, {capacity / 1e9:.0f} GB" if capacity else "whole card"


def _label(limit: Limit, rows: Sequence[Row]) -> str:
    several = len({engine for engine, _, _ in rows}) > 1
    vae = "no VAE" if limit.vae == "none" else limit.vae
    return f"{f'{limit.engine}, ' if several else ''}{vae}, {limit.group.count(limit.gpus)}"[:LABEL]


def _ticks(right: float, most: float) -> list[int]:
    """As many round sizes as there is room for."""
    step = next(s for s in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384) if right / s <= most or s == 16384)
    return list(range(0, int(0.97 * right) + 1, step))  # none whose number passes the paper's edge
