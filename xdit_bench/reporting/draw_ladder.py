"""Draws the ladder of our engine: ms a step rung by rung, from the plain engine down to the whole one.

Owns drawing alone; what a rung is and what it saved is `ladder`'s.

    figure = climb(group, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting import words
from xdit_bench.reporting.ladder import PLAIN, Rung, Split, ladder
from xdit_bench.reporting.marks import bar_style, legend, legend_patch, shown_sizes, starts_row
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import CYCLE, GRID, INK, MUTED, Layout, panels
from xdit_bench.rungs import RUNGS

BAR, GAP = 0.12, 0.045  # inches: of a bar with its number, and between rungs


def climb(group: Group, layout: Layout) -> Figure:
    """A panel a size, a block of bars a rung, a colour a split; beside each bar its ms and what the rung saved."""
    rungs = drawn(group)
    splits = sorted({rung.split for rung in rungs}, key=lambda split: (split[0] * split[1], -split[0]))
    # the same rows in all panels, so that a rung stands on one line
    rows = [(name, split) for name in (PLAIN, *RUNGS) for split in splits if _is_there(rungs, name, split)]
    names = list(dict.fromkeys(name for name, _ in rows))
    sizes = [size for size in shown_sizes(group) if any(rung.size == size for rung in rungs)]
    height = BAR * len(rows) + GAP * len(names) + 0.75
    figure, axes = panels(len(sizes), layout, height=height)
    for axis, size in zip(axes, sizes, strict=True):
        _panel(axis, group, [rung for rung in rungs if rung.size == size], rows, splits)
        axis.set_title(words.px(size))
    labels = [f"{group.count(u * r)}, u{u}r{r}" if u * r > 1 else group.count(1) for u, r in splits]
    legend(figure, [legend_patch(group, CYCLE[k % len(CYCLE)], label) for k, label in enumerate(labels)])
    return figure


def drawn(group: Group) -> list[Rung]:
    """The rungs that a ladder shows: those that stand on another, and the plain engine."""
    return [rung for rung in ladder(group) if rung.entry]


def _is_there(rungs: Sequence[Rung], name: str, split: Split) -> bool:
    return any((rung.name, rung.split) == (name, split) for rung in rungs)


def _panel(
    axis: Axes, group: Group, rungs: Sequence[Rung], rows: Sequence[tuple[str, Split]], splits: Sequence[Split]
) -> None:
    here = {(rung.name, rung.split): rung for rung in rungs}
    names = list(dict.fromkeys(name for name, _ in rows))
    peak = max((1e3 * e.step_s for rung in rungs if (e := rung.entry) and e.ok and e.step_s), default=1.0)
    axis.set_xlim(0, peak * 1.42)  # room for the numbers
    axis.grid(visible=False)  # every bar has its number
    middles = []
    y = 0.0
    for name in names:
        alike = [split for row, split in rows if row == name]
        middles.append(y + BAR * (len(alike) - 1) / 2)
        for split in alike:
            rung = here.get((name, split))
            _bar(axis, group, rung, y, CYCLE[splits.index(split) % len(CYCLE)])
            y += BAR
        y += GAP
        axis.axhline(y - (BAR + GAP) / 2, color=GRID, linewidth=0.5)
    axis.set_yticks(middles, [_label(name) for name in names] if starts_row(axis) else [""] * len(names))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(y - (BAR + GAP) / 2, -BAR / 2 - GAP / 2)
    axis.set_xlabel("ms a step")


def _label(name: str) -> str:
    return name if name == PLAIN else f"+ {name}"


def _bar(axis: Axes, group: Group, rung: Rung | None, y: float, colour: str) -> None:
    entry = rung.entry if rung else None
    if rung is None or entry is None or not entry.ok or not entry.step_s:
        _beside(axis, 0, y, entry.outcome if entry else "not run", MUTED)
        return
    axis.barh(y, 1e3 * entry.step_s, BAR * 0.84, **bar_style(group, colour))
    change = (
        "" if rung.saved_s is None else f" ({round(-1e3 * rung.saved_s, 1) + 0.0:+.1f})".replace("-", "\N{MINUS SIGN}")
    )
    _beside(axis, 1e3 * entry.step_s, y, f"{1e3 * entry.step_s:.1f}{change}", INK)


def _beside(axis: Axes, x: float, y: float, said: str, colour: str) -> None:
    """An offset, as a page's SVG drops a space before a text."""
    axis.annotate(said, (x, y), (2, 0), textcoords="offset points", va="center", fontsize=6, color=colour)
