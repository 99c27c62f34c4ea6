"""What a plan holds and in which order it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.results.schema import Record
from xdit_bench.runner.plan import Cell, Job, cost, doomed, make_cells, reference_key

MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_schnell.yaml").read_text()))
BASE = Point(
    model="flux_schnell", height=1024, width=1024, steps=4, text_tokens=512, ulysses=1, ring=1, engine="usp",
    execution="compile", attention="fa3", vae="parallel", dtype="bf16", weights="random", seed=0,
    topology="h200_nvlink", transport="p2p", prompt="a sailor",
)  # fmt: skip


def at(ulysses: int, ring: int, res: int = 1024, **changes: object) -> Point:
    return replace(BASE, ulysses=ulysses, ring=ring, height=res, width=res, **changes)  # type: ignore[arg-type]


def cells(*points: Point, gpus: int = 8, **run: object) -> list[Cell]:
    config = RunConfig(**run)  # type: ignore[arg-type]
    jobs = [Job(p, MODEL, MeasureConfig(), config, LaunchConfig()) for p in points]
    return make_cells(jobs, gpus=gpus, fingerprint="f", code="c")


def short(planned: list[Cell]) -> list[tuple[str, int, int]]:
    return [(c.point.engine, c.point.height, c.point.gpus) for c in planned]


def test_baselines_are_added_once_and_run_first_small_images_before_large() -> None:
    planned = cells(at(2, 1, 2048), at(2, 1), at(1, 2), at(2, 1))
    assert short(planned) == [
        ("stock", 1024, 1), ("usp", 1024, 1), ("usp", 1024, 2), ("usp", 1024, 2),
        ("stock", 2048, 1), ("usp", 2048, 1), ("usp", 2048, 2),
    ]  # fmt: skip


def test_stock_baseline_is_plain_diffusers_whatever_the_point_tries() -> None:
    stock = next(c.point for c in cells(at(2, 1)) if c.point.engine == "stock")
    assert (stock.execution, stock.attention, stock.vae) == ("eager", "auto", "single")
    without = next(c.point for c in cells(at(2, 1, vae="none")) if c.point.engine == "stock")
    assert without.vae == "none"


def test_baseline_that_was_typed_is_not_added_again() -> None:
    typed = replace(BASE, engine="stock", execution="eager", attention="auto", vae="single")
    assert len(cells(typed, at(1, 1), at(2, 1))) == 3


def test_an_engine_with_gains_left_out_is_no_baseline_and_has_stock_alone() -> None:
    planned = cells(at(2, 1, without="overlap"), at(1, 1, without="fused"))
    seen = [(c.point.engine, c.point.gpus, c.point.without) for c in planned]
    assert seen == [("stock", 1, ""), ("usp", 1, "fused"), ("usp", 2, "overlap")]
    assert len({c.reference for c in planned}) == 1, "leaving a gain out must not change the image"


def test_infeasible_cells_stay_in_the_plan_with_their_reason_and_without_baselines() -> None:
    planned = cells(at(5, 1), at(16, 1, 2048))
    assert [(c.point.ulysses, c.point.height) for c in planned] == [(5, 1024), (16, 2048)]
    assert all(c.why_not for c in planned)
    assert [bool(c.why_not) for c in cells(at(2, 1, 512), at(5, 1, 2048))] == [True, False, False, False]


def test_one_transport_and_one_model_at_a_time() -> None:
    planned = cells(*(at(2, 1, res, transport=t) for res in (1024, 2048) for t in ("socket", "p2p")))
    transports = [c.point.transport for c in planned]
    assert transports == sorted(transports), "a change of transport needs new ranks"


def test_shuffled_order_is_the_same_each_time_and_not_the_typed_one() -> None:
    points = [at(u, r) for u in (1, 2, 4, 8) for r in (1, 2, 4) if 1 < u * r <= 8]
    first, again = cells(*points), cells(*reversed(points))
    assert [c.run_id for c in first] == [c.run_id for c in again]
    plain = cells(*points, shuffle=False)
    assert [c.point.gpus for c in plain] == sorted(c.point.gpus for c in plain)
    assert [c.run_id for c in plain] != [c.run_id for c in first]


def test_reference_is_shared_by_what_must_compute_the_same_image() -> None:
    keys = {
        reference_key(p, "f", "c") for p in (at(1, 1), at(2, 2), at(1, 1, engine="stock", vae="none", attention="auto"))
    }
    assert len(keys) == 1
    for change in ({"seed": 1}, {"dtype": "fp32"}, {"steps": 2}, {"text_tokens": 77}, {"prompt": "b"}):
        assert reference_key(at(1, 1, **change), "f", "c") not in keys


def oom(point: Point) -> Record:
    return Record("id", "s", "measured", "oom", point.to_dict(), reason="no memory")


@pytest.mark.parametrize(("point", "skipped"), [
    (at(2, 1, 4096), True),
    (at(1, 2, 4096), True),  # as many GPUs
    (at(1, 1, 4096), True),  # fewer GPUs
    (at(4, 1, 4096), False),  # more GPUs may fit
    (at(2, 1, 2048), False),  # no larger
    (at(2, 1, 1024), False),
    (at(2, 1, 4096, vae="none"), False),  # needs less
    (at(2, 1, 4096, execution="eager"), False),
    (at(2, 1, 4096, memory_cap_gb=40.0), True),  # even less room
])  # fmt: skip
def test_oom_dooms_larger_points_of_its_kind_on_no_more_gpus(point: Point, skipped: bool) -> None:
    cell = next(c for c in cells(point) if c.point == point)
    assert (doomed(cell, [oom(at(2, 1, 2048))]) is not None) is skipped


def test_oom_below_a_cap_says_nothing_about_the_whole_card() -> None:
    cell = next(c for c in cells(at(2, 1, 4096)) if c.point.gpus == 2)
    assert doomed(cell, [oom(at(2, 1, 2048, memory_cap_gb=40.0))]) is None


def test_estimate_grows_with_size_and_falls_with_gpus() -> None:
    assert cost(at(1, 1, 2048)) > 4 * cost(at(1, 1, 1024))
    assert cost(at(8, 1, 2048)) < cost(at(4, 1, 2048))


def ran_out(point: Point) -> Record:
    return Record("r", "s", "measured", "oom", point.to_dict(), "made up")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (at(1, 1, 1024, steps=0), "a decode alone holds other things than an image"),
        (replace(BASE, height=4096, width=512), "a side of it is longer, for all that it has fewer pixels"),
        (replace(BASE, height=512, width=4096), "a side of it is longer, for all that it has fewer pixels"),
        (at(1, 1, 1024, model="flux_dev"), "another model"),
        (at(1, 1, 1024, dtype="fp32"), "another number format"),
        (at(2, 1, 1024, memory_cap_gb=48.0), "on less memory"),
    ],
)
def test_what_ran_out_dooms_only_what_must_run_out_too(other: Point, why: str) -> None:
    (cell,) = (c for c in cells(at(1, 1, 2048), gpus=1) if c.point.engine == "usp")
    assert doomed(cell, [ran_out(other)]) is None, why
    assert doomed(cell, [ran_out(at(1, 1, 1024, seed=7, prompt="another", steps=1))]), "none of which takes memory"


@pytest.mark.parametrize(
    "change", [{"model": "flux_dev"}, {"height": 2048}, {"width": 2048}, {"steps": 1}, {"seed": 1}, {"weights": "w"}]
)
def test_unequal_pictures_have_no_common_reference(change: dict[str, object]) -> None:
    changed = replace(BASE, **change)  # type: ignore[arg-type]
    assert reference_key(changed, "f", "c") != reference_key(BASE, "f", "c")


def test_a_reference_is_of_its_machine_and_code_and_serves_every_split_and_engine() -> None:
    same = reference_key(at(2, 1, engine="stock", vae="single", execution="eager"), "f", "c")
    assert same == reference_key(BASE, "f", "c")
    assert same != reference_key(BASE, "another machine", "c")
    assert same != reference_key(BASE, "f", "other code")
