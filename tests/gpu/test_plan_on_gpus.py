"""A plan on real GPUs: telemetry, a point that runs out of memory below a cap, and a rank that dies."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from xdit_bench import data_dir
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.runner.cards import used_bytes, wait_until_free
from xdit_bench.runner.execute import run_plan
from xdit_bench.runner.plan import Job
from xdit_bench.runner.pool import Pool
from xdit_bench.runner.session import MODULES
from xdit_bench.topology.probe import fingerprint, probe, software

MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
BASE = Point(
    model="flux_tiny", height=256, width=256, steps=2, text_tokens=77, ulysses=1, ring=1, engine="usp",
    execution="eager", attention="auto", vae="parallel", dtype="bf16", weights="random", seed=0, topology="test",
    transport="p2p",
)  # fmt: skip


def run(points: list[Point], results: Path, **knobs: object) -> list[Record]:
    machine, packages = probe(), software()
    machine["fingerprint"] = fingerprint(machine, packages)
    measure = MeasureConfig(warmup=1, repeats=3, max_repeats=5, precision=0.2, time_cap_s=20.0)
    jobs = [
        Job(p, MODEL, measure, RunConfig(recheck=0.0, **knobs), LaunchConfig())  # type: ignore[arg-type]
        for p in points
    ]
    with Store.open(results, "s") as store:
        run_plan(jobs, store, machine=machine, software=packages, study="s", console=Console(file=io.StringIO()))
        return list(store.records)


@pytest.mark.gpu
def test_point_below_a_cap_runs_out_of_memory_and_the_next_does_not(tmp_path: Path) -> None:
    large = dataclasses.replace(BASE, height=1536, width=1536)
    records = run([dataclasses.replace(large, memory_cap_gb=0.1), large], tmp_path)
    capped = [r for r in records if r.point["memory_cap_gb"]]
    assert {r.status for r in capped} == {"oom"}
    assert all(r.failure["bytes_asked"] > 0 for r in capped)
    assert all(r.memory["cap_bytes"] == 100_000_000 for r in capped)
    free = [r for r in records if not r.point["memory_cap_gb"]]
    assert {r.status for r in free} == {"ok"}, [r.reason for r in free]
    for record in free:
        assert record.memory["peak_bytes"] > record.memory["parameters_bytes"]
        assert record.telemetry["sm_mhz"][0] > 0
        assert record.telemetry["samples_per_s"] >= 10
        images = len(record.latency_s["total"]["samples"])
        assert all(len(of_rank) == 2 + images for of_rank in record.telemetry["block_launches_s"])


@pytest.mark.gpu
def test_a_search_below_a_cap_ends_where_memory_does(tmp_path: Path) -> None:
    top = dataclasses.replace(BASE, height=4096, width=4096, steps=0, memory_cap_gb=0.2)
    records = run([dataclasses.replace(top, vae=vae) for vae in ("single", "parallel")], tmp_path, frontier=True)
    assert {r.status for r in records} == {"ok", "oom"}, [r.reason for r in records]
    for vae in ("single", "parallel"):
        mine = [r for r in records if r.point["vae"] == vae]
        found = {status: [r for r in mine if r.status == status] for status in ("ok", "oom")}
        fits = max((r.point["res"] for r in found["ok"]), default=0)
        assert min(r.point["res"] for r in found["oom"]) == fits + 64
        assert all(r.failure["bytes_asked"] > 0 for r in found["oom"])
        assert all(max(r.memory["reserved_bytes_per_rank"]) <= 200_000_000 for r in found["ok"])


@pytest.mark.multigpu
def test_ranks_of_every_transport_agree_with_the_baseline(tmp_path: Path) -> None:
    points = [
        dataclasses.replace(BASE, ulysses=u, ring=r, transport=t) for t in ("p2p", "host") for u, r in ((2, 1), (1, 2))
    ]
    records = run(points, tmp_path)
    assert {r.status for r in records} == {"ok"}, [r.reason for r in records]
    alone = next(r for r in records if r.point["gpus"] == 1)
    for record in [r for r in records if r.point["gpus"] == 2]:
        assert record.memory["parameters_bytes"] < alone.memory["parameters_bytes"]  # T5's layers and adaLN shared out
        assert ("link" in record.telemetry) is (record.point["transport"] == "host")
        assert len(record.memory["peak_bytes_per_rank"]) == 2
        direct = record.point["transport"] == "p2p"
        assert all((held > 0) is direct for held in record.memory["symmetric_bytes_per_rank"])


@pytest.mark.multigpu
def test_dead_rank_on_a_gpu_ends_its_point_alone(tmp_path: Path) -> None:
    kill = '{"fault": "kill", "rank": 1, "stage": "denoise", "gpus": 2}'
    dead = dataclasses.replace(BASE, engine="fake", ulysses=2, dtype="fp32", prompt=kill)
    records = run([dead, dataclasses.replace(BASE, ring=2)], tmp_path)
    assert [r.status for r in records if r.point["engine"] == "fake" and r.point["gpus"] == 2] == ["crashed"]
    assert [r.status for r in records if r.point["engine"] == "usp" and r.point["gpus"] == 2] == ["ok"]


@pytest.mark.gpu
def test_spare_pool_holds_no_gpu_memory_before_it_begins_and_none_after_its_end() -> None:
    before = used_bytes()
    pool = Pool(1, "cuda", reads=(MODULES,), spare=True)
    try:
        time.sleep(25.0)  # it reads its modules
        assert all(now - then < 50e6 for now, then in zip(used_bytes(), before, strict=True)), "a context is larger"
        pool.begin()
        assert pool.check()
        assert used_bytes()[0] - before[0] > 50e6
    finally:
        pool.kill()
    assert wait_until_free(before)
