"""Rebuilds a study's report from its records alone; needs no torch and no GPU.

    python -m xdit_bench.report study=h200x2 [results_dir=results] [reports_dir=reports] [formats=png,svg,pdf]
        [widths=page,column]

`widths=page,column` draws every figure at the width of a paper's column too; the headline always is.
Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from xdit_bench.errors import ConfigError, UserError
from xdit_bench.reporting.page import write_report
from xdit_bench.reporting.style import FORMATS
from xdit_bench.results.store import read_records

DEFAULTS = {
    "study": "",
    "results_dir": "results",
    "reports_dir": "reports",
    "formats": ",".join(FORMATS),
    "widths": "page",
}
WIDTHS = ("page", "page,column")


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    try:
        knobs = parse(arguments)
        folder = Path(knobs["results_dir"]) / knobs["study"]
        records = read_records(folder)
        formats = knobs["formats"].split(",")
        written = write_report(
            records,
            knobs["study"],
            Path(knobs["reports_dir"]),
            outputs=folder / "outputs",
            formats=formats,
            columns=knobs["widths"] == "page,column",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {written[0]} ({len(written)} files from {len(records)} records)")
    return 0


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """`key=value` words as knobs. Raises ConfigError naming the rule, the word and the knobs there are."""
    knobs = dict(DEFAULTS)
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in DEFAULTS:
            raise ConfigError(f"a knob is written key=value, the keys are {', '.join(DEFAULTS)}; got {word!r}")
        knobs[key] = value
    if not knobs["study"]:
        raise ConfigError("study=<name> says which folder of results_dir to report on; it is missing")
    wrong = [name for name in knobs["formats"].split(",") if name not in FORMATS]
    if wrong:
        raise ConfigError(f"formats are any of {', '.join(FORMATS)}; got {', '.join(wrong)}")
    if knobs["widths"] not in WIDTHS:
        raise ConfigError(f"widths is one of {' or '.join(WIDTHS)}; got {knobs['widths']}")
    return knobs


if __name__ == "__main__":
    sys.exit(main())
