"""What a person sees while a plan runs: a bar with the current point and the time left, a line as each point ends.

with Progress(console, cells) as progress:
    progress.begin(cell)
    progress.end(cell, record)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from xdit_bench.results.schema import Record
from xdit_bench.runner.plan import Cell, cost

COLOURS = {"ok": "green", "infeasible": "dim", "skipped": "dim"}


class Progress:
    """The bar and the lines of one plan."""

    def __init__(self, console: Console, cells: Sequence[Cell]) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # a log gets the lines alone
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("", total=len(cells) or None, left="")
        self._left = sum(cost(cell.point) for cell in cells)
        self._done = 0.0
        self._begun = time.monotonic()

    def begin(self, cell: Cell) -> None:
        """A point starts."""
        self._bar.update(self._task, description=escape(cell.point.label), left=self._estimate())

    def note(self, sentence: str) -> None:
        """A line between points."""
        self._bar.console.print(sentence, soft_wrap=True, markup=False)

    def end(self, cell: Cell, record: Record) -> None:
        """A point has its record."""
        self.count(cell)
        colour = COLOURS.get(record.status, "red")
        what = record.took
        if record.memory.get("verdict") == "pressure":
            what += f", memory pressure: the allocator asked again {record.memory['alloc_retries']} times"
        what = escape(record.reason) or what
        self._bar.console.print(f"[{colour}]{record.status:>10}[/]  {escape(cell.point.label)}  {what}", soft_wrap=True)

    def count(self, cell: Cell) -> None:
        """A point needs no more time."""
        self._left -= cost(cell.point)
        self._done += cost(cell.point)
        self._bar.update(self._task, advance=1, left=self._estimate())

    def _estimate(self) -> str:
        elapsed = time.monotonic() - self._begun
        if self._done <= 0 or elapsed < 1:
            return ""
        left = elapsed / self._done * max(0.0, self._left)
        return f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
