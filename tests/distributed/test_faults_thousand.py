"""A thousand points of which a fifth fail: every point has exactly one record, of the outcome that was planted."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
from plans import run_points
from thousand_points import DEADLINE_S, EXPECTED, account, fault, points


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
def test_thousand_points_with_faults_in_a_fifth_have_one_record_each(tmp_path: Path) -> None:
    records, _ = run_points(points(step_s=0.002), tmp_path, probe_all=True, deadline_s=DEADLINE_S)

    lines = [json.loads(line) for line in (tmp_path / "s" / "records.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["run_id"] for line in lines}) == 1000
    for record in records:
        assert record.status == EXPECTED.get(fault(record), "ok"), record.reason
    assert collections.Counter(r.status for r in records)["ok"] == 800
    assert "no fault: 800 points" in account(records)
