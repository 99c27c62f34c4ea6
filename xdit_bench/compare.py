"""Compares two sets of records point by point: the regression gate of CI.

    python -m xdit_bench.compare BASE NEW [--threshold 2%] [--fail-on regression] [--metric total_s] [--allow driver]
        [--out FOLDER]

BASE and NEW are folders of studies (results/h200x2) or records files. The comparison is Markdown on stdout, and the
same without escapes on a terminal.
Exit codes: 0 no regression, 2 bad input, 3 regression (slower, or failing where it did not), 4 nothing comparable, or
a point whose machines are not alike.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from xdit_bench.errors import ConfigError, ResultsError, UserError, did_you_mean
from xdit_bench.keys import command
from xdit_bench.reporting import words
from xdit_bench.reporting.cells import escape, unescape
from xdit_bench.reporting.comparison import (
    DIFFERS,
    MACHINE,
    MACHINE_FIELDS,
    NOT_COMPARABLE,
    VERDICTS,
    Row,
    compare,
    label,
)
from xdit_bench.reporting.entry import number
from xdit_bench.results.schema import METRICS, Metric, Record
from xdit_bench.results.store import read_records

GATED = tuple(name for name in METRICS if name != "parity_l2")  # parity has its own bound, and 0 is its best
BAD_INPUT, REGRESSION, NOT_COMPARED = 2, 3, 4


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m xdit_bench.compare --help")


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns its exit code."""
    try:
        options = _parser().parse_args(argv)
        threshold = parse_threshold(options.threshold)
        base, new = load(Path(options.base)), load(Path(options.new))
        _check_allowed(options.allow, [*base, *new])
        rows = compare(base, new, threshold=threshold, metric=options.metric, allow=options.allow)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    text = render(rows, options.base, options.new, METRICS[options.metric], threshold)
    if options.metric != "peak_bytes":
        text += render_memory(compare(base, new, threshold=threshold, metric="peak_bytes", allow=options.allow))
    print(unescape(text) if sys.stdout.isatty() else text, end="")
    if options.out:
        try:
            write(rows, text, Path(options.out), threshold)
        except OSError as error:
            print(f"error: the comparison goes to {options.out}, which can not be written ({error})", file=sys.stderr)
            return BAD_INPUT
    if all(row.verdict == NOT_COMPARABLE for row in rows) or not _both(rows):
        return NOT_COMPARED
    if options.fail_on == "never":
        return 0
    return REGRESSION if any(row.regression for row in rows) else NOT_COMPARED if _unlike(rows) else 0


def _check_allowed(fields: Sequence[str], records: Sequence[Record]) -> None:
    """Raises ConfigError for a field that no fingerprint has, with the nearest name."""
    known = {*MACHINE_FIELDS, MACHINE, "fingerprint"}.union(*(record.software for record in records))
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"--allow takes a field of the fingerprint; {field!r} is none{did_you_mean(field, known)}"
            )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m xdit_bench.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="folder of a study, or a records file")
    parser.add_argument("new", metavar="NEW", help="the same, measured later")
    parser.add_argument("--fail-on", choices=("regression", "never"), default="regression", help="what exits 3")
    parser.add_argument("--threshold", default="2%", help="changes below it are no verdict, such as 2%% or 0.02")
    parser.add_argument("--metric", choices=GATED, default="total_s", help="what is compared")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD",
        help="field of the fingerprint that may differ, such as driver or torch: it is what changed on purpose; "
        "machine: all but the software, to see one machine beside another",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="also write comparison.md and a figure of the ratios there")
    return parser


def write(rows: Sequence[Row], text: str, folder: Path, threshold: float) -> None:
    """comparison.md, and ratios.png and .svg where a point is on both sides. Raises OSError."""
    from xdit_bench.reporting.draw_comparison import ratios
    from xdit_bench.reporting.style import drawing, save, settle

    folder.mkdir(parents=True, exist_ok=True)
    if any(row.verdict != NOT_COMPARABLE for row in rows):
        with drawing():
            save(settle(ratios(rows, threshold=threshold)), folder / "ratios")
        text += "\n![Ratio of each point; the table above holds the numbers](ratios.png)\n"
    (folder / "comparison.md").write_text(text, encoding="utf-8")


def parse_threshold(text: str) -> float:
    """`2%` or `0.02` as a share. Raises ConfigError."""
    share = text.strip().removesuffix("%").strip()
    try:
        value = float(share) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"--threshold is a share of the time from 0 to below 1, such as 2% or 0.02; got {text!r}")
    return value


def load(path: Path) -> list[Record]:
    """Records for comparison. One that says ok without a time is kept as a failure: it must fail its own point, not
    hide the others. Raises ResultsError for everything else that can not be read."""
    records = read_records(path, _honest)
    if not records:
        raise ResultsError(f"{path} holds no records, so there is nothing to compare")
    return records


def _honest(data: dict[str, Any]) -> dict[str, Any]:
    latency = data.get("latency_s") or {}
    if data.get("status") != "ok" or not isinstance(latency, dict):
        return data
    total = latency.get("total")
    median = total.get("median") if isinstance(total, dict) else None
    if (number(median) or 0.0) > 0:
        return data
    return {
        **data,
        "status": "unstable",
        "reason": f"says ok, but latency_s.total.median is {median!r}",
        "latency_s": {},
    }


def _both(rows: Sequence[Row]) -> bool:
    """Some point is on both sides: with none, nothing was compared, whatever vanished."""
    return any(row.verdict != NOT_COMPARABLE and row.note != "no record in NEW" for row in rows)


def _unlike(rows: Sequence[Row]) -> int:
    """How many points both sides hold, but of machines that are not alike: a gate does not pass on them."""
    return sum(row.verdict == NOT_COMPARABLE and row.note.startswith(DIFFERS) for row in rows)


def render(rows: Sequence[Row], base: str, new: str, metric: Metric, threshold: float) -> str:
    """The comparison as Markdown: one line of counts, then a table, the worst first."""
    counts = Counter(row.verdict for row in rows)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    bad = sum(row.regression for row in rows)
    head = words.plural(bad, "regression") if bad else "No regression"
    unlike = _unlike(rows)
    head = f"{head}, and {words.plural(unlike, 'point')} of unlike machines" if unlike else head
    head = head if _both(rows) else "Nothing comparable"
    lines = [
        f"# {escape(base)} -> {escape(new)}", "",
        f"**{head}** in {words.plural(len(rows), 'point')} ({said}); {metric.label}, "
        f"threshold {100 * threshold:g} %.", "",
        "| Verdict | Point | Base | New | Ratio | 95 % interval | p | Samples | Note |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | --- | --- |",
    ]  # fmt: skip
    return "\n".join([*lines, *(_line(row, metric) for row in rows)]) + "\n"


def _line(row: Row, metric: Metric) -> str:
    say = words.gigabytes if metric.unit == "bytes" else words.digits
    interval = f"{row.low:.3f} to {row.high:.3f}" if row.low is not None and row.high is not None else words.MISSING
    cells = [
        f"**{row.verdict}**" if row.regression else row.verdict, escape(label(row)), say(row.base), say(row.new),
        f"{row.ratio:.3f}" if row.ratio else words.MISSING, interval,
        f"{row.p:#.2g}" if row.p is not None else words.MISSING,
        f"{row.samples[0]}, {row.samples[1]}" if any(row.samples) else words.MISSING, escape(row.note),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def render_memory(rows: Sequence[Row]) -> str:
    """Points whose peak memory moved, or nothing."""
    moved = [row for row in rows if row.verdict in ("larger", "smaller")]
    if not moved:
        return ""
    lines = ["Peak memory moved (no part of the verdict; gate it with --metric peak_bytes):", ""]
    for row in moved:
        sizes = f"{words.gigabytes(row.base)} -> {words.gigabytes(row.new)}"
        lines.append(f"- {row.verdict}: {escape(label(row))}, {sizes}")
    return "\n".join(["", *lines, ""])


if __name__ == "__main__":
    sys.exit(command(main))
