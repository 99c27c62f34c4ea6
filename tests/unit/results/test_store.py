"""Records on disk: torn lines, locks, full disks, unknown schemas."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from synthetic import record

from xdit_bench.errors import ResultsError
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store, latest, read_records, studies


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Store.open(tmp_path, "demo") as store:
        store.append(record(1.5, ulysses=2))
    assert [r.to_dict() for r in read_records(tmp_path / "demo")] == [record(1.5, ulysses=2).to_dict()]


def test_a_torn_last_line_is_cut_with_a_warning_and_the_study_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path, "demo") as store:
        store.append(record())
    path = tmp_path / "demo/records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_records(tmp_path / "demo")) == 1
    with Store.open(tmp_path, "demo") as store:
        assert len(store.records) == 1
        store.append(record(res=2048))
    assert "torn" in capsys.readouterr().err
    assert len(read_records(tmp_path / "demo")) == 2


def test_a_broken_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    line = json.dumps(record().to_dict())
    (tmp_path / "records.jsonl").write_text(f"{line}\n{{oops\n{line}\n")
    with pytest.raises(ResultsError, match="line 2"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schema": 99}, "schema 1, this one has 99"), ({"status": "fine"}, "status must be one of"),
     ({"source": "guessed"}, "source must be one of"), ({"point": {}}, "point must hold model"),
     ({"latency_s": {}}, "positive number of seconds"), ({"status": "oom"}, "must say why"),
     ({"memory": 3}, "memory must be an object"), ({"machine": None}, "machine must be an object"),
     ({"latency_s": {"total": 1.0}}, r"latency_s\.total must be an object"), ({"reason": 5}, "reason must be text"),
     ({"time": "yesterday"}, "time must be a date and time in ISO 8601"),
     ({"warnings": "x"}, "warnings must be a list")],
)  # fmt: skip
def test_a_record_that_breaks_a_rule_is_refused_with_the_remedy(change: dict[str, object], said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        Record.from_dict(record().to_dict() | change)


@pytest.mark.parametrize("total", [math.nan, math.inf, 0, -1.0, "nan", None])
def test_an_ok_record_needs_a_time(total: object) -> None:
    with pytest.raises(ResultsError, match="positive number"):
        record(extra={"latency_s": {"total": {"median": total}}})


def test_keys_of_a_later_minor_version_are_dropped() -> None:
    assert Record.from_dict(record().to_dict() | {"new_key": 1}).total_s == record().total_s


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path: Path) -> None:
    with Store.open(tmp_path, "demo") as store:
        store.append(record(extra={"parity": {"latents_rel_l2": math.nan, "ok": True, "all": [math.inf, -math.inf]}}))
    text = (tmp_path / "demo/records.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    parity = read_records(tmp_path / "demo")[0].parity
    assert (parity["latents_rel_l2"], parity["all"]) == ("nan", ["inf", "-inf"])


def test_a_record_is_on_the_disk_once_it_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "demo/records.jsonl", []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append((os.fstat(fd).st_ino, path.read_bytes())))
    with Store.open(tmp_path, "demo") as store:
        store.append(record())
        assert synced == [(path.stat().st_ino, path.read_bytes())]
    assert len(read_records(tmp_path / "demo")) == 1


def test_a_second_sweep_of_the_same_study_is_kept_out(tmp_path: Path) -> None:
    with Store.open(tmp_path, "demo"), pytest.raises(ResultsError, match="another is writing"):
        Store.open(tmp_path, "demo")
    Store.open(tmp_path, "demo").close()  # the lock was given back


def test_a_killed_sweep_leaves_no_lock_and_every_whole_record(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from synthetic import record; from xdit_bench.results.store import Store\n"
        "store = Store.open(Path(sys.argv[1]), 'demo'); store.append(record()); print('up', flush=True); time.sleep(60)"
    )
    tests = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), tests], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    with pytest.raises(ResultsError, match="another is writing"):
        Store.open(tmp_path, "demo")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Store.open(tmp_path, "demo") as store:
        assert len(store.records) == 1


def test_a_full_disk_is_one_clear_error_and_loses_no_earlier_record(tmp_path: Path) -> None:
    # a file size limit stands in for a full disk: the write fails half way, as it does there
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from synthetic import record; from xdit_bench.results.store import Store\n"
        "from xdit_bench.errors import ResultsError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = Store.open(Path(sys.argv[1]), 'demo'); store.append(record())\n"
        "size = (Path(sys.argv[1]) / 'demo/records.jsonl').stat().st_size\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, hard))\n"
        "try:\n    store.append(record(res=2048))\nexcept ResultsError as error:\n    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "assert (Path(sys.argv[1]) / 'demo/records.jsonl').stat().st_size == size"
    )
    tests = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "make room and run the same command again" in done.stdout
    assert len(read_records(tmp_path / "demo")) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsError, match="set results_dir to a folder that can"):
        Store.open(tmp_path, "demo")


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(ResultsError, match="set results_dir to a folder that can"):
        Store.open(tmp_path, "demo")


def test_the_newest_record_of_a_run_id_is_latest(tmp_path: Path) -> None:
    with Store.open(tmp_path, "demo") as store:
        for made in (record(1.0), record(3.0, res=2048), record(2.0)):
            store.append(made)
        found = store.find(record().run_id)
        assert found is not None
        assert found.total_s == 2.0
        assert store.find("none") is None
    assert [r.total_s for r in latest([record(1.0), record(3.0, res=2048), record(2.0)])] == [2.0, 3.0]


@pytest.mark.parametrize("value", [None, "1024", 0, -1, 1.5, True, math.nan])
def test_a_point_whose_counts_are_no_counts_is_refused_by_name(value: object) -> None:
    data = record().to_dict()
    data["point"]["height"] = value
    with pytest.raises(ResultsError, match=r"point\.height must be a whole number above 0"):
        Record.from_dict(data)


def test_jobs_of_one_sweep_share_a_study_and_keep_other_sweeps_out(tmp_path: Path) -> None:
    with Store.open(tmp_path, "s", shared=True) as one, Store.open(tmp_path, "s", shared=True) as other:
        one.append(record(res=256))
        other.append(record(res=512))
        one.append(record(res=768))
        with pytest.raises(ResultsError, match="one sweep at a time"):
            Store.open(tmp_path, "s")
    assert [r.point["res"] for r in read_records(tmp_path / "s")] == [256, 512, 768]


def test_jobs_of_one_sweep_wait_for_the_line_that_another_writes(tmp_path: Path) -> None:
    path, line = tmp_path / "s/records.jsonl", json.dumps(record(res=256).to_dict()).encode() + b"\n"
    found: list[int] = []

    def job() -> None:
        with Store.open(tmp_path, "s", shared=True) as store:
            found.append(len(store.records))
            store.append(record(res=512))

    def append() -> None:
        mine.append(record(res=768))

    with Store.open(tmp_path, "s", shared=True) as mine:
        for act, whole in ((job, 1), (append, 3)):
            with path.open("ab", buffering=0) as other, ThreadPoolExecutor() as pool:
                fcntl.flock(other, fcntl.LOCK_EX)
                other.write(line[:50])
                waits = pool.submit(act)
                assert not wait([waits], timeout=0.2).done, "half a line is another's to end"
                other.write(line[50:])
                fcntl.flock(other, fcntl.LOCK_UN)
                waits.result(timeout=30)
            assert len(read_records(tmp_path / "s")) == whole + 1
    assert found == [1], "it was not torn"


def test_a_study_that_can_not_be_read_is_left_out_of_all_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, line in (("bad", "[1]\n{}\n"), ("good", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_text(line)
    assert [folder.name for folder, _ in studies(tmp_path)] == ["good"]
    assert "bad/records.jsonl, line 1 is no record (it is a list, not an object)" in capsys.readouterr().err
    with pytest.raises(ResultsError, match="is no folder; name the one that holds the studies"):
        list(studies(tmp_path / "nowhere"))
