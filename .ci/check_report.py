"""Fails when the quickstart study lacks a point or its report a figure.

python .ci/check_report.py <results>/quickstart <reports>/quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path

from xdit_bench.results.store import read_records

POINTS = {("usp", res, u, r) for res in (256, 384) for u in (1, 2) for r in (1, 2)} | {
    ("stock", 256, 1, 1),
    ("stock", 384, 1, 1),
}
FIGURES = ("headline", "strategies", "stages", "memory")


def main(results: Path, reports: Path) -> int:
    """0 when nothing is missing, else 1 with a line for each thing."""
    wrong = []
    for_point = {
        (r.point["engine"], r.point["res"], r.point["ulysses"], r.point["ring"]): r for r in read_records(results)
    }
    for key in sorted(POINTS):
        record = for_point.get(key)
        if record is None:
            wrong.append(f"point {key} has no record")
        elif record.status != "ok" or not record.parity.get("ok"):
            wrong.append(f"point {key} is {record.status}: {record.reason} (parity {record.parity})")
    for figure in FIGURES:
        for suffix in ("png", "svg"):
            path = reports / "figures" / f"{figure}.{suffix}"
            if not path.is_file() or path.stat().st_size < 1000:
                wrong.append(f"figure {path} is missing or empty")
    for page in ("report.md", "index.html"):
        if not (reports / page).is_file():
            wrong.append(f"{reports / page} is missing")
    for line in wrong:
        print(f"quickstart: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
