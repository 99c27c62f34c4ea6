"""Every colour, size and file format of a figure. One place, so that all figures look like one study.

Owns the palette (Okabe and Ito, doi:10.1038/nmeth.1618: safe for the colour-blind), the two widths (a column and
a page of a paper) and byte-stable saving. Knows nothing of records.

    with drawing():
        figure, axes = panels(3, PAGE)
        save(settle(figure), Path("figures/headline"), ("png", "svg"))
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK, MUTED, GRID, PAPER = "#1c2127", "#5c6670", "#d9dde2", "#ffffff"
OVER_GRID = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # behind words that a grid line meets
OVER_HATCH = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}  # a hatch would show through what is not solid
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
BASELINE = "#c8102e"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, MUTED)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STAGE_COLOURS = {"text": SKY, "denoise": BLUE, "vae": ORANGE}
VAE_COLOURS = {"single": BLUE, "tiled": ORANGE, "parallel": GREEN, "distvae": PURPLE, "none": RED}
FAILED_HATCH, PREDICTED_HATCH = "xxxx", "////"
FORMATS = ("png", "svg", "pdf")
DPI = 200
DRAWN_COLOURS = 4096  # at most, edges included; a photograph has more

# a reader in the dark sees these in place of the inks above; series keep their hue and gain light
DARK = {
    INK: "#e6e9ed", MUTED: "#a3adb8", GRID: "#3a424b", PAPER: "#14181d",
    BLUE: "#4aa8e0", ORANGE: "#f0b429", GREEN: "#2fc29a", RED: "#f0813f", PURPLE: "#dd96bd", SKY: "#8fd0f5",
    BASELINE: "#ff6b7d",
}  # fmt: skip

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: pictures are equal everywhere
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 0,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.7,
    "figure.dpi": DPI,  # lays out at the dots that are drawn: hinted text is not equally wide at others
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.hashsalt": "xdit_bench",  # ids by content: the same records give the same bytes
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def tint(ink: str, paper: str = PAPER) -> str:
    """A third of an ink on paper, solid: the grid would show through a bar that is transparent."""
    pairs = ((int(ink[at : at + 2], 16), int(paper[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{(one + 2 * other) // 3:02x}" for one, other in pairs)


DARK |= {tint(ink): tint(DARK[ink], DARK[PAPER]) for ink in CYCLE}


@dataclass(frozen=True)
class Layout:
    """How wide a figure is, in inches, and how many panels stand in a row."""

    name: str
    width: float
    columns: int


PAGE = Layout("page", 7.0, 3)
COLUMN = Layout("column", 3.4, 1)


@contextmanager
def drawing() -> Iterator[None]:
    """The style, for as long as the block lasts; a person's own matplotlib settings come back after it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def panels(count: int, layout: Layout, *, height: float = 2.3) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows; `height` of a row in inches. A panel alone is no wider than it needs."""
    across = min(count, layout.columns if count != 4 else 2)  # two by two, not three and one
    rows = -(-count // across)
    width = layout.width if count > 1 else min(layout.width, 4.2)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, across, index + 1) for index in range(count)]
    return figure, axes


def empty(axes: Axes, why: str) -> None:
    """A panel without data says why."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED, wrap=True)


def settle(figure: Figure) -> Figure:
    """Lays the figure out once, for all formats: laying out takes longer than drawing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # not "none", whose placeholder makes each format draw once more
    return figure


def save(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes `stem.<format>` for each format, without dates or versions in the files."""
    written = []
    for format_ in formats:
        path = stem.with_suffix(f".{format_}")
        if format_ == "png":
            _save_png(figure, path)
        else:
            figure.savefig(path, format=format_, dpi=DPI, metadata=_metadata(format_))
        written.append(path)
    return written


def _save_png(figure: Figure, path: Path) -> None:
    """A drawing in 256 colours, a third of the bytes, none of them seen to differ (8 of 255 at most); a photograph in
    all of its own."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata=_metadata("png"))
    drawn = Image.open(buffer).convert("RGB")
    if drawn.getcolors(DRAWN_COLOURS) is None:
        path.write_bytes(buffer.getvalue())
        return
    few = drawn.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True, dpi=(DPI, DPI))


def svg_text(figure: Figure) -> str:
    """The figure as SVG source."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_metadata("svg"))
    return buffer.getvalue()


def _metadata(format_: str) -> dict[str, Any]:
    names = {
        "png": ("Software",),
        "svg": ("Date", "Creator", "Format", "Type"),
        "pdf": ("CreationDate", "Creator", "Producer"),
    }
    return dict.fromkeys(names.get(format_, ()))
