"""Verdicts on made-up histories: found regressions, false alarms, failures that must not pass."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from synthetic import CPU, H200, history, record, study

from xdit_bench.reporting.cells import escape, unescape
from xdit_bench.reporting.comparison import compare, differences, label, mann_whitney, shift, smallest_p


def verdict(base: Any, new: Any, **options: Any) -> str:
    rows = compare([base], [new], **options)
    assert len(rows) == 1
    return rows[0].verdict


def test_finds_a_true_3_percent_regression_with_95_percent_power() -> None:
    found = sum(
        verdict(record(samples=history(2 * seed)), record(samples=history(2 * seed + 1, median=1.03))) == "slower"
        for seed in range(400)
    )
    assert found >= 0.95 * 400


def test_gives_false_alarms_in_under_2_percent_of_same_against_same_runs() -> None:
    alarms = 0
    for run in range(200):
        base = [record(samples=history(1000 * run + i), res=512 + 16 * i) for i in range(6)]
        new = [record(samples=history(1000 * run + 500 + i), res=512 + 16 * i) for i in range(6)]
        alarms += any(row.regression for row in compare(base, new))
    assert alarms < 0.02 * 200


def test_says_faster_for_a_gain_beyond_the_threshold_and_same_below_it() -> None:
    base = record(samples=history(1))
    assert verdict(base, record(samples=history(2, median=0.9))) == "faster"
    assert verdict(base, record(samples=history(3, median=1.01))) == "same"
    assert verdict(base, record(samples=history(3, median=1.1)), threshold=0.2) == "same"
    (small,) = compare(*([record(samples=[m + i / 1e4 for i in range(10)])] for m in (1.0, 0.985)))
    assert (small.verdict, small.p is not None and small.p < 0.01) == ("same", True), "as sure as it is small"
    assert small.note == "", "no noise hides anything"


def test_the_interval_covers_the_true_ratio_in_95_percent_of_histories() -> None:
    covered = 0
    for seed in range(500):
        _, low, high = shift(history(2 * seed), history(2 * seed + 1, median=1.1))
        covered += low <= 1.1 <= high
    assert covered >= 0.93 * 500


@pytest.mark.parametrize(("n", "critical"), [(5, 2), (8, 13), (10, 23), (15, 64), (20, 127)])
def test_the_interval_ends_where_tables_of_the_mann_whitney_test_say_or_one_ratio_further_out(
    n: int, critical: int
) -> None:
    """The largest U that is significant at 5 %, two-sided, as any table of it prints it: inside of it, from both ends,
    lie the shifts that are not. The normal distribution that stands in for the table may add one."""
    base = [math.exp(j / 1000) for j in range(n)]
    new = [math.exp(n * i / 1000) for i in range(n)]  # the logarithms of all ratios: 1 - n to n * n - n, each once
    middle, low, high = (1000 * math.log(ratio) for ratio in shift(base, new))
    assert middle == pytest.approx((n * n - 2 * n + 1) / 2)
    for beyond in (1 - n + critical - low, high - (n * n - n - critical)):
        assert -1e-6 < beyond < 1 + 1e-6


def test_three_samples_a_side_that_stand_wholly_apart_are_a_regression() -> None:
    few, slow = record(samples=[1.0, 1.01, 1.02]), record(samples=[1.5, 1.51, 1.52])
    assert verdict(few, slow) == "slower"
    assert verdict(few, record(samples=[1.015, 1.5, 1.52])) == "same"  # one new sample is among the old ones
    assert smallest_p(3, 3) == pytest.approx(0.1)


@pytest.mark.parametrize("samples", [([1.0], [3.0]), ([1.0, 1.01], [1.12, 1.13]), ([3.0], [1.0, 1.5, 1.5])])
def test_few_samples_that_are_apart_by_more_than_chance_are_a_verdict(samples: tuple[list[float], list[float]]) -> None:
    (row,) = compare([record(samples=samples[0])], [record(samples=samples[1])])
    assert row.verdict == ("slower" if samples[0] < samples[1] else "faster")
    assert (row.low, row.high) == (None, None)
    assert "make no interval" in row.note


@pytest.mark.parametrize("samples", [([1.0], [1.09]), ([1.0, 1.2], [1.15, 1.6]), ([1.0], [1.05, 1.09, 1.09])])
def test_fewer_samples_than_three_a_side_are_no_verdict(samples: tuple[list[float], list[float]]) -> None:
    few, slow = (record(samples=side) for side in samples)
    (row,) = compare([few], [slow])
    assert (row.verdict, row.low, row.p) == ("not comparable", None, None)
    assert "measure.repeats=5" in row.note
    assert verdict(few, few) == "same"


def test_noise_that_may_hide_a_regression_is_said() -> None:
    rows = compare([record(samples=history(5, cv=0.2))], [record(samples=history(6, cv=0.2))])
    assert rows[0].verdict == "same"
    assert "may hide" in rows[0].note


def test_predictions_are_judged_by_their_medians_whatever_version_of_the_model_made_them() -> None:
    old = record(1.0, source="predicted", machine={"fingerprint": "predicted-1"})
    new = record(1.1, source="predicted", machine={"fingerprint": "predicted-2"})
    assert verdict(old, new) == "slower"
    assert "no samples" in compare([old], [new])[0].note


@pytest.mark.parametrize("status", ["oom", "timeout", "crashed", "incorrect", "unstable", "infeasible", "skipped"])
def test_a_success_that_fails_now_is_newly_failing(status: str) -> None:
    rows = compare([record()], [record(status=status)])
    assert (rows[0].verdict, rows[0].regression) == ("newly failing", True)
    assert status in rows[0].note
    assert verdict(record(status=status), record()) == "fixed"


def test_an_ok_record_whose_parity_failed_is_newly_failing() -> None:
    assert verdict(record(), record(extra={"parity": {"ok": False, "latents_rel_l2": 0.4}})) == "newly failing"


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, "nan", None, True])
def test_a_missing_zero_or_non_finite_metric_is_a_failure(value: Any) -> None:
    new = record(extra={"step_s": {"median": value}})
    assert verdict(record(), new, metric="step_s") == "newly failing"


@pytest.mark.parametrize("value", [0.0, math.nan, "nan"])
def test_a_bad_sample_is_a_failure(value: Any) -> None:
    new = record()
    new.latency_s["total"]["samples"][3] = value
    assert verdict(record(), new) == "newly failing"


def test_a_point_that_vanished_is_newly_failing_and_a_new_one_is_not_comparable() -> None:
    rows = compare([record(res=1024), record(res=2048)], [record(res=1024), record(res=4096)])
    verdicts = {row.point["res"]: row.verdict for row in rows}
    assert verdicts == {1024: "same", 2048: "newly failing", 4096: "not comparable"}


def test_failing_on_both_sides_is_no_pass() -> None:
    (row,) = compare([record(status="oom")], [record(status="oom")])
    assert (row.verdict, row.note) == ("not comparable", "fails in both: oom: oom: made up for a test")
    (row,) = compare([record(status="oom")], [record(status="timeout")])
    assert row.note == "fails in both: oom: oom: made up for a test -> timeout: timeout: made up for a test"


def test_unequal_machines_are_not_comparable_and_the_field_is_named() -> None:
    other = H200 | {"fingerprint": "h200-cccc", "driver": "580.2"}
    rows = compare([record()], [record(machine=other)])
    assert rows[0].verdict == "not comparable"
    assert "driver 570.1 -> 580.2" in rows[0].note
    assert verdict(record(), record(machine=CPU)) == "not comparable"


def test_a_field_that_was_changed_on_purpose_may_be_allowed() -> None:
    other = H200 | {"fingerprint": "h200-cccc", "driver": "580.2"}
    new = record(samples=history(2, median=1.2), machine=other)
    assert verdict(record(samples=history(1)), new, allow=["driver"]) == "slower"
    assert verdict(record(samples=history(1)), new, allow=["torch"]) == "not comparable"


def test_one_machine_may_stand_beside_another() -> None:
    base = [record(topology="h100_nvlink"), record(topology="h100_nvlink", ulysses=2)]
    other = H200 | {"fingerprint": "other", "gpu": "NVIDIA H200", "driver": "2"}
    new = [record(0.5, topology="h200_nvlink", machine=other)]
    rows = compare(base, new)
    assert [row.verdict for row in rows].count("not comparable") == 2  # the point it has elsewhere, on either machine
    assert any("NEW has it on h200_nvlink; --allow machine" in row.note for row in rows)
    assert [row.verdict for row in rows if row.point["ulysses"] == 2] == ["newly failing"]

    rows = compare(base, new, allow=["machine"])
    both = next(row for row in rows if row.ratio)
    assert (both.verdict, round(both.ratio or 0.0, 3)) == ("faster", 0.5)
    assert label(both).endswith("on h100_nvlink to h200_nvlink")
    assert [row.verdict for row in rows if row is not both] == ["not comparable"]
    changed = [record(topology="h200_nvlink", machine=other, extra={"software": {"torch": "3"}})]
    assert all(row.verdict == "not comparable" for row in compare(base, changed, allow=["machine"]))


def test_points_that_vanished_are_no_others_of_another_machine() -> None:
    two = [record(topology="h100_nvlink"), record(topology="h200_nvlink")]
    assert {r.verdict for r in compare(two, two[1:])} == {"newly failing", "same"}  # NEW has only what BASE had too
    failed = [record(topology="h200_nvlink", status="oom")]
    assert "newly failing" in {r.verdict for r in compare(two[:1], failed)}
    guess = [record(topology="h200_nvlink", source="predicted")]
    assert "newly failing" in {r.verdict for r in compare(two[:1], guess)}


def test_beside_another_machine_each_is_paired_with_itself_first_and_no_record_is_dropped() -> None:
    other = H200 | {"fingerprint": "other", "gpu": "NVIDIA H100"}
    base = [record(1.0, topology="h100_nvlink", machine=other), record(0.5, topology="h200_nvlink")]
    rows = compare(base, base[::-1], allow=["machine"])
    assert [row.verdict for row in rows] == ["same", "same"]
    rows = compare(base, base[1:], allow=["machine"])
    assert [(row.verdict, row.point["topology"]) for row in rows] == [
        ("same", "h200_nvlink"), ("not comparable", "h100_nvlink"),
    ]  # fmt: skip
    rows = compare(base[1:], base, allow=["machine"])
    assert [row.note for row in rows if row.verdict != "same"] == ["BASE has it of fewer machines"]
    small = [record(status="infeasible", topology="h100_nvlink", machine=other)]
    assert [row.verdict for row in compare(base[1:], small, allow=["machine"])] == ["not comparable"]


def test_a_folder_that_was_kept_is_judged_by_what_was_measured_since() -> None:
    old = record(1.0, extra={"time": "2026-11-01T12:00:00.000+00:00"})
    upgraded = H200 | {"fingerprint": "upgraded"}
    new = record(1.5, machine=upgraded,
                 extra={"time": "2026-11-02T12:00:00.000+00:00", "software": {"torch": "2.14.0"}})  # fmt: skip
    assert verdict(old, old) == "same"
    assert [row.verdict for row in compare([old], [old, new], allow=["torch"])] == ["slower"]
    (row,) = compare([old], [old, new])
    assert (row.verdict, row.note[:9]) == ("not comparable", "differs: ")


def test_versions_of_software_count_as_the_machine_but_our_own_code_does_not() -> None:
    new = record(machine=H200 | {"fingerprint": "other"}, extra={"software": {"torch": "2.14.0", "code": "beef"}})
    assert differences(record(), new) == ["torch 2.13.0 -> 2.14.0"]
    assert differences(record(), record(extra={"software": {"torch": "2.13.0", "code": "beef"}})) == []


def test_measured_and_predicted_are_never_compared() -> None:
    assert verdict(record(), record(source="predicted")) == "not comparable"


def test_each_machine_of_a_study_is_compared_with_itself() -> None:
    other = H200 | {"fingerprint": "other"}
    base = [record(samples=history(1)), record(samples=history(2, median=5.0), machine=other)]
    new = [record(samples=history(3, median=5.0), machine=other), record(samples=history(4))]
    assert [row.verdict for row in compare(base, new)] == ["same", "same"]


def test_the_newest_record_of_a_point_counts() -> None:
    base = [record(samples=history(1, median=9.0)), record(samples=history(2))]
    assert [row.verdict for row in compare(base, [record(samples=history(3))])] == ["same"]


def test_memory_that_grew_is_larger() -> None:
    base, new = (record(extra={"memory": {"peak_bytes": peak}}) for peak in (40e9, 44e9))
    assert verdict(base, new, metric="peak_bytes") == "larger"
    assert verdict(new, base, metric="peak_bytes") == "smaller"


def test_the_worst_stands_first() -> None:
    base = study(sizes=(1024,))
    new = [record(status="oom", **{k: v for k, v in base[1].point.items() if k not in ("res", "gpus")}), *base[2:]]
    assert [row.verdict for row in compare(base, [base[0], *new])][:2] == ["newly failing", "same"]
    medians = {512: 1.05, 1024: 1.5, 2048: 1.2, 3072: 0.9, 4096: 0.5}
    rows = compare([record(res=res) for res in medians], [record(m, res=res) for res, m in medians.items()])
    assert [row.point["res"] for row in rows] == [1024, 2048, 512, 4096, 3072], "of each verdict the largest change"


@pytest.mark.parametrize("text", ["a -> b", "> a", "&gt; &amp;lt;", "<b>|[x](y) `z`", "\\| &"])
def test_what_markdown_escapes_reads_as_it_was_on_a_terminal(text: str) -> None:
    assert unescape(escape(text)) == text
    assert not re.search(r"<|(?<!\\)[|`\[]|^>", escape(text))


def test_an_arrow_is_an_arrow_in_markdown_too() -> None:
    assert escape("driver 1 -> 2") == "driver 1 -> 2"


def test_equal_samples_have_no_small_p() -> None:
    assert mann_whitney([1.0] * 10, [1.0] * 10) == 1.0
