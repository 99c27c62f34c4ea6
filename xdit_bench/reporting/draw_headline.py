"""Draws the study's headline figure: the best factorization of each GPU count against one GPU.

Owns drawing alone; what competes and what the baseline is, `study` decides.

    figure = headline(group, PAGE)
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Entry, Size
from xdit_bench.reporting.marks import bar_style, failed_bar, frame_bars, label_rows, shown_sizes
from xdit_bench.reporting.study import Group, Speedup, spread
from xdit_bench.reporting.style import BASELINE, BLUE, INK, MUTED, OVER_GRID, Layout, empty, panels


def headline(group: Group, layout: Layout) -> Figure:
    """One panel a resolution: a bar a GPU count with its best factorization, the single-GPU baseline, the speedup."""
    sizes = shown_sizes(group)
    if layout.columns == 1:  # a column of a paper is as high as three panels
        sizes = tuple(spread(sizes, 3))
    figure, axes = panels(len(sizes), layout, height=2.35)
    for axis, size in zip(axes, sizes, strict=True):
        _headline_panel(axis, group, size, narrow=layout.columns > 1 and len(sizes) > 2)
        axis.set_title(words.panel(group, size))
    label_rows(axes, "seconds an image")
    return figure


def _headline_panel(axis: Axes, group: Group, size: Size, *, narrow: bool) -> None:
    cells = [group.cell(size, gpus) for gpus in group.gpu_counts]
    baseline = group.baseline(size)
    level = baseline[0].total_s if baseline else None
    times = [max(entry.total_s, entry.high_s or 0.0) for entry in cells if entry and entry.total_s]
    times += [level] if level else []
    if not any(cells):
        empty(axis, group.absent(size))
        return
    if not times:
        axis.set_yticks([])
    top = max(times, default=1.0)
    axis.set_ylim(0, top * 1.32)
    wrap = (narrow and len(cells) > 2) or len(cells) > 4
    labels = []
    for x, (gpus, entry) in enumerate(zip(group.gpu_counts, cells, strict=True)):
        labels.append(str(gpus))
        if entry is None:
            axis.text(x, top * 0.03, group.absent(size, gpus), rotation=90, ha="center", va="bottom", color=MUTED)
        elif entry.total_s is None:
            failed_bar(axis, x, top * 0.8, entry)
        else:
            _timed_bar(axis, group, x, entry, level, _beside(group, size, entry, axis.get_ylim()[1]))
            labels[-1] += f"{chr(10) if wrap else ' '}({entry.factors})"
    axis.set_xticks(range(len(cells)), labels)
    frame_bars(axis, len(cells))
    axis.set_xlabel(words.unit(group))
    if baseline and level:
        axis.axhline(level, color=BASELINE, linestyle=(0, (4, 2.5)), linewidth=1.1, zorder=3)
        axis.annotate(f"╌ {baseline[1]}: {words.seconds(level)}", (1, 1), (0, 1), xycoords="axes fraction",
                      textcoords="offset points", ha="right", va="top", color=BASELINE, fontsize=6.5,
                      bbox=OVER_GRID)  # fmt: skip
        _arrow(axis, group.best(size), group.over_baseline(size), level, cells)


def why_none(group: Group, size: Size) -> str:
    """The outcomes of a size without a success."""
    cells = [group.cell(size, gpus) for gpus in group.gpu_counts]
    return ", ".join(sorted({entry.outcome for entry in cells if entry})) or "not run"


def _room(best: Entry, level: float, high: float) -> bool:
    """Whether an arrow fits between the baseline and the best bar's label."""
    return level - _arrow_end(best, high) >= 0.12 * high


def _arrow_end(best: Entry, high: float) -> float:
    return max(best.total_s or 0.0, best.high_s or 0.0) + 0.085 * high


def _beside(group: Group, size: Size, entry: Entry, high: float) -> str:
    """The speedup as a line of the best bar's label, where there is no room for an arrow."""
    ratio = group.over_baseline(size)
    if ratio is None or entry is not group.best(size) or _room(entry, ratio.base.total_s or 0.0, high):
        return ""
    return words.times(ratio.value) + "\n"


def _timed_bar(axis: Axes, group: Group, x: float, entry: Entry, level: float | None, above: str) -> None:
    """A bar, its interval, and its seconds: above, or inside where the baseline would cross them."""
    assert entry.total_s is not None, "a timed bar has a time"
    axis.bar(x, entry.total_s, 0.62, **bar_style(group, BLUE))
    tip, high = _whisker(axis, x, entry), axis.get_ylim()[1]
    crossed = level is not None and tip - 0.01 * high <= level <= tip + (0.16 if above else 0.09) * high
    if crossed and entry.total_s > (0.3 if above else 0.15) * high:
        start = min(entry.total_s, entry.low_s or entry.total_s)
        said = above + words.digits(entry.total_s)
        axis.annotate(said, (x, start), (0, -2.5), textcoords="offset points", ha="center",
                      va="top", color=INK, fontsize=7, zorder=5, bbox=OVER_GRID)  # fmt: skip
    else:
        axis.annotate(above + words.digits(entry.total_s), (x, tip), (0, 1.5), textcoords="offset points", ha="center",
                      va="bottom", color=INK, fontsize=7, zorder=5, bbox=OVER_GRID)  # fmt: skip


def _whisker(axis: Axes, x: float, entry: Entry) -> float:
    """The interval of the median, or the span of a prediction; returns the height where text may start."""
    if entry.total_s is None or entry.low_s is None or entry.high_s is None:
        return entry.total_s or 0.0
    spread = [[max(0.0, entry.total_s - entry.low_s)], [max(0.0, entry.high_s - entry.total_s)]]
    axis.errorbar(x, entry.total_s, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
    return max(entry.total_s, entry.high_s)


def _arrow(axis: Axes, best: Entry | None, ratio: Speedup | None, level: float, cells: list[Entry | None]) -> None:
    """An arrow from the baseline down to the best bar, with the speedup beside it."""
    if best is None or ratio is None or best not in cells:
        return
    high, x = axis.get_ylim()[1], cells.index(best)
    if not _room(best, level, high):
        return
    text, end = words.times(ratio.value), _arrow_end(best, high)
    axis.annotate("", (x, end), (x, level), zorder=4,
                  arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.0, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    middle = (level + end) / 2
    beside = {side: cells[x + side] for side in (-1, 1) if 0 <= x + side < len(cells)}
    # a neighbour's bar, label and whisker end below the text, or the text stands above the line
    free = [side for side, cell in beside.items() if _tip(cell, high) + 0.1 * high < middle - 0.05 * high]
    place: dict[str, Any] = {
        "textcoords": "offset points", "weight": "bold", "fontsize": 8.5, "zorder": 6, "bbox": OVER_GRID
    }  # fmt: skip
    if free:
        side = free[0]
        axis.annotate(text, (x, middle), (4 * side, 0), ha="left" if side > 0 else "right", va="center", **place)
    else:
        axis.annotate(text, (x, level), (0, 3), ha="center", va="bottom", **place)


def _tip(cell: Entry | None, high: float) -> float:
    """Where a bar ends with all it carries; a failure's is as high as the panel allows."""
    if cell is None:
        return 0.0
    return max(cell.total_s, cell.high_s or 0.0) if cell.total_s else high
