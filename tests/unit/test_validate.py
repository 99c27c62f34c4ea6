"""The verb prints errors, regrets and facts, published and measured apart; the model keeps its promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdit_bench import data_dir
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.records import predicted_record
from xdit_bench.predict.validation import Report, mean, validate, worst
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.topology.specs import load
from xdit_bench.validate import main


@pytest.fixture(scope="module")
def report() -> Report:
    return validate(data_dir("published"), Path("nowhere"))


def test_published_latencies_are_within_the_promised_errors(report: Report) -> None:
    a100, l40 = ([row.error for row in one.rows] for one in report.latencies[:2])
    assert (len(a100), len(l40)) == (12, 8)
    assert mean(a100) <= 0.03
    assert worst(a100) <= 0.08
    assert mean(l40) <= 0.06
    assert worst(l40) <= 0.18


def test_leave_one_out_over_both_is_within_six_percent(report: Report) -> None:
    assert mean(error for one in report.latencies[:2] for error in one.left_out) <= 0.06


def test_the_files_hold_what_the_fit_gives(report: Report) -> None:
    fitted = [entry for one in report.latencies for entry in one.fitted]
    assert len(fitted) == 10
    for key, ours, again, prior in fitted:
        assert ours == pytest.approx(again, rel=0.02), key
        assert again / prior < 3, key  # no number runs away from what was known beforehand


def test_published_peaks_are_within_five_percent(report: Report) -> None:
    assert worst(row.error for one in report.peaks for row in one.rows) <= 0.05


def test_every_fact_is_reproduced_or_a_tie(report: Report) -> None:
    assert len(report.facts) == 15
    assert {fact.text: fact.verdict for fact in report.facts if fact.verdict not in ("reproduced", "tie")} == {}


def measured(split: tuple[int, int], factor: float, topology: str = "h200_nvlink") -> Record:
    model = load_model("flux_schnell")
    point = make_point(model, topology=topology, ulysses=split[0], ring=split[1], execution="graph")
    record = predicted_record(point, model, load("h200_nvlink"), "s")
    record.source, record.run_id = "measured", f"{split}{topology}"
    record.latency_s["total"]["median"] *= factor
    return record


def test_measured_studies_are_compared_apart_with_the_regret_of_the_pick(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, slow = sorted([measured((2, 1), 1.0), measured((1, 2), 1.0)], key=lambda r: r.latency_s["total"]["median"])
    fast.latency_s["total"]["median"] *= 1.5
    with Store.open(tmp_path, "mine") as store:
        for record in (fast, slow, measured((1, 1), 2.0, "lost_machine"), measured((1, 1), 1.0, "cpu")):
            store.append(record)
    with Store.open(tmp_path, "guesses") as store:
        store.append(
            predicted_record(
                make_point(load_model("flux_schnell")), load_model("flux_schnell"), load("a100_nvlink"), "s"
            )
        )
    found = {one.name: one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured"}
    assert set(found) == {"mine: h200_nvlink", "mine: lost_machine", "mine: cpu"}
    mine = found["mine: h200_nvlink"]
    assert sorted(round(row.error, 3) for row in mine.rows) == [pytest.approx(-1 / 3, abs=1e-3), 0.0]
    ((_, regret),) = mine.regrets
    assert regret == pytest.approx(fast.latency_s["total"]["median"] / slow.latency_s["total"]["median"] - 1)
    assert "lost_machine" in found["mine: lost_machine"].notes[0]
    assert "measured only" in found["mine: cpu"].notes[0]

    assert main([f"results_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    published, ours = printed.split("Model against measured figures")
    assert "flux_schnell_seed: l40_pcie" in published
    assert "mine:" not in published
    assert "mine: h200_nvlink (s, 2 points): mean error" in ours


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["result_dir=x"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: validate has no 'result_dir'; did you mean results_dir? It takes results_dir"
    )
