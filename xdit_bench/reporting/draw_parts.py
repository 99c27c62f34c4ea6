"""Draws what a point is made of: stages, memory, VAE effect, and where a step goes.

Owns drawing alone; see `draw_scaling` for latency over GPUs, `draw_peers` for comparisons.

    figure = stages(group, PAGE)
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xdit_bench.reporting import words
from xdit_bench.reporting.draw_headline import why_none
from xdit_bench.reporting.entry import Entry, Size, number, pick
from xdit_bench.reporting.marks import bar_style, failed_bar, frame_bars, label_rows, legend, legend_patch, shown_sizes
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import (
    BASELINE,
    BLUE,
    CYCLE,
    MUTED,
    PAPER,
    SKY,
    STAGE_COLOURS,
    Layout,
    empty,
    panels,
)

BOX = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
TERMS = 7  # of a step that a figure tells apart; the smallest are drawn as one


def _bars_over_gpus(group: Group, size: Size) -> list[tuple[str, Entry | None]]:
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
        bars = _bars_over_gpus(group, size)
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
                axis.bar(x, value, 0.62, bottom=below, **bar_style(group, STAGE_COLOURS[stage]))
                below += value
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
        bars = _bars_over_gpus(group, size)
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
            elif entry and entry.ok:
                axis.text(x, top * 0.03, "no peak", rotation=90, ha="center", va="bottom", color=MUTED)
            elif entry:
                failed_bar(axis, x, top * 0.8, entry)
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
    axis.bar(x, weights / scale, 0.62, **bar_style(group, BLUE))
    axis.bar(x, (peak - weights) / scale, 0.62, bottom=weights / scale, **bar_style(group, SKY))
    _peak_label(axis, x, peak / scale, (entry.limit_bytes or 0.0) / scale)
    if entry.verdict == "pressure":
        axis.text(x, peak / scale / 3, "pressure", rotation=90, ha="center", va="center", weight="bold", bbox=BOX)


def _peak_label(axis: Axes, x: float, peak: float, limit: float) -> None:
    """The number above its bar, or inside where the line of the memory there was would cross it."""
    inside = bool(limit) and 0.88 * limit < peak < 1.02 * limit
    side, up = ("top", -3) if inside else ("bottom", 1)
    axis.annotate(words.digits(peak), (x, peak), (0, up), textcoords="offset points", ha="center", va=side,
                  fontsize=6.5, bbox=BOX if inside else None)  # fmt: skip


def vae_effect(group: Group, layout: Layout) -> Figure:
    """What the decode costs by VAE mode and resolution: seconds of the image (the decode solid), and peak memory."""
    modes, counts = vae_modes(group)
    figure, axes = panels(2 * len(counts), layout, height=2.6)
    if len(modes) < 2:
        for axis in axes:
            empty(axis, "needs two VAE modes\nat one size and GPU count")
        return figure
    sizes = [s for s in shown_sizes(group) if any(vae_entry(group, s, m, n) for m in modes for n in counts)]
    for place, gpus in enumerate(counts):
        _vae_panels(axes[2 * place : 2 * place + 2], group, sizes, modes, gpus)
    for alike in (axes[::2], axes[1::2]):  # one scale, so that GPU counts can be compared
        top = max(axis.get_ylim()[1] for axis in alike)
        for axis in alike:
            axis.set_ylim(0, top)
    legend(figure, [legend_patch(group, CYCLE[j % len(CYCLE)], f"vae={mode}") for j, mode in enumerate(modes)])
    return figure


def _vae_panels(axes: Sequence[Axes], group: Group, sizes: Sequence[Size], modes: Sequence[str], gpus: int) -> None:
    width = 0.8 / len(modes)
    # one unit and one height of failed bars over all GPU counts
    everyone = [e for e in group.entries if e.engine == group.engine and e.size in sizes]
    tops = [max([e.total_s or 0 for e in everyone] or [0]), max([e.peak_bytes or 0 for e in everyone] or [0])]
    found = [e for s in sizes for m in modes if (e := vae_entry(group, s, m, gpus))]
    scale, name = (1e9, "GB") if tops[1] >= 1e9 else (1e6, "MB")
    for i, size in enumerate(sizes):
        for j, mode in enumerate(modes):
            entry, x = vae_entry(group, size, mode, gpus), i + (j - (len(modes) - 1) / 2) * width
            colour = CYCLE[j % len(CYCLE)]
            if entry is None:
                continue
            if not entry.ok:
                for axis, top in zip(axes, (tops[0], tops[1] / scale), strict=True):
                    failed_bar(axis, x, (top or 1.0) * 0.6, entry, width * 0.9)
                continue
            decode = entry.stages.get("vae", 0.0)
            axes[0].bar(
                x,
                (entry.total_s or 0) - decode,
                width * 0.9,
                bottom=decode,
                facecolor=PAPER,
                edgecolor=colour,
                linewidth=0.8,
            )
            axes[0].bar(x, decode, width * 0.9, **bar_style(group, colour))
            axes[0].text(x, entry.total_s or 0, words.digits(entry.total_s), ha="center", va="bottom", fontsize=6)
            if entry.peak_bytes:
                axes[1].bar(x, entry.peak_bytes / scale, width * 0.9, **bar_style(group, colour))
                _peak_label(axes[1], x, entry.peak_bytes / scale, (entry.limit_bytes or 0.0) / scale)
                if entry.verdict == "pressure":
                    axes[1].text(x, entry.peak_bytes / scale / 3, "pressure", rotation=90, ha="center", va="center",
                                 fontsize=6, weight="bold", bbox=BOX)  # fmt: skip
    limit = next((e.limit_bytes for e in found if e.limit_bytes), None)
    if limit and tops[1] and limit < tops[1] * 4:
        axes[1].axhline(limit / scale, color=BASELINE, linestyle="--", linewidth=1.1)
    axes[0].set_title(f"seconds an image, decode filled ({group.count(gpus)})")
    axes[1].set_title(f"peak {name} of the fullest GPU")
    for axis in axes:
        axis.set_xticks(range(len(sizes)), [words.px(size) for size in sizes])


def vae_modes(group: Group) -> tuple[list[str], list[int]]:
    """The VAE modes to compare, and the fewest and the most GPUs where most of them stand beside each other."""
    by_gpus: dict[int, set[str]] = {}
    for entry in group.entries:
        if entry.engine == group.engine and entry.status != "infeasible":
            by_gpus.setdefault(entry.gpus, set()).add(entry.vae)
    if not by_gpus:
        return [], [1]
    most = max(len(modes) for modes in by_gpus.values())
    counts = sorted(count for count, modes in by_gpus.items() if len(modes) == most)
    order = ("single", "tiled", "parallel", "distvae", "none")
    modes = sorted(by_gpus[counts[-1]], key=lambda mode: (order.index(mode) if mode in order else 9, mode))
    return modes, sorted({counts[0], counts[-1]})


def vae_entry(group: Group, size: Size, mode: str, gpus: int) -> Entry | None:
    """The fastest success, else the failure, of one VAE mode at one size and GPU count."""
    return pick(e for e in group.entries if (e.size, e.vae, e.gpus, e.engine) == (size, mode, gpus, group.engine))


def attribution(group: Group, layout: Layout) -> Figure:
    """Where a denoising step goes (GEMM, attention, exposed communication, rest), stacked, best factorization."""
    sizes = shown_sizes(group)
    figure, axes = panels(len(sizes), layout, height=2.35)
    names = attribution_terms(group)
    shown = names if len(names) <= TERMS else names[: TERMS - 1]
    for axis, size in zip(axes, sizes, strict=True):
        axis.set_title(words.panel(group, size))
        bars = [bar for bar in _bars_over_gpus(group, size) if bar[1] and terms(bar[1])]
        if not bars:
            empty(axis, "no point here was profiled\n(measure.profile=true)")
            axis.set_title(words.panel(group, size))
            continue
        for x, (_, entry) in enumerate(bars):
            below = 0.0
            found = terms(entry) if entry else {}
            rest = sum(value for name, value in found.items() if name not in shown)
            for j, name in enumerate([*shown, "all else"]):
                value = 1e3 * (rest if name == "all else" else found.get(name, 0.0))
                axis.bar(x, value, 0.62, bottom=below, **bar_style(group, CYCLE[j % len(CYCLE)]))
                below += value
        _bar_ticks(axis, group, bars)
    label_rows(axes, "ms a step")
    labels = [name.replace("_", " ") for name in shown] + ["all else"] * (len(shown) < len(names))
    legend(figure, [legend_patch(group, CYCLE[j % len(CYCLE)], name) for j, name in enumerate(labels)])
    return figure


def terms(entry: Entry) -> dict[str, float]:
    """A record's attribution: seconds a step by name, whatever in it is a positive number of them."""
    found = {str(key): number(value) for key, value in entry.record.attribution.items()}
    return {key.removesuffix("_s"): value for key, value in found.items() if value and value > 0}


def attribution_terms(group: Group) -> list[str]:
    """Names of all terms, the largest first."""
    sums: dict[str, float] = {}
    for entry in group.entries:
        if entry.ok:
            for name, value in terms(entry).items():
                sums[name] = sums.get(name, 0.0) + value
    return sorted(sums, key=lambda name: (-sums[name], name))


def _bar_ticks(axis: Axes, group: Group, bars: Sequence[tuple[str, Entry | None]]) -> None:
    axis.set_xticks(range(len(bars)), [label for label, _ in bars])
    frame_bars(axis, len(bars))
    axis.set_xlabel(words.unit(group))
