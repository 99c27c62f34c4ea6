"""Draws comparisons: engines side by side, parity, and published figures beside ours.

Owns drawing alone; see `draw_scaling` for latency over GPUs and `draw_parts` for what a point is made of.

    figure = engines(group, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Size, number, pick
from xdit_bench.reporting.marks import bar_style, label_rows, legend, legend_patch, shown_sizes, starts_row
from xdit_bench.reporting.peers import runner
from xdit_bench.reporting.published import Match
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import (
    BASELINE,
    BLUE,
    CYCLE,
    INK,
    MUTED,
    ORANGE,
    OVER_GRID,
    PAPER,
    Layout,
    empty,
    panels,
)

OURS = (BLUE, CYCLE[2], CYCLE[3], CYCLE[4])


def parity(group: Group, layout: Layout) -> Figure:
    """Relative L2 of the latents to the one-GPU result, a dot a point, with the bound that makes it incorrect."""
    entries = [e for e in group.entries if e.parity_l2 is not None]
    runners = sorted({e.runner for e in entries})
    figure, (axis,) = panels(1, layout, height=max(1.5, 0.32 * len(runners) + 1.1))
    bounds = (number(e.record.parity.get("latents_bound")) for e in entries)
    bound = next(filter(None, bounds), None)
    floor = min([e.parity_l2 for e in entries if e.parity_l2] or [1e-8]) / 3
    exact = any(not entry.parity_l2 for entry in entries)
    for wrong, marker, colour in ((False, "o", BLUE), (True, "X", BASELINE)):
        # equal distances are one mark: thousands of them on one spot say no more and take as long to draw
        spots = sorted({(e.runner, max(e.parity_l2 or 0.0, floor)) for e in entries if e.ok is not wrong})
        axis.plot([x for _, x in spots], [runners.index(runner) for runner, _ in spots], marker=marker, color=colour,
                  alpha=0.75, linestyle="none", markeredgewidth=0)  # fmt: skip
    if bound:
        axis.axvline(bound, color=BASELINE, linestyle="--", linewidth=1.1)
        axis.annotate(f"bound {bound:g}", (bound, 1), (-3, -2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="right", va="top", color=BASELINE, fontsize=6.5)  # fmt: skip
    axis.set_xscale("log")
    axis.grid(axis="x")
    axis.set_xlim(floor, max([bound or 10 * floor] + [e.parity_l2 or 0.0 for e in entries]) * 3)
    axis.set_yticks(range(len(runners)), runners)
    axis.set_ylim(-0.6, len(runners) - 0.4)
    axis.set_xlabel("relative L2 of the latents" + (" (equal to the last bit: left edge)" if exact else ""))
    return figure


def engine_rows(group: Group) -> list[tuple[int, str]]:
    """(GPUs, `engine/execution`) of everything that ran with a step time somewhere."""
    return sorted({(e.gpus, runner(e)) for e in group.entries if e.ok and e.step_s})


def engine_step(group: Group, size: Size, gpus: int, name: str) -> tuple[float, str]:
    """Milliseconds of the fastest step of one row (0 where none succeeded), and what is written beside it."""
    alike = [e for e in group.entries if (e.gpus, runner(e), e.size) == (gpus, name, size)]
    if steps := [1e3 * e.step_s for e in alike if e.ok and e.step_s]:
        return min(steps), words.digits(min(steps))
    failed = pick(alike)
    return 0.0, failed.outcome if failed else "not run"


def engines(group: Group, layout: Layout) -> Figure:
    """One denoising step by GPU count, engine and execution, best factorization; a panel a resolution."""
    rows, sizes = engine_rows(group), shown_sizes(group)
    counts = sorted({count for count, _ in rows})
    figure, axes = panels(len(sizes), layout, height=0.17 * len(rows) + 1.0)
    for axis, size in zip(axes, sizes, strict=True):
        _engine_panel(axis, group, size, rows, [CYCLE[counts.index(c) % len(CYCLE)] for c, _ in rows])
    legend(figure, [legend_patch(group, CYCLE[j % len(CYCLE)], group.count(c)) for j, c in enumerate(counts)])
    return figure


def _engine_panel(
    axis: Axes, group: Group, size: Size, rows: Sequence[tuple[int, str]], colours: Sequence[str]
) -> None:
    axis.set_title(words.px(size))
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    peak = 0.0
    for y, ((count, name), colour) in enumerate(zip(rows, colours, strict=True)):
        at, said = engine_step(group, size, count, name)
        if at:
            peak = max(peak, at)
            axis.barh(y, at, 0.74, **bar_style(group, colour))
        axis.annotate(said, (at, y), (2.5, 0), textcoords="offset points", va="center", fontsize=6,
                      color=INK if at else MUTED, bbox=OVER_GRID)  # fmt: skip
    axis.set_yticks(
        range(len(rows)), [f"{count}× {name}" for count, name in rows] if starts_row(axis) else [""] * len(rows)
    )
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, peak * 1.28 or 1)
    axis.set_xlabel("ms a step")


def published(group: Group, matches: Sequence[Match], layout: Layout) -> Figure:
    """Published bars, outlined, beside ours of each engine; a panel a resolution. Never one curve."""
    sizes = sorted({match.entry.size for match in matches})
    engines_here = published_engines(matches)
    figure, axes = panels(len(sizes), layout, height=2.35)
    for axis, size in zip(axes, sizes, strict=True):
        here = [m for m in matches if m.entry.size == size]
        _published_panel(axis, group, here, engines_here)
        # published without the VAE, and ours beside it is without too, where the headline holds one
        alone = here and all(m.published.vae == "no" for m in here)
        axis.set_title(words.px(size) + (", no VAE" if alone else ""))
    label_rows(axes, "seconds an image")
    handles: list[Patch | Line2D] = [Patch(facecolor=PAPER, edgecolor=ORANGE, linewidth=1.4, label="published")]
    handles += [
        legend_patch(group, OURS[j % len(OURS)], f"{engine}, {group.setting.source}")
        for j, engine in enumerate(engines_here)
    ]
    legend(figure, [*handles, Line2D([], [], linestyle="none", label="number: ours / published")])
    return figure


def published_engines(matches: Sequence[Match]) -> list[str]:
    """Engines drawn beside the published bars: those that split a point, else whichever there are."""
    several = {m.entry.engine for m in matches if m.entry.gpus > 1}
    return sorted(several or {m.entry.engine for m in matches})


def _published_panel(axis: Axes, group: Group, matches: Sequence[Match], engines_here: Sequence[str]) -> None:
    points = list(dict.fromkeys(match.published for match in matches if match.entry.engine in engines_here))
    if not points:
        empty(axis, "no published point here")
        return
    width = 0.84 / (1 + len(engines_here))
    top = 0.0
    for x, point in enumerate(points):
        at = x - 0.42 + width / 2
        axis.bar(at, point.latency_s, width * 0.92, facecolor=PAPER, edgecolor=ORANGE, linewidth=1.4)
        top = max(top, point.latency_s)
        for match in matches:
            if match.published == point and match.entry.engine in engines_here:
                j = engines_here.index(match.entry.engine)
                axis.bar(at + width * (j + 1), match.ours_s, width * 0.92, **bar_style(group, OURS[j % len(OURS)]))
                axis.text(
                    at + width * (j + 1), match.ours_s, f"{match.ratio:.2f}", ha="center", va="bottom", fontsize=6
                )
                top = max(top, match.ours_s)
    axis.set_ylim(0, top * 1.08)
    axis.set_xticks(range(len(points)), [f"{p.ulysses * p.ring}\nu{p.ulysses}r{p.ring}" for p in points])
    axis.set_xlabel(words.unit(group))
