"""Rebuilds a study's report from its records alone; needs no torch and no GPU.

    python -m xdit_bench.report study=h200x2 [results_dir=results] [reports_dir=reports] [formats=png,svg,pdf]
        [widths=page,column]

`widths=page,column` draws every figure at the width of a paper's column too; the headline always is.
Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xdit_bench.config import check_study
from xdit_bench.errors import ConfigError, UserError
from xdit_bench.keys import command, helped, parse
from xdit_bench.reporting.page import write_report
from xdit_bench.reporting.style import FORMATS
from xdit_bench.results.store import read_records

DEFAULTS = {
    "study": "", "results_dir": "results", "reports_dir": "reports", "formats": ",".join(FORMATS), "widths": "page",
}  # fmt: skip
WIDTHS = ("page", "page,column")


def main(arguments: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    if helped(typed, __doc__, DEFAULTS | {"study": "<name>"}):
        return 0
    try:
        options = _checked(parse(typed, DEFAULTS, "report"))
        folder = Path(options["results_dir"]) / options["study"]
        records = read_records(folder)
        written = write_report(
            records,
            options["study"],
            Path(options["reports_dir"]),
            outputs=folder / "outputs",
            formats=options["formats"].split(","),
            columns=options["widths"] == "page,column",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {written[0]} ({len(written)} files from {len(records)} records)")
    return 0


def _checked(options: dict[str, str]) -> dict[str, str]:
    """The options as they are. Raises ConfigError for one that is none of its values."""
    if not options["study"]:
        raise ConfigError("study=<name> says which folder of results_dir to report on; it is missing")
    check_study(options["study"])
    wrong = [name for name in options["formats"].split(",") if name not in FORMATS]
    if wrong:
        raise ConfigError(f"formats are any of {', '.join(FORMATS)}; got {', '.join(wrong)}")
    if options["widths"] not in WIDTHS:
        raise ConfigError(f"widths is one of {' or '.join(WIDTHS)}; got {options['widths']}")
    return options


if __name__ == "__main__":
    sys.exit(command(main))
