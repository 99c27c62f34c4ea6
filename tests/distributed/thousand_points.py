"""A thousand points of the fake engine, a fifth of which fail in every way they can, and what lies between points.

python tests/distributed/thousand_points.py 0.05   # seconds a step takes on one rank; a point is some ten steps
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plans import fake_point, run_points

from xdit_bench.config import Point
from xdit_bench.reporting.spent import spent
from xdit_bench.results.schema import Record

SURVIVED = ("oom", "raise", "nan", "wrong_latents", "infeasible")
DEADLY = ("kill", "exit", "stop", "hang")  # these end the ranks
EXPECTED = {"oom": "oom", "raise": "crashed", "nan": "incorrect", "wrong_latents": "incorrect",
            "infeasible": "infeasible", "kill": "crashed", "exit": "crashed", "stop": "timeout",
            "hang": "timeout"}  # fmt: skip
DEADLINE_S = 5.0


def points(step_s: float) -> list[Point]:
    """Five hundred on two ranks; a plan adds as many baselines on one."""
    made = []
    for i in range(500):
        script: dict[str, object] = {"step_s": step_s + i * 1e-6, "gpus": 2}
        if i % 5 < 2:  # a fifth of all thousand
            script |= {"fault": SURVIVED[i // 5 % 5], "stage": "prepare"}
        if i % 125 == 0:
            script |= {"fault": DEADLY[i // 125], "rank": 1, "stage": "text"}
        made.append(fake_point(2, 1, **script))
    return made


def fault(record: Record) -> str:
    """The fault planted in a record's point, or nothing."""
    return str(json.loads(record.point["prompt"]).get("fault", "")) if record.point["gpus"] == 2 else ""


def account(records: Sequence[Record]) -> str:
    """Where the time went: over all points, and what a point of each kind cost beyond its own time."""
    went = spent(records)
    assert went is not None
    images = sum(sum(r.latency_s["total"]["samples"]) + sum(r.telemetry["warmup_s"]) for r in records if r.latency_s)
    lines = [
        went.sentence(),
        f"beyond the points' own time: {went.whole_s / went.own_s - 1:.1%}; within images: {images:.1f} s",
    ]
    for kinds in ([""], SURVIVED, DEADLY):
        rows = [r.telemetry["spent_s"] for r in records if fault(r) in kinds]
        rest = sum(row["whole"] - row["own"] - row["start"] - row["load"] for row in rows)
        lines.append(f"{', '.join(kinds) or 'no fault'}: {len(rows)} points, {1000 * rest / len(rows):.1f} ms each")
    return "\n".join(lines)


def main(step_s: float) -> None:
    """Runs them in a folder of its own and says where the time went."""
    with tempfile.TemporaryDirectory() as folder:
        records, _ = run_points(points(step_s), Path(folder), probe_all=True, deadline_s=DEADLINE_S)
    wrong = sum(record.status != EXPECTED.get(fault(record), "ok") for record in records)
    ids = len({record.run_id for record in records})
    print(f"{len(records)} records of {ids} points, {wrong} of another outcome than planted")
    print(account(records))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main(float(sys.argv[1]))
