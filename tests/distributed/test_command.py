"""The command as a person types it, with real ranks: two at once, interrupted, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from plans import wait_for

from xdit_bench.results.store import read_records

COMMAND = [
    sys.executable, "-m", "xdit_bench", "-m", "model=flux_tiny", "topology=cpu", "measure=quick", "study=s", "res=64",
    "ulysses=1,2", "run.recheck=0", "run.report=false",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
def test_second_sweep_of_a_study_exits_2_and_an_interrupted_one_130_and_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    records = tmp_path / "results" / "s" / "records.jsonl"
    with subprocess.Popen(COMMAND, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as first:
        wait_for(lambda: records.exists() and records.read_text().count("\n") >= 1)
        first.send_signal(signal.SIGSTOP)  # it would be done before the second has started, on a busy machine
        second = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
        said = first.communicate()[1]
    assert second.returncode == 2
    assert second.stderr.startswith("error: one sweep at a time writes a study")
    assert (first.returncode, "the same command goes on from there" in said) == (130, True), said
    done = read_records(records.parent)
    assert 1 <= len(done) < 3

    again = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    finished = read_records(records.parent)
    assert finished[: len(done)] == done
    assert [r.status for r in finished] == ["ok"] * 3
    assert len({r.run_id for r in finished}) == 3
