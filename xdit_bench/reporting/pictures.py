"""Figures drawn into their files, several at once: most of the time of a command that only predicts.

for picture in draw([Sheet(figure, "figures/headline", FORMATS)], folder):
    print(picture.stem, picture.files)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from xdit_bench.errors import ResultsError
from xdit_bench.reporting.figures import Figure
from xdit_bench.reporting.inline import inline, name_parts
from xdit_bench.reporting.style import COLUMN, PAGE, drawing, save, settle, svg_text


@dataclass(frozen=True)
class Sheet:
    """A figure to draw, its files' stem relative to the report, their formats, and whether papers get a narrow one."""

    figure: Figure
    stem: str
    formats: Sequence[str]
    column: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure and what was drawn of it: files, and its SVG at both widths; nothing of one that is empty."""

    figure: Figure
    stem: str
    files: tuple[Path, ...] = ()
    wide: str = ""
    narrow: str = ""


Drawn = tuple[tuple[Path, ...], str, str]  # what a picture adds to its sheet
_task: tuple[Sequence[Sheet], Path] = ((), Path())  # in forked processes alone: figures hold functions, none travels


def draw(sheets: Sequence[Sheet], folder: Path) -> list[Picture]:
    """Every sheet drawn below `folder`, by as many processes as there are cores. Raises ResultsError where one of them
    is killed."""
    todo = [k for k, sheet in enumerate(sheets) if not sheet.figure.why_empty]
    with drawing():
        workers = min(_cores(), len(todo))
        if workers > 1:
            fork = multiprocessing.get_context("fork")
            try:
                with ProcessPoolExecutor(workers, fork, _begin, (sheets, folder)) as pool:
                    drawn = dict(zip(todo, pool.map(_draw_one, todo), strict=True))
            except BrokenProcessPool as error:
                raise ResultsError(
                    f"one of {workers} processes that drew figures into {folder} was killed, for memory perhaps; all "
                    f"records are kept: python -m xdit_bench.report study={folder.name} draws them again"
                ) from error
        else:
            drawn = {k: _draw(sheets[k], folder) for k in todo}
    return [Picture(sheet.figure, sheet.stem, *drawn.get(k, ())) for k, sheet in enumerate(sheets)]


def _cores() -> int:
    """Processes to draw in: one where the system can not fork, or a thread could hold a lock while it does."""
    if not hasattr(os, "sched_getaffinity") or threading.active_count() > 1:  # macOS forks, and its libraries break
        return 1
    return len(os.sched_getaffinity(0))


def _begin(sheets: Sequence[Sheet], folder: Path) -> None:
    global _task
    _task = sheets, folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's


def _draw_one(k: int) -> Drawn:
    sheets, folder = _task
    return _draw(sheets[k], folder)


def _draw(sheet: Sheet, folder: Path) -> Drawn:
    page = settle(sheet.figure.draw(PAGE))
    name_parts(page)
    files = save(page, folder / sheet.stem, [format_ for format_ in sheet.formats if format_ != "svg"])
    svg = svg_text(page)
    if "svg" in sheet.formats:
        files.append(folder / f"{sheet.stem}.svg")
        files[-1].write_text(svg, encoding="utf-8", newline="\n")
    if sheet.column:
        files += save(settle(sheet.figure.draw(COLUMN)), folder / f"{sheet.stem}-column", sheet.formats)
    return tuple(files), *inline(page, svg, f"{Path(sheet.stem).name}-")
