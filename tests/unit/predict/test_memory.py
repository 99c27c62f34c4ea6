"""Peaks and verdicts against published and measured numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import Infeasible, OutOfMemory
from xdit_bench.predict.memory import (
    MemoryPlan,
    decode_bytes,
    largest_that_fits,
    plan_memory,
    symmetric_bytes,
    tile_areas,
    tile_grid,
)
from xdit_bench.predict.model import predict
from xdit_bench.predict.points import make_point
from xdit_bench.predict.profiles import find
from xdit_bench.predict.workload import modulation_bytes, text_encoders
from xdit_bench.topology.specs import load

GIB = 2**30
Make = Callable[..., Point]


@pytest.mark.parametrize(
    ("res", "gpus", "vae", "peak_gb"),
    [(2048, 8, "single", 46.10), (3072, 8, "parallel", 39.38), (4096, 8, "parallel", 42.09), (1024, 1, "none", 34.21),
     (2048, 1, "none", 35.43), (1024, 8, "none", 33.86), (2048, 8, "none", 34.07)],
)  # fmt: skip
def test_published_peaks_are_within_five_percent(
    study_point: Make, schnell: ModelSpec, res: int, gpus: int, vae: str, peak_gb: float
) -> None:
    point = study_point("a100_nvlink", res, gpus, vae=vae)
    plan = plan_memory(point, schnell, load("a100_nvlink"), find("xdit_2024", "eager"))
    assert plan.peak_bytes / 1e9 == pytest.approx(peak_gb, rel=0.05)


@pytest.mark.parametrize(("res", "gib"), [(1024, 2.4), (2048, 9.5), (3072, 21.4), (4096, 38.1)])
def test_plain_decodes_beyond_the_weights_are_those_measured(schnell: ModelSpec, res: int, gib: float) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=res, width=res, engine="stock", vae="single")
    plan = plan_memory(point, schnell, load("h200_nvlink"), find("stock", "eager"))
    assert (plan.peak_bytes - plan.parameters_bytes) / GIB == pytest.approx(gib, rel=0.02, abs=0.05)


def test_an_h100_decodes_3072px_and_thrashes_at_4096px(schnell: ModelSpec) -> None:
    def verdict(res: int, cap: float | None = None) -> str:
        point = make_point(
            schnell, topology="h100_nvlink", height=res, width=res, engine="stock", vae="single", memory_cap_gb=cap
        )
        return plan_memory(point, schnell, load("h100_nvlink"), find("stock", "eager")).verdict

    # what oom_frontier and h100x4 saw on cards of 80 GB: 5376px ends in 122 s, 5632px does not
    sizes = (2048, 3072, 4096, 5120, 5376, 5632)
    assert [verdict(res) for res in sizes] == ["fits", "fits", *["pressure"] * 3, "oom"]
    assert verdict(2048, cap=40.0) == "oom"


@pytest.mark.parametrize(
    ("vae", "gpus", "cap", "measured"),
    [("distvae", 1, 48.0, 2880), ("parallel", 1, 48.0, 4416), ("parallel", 2, 48.0, 7808), ("parallel", 1, 80.0, 8000),
     ("tiled", 1, 48.0, 8192), ("distvae", 1, 80.0, 5248), ("single", 2, 48.0, 3584), ("distvae", 2, 48.0, 3904)],
)  # fmt: skip
def test_the_largest_that_fits_is_near_what_searches_found(
    schnell: ModelSpec, vae: str, gpus: int, cap: float, measured: int
) -> None:
    point = make_point(
        schnell, topology="h100_nvlink", height=64, width=64, engine="usp", vae=vae, execution="eager", steps=0,
        ulysses=gpus, memory_cap_gb=cap,
    )  # fmt: skip
    largest = largest_that_fits(point, schnell, load("h100_nvlink"), range(64, 8193, 64))
    assert largest == pytest.approx(measured, abs=64)  # a step of a search


def test_bands_are_spared_the_workspace_that_a_plain_decode_is_kept_free_for(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h100_nvlink", height=7168, width=7168, steps=0, memory_cap_gb=80.0)
    plan = plan_memory(point, schnell, load("h100_nvlink"), find("usp", "eager"))
    assert plan.verdict == "fits"  # as oom_frontier saw: 70.4 GB in use, 70.5 reserved, no block given back
    assert plan.peak_bytes == pytest.approx(70.4e9, rel=0.02)


def test_nothing_fits_below_the_weights_and_an_engine_without_a_profile_is_no_size(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h100_nvlink", height=64, width=64, engine="usp", steps=0, memory_cap_gb=20.0)
    assert largest_that_fits(point, schnell, load("h100_nvlink"), range(64, 8193, 64)) is None
    with pytest.raises(Infeasible):
        largest_that_fits(replace(point, engine="fake"), schnell, load("h100_nvlink"), [64])


def test_a_cramped_decode_is_held_by_the_card_and_may_be_twenty_times_as_slow(schnell: ModelSpec) -> None:
    h100 = load("h100_nvlink")

    def plan(res: int) -> MemoryPlan:
        point = make_point(schnell, topology="h100_nvlink", height=res, width=res, engine="stock", vae="single")
        return plan_memory(point, schnell, h100, find("stock", "eager"))

    roomy, tight = plan(4096), plan(5120)
    assert (roomy.cramped, tight.cramped) == (False, True)
    assert tight.least_bytes < tight.peak_bytes == tight.cap_bytes
    assert roomy.least_bytes < 68.2e9 < roomy.peak_bytes  # as h100x4 saw it
    slowest = []
    for res in (4096, 5120):
        stage = predict(
            make_point(schnell, topology="h100_nvlink", height=res, width=res, engine="stock", vae="single"),
            schnell, h100,
        ).stages["vae"]  # fmt: skip
        slowest.append(stage.high / stage.median)
    assert 9 < slowest[0] < 12 < 20 < slowest[1]


def test_a_cap_beyond_the_card_changes_nothing(schnell: ModelSpec) -> None:
    def cap(gigabytes: float | None) -> int:
        point = make_point(schnell, topology="l40_pcie", memory_cap_gb=gigabytes)
        return plan_memory(point, schnell, load("l40_pcie"), find("usp", "eager")).cap_bytes

    assert cap(141.0) == cap(None)
    assert cap(40.0) == 40_000_000_000


def test_a_cap_leaves_out_symmetric_buffers_and_a_card_does_not(schnell: ModelSpec) -> None:
    def cap(gigabytes: float | None, ulysses: int) -> int:
        point = make_point(schnell, topology="h200_nvlink", ulysses=ulysses, memory_cap_gb=gigabytes)
        return plan_memory(point, schnell, load("h200_nvlink"), find("usp", "eager")).cap_bytes

    buffers = 4 * 6144 * 4608 // 2  # keys with values, queries and what comes back, of half the tokens
    assert cap(60.0, 2) == 60_000_000_000 + buffers
    assert cap(None, 2) == cap(None, 1)


def test_only_rank_0_decodes_when_the_vae_is_not_parallel(schnell: ModelSpec) -> None:
    plans = {
        vae: plan_memory(
            make_point(schnell, topology="h200_nvlink", height=2048, width=2048, ulysses=4, vae=vae),
            schnell, load("h200_nvlink"), find("usp", "eager"),
        )
        for vae in ("single", "parallel")
    }  # fmt: skip
    first, *others = plans["single"].peak_bytes_per_rank
    assert first > max(others)
    assert len(set(plans["parallel"].peak_bytes_per_rank)) == 1
    assert plans["parallel"].peak_bytes < first


@pytest.mark.parametrize(
    ("res", "gpus", "gib"), [(1024, 1, 1.43), (2048, 1, 3.35), (2048, 2, 1.73), (3072, 1, 6.68), (3072, 2, 3.34),
                             (4096, 1, 11.27)],
)  # fmt: skip
def test_banded_decodes_beyond_weights_and_exchange_buffers_are_those_measured_on_h200s(
    schnell: ModelSpec, res: int, gpus: int, gib: float
) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=res, width=res, ulysses=gpus)
    assert decode_bytes(point, schnell, find("usp", "graph")) / GIB == pytest.approx(gib, rel=0.05)


def test_a_decode_alone_holds_no_buffers_of_the_exchange(schnell: ModelSpec) -> None:
    point, h200 = make_point(schnell, topology="h200_nvlink", ulysses=2), load("h200_nvlink")
    steps, alone = (symmetric_bytes(replace(point, steps=n), schnell, h200, find("usp", "graph")) for n in (4, 0))
    assert steps > alone == 0


@pytest.mark.parametrize(("res", "peak_gb"), [(2048, 2.64), (8192, 3.47)])
def test_tiled_decodes_hold_the_picture_beside_a_tile_as_measured(schnell: ModelSpec, res: int, peak_gb: float) -> None:
    point = make_point(schnell, height=res, width=res, engine="usp", vae="tiled")
    assert decode_bytes(point, schnell, find("usp", "graph")) / 1e9 == pytest.approx(peak_gb, rel=0.05)


@pytest.mark.parametrize(("res", "gib"), [(1024, 1.5), (2048, 5.8), (3072, 13.0), (4096, 23.1)])
def test_distvae_decodes_on_two_gpus_are_those_measured(schnell: ModelSpec, res: int, gib: float) -> None:
    point = make_point(schnell, height=res, width=res, ulysses=2, engine="xfuser", vae="distvae")
    assert decode_bytes(point, schnell, find("xfuser", "eager")) / GIB == pytest.approx(gib, rel=0.05)


def test_two_ranks_of_usp_hold_half_the_modulation_and_of_t5_each_once_all_is_loaded(schnell: ModelSpec) -> None:
    def plan(gpus: int, engine: str = "usp") -> MemoryPlan:
        point = make_point(schnell, topology="h200_nvlink", ulysses=gpus, vae="none", engine=engine)
        return plan_memory(point, schnell, load("h200_nvlink"), find(engine, "eager"))

    one, two = plan(1), plan(2)
    assert one.parameters_bytes - two.parameters_bytes == pytest.approx(
        (modulation_bytes(schnell) + text_encoders(schnell).layers_bytes) / 2
    )
    assert text_encoders(schnell).layers_bytes == pytest.approx(9.2e9, rel=0.02)  # of the 4.7e9 weights in bf16
    assert one.peak_bytes - two.peak_bytes > 7e9
    tight = make_point(schnell, topology="h200_nvlink", ulysses=2, vae="none", memory_cap_gb=33.0)
    plan_33 = plan_memory(tight, schnell, load("h200_nvlink"), find("usp", "eager"))
    assert plan_33.verdict == "oom"  # it would fit, but for the loading of all weights
    assert plan_33.peak_bytes < 33e9
    assert plan(2, "diffusers").parameters_bytes == one.parameters_bytes


def test_symmetric_buffers_count_although_they_lie_outside_the_allocator(schnell: ModelSpec) -> None:
    h200, usp = load("h200_nvlink"), find("usp", "eager")

    def outside(ulysses: int, ring: int, transport: str = "p2p") -> float:
        point = make_point(schnell, topology="h200_nvlink", ulysses=ulysses, ring=ring, transport=transport)
        return symmetric_bytes(point, schnell, h200, find("usp", "eager"))

    row = 6144 * 4608
    assert outside(1, 1) == outside(2, 1, "host") == 0.0
    assert outside(2, 1) == 4 * row / 2  # keys with values, queries, what comes back
    assert outside(1, 2) == 4 * row / 2  # all gathered keys and values, among which a hop's have room
    assert outside(2, 2) == 8 * row / 4
    large = make_point(schnell, topology="h200_nvlink", height=5120, width=5120, ring=2)  # too large to be gathered
    assert symmetric_bytes(large, schnell, h200, find("usp", "eager")) == 2 * 6144 * 102912 / 2
    direct, staged = (
        plan_memory(make_point(schnell, topology="h200_nvlink", ulysses=2, transport=t), schnell, h200, usp)
        for t in ("p2p", "host")
    )
    assert direct.peak_bytes - staged.peak_bytes == outside(2, 1)


def test_tiles_cover_the_picture_with_a_quarter_of_overlap(schnell: ModelSpec) -> None:
    point = make_point(schnell, height=1024, width=2048)
    assert tile_areas(point, schnell) == [128 * 128, 128 * 128, 128 * 64, 32 * 128, 32 * 128, 32 * 64]
    assert tile_areas(make_point(schnell, height=768, width=1024), schnell) == [96 * 128]


def test_weights_that_can_not_be_loaded_do_not_fit_whatever_buffers_the_cap_leaves_out(schnell: ModelSpec) -> None:
    """Symmetric memory lies outside a cap, but all weights are loaded before there is any."""
    h200 = load("h200_nvlink")
    two = make_point(schnell, topology="h200_nvlink", height=4096, width=4096, ring=2, execution="graph", vae="none")
    plans = [plan_memory(replace(two, memory_cap_gb=gb), schnell, h200, find("usp", "graph")) for gb in (33.0, 36.0)]
    assert [(plan.verdict, plan.stage) for plan in plans] == [("oom", "load"), ("fits", "denoise")]
    assert plans[0].loading_bytes > 33.0e9
    with pytest.raises(OutOfMemory, match=r"loads all weights first, 34\.\d GB, more than a cap of 33 GB"):
        predict(replace(two, memory_cap_gb=33.0), schnell, h200)


def test_a_band_of_too_many_elements_fell_back_too(study_point: Make, schnell: ModelSpec) -> None:
    a100, profile = load("a100_nvlink"), find("xdit_2024", "eager")
    two, four = (study_point("a100_nvlink", 4096, gpus, vae="parallel") for gpus in (2, 4))
    assert plan_memory(two, schnell, a100, profile).verdict == "oom"  # 256 channels over half of 4096 x 4096: 2**31
    assert plan_memory(four, schnell, a100, profile).verdict == "fits"


def test_what_arrives_is_held_whichever_way_it_came(schnell: ModelSpec) -> None:
    h200, row = load("h200_nvlink"), 6144 * (65536 + 512) / 8
    for engine, execution, transport, split, rows in (
        ("usp", "graph", "host", {"ring": 8}, 16),  # keys and values of eight ranks
        ("usp", "graph", "host", {"ulysses": 8}, 4),  # keys with values, queries and what comes back
        ("usp", "graph", "host", {"ulysses": 4, "ring": 2}, 8),
        ("diffusers", "eager", "p2p", {"ring": 8}, 16),
        ("diffusers", "eager", "p2p", {"ulysses": 8}, 0),  # among its live rows
    ):
        point = make_point(schnell, topology="h200_nvlink", height=4096, width=4096, engine=engine,
                           execution=execution, transport=transport, vae="none", **split)  # fmt: skip
        profile = find(engine, execution)
        bare = replace(profile, symmetric=False, ring_gathers=False)
        more = [plan_memory(point, schnell, h200, p).peak_bytes for p in (profile, bare)]
        assert more[0] - more[1] == pytest.approx(rows * row, rel=1e-3), point.label


def test_tiles_make_a_grid(schnell: ModelSpec) -> None:
    def grid(height: int, width: int) -> tuple[int, int]:
        return tile_grid(make_point(schnell, topology="h200_nvlink", height=height, width=width), schnell)

    assert [grid(1024, 1024), grid(1024, 2048), grid(2048, 2048)] == [(1, 1), (2, 3), (3, 3)]
