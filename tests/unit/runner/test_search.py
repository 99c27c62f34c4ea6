"""Which size a search tries next."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.__main__ import compose_and_plan
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.planning import Plan, to_job
from xdit_bench.results.schema import Record
from xdit_bench.runner.frontier import Search, at_size, make_searches
from xdit_bench.runner.plan import Job
from xdit_bench.topology.probe import probe

MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
POINT = Point(
    model="flux_tiny", height=8192, width=8192, steps=0, text_tokens=12, ulysses=1, ring=1, engine="usp",
    execution="eager", attention="auto", vae="single", dtype="bf16", weights="random", seed=0, topology="test",
    transport="p2p",
)  # fmt: skip
KIND = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_045_870_592}
H100 = {"device": "cuda", "gpus": 1, "gpu": KIND["name"], "gpu_kinds": [KIND], "links": [["X"]],
        "capacity_bytes": KIND["memory_bytes"]}  # fmt: skip


def job(guess: int | None = None, **changes: object) -> Job:
    point = replace(POINT, **changes)  # type: ignore[arg-type]
    return Job(point, MODEL, MeasureConfig(), RunConfig(frontier=True), LaunchConfig(), guess=guess)


def record(size: int, status: str) -> Record:
    reason = "" if status == "ok" else "made up"
    point = at_size(POINT, size).to_dict()
    return Record("i", "s", "measured", status, point, reason, latency_s={"total": {"median": 1.0}})


@pytest.mark.parametrize("largest", range(0, 8193, 64))
def test_every_frontier_is_found_in_eight_trials(largest: int) -> None:
    assert len(tried(Search(job()), largest)) <= 1 + math.ceil(math.log2(8192 / 64)) == 8


@pytest.mark.parametrize("largest", range(0, 8193, 64))
def test_a_guess_orders_trials_and_changes_no_frontier(largest: int) -> None:
    for guess in range(64, 8193, 576):
        sizes = tried(Search(job(guess)), largest)
        assert sizes[0] == guess
        strides = math.ceil(math.log2(max(abs(largest - guess), 64) / 64)) + 1  # one too far, then halves of the last
        assert len(sizes) <= 1 + 2 * strides, (guess, sizes)


def test_a_right_guess_takes_two_trials_and_the_top_one() -> None:
    assert tried(Search(job(2880)), 2880) == [2880, 2944]
    assert tried(Search(job(2944)), 2880) == [2944, 2880]
    assert tried(Search(job(8192)), 8192) == [8192]
    assert tried(Search(job(7936)), 7488) == [7936, 7872, 7808, 7680, 7424, 7552, 7488]
    assert tried(Search(job(1024)), 8192) == [1024, 1088, 1152, 1280, 1536, 2048, 3072, 5120, 8192]


def tried(search: Search, largest: int) -> list[int]:
    """The sizes of a whole search, each once, which finds the frontier."""
    sizes = []
    while size := search.next_size():
        assert 64 <= size <= 8192
        sizes.append(size)
        search.tell(size, record(size, "ok" if size <= largest else "oom"))
    assert len(set(sizes)) == len(sizes)
    assert search.fits == largest
    assert search.fails == (None if largest == 8192 else largest + 64)
    return sizes


def test_a_search_begins_where_the_model_puts_the_edge_of_a_machine_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["-m", "+sweeps=oom_frontier", "vae=parallel", "ulysses=1", "memory_cap_gb=48,null"]
    monkeypatch.setattr("sys.argv", ["xdit_bench"])
    plan = Plan(machine={**probe(), **H100})
    compose_and_plan(argv, plan, "")
    assert plan.error is None
    jobs = [to_job(planned, "") for planned in plan.points]
    assert {j.point.memory_cap_gb: j.guess for j in jobs} == {48.0: 4416, None: 8192}
    here = Plan(machine=probe())
    compose_and_plan([*argv, "topology=cpu", "model=flux_tiny", "res=256", "memory_cap_gb=null"], here, "")
    assert [to_job(planned, "").guess for planned in here.points] == [None]


def test_a_larger_memory_bounds_a_smaller_one_of_the_same_kind_alone() -> None:
    free, other, capped = make_searches([job(memory_cap_gb=48.0), job(ring=2), job()])
    free.known = {4096: True, 4160: False}
    assert capped.job.point.memory_cap_gb == 48.0
    assert capped.bound([free, capped]) == 4160
    assert capped.next_size(4160) == 2048
    assert Search(job(4160, memory_cap_gb=48.0)).next_size(4160) == 4096, "a guess that is known to fail is not tried"
    assert free.bound([free, capped]) is None
    assert other.bound([free, capped]) is None


def test_a_search_asked_for_twice_is_one_and_tiled_decodes_come_last() -> None:
    found = make_searches([job(vae="tiled"), job(vae="single"), job(vae="tiled"), job(vae="parallel")])
    assert [search.job.point.vae for search in found] == ["parallel", "single", "tiled"]


def test_what_runs_out_below_what_fits_bounds_nothing() -> None:
    search = Search(job(), known={2048: False, 4096: True, 6144: False})  # fragments: a smaller one had failed before
    assert (search.fits, search.fails) == (4096, 6144)
    assert search.next_size() == 5120


def test_pressure_and_throttling_fit_and_what_shows_nothing_ends_the_search() -> None:
    search = Search(job())
    search.tell(4096, record(4096, "unstable"))
    assert search.fits == 4096
    search.tell(6144, record(6144, "timeout"))
    assert search.next_size() is None
    assert "4096px fits; ended, timeout at 6144px: made up" in search.said
