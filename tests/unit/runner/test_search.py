"""Which size a search tries next."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.results.schema import Record
from xdit_bench.runner.frontier import Search, at_size, make_searches
from xdit_bench.runner.plan import Job

MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
POINT = Point(
    model="flux_tiny", height=8192, width=8192, steps=0, text_tokens=12, ulysses=1, ring=1, engine="usp",
    execution="eager", attention="auto", vae="single", dtype="bf16", weights="random", seed=0, topology="test",
    transport="p2p",
)  # fmt: skip


def job(**changes: object) -> Job:
    point = replace(POINT, **changes)  # type: ignore[arg-type]
    return Job(point, MODEL, MeasureConfig(), RunConfig(frontier=True), LaunchConfig())


def record(size: int, status: str) -> Record:
    reason = "" if status == "ok" else "made up"
    point = at_size(POINT, size).to_dict()
    return Record("i", "s", "measured", status, point, reason, latency_s={"total": {"median": 1.0}})


@pytest.mark.parametrize("largest", range(0, 8193, 64))
def test_every_frontier_is_found_in_eight_trials(largest: int) -> None:
    search, trials = Search(job()), 0
    while size := search.next_size():
        search.tell(size, record(size, "ok" if size <= largest else "oom"))
        trials += 1
    assert search.fits == largest
    assert search.fails == (None if largest == 8192 else largest + 64)
    assert trials <= 1 + math.ceil(math.log2(8192 / 64)) == 8


def test_a_larger_memory_bounds_a_smaller_one_of_the_same_kind_alone() -> None:
    free, other, capped = make_searches([job(memory_cap_gb=48.0), job(ring=2), job()])
    free.known = {4096: True, 4160: False}
    assert capped.job.point.memory_cap_gb == 48.0
    assert capped.bound([free, capped]) == 4160
    assert capped.next_size(4160) == 2048
    assert free.bound([free, capped]) is None
    assert other.bound([free, capped]) is None


def test_pressure_and_throttling_fit_and_what_shows_nothing_ends_the_search() -> None:
    search = Search(job())
    search.tell(4096, record(4096, "unstable"))
    assert search.fits == 4096
    search.tell(6144, record(6144, "timeout"))
    assert search.next_size() is None
    assert "4096px fits; ended, timeout at 6144px: made up" in search.said
