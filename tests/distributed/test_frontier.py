"""The search for the largest image that fits, on real gloo ranks, and the decode alone that its trials are."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from tests.distributed.plans import fake_point, run_points
from xdit_bench.config import MeasureConfig, Point
from xdit_bench.results.schema import Record
from xdit_bench.results.store import latest
from xdit_bench.runner.pool import Pool

pytestmark = pytest.mark.usefixtures("no_process_left")
ONCE = MeasureConfig(warmup=0, repeats=1, max_repeats=1)
TOP = 1024
MOST = 1 + math.ceil(math.log2(TOP / 64))  # the top, then halves of what lies below


def search(points: list[Point], results: Path, **knobs: object) -> tuple[list[Record], str]:
    return run_points(points, results, measure=ONCE, frontier=True, **knobs)


def sides(records: list[Record], status: str) -> list[int]:
    return sorted(r.point["res"] for r in records if r.status == status)


@pytest.mark.parametrize("above", [0, 64, 320, 960])
def test_finds_the_largest_size_that_fits_with_a_record_a_trial(above: int, tmp_path: Path) -> None:
    point = dataclasses.replace(fake_point(2, 1, res=TOP, fault="oom", stage="vae", above=above), steps=0)
    records, printed = search([point], tmp_path)
    assert len(records) == len({r.run_id for r in records}) <= MOST
    assert {r.status for r in records} <= {"ok", "oom"}
    assert max(sides(records, "ok"), default=0) == above
    assert min(sides(records, "oom")) == above + 64
    assert f"{above}px fits" in printed if above else "nothing fits" in printed
    oom = next(r for r in records if r.status == "oom")
    assert (oom.failure["stage"], oom.failure["bytes_asked"]) == ("vae", 2.5 * 2**30)
    assert oom.memory["verdict"] == "oom"


def test_where_the_top_fits_one_trial_is_enough_and_it_may_be_an_image(tmp_path: Path) -> None:
    records, _ = search([fake_point(1, 2, res=TOP)], tmp_path)
    assert [(r.point["res"], r.status) for r in records] == [(TOP, "ok")]
    assert set(records[0].latency_s) == {"text", "denoise", "vae", "total"}
    (said,) = [w for w in records[0].warnings if w.startswith("timed without a warm-up (measure.warmup=0)")]
    assert said.endswith("no speedup is made of it")


def test_resumes_where_it_was_and_runs_nothing_twice(tmp_path: Path) -> None:
    point = dataclasses.replace(fake_point(2, 1, res=TOP, fault="oom", stage="vae", above=448), steps=0)
    first, _ = search([point], tmp_path)
    path = tmp_path / "s" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    again, _ = search([point], tmp_path)
    assert [r.run_id for r in again] == [r.run_id for r in first]
    assert path.read_text().splitlines(keepends=True)[:3] == lines[:3]
    done, printed = search([point], tmp_path)
    assert len(done) == len(first)
    assert "448px fits, 512px runs out of memory" in printed


def test_what_runs_out_of_a_larger_memory_is_not_tried_below_a_cap(tmp_path: Path) -> None:
    free = dataclasses.replace(fake_point(1, 1, res=TOP, fault="oom", stage="vae", above=448), steps=0)
    records, _ = search([dataclasses.replace(free, memory_cap_gb=48.0), free], tmp_path)
    capped = [r for r in records if r.point["memory_cap_gb"]]
    assert records.index(capped[0]) == len(records) - len(capped), "the whole card first"
    assert max(sides(capped, "ok")) == 448
    assert not sides(capped, "oom")


def test_a_crash_ends_its_search_with_the_reason_and_the_next_one_goes_on(tmp_path: Path) -> None:
    crash = dataclasses.replace(fake_point(1, 1, res=TOP, fault="raise", stage="vae", above=448), steps=0)
    fits = dataclasses.replace(crash, ring=2)
    records, printed = search([crash, dataclasses.replace(fits, prompt="{}")], tmp_path)
    assert [(r.point["gpus"], r.status) for r in records] == [(1, "crashed"), (2, "ok")]
    assert f"nothing fits; ended, crashed at {TOP}px" in printed
    assert len(latest(search([crash], tmp_path, retry_failed=True)[0])) == 2


def test_ranks_outlive_a_decode_that_runs_out_of_memory_on_rank_0_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = Pool._meet
    monkeypatch.setattr(Pool, "_meet", lambda pool, until: started.append(pool) or start(pool, until))
    point = fake_point(2, 1, res=TOP, fault="oom", rank=0, stage="vae", above=320)
    records, _ = search([dataclasses.replace(point, vae="single", steps=0)], tmp_path)
    assert max(sides(records, "ok")) == 320
    assert all(r.failure["rank"] == 0 for r in records if r.status == "oom")
    assert len(started) == 1


@pytest.mark.slow
def test_a_decode_alone_of_the_real_engine_agrees_between_its_modes_and_times_the_vae_alone(tmp_path: Path) -> None:
    base = dataclasses.replace(fake_point(1, 1, engine="usp", res=192), prompt="", steps=0)
    splits = [(1, 1), (2, 1), (1, 2)]
    points = [
        dataclasses.replace(base, vae=vae, ulysses=u, ring=r)
        for vae in ("parallel", "single", "tiled")
        for u, r in splits
    ]
    records, _ = search(points, tmp_path)
    assert {r.status for r in records} == {"ok"}, [r.reason for r in records]
    assert len(records) == len(points)
    for record in records:
        assert set(record.latency_s) == {"vae", "total"}
        assert record.step_s == {}
        assert record.memory["verdict"] == "fits"
        assert record.memory["parameters_bytes"] > 0
    compared = [r for r in records if "latents_rel_l2" in r.parity]
    assert len(compared) == len(points) - 1
    assert {r.parity["latents_rel_l2"] for r in compared} == {0.0}
    assert all(r.parity["image_max_abs"] <= 2 for r in compared if r.point["vae"] != "tiled")


@pytest.mark.slow
def test_plain_diffusers_decodes_alone_too_and_a_full_point_is_another(tmp_path: Path) -> None:
    base = dataclasses.replace(fake_point(1, 1, engine="usp", res=128), prompt="", vae="single")
    records, _ = run_points([base, dataclasses.replace(base, steps=0)], tmp_path, measure=ONCE)
    assert {(r.point["engine"], r.point["steps"]) for r in records} == {
        ("stock", 0), ("usp", 0), ("stock", 2), ("usp", 2)
    }  # fmt: skip
    assert len({r.run_id for r in records}) == 4
    assert {r.status for r in records} == {"ok"}, [r.reason for r in records]
    assert {r.parity.get("latents_rel_l2") for r in records if r.point["steps"] == 0} <= {None, 0.0}
