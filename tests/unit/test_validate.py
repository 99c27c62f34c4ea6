"""The verb prints errors, regrets and facts, published and measured apart; the model keeps its promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.predict.compared import Row, mean, worst
from xdit_bench.predict.measured import launch_costs, regrets
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.profiles import op_s
from xdit_bench.predict.records import predicted_record
from xdit_bench.predict.validation import Report, validate
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.topology.specs import load
from xdit_bench.validate import main, render


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return validate(data_dir("published"), tmp_path_factory.mktemp("no_studies"))


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


def test_a_machines_own_calibrated_file_is_what_its_studies_are_predicted_from(tmp_path: Path) -> None:
    data = yaml.safe_load((data_dir("conf") / "topology" / "h200_nvlink.yaml").read_text())
    data["efficiency"]["gemm"]["value"] /= 2
    (tmp_path / "calibrated").mkdir()
    (tmp_path / "calibrated" / "h200_nvlink.yaml").write_text(yaml.safe_dump(data))
    slow_host = measured((2, 1), 1.0)
    slow_host.point["transport"], slow_host.run_id = "host", "host"
    with Store.open(tmp_path, "mine") as store:
        for record in (measured((1, 1), 1.0), slow_host):
            store.append(record)
    p2p, host = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    assert (p2p.name, host.name) == ("mine: h200_nvlink", "mine: h200_nvlink over host")
    assert p2p.rows[0].error > 0.1
    assert "calibrated/h200_nvlink.yaml" in p2p.notes[0]


def test_a_point_is_predicted_with_the_launch_cost_its_host_had(tmp_path: Path) -> None:
    topology, model = load("h200_nvlink"), load_model("flux_schnell")
    usual_s = topology.host["op_s"].value * 115  # the operations of an eager single-stream block
    with Store.open(tmp_path, "mine") as store:
        for execution in ("eager", "graph"):
            small = {"topology": topology.name, "height": 512, "width": 512, "vae": "none"}
            for seed, launch_s in enumerate((usual_s, 3 * usual_s)):
                point = make_point(model, execution=execution, seed=seed, **small)
                record = predicted_record(point, model, topology, "s")
                record.source, record.run_id = "measured", f"{execution}{launch_s}"
                record.telemetry["block_launch_s"] = launch_s
                record.latency_s["total"]["samples"] = [record.total_s] * 2
                record.time = f"2026-01-01T00:0{2 * seed}:00.000+00:00"  # another sitting
                store.append(record)
    (mine,) = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    eager, slow_eager, graph, slow_graph = (row.error for row in mine.rows)
    assert [eager, graph, slow_graph] == pytest.approx([0.0] * 3, abs=1e-9)
    assert slow_eager > 0.5
    assert "the host's launch cost taken beside 4 of 4 points" in mine.notes
    assert not any(row.host_unknown for row in mine.rows)

    with Store.open(tmp_path, "mine") as store:
        for record in list(store.records):
            record.latency_s["total"]["samples"] = [record.total_s]
            store.append(record)
    (mine,) = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    assert [row.host_unknown for row in mine.rows] == [True, True, False, False], "a host may stall in one image"

    with Store.open(tmp_path, "mine") as store:
        for record in list(store.records):
            del record.telemetry["block_launch_s"]
            store.append(record)
    (mine,) = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    assert [row.host_unknown for row in mine.rows] == [True, True, False, False]
    lines = render(validate(data_dir("published"), tmp_path)).splitlines()
    assert any(
        "bound by a host whose launch cost was not taken then, or timed once: mean error 0.0%" in line for line in lines
    )


def test_the_launch_cost_of_a_minute_is_the_mean_of_takes_of_as_many_ranks() -> None:
    def taken(launch_s: float | None, at: str, **changes: object) -> Record:
        record = measured((2, 1), 1.0)
        record.run_id, record.time = f"{at}{launch_s}{changes}", f"2026-01-01T{at}.000+00:00"
        record.telemetry = {} if launch_s is None else {"block_launch_s": launch_s}
        record.point = {**record.point, "gpus": 2, **changes}
        return record

    first, second = taken(0.001, "10:00:00"), taken(0.002, "10:00:59")
    others = [taken(0.005, "10:01:01"), taken(0.009, "10:00:30", gpus=1), taken(None, "10:00:30")]
    costs = launch_costs([first, second, *others])
    assert costs[first.run_id] == pytest.approx(op_s(0.0015))
    assert costs[second.run_id] == pytest.approx(op_s((0.001 + 0.002 + 0.005) / 3))
    assert costs[others[1].run_id] == pytest.approx(op_s(0.009))
    assert others[2].run_id not in costs
    between = taken(0.003, "10:00:30")
    between.telemetry["block_launches_s"] = [[0.001, 0.003, 0.008]] * 2
    assert launch_costs([first, between])[between.run_id] == op_s(0.003), "taken between its images, it is of then"


def test_a_point_is_predicted_with_the_speed_its_links_had(tmp_path: Path) -> None:
    topology, model = load(str(Path("results/calibrated/h100_nvlink.yaml"))), load_model("flux_schnell")
    (link,) = topology.levels("socket")
    sent = 2.0**23
    with Store.open(tmp_path, "mine") as store:
        for split, kind, rate, latency in (
            ((2, 1), "all_to_all", link.all_to_all_bytes_per_s, link.all_to_all_latency_s),
            ((1, 2), "ring", link.bytes_per_s, link.latency_s),
        ):
            for seed, (faster, calls) in enumerate(((1.0, {"calls": 4}), (1.3, {"calls": 4}), (1.3, {}))):
                point = make_point(
                    model, topology="h100_nvlink", ulysses=split[0], ring=split[1], transport="socket", vae="none",
                    seed=seed, execution="graph",
                )  # fmt: skip
                record = predicted_record(point, model, topology, "s")
                record.source, record.run_id = "measured", f"{kind}{seed}"
                record.telemetry["link"] = {kind: {"bytes": sent, "seconds": latency + sent / rate / faster, **calls}}
                store.append(record)
    (tmp_path / "calibrated").mkdir()
    (tmp_path / "calibrated" / "h100_nvlink.yaml").write_text(
        Path("results/calibrated/h100_nvlink.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (mine,) = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    usual, fast, alone, usual_ring, fast_ring, alone_ring = (row.error for row in mine.rows)
    for as_calibrated in (usual, usual_ring, alone, alone_ring):  # of a single exchange the host's part is not known
        assert as_calibrated == pytest.approx(0.0, abs=1e-6)
    assert -0.25 < fast < -0.15  # most of such a step is exchange, and was made 1.3 times as fast
    assert -0.25 < fast_ring < -0.15
    assert "the speed of links taken beside 4 of 6 points" in mine.notes


def test_points_under_pressure_are_held_to_a_range_and_are_in_no_error(tmp_path: Path) -> None:
    h100, model = load("h100_nvlink"), load_model("flux_schnell")
    point = make_point(model, topology="h100_nvlink", height=4096, width=4096, engine="stock", vae="single")
    with Store.open(tmp_path, "mine") as store:
        for seed, factor in enumerate((1.5, 3.0)):
            record = predicted_record(replace(point, seed=seed), model, h100, "s")
            record.source, record.run_id = "measured", f"{factor}"
            record.latency_s["total"]["median"] *= factor
            store.append(record)
    report = validate(data_dir("published"), tmp_path)
    (times,) = (one for one in report.latencies if one.kind == "measured")
    (peaks,) = (one for one in report.peaks if one.kind == "measured")
    assert not times.rows
    assert [row.inside for row in times.pressed] == [True, False]
    assert [row.inside for row in peaks.pressed] == [True, True]
    lines = render(report).splitlines()
    assert any("inside, under memory pressure" in line for line in lines)
    assert any("OUTSIDE, under memory pressure" in line for line in lines)
    assert "under memory pressure, foretold as a range: 3 of 4 times and peaks inside" in lines


def test_a_decode_that_ended_past_the_foretold_edge_is_held_to_the_capacity(tmp_path: Path) -> None:
    h100, model = load("h100_nvlink"), load_model("flux_schnell")
    point = make_point(model, topology="h100_nvlink", height=4096, width=4096, engine="stock", vae="single")
    with Store.open(tmp_path, "mine") as store:
        record = predicted_record(point, model, h100, "s")
        record.source, record.point = "measured", replace(point, height=5632, width=5632).to_dict()
        record.memory["peak_bytes"] = 83.5e9
        store.append(record)
    report = validate(data_dir("published"), tmp_path)
    (peaks,) = (one for one in report.peaks if one.kind == "measured")
    assert not peaks.rows, "of what it would have held with room the card had no more"
    assert [row.inside for row in peaks.pressed] == [True]
    assert [outcome for _, outcome in peaks.verdicts] == ["near"]


def test_peaks_of_an_engine_that_held_other_weights_are_left_out(tmp_path: Path) -> None:
    older = measured((2, 1), 1.0)
    older.memory["parameters_bytes"] *= 1.2
    older.memory["peak_bytes"] += 5e9
    with Store.open(tmp_path, "mine") as store:
        for record in (measured((1, 2), 1.0), older):
            store.append(record)
    report = validate(data_dir("published"), tmp_path)
    (peaks,) = (one for one in report.peaks if one.kind == "measured")
    assert [row.error for row in peaks.rows] == [pytest.approx(0.0)]
    (times,) = (one for one in report.latencies if one.kind == "measured")
    assert any("peaks of 1 points left out" in note for note in times.notes)


def test_a_point_measured_again_stands_for_itself_as_last_measured(tmp_path: Path) -> None:
    first, again = measured((1, 1), 2.0), measured((1, 1), 1.0)
    again.run_id = "other code"
    with Store.open(tmp_path, "mine") as store:
        for record in (first, again):
            store.append(record)
    (mine,) = (one for one in validate(data_dir("published"), tmp_path).latencies if one.kind == "measured")
    assert [row.error for row in mine.rows] == [pytest.approx(0.0)]


def test_out_of_memory_is_foretold_right_wrong_or_near_the_capacity(tmp_path: Path) -> None:
    fits = measured((1, 1), 1.0)
    peak = fits.memory["peak_bytes"]
    with Store.open(tmp_path, "mine") as store:
        for cap, status, name in ((0.5, "oom", "a"), (2.0, "oom", "b"), (1.02, "oom", "c"), (2.5, "ok", "d")):
            record = measured((1, 1), 1.0)
            record.run_id, record.status, record.reason = name, status, "" if status == "ok" else "no memory left"
            record.point["memory_cap_gb"] = cap * peak / 1e9
            store.append(record)
    (peaks,) = (one for one in validate(data_dir("published"), tmp_path).peaks if one.kind == "measured")
    assert [said for _, said in peaks.verdicts] == ["right", "wrong", "near", "right"]


def test_help_says_what_it_does_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "measured figures" in printed or "measurements" in printed
    assert "  results_dir=results" in printed


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["result_dir=x"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: validate has no 'result_dir'; did you mean results_dir? It takes results_dir"
    )


def test_a_regret_is_between_splits_of_one_memory_cap() -> None:
    point = make_point(load_model("flux_schnell"), ulysses=2)
    other, capped = replace(point, ulysses=1, ring=2), replace(point, ulysses=1, ring=2, memory_cap_gb=48.0)
    assert list(regrets([Row(point, 1.0, 1.0), Row(replace(point, seed=1), 2.0, 2.0)])) == []
    assert list(regrets([Row(point, 1.0, 1.0), Row(capped, 2.0, 0.5)])) == []
    ((label, regret),) = regrets([Row(point, 1.0, 1.0), Row(other, 2.0, 0.5)])
    assert label.endswith("2 GPUs: u1r2, measured best u2r1")
    assert regret == 1.0
