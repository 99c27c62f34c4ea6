"""A matplotlib figure made fit for a page: no fixed size, ids of its own, colours that follow light and dark.

A phone gets the same drawing panel by panel: small windows onto the one SVG, each as wide as the screen.

    wide, narrow = inline(figure, svg_text(figure), "headline-")
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from xdit_bench.reporting.style import DARK

NAMES = {colour: f"--c{index}" for index, colour in enumerate(DARK)}
SCREEN, PHONE = 2.1, 2.6  # CSS pixels a point at most, where there is room for them
POINTS = 72.0  # an SVG of matplotlib counts points, an inch has 72


@dataclass(frozen=True)
class Window:
    """A rectangle of the figure in SVG points, and the id of what is seen through it."""

    target: str
    box: tuple[float, float, float, float]


def name_parts(figure: Figure) -> None:
    """Gives panels, title and legend ids that windows can point at; before the SVG is made."""
    for index, axes in enumerate(figure.axes):
        axes.set_gid(f"panel{index}")
    for index, legend in enumerate(figure.legends):
        legend.set_gid(f"legend{index}")
    if figure.get_suptitle():
        figure.texts[0].set_gid("mark")


def windows(figure: Figure) -> list[Window]:
    """The title, each panel with its labels, and the legends, in reading order."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    parts = [(axes.get_gid(), axes.get_tightbbox(renderer)) for axes in figure.axes]
    if figure.get_suptitle():
        parts.insert(0, ("mark", figure.texts[0].get_window_extent(renderer)))
    parts += [(legend.get_gid(), legend.get_window_extent(renderer)) for legend in figure.legends]
    height = figure.get_figheight() * POINTS
    return [Window(str(name), _points(box, figure.dpi, height)) for name, box in parts if box is not None]


def _points(box: Bbox, dpi: float, height: float, margin: float = 2.0) -> tuple[float, float, float, float]:
    scale = POINTS / dpi
    wider = 0.06 * box.width * scale  # a browser's letters are not exactly as wide as the ones measured here
    return (
        box.x0 * scale - margin,
        height - box.y1 * scale - margin,
        box.width * scale + 2 * margin + wider,
        box.height * scale + 2 * margin,
    )


def inline(figure: Figure, svg: str, prefix: str) -> tuple[str, str]:
    """The whole figure as an SVG element, and the same as windows one below the other.

    `prefix` keeps the ids apart from those of other figures.
    """
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    head, rest = body.split(">", 1)
    found = re.search(r'viewBox="([^"]+)"', head)
    assert found, "matplotlib writes a viewBox"
    seen = windows(figure)
    needed = {window.target for window in seen} | set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', rest))

    def own(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in needed else ""

    rest = re.sub(r'\sid="([^"]+)"', own, rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", rest)
    for colour, name in NAMES.items():
        rest = rest.replace(colour, f"var({name})")
    wide = f"{_open(found[1], SCREEN * float(found[1].split()[2]))}{rest}"
    narrow = "".join(
        f"{_open(' '.join(f'{side:.1f}' for side in window.box), PHONE * window.box[2])}"
        f'<use href="#{prefix}{window.target}"/></svg>'
        for window in seen
    )
    return wide, narrow


def _open(view_box: str, width: float) -> str:
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view_box}" '
        f'style="max-width:{width:.0f}px" aria-hidden="true" focusable="false">'
    )


def palette(dark: bool) -> str:
    """The variables' values as CSS declarations."""
    return ";".join(f"{name}:{DARK[colour] if dark else colour}" for colour, name in NAMES.items())
