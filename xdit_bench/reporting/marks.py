"""Pieces that several figures share: bars by source, failed bars, legends, the sizes shown.

Owns the marks' meaning: measured solid, predicted hatched in its own colour, failed grey and crossed.

    axis.bar(x, seconds, 0.62, **bar_style(group, BLUE))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Entry, Size
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import BASELINE, FAILED_HATCH, INK, MUTED, OVER_HATCH, PAPER, PREDICTED_HATCH

LEGEND_ROW = 0.15  # inches
PANELS = 6  # sizes a figure shows at most; the table holds all of them


def shown_sizes(group: Group) -> tuple[Size, ...]:
    """The sizes figures show: those with the most points where there are more than `PANELS`."""
    if len(group.sizes) <= PANELS:
        return group.sizes
    counts = {size: sum(e.size == size and e.engine == group.engine for e in group.entries) for size in group.sizes}
    chosen = sorted(group.sizes, key=lambda size: (-counts[size], size))[:PANELS]
    return tuple(size for size in group.sizes if size in chosen)


def bar_style(group: Group, colour: str) -> dict[str, Any]:
    """Measured is solid, predicted hatched in its own colour."""
    if group.setting.source == "predicted":
        return {"facecolor": PAPER, "edgecolor": colour, "hatch": PREDICTED_HATCH, "linewidth": 0.9}
    return {"facecolor": colour, "edgecolor": colour, "linewidth": 0.9}


def segment_style(group: Group, colour: str) -> dict[str, Any]:
    """A part of a stacked bar: an edge would make a thin part thicker than it is. A hatch alone would not show a thin
    part at all, so that what is predicted keeps a hairline."""
    return {**bar_style(group, colour), "linewidth": 0.3 if group.setting.source == "predicted" else 0}


def failed_bar(axes: Axes, x: float, height: float, entry: Entry, width: float = 0.62) -> None:
    """A failure is drawn, never left out: a hatched grey bar with its name."""
    axes.bar(x, height, width, facecolor=PAPER, edgecolor=MUTED, hatch=FAILED_HATCH, linewidth=0.7)
    axes.text(x, height / 2, entry.outcome, rotation=90, ha="center", va="center", weight="bold", color=INK,
              bbox=OVER_HATCH)  # fmt: skip


def legend_patch(group: Group, colour: str, label: str) -> Patch:
    """A legend entry in the bars' own style."""
    return Patch(label=label, **bar_style(group, colour))


def frame_bars(axis: Axes, count: int) -> None:
    """Bars no wider than a third of the panel, however few there are."""
    spare = max(0, 3 - count) / 2
    axis.set_xlim(-0.6 - spare, count - 0.4 + spare)


def label_rows(axes: Sequence[Axes], label: str) -> None:
    """The same label for the first panel of each row."""
    for axis in axes:
        if starts_row(axis):
            axis.set_ylabel(label)


def starts_row(axis: Axes) -> bool:
    """Whether a panel is the first of its row."""
    place = axis.get_subplotspec()
    return place is None or place.is_first_col()


def legend(figure: Figure, handles: Sequence[Patch | Line2D]) -> None:
    """One legend below all panels, no wider than a phone can show at a size that is read. The figure grows by what it
    takes beyond two rows: else the panels would shrink."""
    letters = max(len(str(handle.get_label())) for handle in handles) + 6  # and the mark before them
    columns = max(1, int(min(figure.get_figwidth(), 4.2) / 0.065) // letters)
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows))


def mark_group(figure: Figure, group: Group, kin: Sequence[Group] = ()) -> Figure:
    """Says in the figure itself what changes how it is read: it may be looked at far from its page. `kin` are the
    groups that the figure shows with it, of other memory caps."""
    setting = group.setting
    caps = {one.setting.memory_cap_gb for one in (group, *kin)}
    said = []
    if setting.source == "predicted":
        said.append(f"PREDICTED for {setting.topology} by the performance model, not measured")
    if group.on_cpu:
        said.append("CPU ranks over gloo: says nothing about a GPU")
    if None not in caps:  # else each panel says of itself whether it is
        said.append(f"capped at {words.listing(f'{cap:g}' for cap in sorted(filter(None, caps)))} GB")
    if setting.transport != "p2p":
        said.append(f"transport {setting.transport}")
    if said:
        figure.suptitle("; ".join(said), fontsize=7, color=BASELINE, x=0.01, ha="left")
    return figure
