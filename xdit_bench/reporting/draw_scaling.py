"""Draws how latency scales: the headline, latency by strategy, efficiency, speedups and the heat map.

Owns drawing alone; what competes with what is decided in `study`, and which figures a report has in `figures`.

    figure = headline(group, PAGE)
"""

from __future__ import annotations

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from xdit_bench.reporting import words
from xdit_bench.reporting.study import Entry, Group, Size
from xdit_bench.reporting.style import (
    BASELINE,
    BLUE,
    CYCLE,
    FAILED_HATCH,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    PREDICTED_HATCH,
    Layout,
    empty,
    panels,
)

PANELS = 6  # sizes a figure shows at most; the table holds all of them
STRATEGIES = {"Ulysses": BLUE, "ring": CYCLE[1], "hybrid": CYCLE[2]}


def shown_sizes(group: Group) -> tuple[Size, ...]:
    """The sizes figures show: those with the most points where there are more than `PANELS`."""
    if len(group.sizes) <= PANELS:
        return group.sizes
    counts = {size: sum(e.size == size and e.engine == group.engine for e in group.entries) for size in group.sizes}
    chosen = sorted(group.sizes, key=lambda size: (-counts[size], size))[:PANELS]
    return tuple(size for size in group.sizes if size in chosen)


def strategy(entry: Entry) -> str:
    """Ulysses, ring or hybrid; one GPU is neither."""
    if entry.gpus == 1:
        return "one GPU"
    return "Ulysses" if entry.ring == 1 else "ring" if entry.ulysses == 1 else "hybrid"


def bar_style(group: Group, colour: str) -> dict[str, object]:
    """Measured is solid, predicted hatched in its own colour."""
    if group.setting.source == "predicted":
        return {"facecolor": PAPER, "edgecolor": colour, "hatch": PREDICTED_HATCH, "linewidth": 0.9}
    return {"facecolor": colour, "edgecolor": colour, "linewidth": 0.9}


def failed_bar(axes: Axes, x: float, height: float, entry: Entry, width: float = 0.62) -> None:
    """A failure is drawn, never left out: a hatched grey bar with its name."""
    axes.bar(x, height, width, facecolor=PAPER, edgecolor=MUTED, hatch=FAILED_HATCH, linewidth=0.7)
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}
    axes.text(
        x, height / 2, words.outcome(entry), rotation=90, ha="center", va="center", weight="bold", color=INK, bbox=box
    )


def headline(group: Group, layout: Layout) -> Figure:
    """One panel a resolution: a bar a GPU count with its best factorization, the single-GPU baseline, the speedup."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.35)
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.px(size))
        _headline_panel(axis, group, size, narrow=layout.columns > 1 and len(sizes) > 2)
    for axis in axes[:: max(1, min(len(sizes), layout.columns))]:
        axis.set_ylabel("seconds an image")
    if group.setting.source == "predicted":
        figure.suptitle(
            "PREDICTED by the performance model, not measured", fontsize=7.5, color=BASELINE, x=0.01, ha="left"
        )
    return figure


def _headline_panel(axis: Axes, group: Group, size: Size, *, narrow: bool) -> None:
    cells = [(gpus, group.cell(size, gpus)) for gpus in group.gpu_counts]
    baseline = group.baseline(size)
    heights = [entry.total_s for _, entry in cells if entry and entry.total_s]
    heights += [baseline[0].total_s] if baseline and baseline[0].total_s else []
    if not heights:
        reasons = sorted({words.outcome(entry) for _, entry in cells if entry})
        empty(axis, f"no success here\n({', '.join(reasons) or 'not run'})")
        axis.set_title(words.px(size))
        return
    top = max(heights)
    axis.set_ylim(0, top * 1.3)
    wrap = narrow and len(cells) > 2 or len(cells) > 4
    labels = []
    for x, (gpus, entry) in enumerate(cells):
        if entry is None:
            axis.text(x, top * 0.03, "not run", rotation=90, ha="center", va="bottom", color=MUTED)
            labels.append(str(gpus))
            continue
        if entry.total_s is None:
            failed_bar(axis, x, top * 0.8, entry)
            labels.append(str(gpus))
            continue
        axis.bar(x, entry.total_s, 0.62, **bar_style(group, BLUE))
        tip = _whisker(axis, x, entry)
        axis.annotate(
            words.digits(entry.total_s), (x, tip), (0, 1.5), textcoords="offset points", ha="center", va="bottom",
            color=INK, fontsize=7, zorder=5, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )  # fmt: skip
        labels.append(f"{gpus}{chr(10) if wrap else ' '}({entry.factors})")
    axis.set_xticks(range(len(cells)), labels)
    axis.set_xlim(-0.6, len(cells) - 0.4)
    axis.set_xlabel(words.unit(group))
    if baseline and baseline[0].total_s:
        _baseline(axis, group, size, baseline[0], baseline[1], [entry for _, entry in cells])


def _whisker(axis: Axes, x: float, entry: Entry) -> float:
    """The interval of the median, or the span of a prediction; returns the height where text may start."""
    if entry.total_s is None or entry.low_s is None or entry.high_s is None:
        return entry.total_s or 0.0
    spread = [[max(0.0, entry.total_s - entry.low_s)], [max(0.0, entry.high_s - entry.total_s)]]
    axis.errorbar(x, entry.total_s, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
    return max(entry.total_s, entry.high_s)


def _baseline(axis: Axes, group: Group, size: Size, base: Entry, label: str, cells: list[Entry | None]) -> None:
    """The dashed red line, and an arrow from it down to the best bar with the speedup."""
    level = base.total_s or 0.0
    axis.axhline(level, color=BASELINE, linestyle=(0, (4, 2.5)), linewidth=1.1, zorder=3)
    axis.annotate(
        f"{label} {words.digits(level)}", (1, level), (-1, 9), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", color=BASELINE, fontsize=6.5, zorder=6,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.85},
    )  # fmt: skip
    best = group.best(size)
    if best is None or best.total_s is None or best is base or best not in cells:
        return
    ratio = level / best.total_s
    x = cells.index(best)
    if ratio > 1.25:
        start, end = (x + 0.02, level), (x + 0.02, max(best.total_s, best.high_s or 0) + axis.get_ylim()[1] * 0.075)
        axis.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
        )
        axis.annotate(
            words.times(ratio), (x, (start[1] + end[1]) / 2), (-4, 0), textcoords="offset points",
            ha="right", va="center", weight="bold", fontsize=8.5, zorder=6,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )  # fmt: skip
    else:  # no room for an arrow between the line and the bar
        axis.text(
            x, best.total_s / 2, words.times(ratio), ha="center", va="center", weight="bold", fontsize=8,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.9},
        )  # fmt: skip


def strategies(group: Group, layout: Layout) -> Figure:
    """Latency over GPUs, a line a strategy (Ulysses, ring, hybrid), a panel a resolution; failures as crosses."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout)
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.px(size))
        _strategy_panel(axis, group, size)
    handles = [
        Line2D([], [], color=c, marker=m, label=n) for (n, c), m in zip(STRATEGIES.items(), MARKERS, strict=False)
    ]
    handles.append(Line2D([], [], color=MUTED, linestyle=":", label="ideal"))
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="none", label="failed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5 if layout.columns > 1 else 3)
    axes[0].set_ylabel("seconds an image")
    return figure


def _strategy_panel(axis: Axes, group: Group, size: Size) -> None:
    single = group.cell(size, 1)
    values: list[float] = []
    failures: list[tuple[int, Entry]] = []
    for (name, colour), marker in zip(STRATEGIES.items(), MARKERS, strict=False):
        points = [(1, single.total_s)] if single and single.total_s else []
        for gpus in group.gpu_counts:
            entry = group.cell(size, gpus, lambda e, name=name: strategy(e) == name)
            if entry and entry.total_s:
                points.append((gpus, entry.total_s))
            elif entry and entry.status != "infeasible":
                failures.append((gpus, entry))
        if len(points) > 1 or (points and not single):
            face = PAPER if group.setting.source == "predicted" else colour
            line = "--" if group.setting.source == "predicted" else "-"
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, markerfacecolor=face)
        values += [value for _, value in points]
    if not values:
        statuses = sorted({words.outcome(e) for e in group.entries if e.size == size and e.engine == group.engine})
        empty(axis, f"no success here\n({', '.join(statuses)})")
        axis.set_title(words.px(size))
        return
    if single and single.total_s:
        ideal = [single.total_s / gpus for gpus in group.gpu_counts]
        axis.plot(group.gpu_counts, ideal, color=MUTED, linestyle=":", linewidth=1, zorder=1)
    for gpus, entry in failures:
        axis.plot(gpus, max(values), marker="x", color=INK, linestyle="none")
        axis.annotate(
            words.outcome(entry), (gpus, max(values)), (0, 4), textcoords="offset points", ha="center", fontsize=6.5
        )
    log_axes(axis, group, values)


def log_axes(axis: Axes, group: Group, values: list[float]) -> None:
    """Logarithmic both ways, with plain numbers where a reader looks for them."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(group.gpu_counts, [str(gpus) for gpus in group.gpu_counts])
    axis.set_xlabel(words.unit(group))
    axis.set_yscale("log")
    low, high = min(values) * 0.75, max(values) * 1.35
    axis.set_ylim(low, high)
    steps = (1, 2, 5) if high / low < 40 else (1,)
    if high / low < 4:
        steps = (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [s * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for s in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.set_yticklabels([f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_locator(NullLocator())


def efficiency(group: Group, layout: Layout) -> Figure:
    """Share of linear scaling over GPUs, a line a resolution."""
    figure, (axis,) = panels(1, layout, height=2.4)
    drawn = False
    for index, size in enumerate(shown_sizes(group)):
        points = []
        for gpus in group.gpu_counts:
            entry = group.best(size, gpus)
            speedup = group.scaling(entry) if entry else None
            if speedup:
                points.append((gpus, 100 * speedup.value * speedup.base.gpus / gpus))
        if len(points) > 1:
            drawn = True
            _series(axis, group, points, index, words.px(size))
    if not drawn:
        empty(axis, "efficiency needs two GPU counts of one engine that succeeded at one size")
        return figure
    axis.axhline(100, color=MUTED, linestyle=":", linewidth=1)
    axis.set_ylim(0, max(110.0, axis.get_ylim()[1]))
    axis.set_ylabel("% of linear scaling")
    _gpu_axis(axis, group)
    axis.legend(loc="lower left", ncols=2)
    return figure


def speedups(group: Group, layout: Layout) -> Figure:
    """Both ratios: over the same engine on one GPU (scaling), and over plain diffusers on one GPU (a user's gain)."""
    figure, axes = panels(2, layout, height=2.4, columns=2)
    titles = (f"scaling: over {group.engine} on one", "gain: over stock diffusers on one")
    reasons = (
        "no engine here succeeded on one GPU\nand on several at one size",
        "no stock baseline succeeded\nin this group",
    )
    for axis, title, why, ratio in zip(axes, titles, reasons, (group.scaling, group.gain), strict=True):
        drawn = False
        for index, size in enumerate(shown_sizes(group)):
            entries = [entry for gpus in group.gpu_counts if (entry := group.best(size, gpus))]
            found = [(entry.gpus, ratio(entry)) for entry in entries]
            points = [(gpus, speedup.value) for gpus, speedup in found if speedup]
            rebased = any(speedup and speedup.rebased for _, speedup in found)
            if points:
                drawn = True
                _series(axis, group, points, index, words.px(size) + (" (rebased: 1 GPU failed)" if rebased else ""))
        if not drawn:
            empty(axis, why)
        else:
            axis.plot(group.gpu_counts, group.gpu_counts, color=MUTED, linestyle=":", linewidth=1, zorder=1)
            axis.set_ylim(0, None)
            axis.set_ylabel("speedup")
            _gpu_axis(axis, group)
            axis.legend(loc="upper left")
        axis.set_title(title)
    return figure


def _series(axis: Axes, group: Group, points: list[tuple[int, float]], index: int, label: str) -> None:
    predicted = group.setting.source == "predicted"
    colour, marker = CYCLE[index % len(CYCLE)], MARKERS[index % len(MARKERS)]
    xs, ys = zip(*points, strict=True)
    axis.plot(
        xs, ys, color=colour, marker=marker, label=label, linestyle="--" if predicted else "-",
        markerfacecolor=PAPER if predicted else colour,
    )  # fmt: skip


def _gpu_axis(axis: Axes, group: Group) -> None:
    axis.set_xticks(group.gpu_counts, [str(gpus) for gpus in group.gpu_counts])
    axis.set_xlabel(words.unit(group))


def heat_map(group: Group, layout: Layout) -> Figure:
    """Latency over (ulysses, ring), a panel a resolution; the best cell is framed, failures are hatched and named."""
    sizes = shown_sizes(group)
    entries = [e for e in group.entries if e.engine == group.engine and e.status != "infeasible"]
    ulysses, rings = sorted({e.ulysses for e in entries}), sorted({e.ring for e in entries})
    figure, axes = panels(len(sizes), layout, height=0.75 + 0.33 * len(ulysses))
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.px(size))
        _heat_panel(axis, group, size, ulysses, rings)
    for axis in axes[:: max(1, min(len(sizes), layout.columns))]:
        axis.set_ylabel("ulysses")
    return figure


def _heat_panel(axis: Axes, group: Group, size: Size, ulysses: list[int], rings: list[int]) -> None:
    axis.grid(False)
    cells = {
        (u, r): group.cell(size, u * r, lambda e, u=u, r=r: (e.ulysses, e.ring) == (u, r))
        for u in ulysses
        for r in rings
    }
    times = [entry.total_s for entry in cells.values() if entry and entry.total_s]
    low, high = (math.log(min(times)), math.log(max(times))) if times else (0.0, 1.0)
    colours = matplotlib.colormaps["cividis_r"]
    best = group.best(size)
    for (u, r), entry in cells.items():
        x, y = rings.index(r), ulysses.index(u)
        box = (x - 0.5, y - 0.5)
        if entry is None or entry.total_s is None:
            axis.add_patch(Rectangle(box, 1, 1, facecolor=PAPER, edgecolor=MUTED, linewidth=0.5,
                                                        hatch=FAILED_HATCH if entry else None))  # fmt: skip
            label = "–" if entry is None else "n/a" if entry.status == "infeasible" else words.outcome(entry)
            axis.text(x, y, label, ha="center", va="center", fontsize=6.5, color=INK,
                      bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8})  # fmt: skip
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


def legend_patch(group: Group, colour: str, label: str) -> Patch:
    """A legend entry in the bars' own style."""
    return Patch(label=label, **bar_style(group, colour))
