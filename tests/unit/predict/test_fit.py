"""The fit finds numbers that made the latencies, and keeps to its priors where latencies are silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.fit import fit, get, leave_one_out, priors, put
from xdit_bench.predict.model import predict
from xdit_bench.topology.specs import load

A100 = load("a100_nvlink")


def test_a_number_is_read_and_replaced_by_its_dotted_key() -> None:
    l40 = load("l40_pcie")
    changed = put(put(l40, "links.p2p.2.latency_s", 1e-3), "efficiency.gemm", 0.5)
    assert (get(changed, "links.p2p.2.latency_s"), get(changed, "efficiency.gemm")) == (1e-3, 0.5)
    assert changed.efficiency["gemm"].source == l40.efficiency["gemm"].source
    assert changed.levels("p2p")[1] == l40.levels("p2p")[1]


def test_a_fit_recovers_the_numbers_that_made_the_latencies(
    study_point: Callable[..., Point], schnell: ModelSpec
) -> None:
    wide = [dataclasses.replace(number, spread=0.5) for number in A100.free if number.key != "efficiency.elementwise"]
    loose = dataclasses.replace(A100, free=tuple(wide))
    truth = put(put(priors(loose), "efficiency.gemm", 0.68), "attention.flash", 0.74)
    points = [study_point("a100_nvlink", res, gpus) for res in (1024, 2048, 4096) for gpus in (1, 2, 4)]
    fitted = fit(loose, [(point, schnell, predict(point, schnell, truth).total_s) for point in points])
    assert get(fitted, "efficiency.gemm") == pytest.approx(0.68, rel=0.02)
    assert get(fitted, "attention.flash") == pytest.approx(0.74, rel=0.02)
    assert get(fitted, "host.vae_cold_start_s") == pytest.approx(0.2, rel=1e-3)  # no decode among the points


def test_leave_one_out_never_sees_the_sample_it_predicts(study_point: Callable[..., Point], schnell: ModelSpec) -> None:
    points = [study_point("a100_nvlink", 2048, gpus) for gpus in (1, 2, 4)]
    samples = [(point, schnell, predict(point, schnell, priors(A100)).total_s) for point in points]
    errors = leave_one_out(A100, samples)
    point, model, seconds = samples[1]
    outlier = [samples[0], (point, model, 2 * seconds), samples[2]]
    assert leave_one_out(A100, outlier)[1] == pytest.approx((1 + errors[1]) / 2 - 1, rel=1e-6)
    assert max(map(abs, errors)) < 0.01
