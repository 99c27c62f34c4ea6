"""Draws what a point is made of: stages, memory, VAE effect, and where a step goes.

Owns drawing alone; see `draw_scaling` for latency over GPUs, `draw_peers` for comparisons.

    figure = stages(group, PAGE)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting import words
from xdit_bench.reporting.draw_headline import why_none
from xdit_bench.reporting.entry import Entry, Size, pick, seconds_or_inf
from xdit_bench.reporting.marks import (
    bar_style,
    failed_bar,
    frame_bars,
    label_rows,
    legend,
    legend_patch,
    segment_style,
    shown_sizes,
)
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import (
    BASELINE,
    BLUE,
    CYCLE,
    GREEN,
    MUTED,
    ORANGE,
    OVER_GRID,
    PURPLE,
    RED,
    SKY,
    STAGE_COLOURS,
    VAE_COLOURS,
    Layout,
    empty,
    panels,
    tint,
)

TERMS = 7  # of a step that a figure tells apart; the smallest are drawn as one
SLIVER = 0.002  # of a step: a term too small to be seen
TERM_COLOURS = {
    "gemm": BLUE, "attention": ORANGE, "elementwise": GREEN, "communication": RED, "all_to_all": RED, "ring": PURPLE,
    "launch": SKY, "all else": MUTED,
}  # fmt: skip
VAE_SIZES = 3


def bars_over_gpus(group: Group, size: Size) -> list[tuple[str, Entry | None]]:
    """The bars of a panel: stock where there is one, then the best factorization of each GPU count."""
    stock = group.stock(size) if group.engine != "stock" else None
    bars: list[tuple[str, Entry | None]] = [("1\nstock", stock)] if stock else []
    for gpus in group.gpu_counts:
        entry = group.cell(size, gpus)
        bars.append((f"{gpus}\n{entry.factors}" if entry else str(gpus), entry))
    return bars


def stages(group: Group, layout: Layout) -> Figure:
    """Seconds by stage, stacked: text encoders, denoising, VAE; a bar a GPU count, stock first."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.35)
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        bars = bars_over_gpus(group, size)
        totals = [sum(e.stages.values()) for _, e in bars if e and e.ok and e.stages]
        if not totals:
            empty(axis, f"no success timed by stage\n({why_none(group, size)})")
            continue
        for x, (_, entry) in enumerate(bars):
            if entry is None or not entry.ok:
                if entry:
                    failed_bar(axis, x, max(totals) * 0.8, entry)
                continue
            below = 0.0
            for stage, value in entry.stages.items():
                axis.bar(x, value, 0.62, bottom=below, **segment_style(group, STAGE_COLOURS[stage]))
                below += value
            _above(axis, x, below, words.digits(entry.total_s))
        axis.set_ylim(0, 1.1 * max(totals))
        _bar_ticks(axis, group, bars)
    label_rows(axes, "seconds an image")
    legend(figure, [legend_patch(group, colour, stage) for stage, colour in STAGE_COLOURS.items()])
    return figure


def memory(group: Group, layout: Layout) -> Figure:
    """Peak memory of the fullest GPU, stacked: weights and the rest; the card's capacity (or the cap) as a line."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.35)
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        bars = bars_over_gpus(group, size)
        peaks = [e.peak_bytes for _, e in bars if e and e.ok and e.peak_bytes]
        limit = next((e.limit_bytes for _, e in bars if e and e.limit_bytes), None)
        if not peaks and not (limit and any(e and not e.ok for _, e in bars)):
            empty(axis, "no peak memory was recorded here")
            continue
        peaks = peaks or [limit or 1.0]
        scale, name = (1e9, "GB") if max(peaks) >= 1e9 else (1e6, "MB")
        top = max(peaks) / scale
        for x, (_, entry) in enumerate(bars):
            if entry and entry.ok and entry.peak_bytes:
                _memory_bar(axis, group, x, entry, scale)
            elif entry:  # what ran out passed the line
                _no_bar(axis, x, limit / scale if limit else top * 0.8, entry)
        if limit:
            top = max(top, limit / scale)
            _limit_line(axis, group, limit / scale, name)
        axis.set_ylim(0, top * 1.18)
        axis.set_ylabel(name)
        _bar_ticks(axis, group, bars)
    patches = [legend_patch(group, BLUE, "weights"), legend_patch(group, SKY, "activations and the rest")]
    legend(figure, patches)
    return figure


def _limit_line(axis: Axes, group: Group, limit: float, name: str) -> None:
    axis.axhline(limit, color=BASELINE, linestyle="--", linewidth=1.1)
    label = f"{'capacity' if group.setting.memory_cap_gb is None else 'cap'} {limit:.0f} {name}"
    axis.annotate(label, (1, limit), (-1, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", va="bottom", color=BASELINE, fontsize=6.5)  # fmt: skip


def _memory_bar(axis: Axes, group: Group, x: float, entry: Entry, scale: float) -> None:
    peak, weights = entry.peak_bytes or 0.0, min(entry.parameters_bytes or 0.0, entry.peak_bytes or 0.0)
    axis.bar(x, weights / scale, 0.62, **segment_style(group, BLUE))
    axis.bar(x, (peak - weights) / scale, 0.62, bottom=weights / scale, **segment_style(group, SKY))
    _peak_label(axis, x, peak / scale, (entry.limit_bytes or 0.0) / scale)
    if entry.verdict == "pressure":
        axis.text(x, peak / scale / 3, "pressure", rotation=90, ha="center", va="center", weight="bold", bbox=OVER_GRID)


def _peak_label(axis: Axes, x: float, peak: float, limit: float) -> None:
    """The number above its bar, or inside where the line of the memory there was would cross it."""
    inside = bool(limit) and 0.88 * limit < peak < 1.02 * limit
    side, up = ("top", -3) if inside else ("bottom", 1)
    axis.annotate(words.digits(peak), (x, peak), (0, up), textcoords="offset points", ha="center", va=side,
                  fontsize=6.5, bbox=OVER_GRID)  # fmt: skip


def _above(axis: Axes, x: float, top: float, said: str) -> None:
    axis.annotate(said, (x, top), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=6.5,
                  bbox=OVER_GRID)  # fmt: skip


def energy(group: Group, layout: Layout) -> Figure:
    """Joules an image, all GPUs of the point together; a bar a GPU count, stock first."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.1)
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        bars = [(label, e) for label, e in bars_over_gpus(group, size) if e]
        top = max((e.energy_j for _, e in bars if e.ok and e.energy_j), default=None)
        if top is None:
            empty(axis, "no energy was recorded here")
            continue
        for x, (_, entry) in enumerate(bars):
            if entry.ok and entry.energy_j:
                axis.bar(x, entry.energy_j, 0.62, **bar_style(group, BLUE))
                _above(axis, x, entry.energy_j, words.digits(entry.energy_j))
            else:
                _no_bar(axis, x, top * 0.8, entry)
        axis.set_ylim(0, 1.1 * top)
        _bar_ticks(axis, group, bars)
    label_rows(axes, "joules an image")
    return figure


def vae_effect(group: Group, layout: Layout) -> Figure:
    """What the decode costs by VAE mode, a column a resolution, two rows a GPU count: seconds of the image (the decode
    in full colour) above the peak memory. A size has its own scale: the decode of a small image would vanish beside
    that of a large one."""
    modes, counts = vae_modes(group)
    sizes = vae_sizes(group)
    if not sizes:
        figure, (axis,) = panels(1, layout)
        empty(axis, "needs two VAE modes at one size,\nGPU count and execution")
        return figure
    across, cells = len(sizes), 2 * len(counts) * len(sizes)
    figure, axes = panels(cells, replace(layout, columns=min(max(across, 2), layout.columns)), height=1.9)
    found = [e for s in sizes for m in modes for n in counts if (e := vae_entry(group, s, m, n))]
    limit = next((e.limit_bytes for e in found if e.limit_bytes), None)
    reached = any(e.status == "oom" for e in found)
    near = limit if limit and (reached or limit <= 2 * max((e.peak_bytes or 0.0 for e in found), default=0.0)) else None
    for i, size in enumerate(sizes):
        # in a column of a paper all panels of a size stay together
        mine = axes[i::across] if layout.columns >= across else axes[i * cells // across : (i + 1) * cells // across]
        alike = [e for e in found if e.size == size and e.ok]  # one scale, so that GPU counts can be compared
        top_s = max((e.total_s or 0.0 for e in alike), default=1.0)
        top_bytes = max((e.peak_bytes or 0.0 for e in alike), default=0.0) or limit or 1e9
        for place, gpus in enumerate(counts):
            entries = [vae_entry(group, size, mode, gpus) for mode in modes]
            over, under = mine[2 * place : 2 * place + 2]
            _vae_seconds(over, group, entries, top_s)
            _vae_memory(under, group, entries, top_bytes, near)
            title = (words.px(size), group.count(gpus), vae_execution(group, size, gpus))
            over.set_title(", ".join(filter(None, title)))
            label_rows([over], "seconds an image,\ndecode in full colour")
            for axis in (over, under):
                axis.set_xticks(range(len(modes)), modes)
                frame_bars(axis, len(modes))
    return figure


def _vae_seconds(axis: Axes, group: Group, entries: Sequence[Entry | None], top: float) -> None:
    axis.set_ylim(0, 1.12 * top)
    for x, entry in enumerate(entries):
        if entry is None or entry.total_s is None:
            _no_bar(axis, x, top * 0.8, entry, 0.7)
            continue
        colour, decode = VAE_COLOURS.get(entry.vae, MUTED), entry.stages.get("vae", 0.0)
        axis.bar(x, entry.total_s - decode, 0.7, bottom=decode, **segment_style(group, tint(colour)))
        axis.bar(x, decode, 0.7, **segment_style(group, colour))
        _above(axis, x, entry.total_s, words.digits(entry.total_s))
        if decode and entry.total_s - decode > 0.15 * top:
            axis.annotate(words.digits(decode), (x, decode), (0, 1), textcoords="offset points", ha="center",
                          va="bottom", fontsize=6.5)  # fmt: skip


def _vae_memory(axis: Axes, group: Group, entries: Sequence[Entry | None], top: float, limit: float | None) -> None:
    scale, name = (1e9, "GB") if top >= 1e9 else (1e6, "MB")
    for x, entry in enumerate(entries):
        if entry is None or not entry.ok or not entry.peak_bytes:
            _no_bar(axis, x, (limit or top * 0.8) / scale, entry, 0.7)
            continue
        axis.bar(x, entry.peak_bytes / scale, 0.7, **bar_style(group, VAE_COLOURS.get(entry.vae, MUTED)))
        _peak_label(axis, x, entry.peak_bytes / scale, (entry.limit_bytes or 0.0) / scale)
        if entry.verdict == "pressure":
            axis.text(x, entry.peak_bytes / scale / 3, "pressure", rotation=90, ha="center", va="center",
                      fontsize=6.5, weight="bold", bbox=OVER_GRID)  # fmt: skip
    if limit:
        top = max(top, limit)
        _limit_line(axis, group, limit / scale, name)
    axis.set_ylim(0, 1.18 * top / scale)
    axis.set_ylabel(f"peak {name}")


def _no_bar(axis: Axes, x: float, height: float, entry: Entry | None, width: float = 0.62) -> None:
    """A failure as everywhere, of some height; what was not run, or not recorded, in words."""
    if entry and not entry.ok:
        failed_bar(axis, x, height, entry, width)
    else:
        said = "not recorded" if entry else "not run"
        axis.text(x, height * 0.04, said, rotation=90, ha="center", va="bottom", color=MUTED, fontsize=6.5)


def vae_sizes(group: Group) -> list[Size]:
    """The three largest sizes that two VAE modes or more were tried at beside each other: there the decode costs
    most."""
    modes, counts = vae_modes(group)

    def compared(size: Size) -> bool:
        return any(sum(vae_entry(group, size, m, n) is not None for m in modes) > 1 for n in counts)

    return [size for size in group.sizes if compared(size)][-VAE_SIZES:]


def vae_modes(group: Group) -> tuple[list[str], list[int]]:
    """The VAE modes to compare, and the fewest and the most GPUs where two of them or more stand beside each other; one
    mode or none, where that is nowhere so."""
    by_gpus: dict[int, set[str]] = {}
    for entry in group.entries:
        if entry.engine == group.engine and entry.status != "infeasible":
            by_gpus.setdefault(entry.gpus, set()).add(entry.vae)
    several = {count: modes for count, modes in by_gpus.items() if len(modes) > 1} or by_gpus
    if not several:
        return [], [1]
    counts = sorted({min(several), max(several)})
    order = tuple(VAE_COLOURS)
    found = set().union(*(several[count] for count in counts))
    if len(several[counts[0]]) == 1:  # a mode a GPU count: nothing to compare
        found = several[counts[0]]
    return sorted(found, key=lambda mode: (order.index(mode) if mode in order else 9, mode)), counts


def vae_entry(group: Group, size: Size, mode: str, gpus: int) -> Entry | None:
    """The fastest success, else the failure, of one VAE mode at one size and GPU count, all in one execution."""
    found, execution = _vae_found(group, size, gpus), vae_execution(group, size, gpus)
    return pick(e for e in found if (e.vae, e.execution) == (mode, execution))


def vae_execution(group: Group, size: Size, gpus: int) -> str:
    """The execution in which most VAE modes ran, as a graph's gain would pass for a mode's; of equals the one with the
    fastest parallel decode. Empty where nothing was tried."""
    found = _vae_found(group, size, gpus)

    def rank(execution: str) -> tuple[int, float, int]:
        mine = [e for e in found if e.execution == execution]
        fastest = min((seconds_or_inf(e) for e in mine if e.ok and e.vae == "parallel"), default=math.inf)
        return len({e.vae for e in mine if e.ok}), -fastest, len({e.vae for e in mine})

    return max(sorted({e.execution for e in found}), key=rank, default="")


def _vae_found(group: Group, size: Size, gpus: int) -> list[Entry]:
    """What was tried; a mode that rules out the split or the size was not."""
    wanted = (size, gpus, group.engine)
    return [e for e in group.entries if (e.size, e.gpus, e.engine) == wanted and e.status != "infeasible"]


def attribution(group: Group, layout: Layout) -> Figure:
    """Where a denoising step goes (GEMM, attention, exposed communication, rest), stacked, best factorization."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.35)
    names = attribution_terms(group)
    shown = names if len(names) <= TERMS else names[: TERMS - 1]
    colours = _term_colours([*shown, *(["all else"] if len(shown) < len(names) else [])])
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        bars = [bar for bar in bars_over_gpus(group, size) if bar[1] and bar[1].terms]
        if not bars:
            ran = group.best(size) is not None
            empty(axis, "no point here was profiled\n(measure.profile=true)" if ran else "no success here")
            axis.set_title(words.panel(group, size))
            continue
        top = 0.0
        for x, (_, entry) in enumerate(bars):
            below = 0.0
            found = entry.terms if entry else {}
            whole = 1e3 * sum(found.values())
            rest = sum(value for name, value in found.items() if name not in shown)
            for name, colour in colours.items():
                value = 1e3 * (rest if name == "all else" else found.get(name, 0.0))
                if value > SLIVER * whole:
                    axis.bar(x, value, 0.62, bottom=below, **segment_style(group, colour))
                below += value
            _above(axis, x, below, words.digits(below))
            top = max(top, below)
        axis.set_ylim(0, 1.1 * top)
        _bar_ticks(axis, group, bars)
    label_rows(axes, "ms a step")
    legend(figure, [legend_patch(group, colour, name.replace("_", " ")) for name, colour in colours.items()])
    return figure


def _term_colours(names: Sequence[str]) -> dict[str, str]:
    """The same term has the same colour in every report, as far as there are colours."""
    found = {name: TERM_COLOURS[name] for name in names if name in TERM_COLOURS}
    free = iter([colour for colour in CYCLE if colour not in found.values()])
    return {name: found.get(name) or next(free, MUTED) for name in names}


def attribution_terms(group: Group) -> list[str]:
    """Names of all terms, the largest first."""
    sums: dict[str, float] = {}
    for entry in group.entries:
        if entry.ok:
            for name, value in entry.terms.items():
                sums[name] = sums.get(name, 0.0) + value
    return sorted(sums, key=lambda name: (-sums[name], name))


def _bar_ticks(axis: Axes, group: Group, bars: Sequence[tuple[str, Entry | None]]) -> None:
    axis.set_xticks(range(len(bars)), [label for label, _ in bars])
    frame_bars(axis, len(bars))
    axis.set_xlabel(words.unit(group))
