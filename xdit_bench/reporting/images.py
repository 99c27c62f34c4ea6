"""The images of points with real weights, side by side with captions.

Owns which images stand beside each other and how small they are; `run.save_outputs` made them. Random weights make
noise, so their images are left out, and a sentence says so.

    shots, note = side_by_side(groups, Path("results/h200x2/outputs"), Path("reports/h200x2"))
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Entry, seconds_or_inf
from xdit_bench.reporting.study import Group

SHOWN, WIDTH = 12, 480  # images at most, and pixels across


@dataclass(frozen=True)
class Shot:
    """One image: its file relative to the report, its caption, its bytes for the page."""

    file: str
    caption: str
    uri: str


def side_by_side(groups: Sequence[Group], outputs: Path | None, folder: Path) -> tuple[tuple[Shot, ...], str]:
    """Small copies of the images below `folder/images`, smallest size first, and why there are none."""
    entries = [entry for group in groups for entry in group.entries if entry.ok]
    if not any(entry.record.point["weights"] != "random" for entry in entries):
        return (), "No images: weights=random make noise. Give weights=<hub id or folder> and save_outputs=true."
    chosen: dict[tuple[object, ...], tuple[Entry, Path]] = {}
    for entry in sorted(entries, key=seconds_or_inf):
        path = (outputs or Path()) / entry.record.run_id / "image.png"
        if outputs and entry.record.point["weights"] != "random" and path.is_file():
            chosen.setdefault((entry.size, entry.record.point["model"], entry.engine, entry.vae), (entry, path))
    if not chosen:
        return (), "No images: the points were run without save_outputs=true, or their outputs are not on this machine."
    order = sorted(chosen, key=str)
    order.sort(key=lambda key: chosen[key][0].size)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shots = [_shot(index, *chosen[key], folder) for index, key in enumerate(order[:SHOWN], 1)]
    left = words.plural(len(order) - len(shots), "more image is", "more images are")
    return tuple(shots), f"{left} in the outputs of the study." if len(order) > len(shots) else ""


def _shot(index: int, entry: Entry, path: Path, folder: Path) -> Shot:
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDTH, WIDTH))
    name = f"images/{index:02}.jpg"
    small.save(folder / name, quality=88)
    data = base64.b64encode((folder / name).read_bytes()).decode()
    caption = (
        f"{words.px(entry.size)}, vae={entry.vae}, {entry.runner}, {entry.factors}, {words.seconds(entry.total_s)}, "
        f"peak {words.gigabytes(entry.peak_bytes)}"
    )
    return Shot(name, caption, f"data:image/jpeg;base64,{data}")
