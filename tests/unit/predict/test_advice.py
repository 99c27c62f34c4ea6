"""Ties, runner-ups, fewest GPUs, and measured records in place of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.advice import Advice, Option, advise, from_record, splits, ties
from xdit_bench.predict.points import make_point
from xdit_bench.predict.records import predicted_record
from xdit_bench.results.schema import Record
from xdit_bench.topology.specs import load

L40 = load("l40_pcie")


def option(seconds: float, errors: dict[str, float], source: str = "predicted", ulysses: int = 4) -> Option:
    point = make_point(PLAIN, ulysses=ulysses)
    return Option(point, seconds, 0.9 * seconds, 1.1 * seconds, errors, 1e9, "fits", "", source)


@pytest.fixture(autouse=True)
def _model(schnell: ModelSpec) -> None:
    global PLAIN
    PLAIN = schnell


def test_splits_are_all_factorizations() -> None:
    assert splits(4) == [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1)]


def test_errors_in_common_cancel_in_a_tie() -> None:
    assert not ties(option(1.0, {"compute": 0.2}), option(1.1, {"compute": 0.2}))
    assert ties(option(1.0, {"compute": 0.2}), option(1.015, {"compute": 0.2}))
    assert ties(option(1.0, {"network": 0.02}), option(1.1, {"network": 0.15}))
    assert not ties(option(1.0, {}, "measured"), option(1.01, {}, "measured"))


def test_of_tied_options_the_one_with_fewer_gpus_is_best(schnell: ModelSpec) -> None:
    advice = advise(make_point(schnell, topology="l40_pcie"), schnell, L40)
    tied = tuple(dataclasses.replace(o, seconds=1.0 + 0.001 * n, errors={}) for n, o in enumerate(advice.options))
    assert dataclasses.replace(advice, options=tied).best.point.gpus == 1


def test_a_tie_is_no_reason_to_pay_more() -> None:
    cheap, unsure = option(1.0, {}, ulysses=2), option(1.3, {"compute": 2.0}, ulysses=1)
    assert ties(cheap, unsure)
    assert Advice((cheap, unsure), {}).best is unsure, "1.3 GPU-seconds for 2.0"
    dear = dataclasses.replace(unsure, seconds=2.1)
    assert ties(cheap, dear)
    assert Advice((cheap, dear), {}).best is cheap


def test_an_option_under_pressure_counts_as_slow_as_it_may_be_until_it_is_measured() -> None:
    pressed = dataclasses.replace(option(1.0, {}, ulysses=1), high=12.0, verdict="pressure")
    roomy = option(1.01, {}, ulysses=2)
    assert Advice((roomy, pressed), {}).best is roomy
    assert Advice((roomy, pressed), {}).fewest(2.0) is roomy
    assert Advice((roomy, pressed), {}).fewest(0.5) is None
    slower = dataclasses.replace(pressed, seconds=2.0, high=13.0)
    assert not ties(pressed, slower), "what pressure may add is the same in both"
    assert not ties(pressed, roomy)
    measured = dataclasses.replace(pressed, source="measured")
    assert Advice((measured, roomy), {}).fewest(2.0) is measured


def test_the_fewest_gpus_that_meet_a_latency(study_point: Callable[..., Point], schnell: ModelSpec) -> None:
    advice = advise(study_point("l40_pcie", 2048), schnell, L40)
    for bound, gpus in ((20.0, 1), (9.0, 2), (4.6, 4)):
        fewest = advice.fewest(bound)
        assert fewest is not None
        assert fewest.seconds <= bound
        assert fewest.point.gpus == gpus
    assert advice.fewest(0.5) is None
    assert "24 heads cannot be split" in advice.failures["u5r1"]


def test_measured_records_stand_in_for_their_own_point_alone(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", ulysses=2)
    predicted = predicted_record(point, schnell, load("h200_nvlink"), "s")
    measured = Record(
        run_id="1", study="s", source="measured", status="ok", point={**predicted.point, "prompt": "else"},
        latency_s={"total": {"median": 0.1, "ci95": [0.09, 0.11]}}, memory={"peak_bytes": 5},
    )  # fmt: skip
    advice = advise(point, schnell, load("h200_nvlink"), 2, [measured])
    sources = {o.split: o.source for o in advice.options}
    assert sources == {"u1r1": "predicted", "u1r2": "predicted", "u2r1": "measured"}
    assert advice.best.split == "u2r1"
    assert advice.best.seconds == 0.1
    assert 0.089 < advice.best.low < 0.09, "its own interval, and a little for another sitting"
    longer = advise(dataclasses.replace(point, steps=9), schnell, load("h200_nvlink"), 2, [measured])
    assert {o.source for o in longer.options} == {"predicted"}


def test_a_time_of_one_sitting_is_told_with_what_others_were_off_by(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", ulysses=2)

    def taken(seconds: float, study: str) -> Record:
        return Record(
            run_id=f"{seconds}", study=study, source="measured", status="ok", point=point.to_dict(),
            latency_s={"total": {"median": seconds, "ci95": [seconds, seconds], "samples": [seconds]}},
        )  # fmt: skip

    def told(*records: Record) -> Option:
        return next(o for o in advise(point, schnell, load("h200_nvlink"), 2, records).options if o.split == "u2r1")

    alone = told(taken(1.0, "a"))
    assert (alone.low, alone.high) == (pytest.approx(0.96035, rel=1e-4), pytest.approx(1.0413, rel=1e-4)), (
        "one image is no certainty"
    )
    both = told(taken(1.2, "a"), taken(1.0, "b"))
    assert both.seconds == 1.0, "the later one"
    assert 0 < both.low < 0.77
    assert both.high > 1.2
    far = told(taken(1.0, "a"), taken(9.0, "b"), taken(1.0, "c"))
    assert 0 < far.low < 1.0 < 9.0 < far.high, "no time is below none"
    of_its_own = {name.replace("run 1.0", "run 2.0"): error for name, error in alone.errors.items()}
    near = dataclasses.replace(alone, seconds=1.03, errors=of_its_own)
    assert not ties(alone, near), "of one sitting both are slower or faster together"
    assert ties(alone, dataclasses.replace(near, seconds=1.007)), "two medians of one image each err by themselves"
    assert ties(both, dataclasses.replace(near, errors={"sitting 9": 0.02}))


def measured_record(point: Point, status: str = "oom", minute: int = 0, reason: str = "it failed") -> Record:
    fine: dict[str, Any] = {"latency_s": {"total": {"median": 6.4}}} if status == "ok" else {}
    return Record(
        run_id=f"{minute}", study="s", source="measured", status=status, point=point.to_dict(),
        reason="" if status == "ok" else reason, time=f"2026-11-01T12:{minute:02d}:00.000+00:00", **fine,
    )  # fmt: skip


def advised(point: Point, schnell: ModelSpec, *records: Record) -> Advice:
    return advise(point, schnell, load("h200_nvlink"), 1, records)


@pytest.mark.parametrize(("changes", "runs"), [
    ({"steps": 4}, False), ({"execution": "graph"}, False), ({"height": 4160, "width": 4160}, False),
    ({"memory_cap_gb": 47.0}, False), ({"memory_cap_gb": 60.0}, True), ({"height": 3072, "width": 3072}, True),
    ({"vae": "tiled"}, True),
])  # fmt: skip
def test_what_ran_out_of_memory_tells_of_all_that_needs_as_much(
    changes: dict[str, Any], runs: bool, schnell: ModelSpec
) -> None:
    tried = make_point(
        schnell, topology="h200_nvlink", height=4096, width=4096, steps=1, execution="eager", vae="parallel",
        memory_cap_gb=48.0,
    )  # fmt: skip
    wanted = dataclasses.replace(tried, **changes)
    found = advised(wanted, schnell, measured_record(tried))
    assert bool(found.options) is runs
    if not runs:
        assert found.failures["u1r1"] == f"measured: it failed ({tried.label})"
        later = measured_record(wanted, "ok", minute=1)
        assert advised(wanted, schnell, measured_record(tried), later).options, "the last word counts"
        assert not advised(wanted, schnell, dataclasses.replace(later, time=measured_record(tried).time),
                           measured_record(tried, minute=2)).options  # fmt: skip


def test_a_graph_that_ran_out_of_memory_tells_nothing_of_eager(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", steps=1, execution="graph")
    record = measured_record(point)
    assert not advised(point, schnell, record).options
    assert advised(dataclasses.replace(point, execution="eager"), schnell, record).options


@pytest.mark.parametrize("status", ["crashed", "incorrect", "timeout"])
def test_a_split_whose_every_run_failed_is_no_advice(status: str, schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink")
    failed = measured_record(point, status, minute=5)
    assert advised(point, schnell, failed).failures == {"u1r1": f"measured: {status}, it failed"}
    assert advised(point, schnell, measured_record(point, "ok"), failed).options, (
        "it has run: a rank may have been killed"
    )


def test_what_limits_a_measured_point_is_a_part_of_its_step(schnell: ModelSpec) -> None:
    made = predicted_record(make_point(schnell, topology="l40_pcie"), schnell, L40, "s")
    shares, said = {"gemm_s": 0.0006, "attention_s": 0.0004, "utilisation": 0.42}, "matrix products (60 % of a step)"
    assert from_record(dataclasses.replace(made, source="measured", attribution=shares)).bottleneck == said


def test_options_whose_intervals_are_far_apart_do_not_tie() -> None:
    slow, fast = option(0.45, {"host": 0.3}), option(0.07, {"compute": 0.003})
    assert not ties(slow, fast)


@pytest.mark.parametrize(
    "other",
    [
        {"transport": "host"}, {"memory_cap_gb": 80.0}, {"vae": "single"}, {"attention": "cudnn"}, {"steps": 8},
        {"text_tokens": 256}, {"execution": "graph"}, {"engine": "stock"},
    ],
)  # fmt: skip
def test_a_record_of_another_point_is_no_measurement_of_this_one(other: dict[str, Any], schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", execution="eager", vae="parallel")
    (found,) = advised(point, schnell, measured_record(dataclasses.replace(point, **other), "ok")).options
    assert found.source == "predicted"
    (found,) = advised(point, schnell, measured_record(dataclasses.replace(point, seed=7, prompt="x"), "ok")).options
    assert (found.source, found.seconds) == ("measured", 6.4)
