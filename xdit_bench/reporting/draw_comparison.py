"""Draws a comparison: the ratio of each point with its interval, beside the threshold.

figure = ratios(rows, threshold=0.02)
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from xdit_bench.reporting.comparison import FASTER, FIXED, NOT_COMPARABLE, SAME, Row, label
from xdit_bench.reporting.style import BASELINE, BLUE, GRID, INK, MUTED, PAGE, panels

SHOWN = 40  # points, the worst first; the table holds all
BETTER = (FASTER, "smaller", FIXED)


def ratios(rows: Sequence[Row], *, threshold: float) -> Figure:
    """New over base, one row a point; the band is what no verdict is made of. Failures are words at the line of 1."""
    shown = [row for row in rows if row.verdict != NOT_COMPARABLE][:SHOWN]
    figure, (axis,) = panels(1, PAGE, height=0.21 * len(shown) + 0.8)
    figure.set_figwidth(PAGE.width)
    axis.axvspan(1 / (1 + threshold), 1 + threshold, color=GRID, zorder=0)
    axis.axvline(1, color=MUTED, linewidth=0.8)
    for y, row in enumerate(shown):
        colour = BASELINE if row.regression else BLUE if row.verdict in BETTER else INK
        if row.ratio is None:
            axis.annotate(row.verdict, (1, y), (2.5, 0), textcoords="offset points", va="center", color=colour,
                          fontsize=6.5, weight="bold")  # fmt: skip
            continue
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [y, y], color=colour, linewidth=1.3)
        marker = "^" if row.regression else "v" if row.verdict in BETTER else "o"
        axis.plot(row.ratio, y, marker=marker, color=colour, linestyle="none")
        if row.verdict != SAME:
            axis.annotate(row.verdict, (row.high or row.ratio, y), (4, 0), textcoords="offset points", va="center",
                          fontsize=6.5, color=colour)  # fmt: skip
    axis.set_yticks(range(len(shown)), _names(shown), fontsize=6)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.12)
    axis.set_xlabel("new over base, 95 % interval; above 1 is slower or larger")
    return figure


def _names(rows: Sequence[Row]) -> list[str]:
    """Labels without what all of them share: model and topology."""
    names = [label(row) for row in rows]
    if len({(row.point["model"], row.point["topology"]) for row in rows}) > 1:
        return names
    tails = [(f"{row.point['model']} ", f" on {row.point['topology']}") for row in rows]
    return [name.removeprefix(head).replace(tail, "", 1) for name, (head, tail) in zip(names, tails, strict=True)]
