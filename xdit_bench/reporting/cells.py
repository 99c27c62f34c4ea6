"""What a table of a report is made of, and how it reads in Markdown.

Owns cells and their two faces: what a person reads and what a sort compares. Columns and rows are `tables`'.

    print(markdown(Table("best", "Best", ("Split", ">Seconds"), ((text("u2r1"), seconds(0.93)),))))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xdit_bench.predict.advice import SITTING_ERROR
from xdit_bench.reporting import words
from xdit_bench.results.store import SITTING_GAP_S

ESCAPES = (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`"))

TWO_SITTINGS = " †"  # behind a ratio of times that were measured so


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and the key it sorts by (None sorts last)."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True)
class Table:
    """Columns (`>` before a name: numbers, set right) and rows of cells."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def markdown(table: Table, *, limit: int | None = None) -> str:
    """A GitHub table; rows beyond `limit` are counted, not shown."""
    heads = [column.removeprefix(">") for column in table.columns]
    marks = ["---:" if column.startswith(">") else "---" for column in table.columns]
    shown = table.rows if limit is None else table.rows[:limit]
    lines = [_line(heads), _line(marks), *(_line(escape(cell.text) for cell in row) for row in shown)]
    if len(shown) < len(table.rows):
        left = words.plural(len(table.rows) - len(shown), "more row stands", "more rows stand")
        lines += ["", f"{left} in records.csv and index.html."]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text that stays text in Markdown: no HTML, no table breaks, no links, no quote."""
    for old, new in ESCAPES:
        text = text.replace(old, new)
    text = " ".join(text.split())
    return f"&gt;{text[1:]}" if text.startswith(">") else text  # elsewhere it is no mark: "before -> after" reads


def unescape(text: str) -> str:
    """What `escape` was given, but for its spaces; for a terminal."""
    for old, new in ((">", "&gt;"), *ESCAPES[::-1]):
        text = text.replace(new, old)
    return text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def text(words_: str) -> Cell:
    """Text, sorted as it reads."""
    return Cell(words_, words_)


def count(value: int) -> Cell:
    """A whole number."""
    return Cell(str(value), value)


def seconds(value: float | None) -> Cell:
    """A time as `words` has it."""
    return Cell(words.seconds(value), value)


def milliseconds(value: float | None) -> Cell:
    """A step in ms with one decimal, as rungs save tenths; no zero is negative."""
    return Cell(words.MISSING if value is None else f"{round(1e3 * value, 1) + 0.0:.1f} ms", value)


def of_two_sittings(rows: Iterable[Sequence[Cell]]) -> str:
    """What the mark of two sittings means, where a row has one."""
    if not any(cell.text.endswith(TWO_SITTINGS) for row in rows for cell in row):
        return ""
    return (
        f"{TWO_SITTINGS}: of times measured in two sittings, more than {SITTING_GAP_S / 60:.0f} minutes apart. A time "
        f"differs from sitting to sitting by {100 * SITTING_ERROR:.0f} % (standard deviation); a tie allows for it."
    )
