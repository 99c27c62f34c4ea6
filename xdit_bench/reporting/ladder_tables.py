"""The ladder's tables: what each rung saved beside what it was predicted to save, and what the rungs are.

Owns columns, rows and their wording; which points make a rung is `ladder`'s.

    print(markdown(ladder_table(groups)))
"""

from __future__ import annotations

from collections.abc import Sequence

from xdit_bench.reporting import words
from xdit_bench.reporting.cells import Cell, Table, count, milliseconds, text
from xdit_bench.reporting.entry import Entry
from xdit_bench.reporting.ladder import PLAIN, Rung, kept, ladder, predictions
from xdit_bench.reporting.study import Group
from xdit_bench.rungs import RUNGS


def ladder_table(groups: Sequence[Group]) -> Table:
    """What each rung of our engine saved, beside what it was predicted to save, and whether it stays."""
    climbed = [(group, ladder(group)) for group in groups]
    everywhere = [rung for _, rungs in climbed for rung in rungs]
    rows = tuple(_row(group, rung, everywhere) for group, rungs in climbed for rung in rungs if rung.name != PLAIN)
    columns = ("Group", "Size", ">GPUs", "Split", "Rung", ">Step before", ">Step after", ">Saved", ">Predicted to save",
               ">Memory saved", ">Saved at the top", "Pays")  # fmt: skip
    note = (
        "From the plain engine up, each rung on those below it, all of a split in one sitting. At the top: what the "
        "whole engine would lose without it. Pays: where the step is shorter by more than both intervals' halves, or 1 "
        "GB less is held; not shown: the difference lies within them, or a step was timed in fewer than five images, "
        "which have no interval."
    )
    return Table("ladder", "The engine, rung by rung", columns, rows, note)


def _row(group: Group, rung: Rung, everywhere: Sequence[Rung]) -> tuple[Cell, ...]:
    size, gpus = Cell(words.px(rung.size), rung.size[0] * rung.size[1]), rung.split[0] * rung.split[1]
    memory = words.MISSING if rung.saved_bytes is None else f"{round(rung.saved_bytes / 1e9, 1) + 0.0:.1f} GB"
    return (
        text(words.short(group)), size, count(gpus), text(rung.factors), text(rung.name), _step(rung.below),
        _step(rung.entry), milliseconds(rung.saved_s), milliseconds(rung.predicted_s), Cell(memory, rung.saved_bytes),
        milliseconds(rung.saved_at_the_top_s), text(kept(rung, everywhere)),
    )  # fmt: skip


def _step(entry: Entry | None) -> Cell:
    return Cell(entry.outcome) if entry and not entry.ok else milliseconds(entry.step_s if entry else None)


def rungs_table(groups: Sequence[Group]) -> Table:
    """What each rung is, and where its prediction comes from."""
    climbed = {rung.name for group in groups for rung in ladder(group) if rung.name in RUNGS}
    held = next((predictions(group.rungs[0].record) for group in groups if group.rungs), {})
    rows = tuple(
        (text(name), text(what), text(str((held.get(name) or {}).get("source") or words.MISSING)))
        for name, what in RUNGS.items()
        if name in climbed
    )
    return Table("rungs", "What the rungs are", ("Rung", "What it is", "Predicted from"), rows)
