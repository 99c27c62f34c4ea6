"""Predicted records hold intervals and no samples; failures are records too; identities follow data and code."""

from __future__ import annotations

import dataclasses

from xdit_bench.config import ModelSpec
from xdit_bench.predict.points import make_point
from xdit_bench.predict.records import fingerprint, predicted_record
from xdit_bench.results.schema import Record
from xdit_bench.topology.specs import load

A100 = load("a100_nvlink")


def test_an_ok_record_has_intervals_by_stage_terms_and_memory(schnell: ModelSpec) -> None:
    point = make_point(schnell, ulysses=2, ring=2, dtype="auto")
    record = predicted_record(point, schnell, A100, "study")
    assert (record.source, record.status, record.point["dtype"]) == ("predicted", "ok", "bf16")
    for stage in ("total", "text", "denoise", "vae"):
        statistics = record.latency_s[stage]
        assert set(statistics) == {"median", "low", "high"}
        assert statistics["low"] < statistics["median"] < statistics["high"]
    terms = [value for value in record.attribution.values() if isinstance(value, float)]
    assert abs(sum(terms) - record.step_s["median"]) < 0.05 * record.step_s["median"]
    assert len(record.memory["peak_bytes_per_rank"]) == 4
    assert record.memory["peak_bytes"] == max(record.memory["peak_bytes_per_rank"])
    assert Record.from_dict(record.to_dict()) == record


def test_failures_become_records_with_their_reason(schnell: ModelSpec) -> None:
    wide = predicted_record(make_point(schnell, ulysses=8, ring=2), schnell, A100, "study")
    assert (wide.status, wide.latency_s) == ("infeasible", {})
    assert "16 GPUs" in wide.reason
    large = make_point(schnell, height=4096, width=4096, engine="xdit_2024", text_tokens=256, vae="single")
    oom = predicted_record(large, schnell, A100, "study")
    assert oom.status == "oom"
    assert oom.failure["stage"] == "vae"


def test_what_the_model_has_no_numbers_for_is_infeasible(schnell: ModelSpec) -> None:
    record = predicted_record(make_point(schnell, ulysses=2, engine="diffusers", execution="graph"), schnell, A100, "s")
    assert record.status == "infeasible"
    assert "no profile" in record.reason


def test_part_of_an_engine_has_to_be_measured(schnell: ModelSpec) -> None:
    record = predicted_record(make_point(schnell, ulysses=2, execution="graph", without="overlap"), schnell, A100, "s")
    assert record.status == "infeasible"
    assert "without=overlap has to be measured" in record.reason


def test_identity_follows_the_point_and_the_topologys_numbers(schnell: ModelSpec) -> None:
    point = make_point(schnell)
    same, again = (predicted_record(point, schnell, A100, "study") for _ in range(2))
    assert same.run_id == again.run_id
    other = predicted_record(dataclasses.replace(point, ring=2), schnell, A100, "study")
    assert other.run_id != same.run_id
    faster = dataclasses.replace(A100, gpu=dataclasses.replace(A100.gpu, peak_flops=4e14))
    assert fingerprint(faster) != fingerprint(A100)
    assert fingerprint(A100).startswith("predicted-")
