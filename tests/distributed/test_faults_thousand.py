"""A thousand points of which a fifth fail: every point has one record, and what lies between points is small."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path

import pytest
from plans import fake_point, run_points

FAULTS = ("oom", "raise", "nan", "wrong_latents", "infeasible")
EXPECTED = {"oom": "oom", "raise": "crashed", "nan": "incorrect", "wrong_latents": "incorrect",
            "infeasible": "infeasible", "kill": "crashed"}  # fmt: skip
STEP_S = 0.002


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
def test_thousand_points_with_faults_in_a_fifth_have_one_record_each(tmp_path: Path) -> None:
    points = []
    for i in range(500):  # and as many baselines
        script: dict[str, object] = {"step_s": STEP_S + i * 1e-6, "gpus": 2}
        if i % 5 < 2:  # a fifth of all thousand
            script |= {"fault": FAULTS[i // 5 % 5], "stage": "prepare"}
        if i in (100, 300):
            script |= {"fault": "kill", "rank": 1, "stage": "text"}
        points.append(fake_point(2, 1, **script))
    begun = time.monotonic()
    records, _ = run_points(points, tmp_path, probe_all=True)
    wall = time.monotonic() - begun

    lines = [json.loads(line) for line in (tmp_path / "s" / "records.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["run_id"] for line in lines}) == 1000
    for record in records:
        fault = json.loads(record.point["prompt"]).get("fault") if record.point["gpus"] == 2 else None
        assert record.status == EXPECTED.get(fault or "", "ok")
    assert collections.Counter(r.status for r in records)["ok"] == 800
    own = sum(sum(r.latency_s["total"]["samples"]) + sum(r.telemetry["warmup_s"]) for r in records if r.latency_s)
    print(f"wall {wall:.1f} s, of which the points' own {own:.1f} s")
