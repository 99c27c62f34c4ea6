"""The probe's verb with two gloo ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from xdit_bench.probe import main


@pytest.mark.usefixtures("no_process_left")
def test_probe_prints_and_stores_machine_and_exchanges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert main(["--ranks", "2", "--results-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("WARNING NCCL_P2P_DISABLE=1 is set")
    (path,) = (tmp_path / "machines").iterdir()
    stored = json.loads(path.read_text())
    assert path.stem == stored["machine"]["fingerprint"]
    assert {row["collective"] for row in stored["exchanges"]} == {"all_to_all", "ring", "all_gather"}
    assert all(row["bytes_per_s"] > 0 for row in stored["exchanges"])
    assert stored["environment"]["NCCL_P2P_DISABLE"] == "1"


def test_folder_that_can_not_be_written_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--quiet", "--results-dir", str(tmp_path / "file")]) == 2
    assert "can not be written" in capsys.readouterr().out


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize(("name", "code", "words"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")])
def test_a_probe_that_is_ended_leaves_neither_ranks_nor_their_folder(
    name: signal.Signals, code: int, words: str, tmp_path: Path
) -> None:
    private = tmp_path / "tmp"
    private.mkdir()
    command = [sys.executable, "-m", "xdit_bench.probe", "--ranks", "2", "--results-dir", str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(private)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        end = time.monotonic() + 100
        while not psutil.Process(run.pid).children():
            assert time.monotonic() < end, "the launcher was not started"
            assert run.poll() is None, "the probe ended by itself"
            time.sleep(0.02)
        run.send_signal(name)
        said = run.communicate(timeout=60)[1]
    assert (run.returncode, said) == (code, words)
    assert list(private.iterdir()) == []
