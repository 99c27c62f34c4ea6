"""Every fault a rank, a disk or a person can commit, with real processes: one record a point, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from plans import MACHINE, QUICK, fake_point, run_points, tiny, wait_for

from xdit_bench.errors import ResultsError
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store, latest, read_records
from xdit_bench.runner.pool import Answer, Pool
from xdit_bench.runner.wire import Message

STAGES = ("prepare", "text", "denoise", "vae", "parity")

pytestmark = pytest.mark.usefixtures("no_process_left")


def by_script(records: list[Record], **wanted: object) -> Record:
    """The one record of several ranks whose script holds these entries."""
    found = [r for r in records if r.point["gpus"] > 1 and wanted.items() <= json.loads(r.point["prompt"]).items()]
    assert len(found) == 1, found
    return found[0]


def test_faults_that_ranks_survive_end_the_point_alone_and_keep_the_pool(tmp_path: Path) -> None:
    two = {"gpus": 2}
    points = [
        fake_point(2, 1, **two),
        fake_point(2, 1, fault="oom", stage="vae", **two),
        fake_point(2, 1, fault="raise", stage="text", **two),
        fake_point(2, 1, fault="infeasible", stage="prepare", **two),
        fake_point(2, 1, fault="nan", rank=1, **two),
        fake_point(2, 1, fault="wrong_latents", rank=1, **two),
        fake_point(2, 1, fault="wrong_image", **two),
        fake_point(2, 1, fault="slow", rank=1, seconds=0.05, **two),
        fake_point(3, 1),
        fake_point(8, 1),
    ]
    records, printed = run_points(points, tmp_path, shuffle=True)

    assert sum(r.point["gpus"] > 1 for r in records) == len(points)
    assert len({r.run_id for r in records}) == len(records)
    assert {r.status for r in records if r.point["gpus"] == 1} == {"ok"}
    oom = by_script(records, fault="oom")
    assert oom.status == "oom"
    assert re.match(r"rank [01] ran out of memory in stage vae of image 1: asked for 2\.50 GiB with", oom.reason)
    assert oom.failure["bytes_asked"] == 2.5 * 2**30
    assert oom.failure["bytes_free"] > 0
    assert oom.memory["verdict"] == "oom"
    crash = by_script(records, fault="raise")
    assert crash.status == "crashed"
    assert "in stage text of image 1: RuntimeError: planted fault: a kernel could not be found" in crash.reason
    assert "_fail" in crash.failure["trace"]
    assert by_script(records, fault="infeasible").reason == "planted rule: this engine refuses the point; use another"
    assert "NaN" in by_script(records, fault="nan").reason
    latents = by_script(records, fault="wrong_latents")
    assert latents.status == "incorrect"
    assert latents.parity["latents_rel_l2"] > 0.1
    assert "image is not" in by_script(records, fault="wrong_image").reason
    slow = by_script(records, fault="slow")
    assert slow.status == "ok"
    assert slow.latency_s["denoise"]["median"] > 0.05, "the slowest rank's time, not rank 0's"
    infeasible = {r.point["ulysses"]: r.reason for r in records if r.status == "infeasible" and r.point["ulysses"] > 2}
    assert "8 heads cannot be split over ulysses=3" in infeasible[3]
    assert "needs 8 CPU ranks, and there are 4" in infeasible[8]
    assert printed.count("   ok") == sum(r.status == "ok" for r in records)


@pytest.mark.slow
def test_killed_rank_is_named_with_its_stage_and_the_next_point_runs(tmp_path: Path) -> None:
    killed = [fake_point(1, 2, fault="kill", rank=1, stage=stage, gpus=2) for stage in STAGES]
    records, _ = run_points([*killed, fake_point(2, 1, gpus=2)], tmp_path)

    for stage in STAGES:
        record = by_script(records, fault="kill", stage=stage)
        assert record.status == "crashed"
        assert f"rank 1 was killed by SIGKILL in stage {stage}" in record.reason
    assert sorted(r.status for r in records) == ["crashed"] * 5 + ["ok"] * 7, "six baselines and the last point"


@pytest.mark.slow
def test_rank_that_stops_hangs_or_fails_alone_is_found_among_those_that_wait_for_it(tmp_path: Path) -> None:
    points = [
        fake_point(2, 1, fault="stop", rank=1, gpus=2),
        fake_point(2, 1, fault="hang", rank=1, gpus=2),
        fake_point(2, 1, fault="oom", rank=1, gpus=2),
        fake_point(2, 1, fault="raise", rank=1, gpus=2),
        fake_point(2, 1, fault="exit", rank=0, gpus=2),
        fake_point(1, 2, gpus=2),
    ]
    records, _ = run_points(points, tmp_path, deadline_s=3.0)

    stopped = by_script(records, fault="stop")
    assert stopped.status == "timeout"
    assert "deadline of 3 s; rank 1 was in stage denoise of image 1 and answers nothing" in stopped.reason
    assert "all_reduce" in stopped.failure["last_collective"]["0"], "rank 0 says what it waits in"
    hung = by_script(records, fault="hang")
    assert hung.status == "timeout"
    assert "rank 1 was in stage denoise of image 1" in hung.reason
    assert "sleep" in hung.failure["stack"]
    alone = by_script(records, fault="oom")
    assert alone.status == "oom"
    assert alone.failure["rank"] == 1
    assert by_script(records, fault="exit").reason.startswith("rank 0 ended with exit code 3 in stage denoise")
    assert by_script(records, fault="raise").reason.startswith(
        "rank 1 failed in stage denoise of image 1: RuntimeError"
    )
    assert sum(r.status == "ok" for r in records) == 7, "six baselines and the point without a fault"


def test_after_an_oom_larger_points_are_skipped_unless_all_are_asked_for(tmp_path: Path) -> None:
    points = [fake_point(2, 1, res=res, fault="oom", gpus=2) for res in (64, 128)]
    records, _ = run_points([*points, fake_point(1, 2, res=128)], tmp_path)
    assert [(r.point["res"], r.status) for r in records if r.point["ulysses"] == 2] == [(64, "oom"), (128, "skipped")]
    skipped = next(r for r in records if r.status == "skipped")
    assert "64px u2r1" in skipped.reason
    assert "run.probe_all=true" in skipped.reason
    assert [r.status for r in records if r.point["ring"] == 2] == ["ok"]

    again, _ = run_points(points, tmp_path, probe_all=True)
    assert by_script([r for r in latest(again) if r.point["res"] == 128], fault="oom").status == "oom"


def test_where_one_gpu_can_not_hold_the_point_the_fewest_that_can_are_the_reference(tmp_path: Path) -> None:
    too_large = {"fault": "oom", "gpus": 1}
    records, _ = run_points([fake_point(2, 2, **too_large), fake_point(1, 3, **too_large)], tmp_path)
    assert [(r.point["gpus"], r.status, r.parity.get("reference")) for r in records] == [
        (1, "oom", None), (3, "ok", "itself"), (4, "ok", "fake u1r3 eager"),
    ]  # fmt: skip


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few records."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs privileges this user lacks")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_clear_line_and_earlier_records_stay(tiny_disk: Path) -> None:
    points = [fake_point(2, 1, step_s=0.001 + i / 1e6) for i in range(8)]
    with pytest.raises(ResultsError, match=r"No space left on device.*make room and run the same command again"):
        run_points(points, tiny_disk)
    with Store.open(tiny_disk, "s") as store:
        kept = len(store.records)
        assert kept >= 1
        assert all(r.status == "ok" for r in store.records)


def test_read_only_disk_is_named_before_anything_runs(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(ResultsError, match=r"Read-only file system.*set results_dir to a folder that can"):
        run_points([fake_point(2, 1)], tiny_disk)


def test_disk_that_turns_read_only_ends_the_plan_and_earlier_records_stay(tiny_disk: Path) -> None:
    with Store.open(tiny_disk, "s") as store:
        assert not store.records
    study = tiny_disk / "s"
    run_points([fake_point(1, 1)], tiny_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(ResultsError, match="Read-only file system"):
        run_points([fake_point(2, 1)], tiny_disk)
    assert [r.status for r in read_records(study)] == ["ok"]


def test_interrupt_kills_the_ranks_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, threads = Pool.run, []

    def interrupt(pool: Pool) -> None:
        wait_for(lambda: all(stage == "denoise" for stage, _ in pool.whereabouts().values()))
        os.kill(os.getpid(), signal.SIGINT)

    def run(pool: Pool, command: Message, deadline_s: float) -> list[Answer]:
        if command["op"] == "run" and command["point"]["ulysses"] == 2:
            threads.append(threading.Thread(target=interrupt, args=(pool,)))
            threads[-1].start()
        return real(pool, command, deadline_s)

    monkeypatch.setattr(Pool, "run", run)
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_points([fake_point(2, 1, fault="hang", gpus=2)], tmp_path, printed=said)
    threads[0].join()
    assert re.search(r"interrupted +flux_tiny .*u2r1.* \d+ s in, ranks? 0.* at [a-z]", said.getvalue())
    with Store.open(tmp_path, "s") as store:
        assert [r.status for r in store.records] == ["ok"]


def test_ranks_that_can_not_start_are_tried_twice_then_the_rest_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    records, _ = run_points([fake_point(2, 1), fake_point(1, 2)], tmp_path)
    assert [r.status for r in records] == ["crashed", "crashed", "skipped"]
    assert "could not be started" in records[0].reason
    monkeypatch.undo()
    again, _ = run_points([fake_point(2, 1), fake_point(1, 2)], tmp_path)
    assert [r.status for r in latest(again)] == ["ok", "ok", "ok"], "what was never tried is tried the next time"


def test_a_reference_that_can_not_be_had_again_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_points([fake_point(1, 1, engine="usp", res=48)], tmp_path)
    shutil.rmtree(tmp_path / "s" / "references")  # as in a checkout of committed records
    real, tried = Pool.run, []

    def run(pool: Pool, command: Message, deadline_s: float) -> list[Answer]:
        if command["op"] == "run" and command["measure"] is None:
            tried.append(command)
            return [
                Answer(0, "error", {"kind": "error", "message": "planted fault", "stage": "denoise", "iteration": 1})
            ]
        return real(pool, command, deadline_s)

    monkeypatch.setattr(Pool, "run", run)
    more = [fake_point(*split, engine="usp", res=48) for split in ((1, 2), (2, 1))]
    records, printed = run_points(more, tmp_path)
    assert [r.status for r in records] == ["ok"] * 4
    assert len(tried) == printed.count("no reference for") == 1
    assert "planted fault" in printed


def test_throttled_point_is_taken_again_and_then_called_unstable(tmp_path: Path) -> None:
    from rich.console import Console

    from xdit_bench.config import LaunchConfig, RunConfig
    from xdit_bench.runner.execute import run_plan
    from xdit_bench.runner.plan import Job

    rests: list[int] = []

    class Throttling:
        """Throttles at every try of the two-rank point, and never else."""

        def __enter__(self) -> Throttling:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def report(self, spans: object, *, ranks: int) -> dict[str, object]:
            assert spans
            return {"throttled_images": 2 * (ranks > 1), "throttle_reasons": ["power brake"]}

        def cool_down(self) -> None:
            rests.append(1)

    job = Job(fake_point(2, 1), tiny(), QUICK, RunConfig(recheck=0.0), LaunchConfig())
    with Store.open(tmp_path, "s") as store:
        run_plan([job], store, machine=MACHINE, software={}, study="s", console=Console(file=io.StringIO()),
                 telemetry=Throttling)  # fmt: skip
        assert [r.status for r in store.records] == ["ok", "unstable"]
        assert "during 2 of 2 images, 3 times in a row (power brake)" in store.records[1].reason
    assert len(rests) == 2
