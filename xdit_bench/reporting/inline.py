"""A matplotlib SVG made fit for a page: no fixed size, ids of its own, colours that follow light and dark.

html = inline_svg(svg_text(figure), "headline-")
"""

from __future__ import annotations

import re

from xdit_bench.reporting.style import DARK

NAMES = {colour: f"--c{index}" for index, colour in enumerate(DARK)}


def inline_svg(svg: str, prefix: str) -> str:
    """`svg` as an element for HTML; `prefix` keeps its ids apart from those of other figures."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box, "matplotlib writes a viewBox"
    width = float(box[1].split()[2])
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'style="max-width:{width * 1.8:.0f}px" aria-hidden="true" focusable="false"'
    )
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}", rest)
    for colour, name in NAMES.items():
        rest = rest.replace(colour, f"var({name})")
    return f"{head}>{rest}"


def palette(dark: bool) -> str:
    """The variables' values as CSS declarations."""
    return ";".join(f"{name}:{DARK[colour] if dark else colour}" for colour, name in NAMES.items())
