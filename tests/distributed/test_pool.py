"""A plan on real ranks over gloo: what comes out when all goes well, and what stays when it is run again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from plans import QUICK, fake_point, run_points, wait_for

from xdit_bench.config import LaunchConfig
from xdit_bench.results.store import Store
from xdit_bench.runner.pool import Pool
from xdit_bench.runner.process import running
from xdit_bench.runner.session import MODULES
from xdit_bench.runner.wire import connect

pytestmark = pytest.mark.usefixtures("no_process_left")


def test_real_engine_on_two_ranks_matches_the_baseline_the_plan_added(tmp_path: Path) -> None:
    profiled = dataclasses.replace(QUICK, profile=True)
    records, printed = run_points([fake_point(1, 2, engine="usp", res=48)], tmp_path, measure=profiled)

    assert [(r.point["engine"], r.point["gpus"], r.status) for r in records] == [
        ("stock", 1, "ok"), ("usp", 1, "ok"), ("usp", 2, "ok"),
    ]  # fmt: skip
    sharded = records[-1]
    assert sharded.parity["reference"] == "stock u1r1 eager"
    assert 0 < sharded.parity["latents_rel_l2"] < 1e-5
    assert sharded.parity["image_max_abs"] <= 1
    assert len(sharded.memory["peak_bytes_per_rank"]) == 2
    assert sharded.memory["parameters_bytes"] > 0
    assert sharded.attribution["gemm_s"] > 0
    assert sharded.attribution["launch_s"] > 0
    samples = (sharded.latency_s[stage]["samples"] for stage in ("text", "denoise", "vae", "total"))
    for text, denoise, vae, total in zip(*samples, strict=True):
        assert max(text, denoise, vae) < total <= text + denoise + vae
    assert sharded.step_s["median"] == pytest.approx(sharded.latency_s["denoise"]["median"] / 2)
    assert printed.count("s an image") == 3
    for record in records:
        folder = tmp_path / "s" / "outputs" / record.run_id
        assert sorted(path.name for path in folder.iterdir()) == ["image.png", "latents.safetensors"]

    shutil.rmtree(tmp_path / "s" / "references")  # as in a checkout of committed records
    records, _ = run_points([fake_point(1, 2, engine="usp", res=48), fake_point(2, 1, engine="usp", res=48)], tmp_path)
    assert len(records) == 4
    assert records[-1].parity["reference"] == "stock u1r1 eager", "computed again, untimed"
    assert records[-1].parity["latents_rel_l2"] < 1e-5


def test_isolated_points_get_fresh_ranks_each_and_no_more_than_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Counted(Pool):
        def __init__(self, ranks: int, device: str, **knobs: Any) -> None:
            started.append(ranks)
            super().__init__(ranks, device, **knobs)

    monkeypatch.setattr("xdit_bench.runner.session.Pool", Counted)
    clock = itertools.count(2e9, -3600.0)
    monkeypatch.setattr("time.time", lambda: next(clock))  # steps back an hour at each look
    records, _ = run_points([fake_point(2, 1)], tmp_path, isolation="point", recheck=1.0)
    assert started == [1, 2]
    assert [r.status for r in records] == ["ok", "ok"]
    assert all(r.latency_s["total"]["median"] > 0 for r in records), "no time hangs on the wall clock"


def test_plan_resumes_retries_on_request_and_rechecks_in_fresh_processes(tmp_path: Path) -> None:
    points = [fake_point(2, 1), fake_point(1, 2, fault="raise")]
    first, _ = run_points(points, tmp_path)
    assert sorted(r.status for r in first) == ["crashed", "crashed", "ok", "ok"]
    again, printed = run_points(points, tmp_path, recheck=1.0)
    assert again == first
    assert printed.strip() == "4 points of this command stood in the study before; run.resume=false measures them anew"

    points += [fake_point(2, 1, step_s=0.002)]
    retried, printed = run_points(points, tmp_path, retry_failed=True, recheck=0.5)
    assert len(retried) == len(first) + 2 + 2 + 1, "two failures once more, two new points, one recheck"
    *_, again = retried  # the record of the first point that succeeded, with what fresh processes took
    rechecked = [r.telemetry["recheck"] for r in retried if "recheck" in r.telemetry]
    assert [r["status"] for r in rechecked] == ["ok"]
    (before,) = (r for r in retried[len(first) :] if r.run_id == again.run_id and r is not again)
    assert again.total_s == before.total_s, "the times taken first stay the point's"
    assert before.total_s is not None
    fresh = rechecked[0]["total_s"]
    assert rechecked[0]["drift"] == pytest.approx(fresh["median"] / before.total_s - 1)
    assert fresh["samples"] != before.latency_s["total"]["samples"]
    assert "fresh processes" in printed


def test_a_wrong_image_is_told_although_a_point_without_one_made_the_reference(tmp_path: Path) -> None:
    wrong = fake_point(2, 1, fault="wrong_image", gpus=2)
    first, _ = run_points([dataclasses.replace(wrong, vae="none")], tmp_path)
    assert [r.status for r in first] == ["ok", "ok"]
    records, _ = run_points([wrong], tmp_path)
    assert {r.point["gpus"]: r.status for r in records[2:]} == {1: "ok", 2: "incorrect"}
    assert "the latents are right but the image is not" in records[-1].reason


def test_what_kept_a_point_from_running_holds_no_longer_than_it_is_so(tmp_path: Path) -> None:
    refused, _ = run_points([fake_point(2, 1)], tmp_path, launch=LaunchConfig(gpus=1))
    assert [r.status for r in refused] == ["infeasible"]
    records, _ = run_points([fake_point(2, 1)], tmp_path)
    assert [(r.status, r.point["gpus"]) for r in records[1:]] == [("ok", 1), ("ok", 2)]
    impossible, _ = run_points([fake_point(1, 1, fault="infeasible")], tmp_path)
    assert impossible[-1].status == "infeasible"
    assert run_points([fake_point(1, 1, fault="infeasible")], tmp_path)[0] == impossible, "what an engine lacks stands"
    (taken,) = [r for r in records if r.point["gpus"] == 1 and r.status == "ok"]
    with Store.open(tmp_path, "s") as store:  # another process held the memory then
        store.append(dataclasses.replace(taken, status="oom", latency_s={}, step_s={}, reason="planted"))
    small, large = fake_point(1, 1), fake_point(1, 1, res=128)
    after, _ = run_points([small, large], tmp_path, retry_failed=True)
    assert [r.status for r in after[-2:]] == ["ok", "ok"]


def test_strangers_at_the_meeting_are_turned_away_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    meet, strangers = Pool._meet, []

    def among_strangers(pool: Pool, until: float) -> None:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"token": "\u00e9"}\n', b'{"tok', b"x" * 100_000):
            strangers.append(connect(pool._control()))
            strangers[-1].socket.sendall(said)
        meet(pool, until)

    monkeypatch.setattr(Pool, "_meet", among_strangers)
    with Pool(2, "cpu") as pool:
        assert pool.check()
        assert len(pool._members) == 2
        for stranger in strangers:
            stranger.socket.settimeout(5)
            assert stranger.receive() is None
            stranger.close()


def test_ranks_listen_to_this_machine_alone_and_get_their_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Pool(2, "cpu", transport="socket") as pool:
        environment = psutil.Process(pool.pids[-1]).environ()
        assert environment["NCCL_P2P_DISABLE"] == environment["NCCL_SHM_DISABLE"] == "1"
        assert environment["OMP_NUM_THREADS"] == "1", "a CPU rank is one core, or its time hangs on the others' number"
        listening = [
            c for pid in pool.pids for c in psutil.Process(pid).net_connections("inet") if c.status == "LISTEN"
        ]
        assert [c for c in listening if not c.laddr.ip.startswith("127.") and c.laddr.ip != "::1"] == []


def test_killed_parent_leaves_no_process_and_its_finished_records(tmp_path: Path) -> None:
    script = f"""
import sys
import time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from plans import QUICK, fake_point, run_points
run_points([fake_point(2, 1, fault="hang", gpus=2)], Path({str(tmp_path)!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    records = tmp_path / "s" / "records.jsonl"
    wait_for(lambda: records.exists() and records.read_text().count("\n") == 1)
    children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    assert len(children) == 3, "a launcher and two ranks"
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    wait_for(lambda: not any(running(pid) for pid in children))
    with Store.open(tmp_path, "s") as store:
        assert [(r.status, r.point["gpus"]) for r in store.records] == [("ok", 1)]


def test_spare_pool_has_no_ranks_until_it_begins_and_dies_with_or_without_them() -> None:
    with Pool(2, "cpu", reads=(MODULES,)) as first:
        assert "tokenizers" in Path(f"/proc/{first.pids[0]}/maps").read_text(), "the launcher has read transformers"
        unused, pool = first.again(spare=True), first.again(spare=True)
    assert [len(p.pids) for p in (unused, pool)] == [1, 1]
    unused.kill()
    assert not running(unused.pids[0])
    pool.begin()
    assert len(pool.pids) == 3
    assert pool.check()
    pool.close()


def test_rank_whose_first_words_come_together_is_taken_in() -> None:
    pool = Pool(1, "cpu", spare=True)
    with subprocess.Popen(["sleep", "60"]) as rank:
        try:
            link = connect(pool._control())
            hello = {"event": "hello", "rank": 0, "pid": rank.pid, "node": 0, "token": pool._token}
            link.socket.sendall(b"".join(json.dumps(said).encode() + b"\n" for said in (hello, {"event": "ready"})))
            pool._meet(time.monotonic() + 10.0)
            assert pool.check()
        finally:
            pool.kill()
            rank.kill()


def test_rank_that_dies_between_points_is_noticed_before_the_next() -> None:
    with Pool(2, "cpu") as pool:
        assert pool.check()
        pids = pool.pids
        os.kill(pids[-1], signal.SIGKILL)
        wait_for(lambda: not pool.check())
        assert not any(running(pid) for pid in pids)
