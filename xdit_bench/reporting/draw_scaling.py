"""Draws how latency scales: latency by strategy, both speedups, efficiency and the heat map.

Owns drawing alone; what competes with what is decided in `study`, and which figures a report has in `figures`.

    figure = strategies(group, PAGE)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from xdit_bench.reporting import words
from xdit_bench.reporting.draw_headline import why_none
from xdit_bench.reporting.entry import Entry, Size, pick
from xdit_bench.reporting.marks import label_rows, legend, shown_sizes
from xdit_bench.reporting.study import Group, Speedup
from xdit_bench.reporting.style import (
    BASELINE,
    CYCLE,
    FAILED_HATCH,
    INK,
    MARKERS,
    MUTED,
    OVER_HATCH,
    PAPER,
    Layout,
    empty,
    panels,
)

Lines = dict[Size, list[tuple[int, Speedup]]]  # a ratio by GPU count, a line a size
STRATEGIES = ("Ulysses", "ring", "hybrid")


def strategy(entry: Entry) -> str:
    """Ulysses, ring or hybrid; one GPU is neither."""
    if entry.gpus == 1:
        return "one GPU"
    return "Ulysses" if entry.ring == 1 else "ring" if entry.ulysses == 1 else "hybrid"


def strategies(group: Group, layout: Layout) -> Figure:
    """Latency over GPUs, a line a strategy (Ulysses, ring, hybrid), a panel a resolution; failures as crosses."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout)
    drawn: set[str] = set()
    for axis, size in zip(axes, sizes, strict=True):
        drawn |= _strategy_panel(axis, group, size)
        axis.set_title(words.panel(group, size))
    handles = [Line2D([], [], **_line_style(group, index), label=name) for index, name in enumerate(STRATEGIES)]
    handles.append(Line2D([], [], color=INK, marker="o", linestyle="none", label="one GPU"))
    handles.append(Line2D([], [], color=MUTED, linestyle=":", label="ideal"))
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="none", label="failed"))
    legend(figure, [handle for handle in handles if handle.get_label() in drawn])
    label_rows(axes, "seconds an image")
    return figure


def _strategy_panel(axis: Axes, group: Group, size: Size) -> set[str]:
    """Draws the lines; returns what of the legend they need."""
    splits = group.splits(size)
    single = pick(e for e in splits if e.gpus == 1)
    values: list[float] = []
    drawn: list[str] = []  # each line's markers are smaller than the last one's: equal times stay visible
    failures = [(1, single)] if single and not single.ok else []
    for name in STRATEGIES:
        points = [(1, single.total_s)] if single and single.total_s else []
        for gpus in group.gpu_counts:
            entry = pick(e for e in splits if e.gpus == gpus and strategy(e) == name)
            if entry and entry.total_s:
                points.append((gpus, entry.total_s))
            elif entry and entry.status != "infeasible":
                failures.append((gpus, entry))
        if len(points) > 1 or (points and not (single and single.ok)):
            _series(axis, group, points, STRATEGIES.index(name), name, size=7.5 - 1.6 * len(drawn))
            drawn.append(name)
        values += [value for _, value in points]
    if not values:
        empty(axis, f"no success here\n({why_none(group, size)})")
        return set()
    if single and single.total_s and not drawn:
        axis.plot(1, single.total_s, marker="o", color=INK, linestyle="none")
        axis.update_datalim([(group.gpu_counts[-1], single.total_s)])  # reaches as far as the other panels
        drawn.append("one GPU")
    elif single and single.total_s:
        drawn.append("ideal")
        ideal = [single.total_s / gpus for gpus in group.gpu_counts]
        axis.plot(group.gpu_counts, ideal, color=MUTED, linestyle=":", linewidth=1, zorder=1)
    for gpus, entry in failures:
        axis.plot(gpus, max(values), marker="x", color=INK, linestyle="none")
        axis.annotate(entry.outcome, (gpus, max(values)), (0, 4), textcoords="offset points", ha="center", fontsize=6.5)
    log_axes(axis, group, values)
    return {*drawn, *(["failed"] if failures else [])}


def log_axes(axis: Axes, group: Group, values: list[float]) -> None:
    """Logarithmic both ways, with plain numbers where a reader looks for them."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(group.gpu_counts, [str(gpus) for gpus in group.gpu_counts])
    axis.set_xlabel(words.unit(group))
    axis.set_yscale("log")
    low, high = min(values) * 0.75, max(values) * 1.35
    axis.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
        if len(ticks) >= 3:
            break
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.set_yticklabels([f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_locator(NullLocator())


def speedups(group: Group, layout: Layout) -> Figure:
    """Both ratios and the efficiency, a line a resolution: over the same engine on one GPU (scaling), over plain
    diffusers on one GPU (what a user gains), and scaling as a share of linear. A ratio without a base has no panel."""
    scaling = _ratios(group, group.scaling)
    efficiency = {
        size: [(gpus, 100 * ratio.value * ratio.base.gpus / gpus) for gpus, ratio in found]
        for size, found in scaling.items()
        if len(found) > 1
    }
    gain = _ratios(group, group.gain)
    times = [
        {size: [(gpus, r.value) for gpus, r in found] for size, found in lines.items()} for lines in (scaling, gain)
    ]
    named = (("scaling", times[0]), ("gain over stock", times[1]), ("efficiency", efficiency))
    shown = [(title, lines) for title, lines in named if lines]
    figure, axes = panels(max(1, len(shown)), layout, height=2.5)
    if not shown:
        empty(axes[0], f"nothing succeeded on one and\non several {words.unit(group)} at one size")
        return figure
    sizes = shown_sizes(group)
    for axis, (title, lines) in zip(axes, shown, strict=True):
        for size, points in lines.items():
            _series(axis, group, points, sizes.index(size), words.px(size))
        linear = [100.0] * len(group.gpu_counts) if title == "efficiency" else group.gpu_counts
        axis.plot(group.gpu_counts, linear, color=MUTED, linestyle=":", linewidth=1, zorder=1)
        axis.set_title(title)
        axis.set_ylim(0, 1.06 * axis.dataLim.y1)
        axis.set_ylabel("% of linear scaling" if title == "efficiency" else "times as fast")
        axis.set_xticks(group.gpu_counts, [str(gpus) for gpus in group.gpu_counts])
        axis.set_xlabel(words.unit(group))
    _size_legend(figure, group, scaling, gain)
    return figure


def _ratios(group: Group, ratio: Callable[[Entry], Speedup | None]) -> Lines:
    """The ratio of the best of each GPU count, by size; sizes without one are left out."""
    found = {}
    for size in shown_sizes(group):
        entries = [entry for gpus in group.gpu_counts if (entry := group.best(size, gpus))]
        if ratios := [(entry.gpus, speedup) for entry in entries if (speedup := ratio(entry))]:
            found[size] = ratios
    return found


def _size_legend(figure: Figure, group: Group, scaling: Lines, gain: Lines) -> None:
    """One legend for all panels; it says where a ratio stands on several GPUs, or on none and why."""
    handles = []
    for index, size in enumerate(shown_sizes(group)):
        notes = []
        if size in scaling and (base := scaling[size][0][1]).rebased:
            notes.append(f"scaling over {base.base.gpus}")
        elif size not in scaling and (one := group.cell(size, 1)) and not one.ok:
            notes.append(f"1: {one.outcome}")
        if gain and size not in gain and (stock := group.stock(size)):
            notes.append(f"stock: {stock.outcome}")
        label = f"{words.px(size)} ({', '.join(notes)})" if notes else words.px(size)
        handles.append(Line2D([], [], **_line_style(group, index), label=label))
    legend(figure, [*handles, Line2D([], [], color=MUTED, linestyle=":", label="linear")])


def _line_style(group: Group, index: int) -> dict[str, Any]:
    """Measured points joined by a solid line, predicted ones open and dashed."""
    predicted = group.setting.source == "predicted"
    colour = CYCLE[index % len(CYCLE)]
    return {
        "color": colour, "marker": MARKERS[index % len(MARKERS)], "linestyle": "--" if predicted else "-",
        "markerfacecolor": PAPER if predicted else colour,
    }  # fmt: skip


def _series(
    axis: Axes, group: Group, points: list[tuple[int, float]], index: int, label: str, size: float = 4.5
) -> None:
    axis.plot(*zip(*points, strict=True), markersize=size, label=label, **_line_style(group, index))


def heat_map(group: Group, layout: Layout) -> Figure:
    """Latency over (ulysses, ring), a panel a resolution; the best cell is framed, failures are hatched and named."""
    sizes = shown_sizes(group)
    entries = [e for e in group.entries if e.engine == group.engine and e.status != "infeasible"]
    ulysses, rings = sorted({e.ulysses for e in entries}), sorted({e.ring for e in entries})
    figure, axes = panels(len(sizes), layout, height=1.0 + 0.33 * len(ulysses))
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        _heat_panel(axis, group, size, ulysses, rings)
    label_rows(axes, "ulysses")
    return figure


def _heat_panel(axis: Axes, group: Group, size: Size, ulysses: list[int], rings: list[int]) -> None:
    axis.grid(False)
    cells = {(u, r): group.split(size, u, r) for u in ulysses for r in rings}
    times = [entry.total_s for entry in cells.values() if entry and entry.total_s]
    low, high = (math.log(min(times)), math.log(max(times))) if times else (0.0, 1.0)
    colours = matplotlib.colormaps["cividis_r"]
    best = group.best(size)
    for (u, r), entry in cells.items():
        x, y = rings.index(r), ulysses.index(u)
        box = (x - 0.5, y - 0.5)
        if entry is None or entry.total_s is None:
            hatch = FAILED_HATCH if entry and entry.status != "infeasible" else None
            axis.add_patch(Rectangle(box, 1, 1, facecolor=PAPER, edgecolor=MUTED, linewidth=0.5, hatch=hatch))
            label = "–" if entry is None else "n/a" if entry.status == "infeasible" else entry.outcome
            axis.text(x, y, label, ha="center", va="center", fontsize=6.5, color=INK,
                      bbox=OVER_HATCH)  # fmt: skip
            continue
        share = (math.log(entry.total_s) - low) / (high - low) if high > low else 0.0
        axis.add_patch(Rectangle(box, 1, 1, facecolor=colours(share), edgecolor=PAPER, linewidth=1.2))
        axis.text(x, y, words.digits(entry.total_s), ha="center", va="center", fontsize=7, gid="on-colour",
                  color="#000000" if share < 0.55 else "#fffffe")  # fmt: skip
        if best and (entry.ulysses, entry.ring) == (best.ulysses, best.ring):
            axis.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, edgecolor=BASELINE, linewidth=1.6))
    axis.set_xlim(-0.5, len(rings) - 0.5)
    axis.set_ylim(-0.5, len(ulysses) - 0.5)
    axis.set_xticks(range(len(rings)), [str(r) for r in rings])
    axis.set_yticks(range(len(ulysses)), [str(u) for u in ulysses])
    axis.set_xlabel("ring")
