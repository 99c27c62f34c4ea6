"""The ladder: which points make a rung, what it saved, and that no comparison takes a part for the whole engine."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import yaml
from synthetic import SAVED, ladder, oom, record, study

from xdit_bench import data_dir
from xdit_bench.reporting.alternatives import ladder as in_words
from xdit_bench.reporting.answer import answer
from xdit_bench.reporting.cells import markdown
from xdit_bench.reporting.comparison import NOT_COMPARABLE, compare
from xdit_bench.reporting.figures import group_figures
from xdit_bench.reporting.ladder import PLAIN, Rung, kept
from xdit_bench.reporting.ladder import ladder as climb
from xdit_bench.reporting.ladder_tables import ladder_table, rungs_table
from xdit_bench.reporting.page import write_report
from xdit_bench.reporting.peers import compared, shipped_bounds
from xdit_bench.reporting.study import Group, group_records
from xdit_bench.reporting.tables import best_table, failures_table, points_table
from xdit_bench.results.frame import to_frame
from xdit_bench.results.schema import Record
from xdit_bench.results.store import sittings
from xdit_bench.rungs import RUNGS, checked


def group(records: list[Record] | None = None) -> Group:
    groups = group_records(ladder() if records is None else records)
    assert len(groups) == 1
    return groups[0]


def named(rungs: list[Rung], name: str, factors: str, side: int = 1024) -> Rung:
    found = [r for r in rungs if (r.name, r.factors, r.size[0]) == (name, factors, side)]
    assert len(found) == 1
    return found[0]


def test_a_rung_is_two_neighbours_that_differ_in_one_gain() -> None:
    rungs = climb(group())
    names = [rung.name for rung in rungs if (rung.factors, rung.size[0]) == ("u1r2", 1024)]
    assert names == [PLAIN, *RUNGS]
    graph = named(rungs, "graph", "u1r2")
    assert graph.below
    assert graph.entry
    assert graph.saved_s
    assert (graph.below.execution, graph.entry.execution) == ("eager", "graph")
    assert graph.saved_s / (graph.below.step_s or 0) == pytest.approx(SAVED["graph"])
    assert named(rungs, "shard_modulation", "u2r1").saved_bytes == pytest.approx(3.2e9)
    assert named(rungs, "shard_text", "u2r1").saved_bytes == pytest.approx(4.6e9)


def test_a_split_has_no_rung_that_changes_nothing_in_it() -> None:
    rungs = climb(group())
    one = [rung.name for rung in rungs if (rung.factors, rung.size[0]) == ("u1r1", 1024)]
    assert one == [PLAIN, "graph", "fused", "gelu_epilogue", "modulation_once", "kernel"]
    two = [rung.name for rung in rungs if (rung.factors, rung.size[0]) == ("u2r1", 1024)]
    assert [name for name in RUNGS if name not in two] == ["gathered"]


def test_a_rung_pays_beyond_its_intervals_and_is_kept_for_the_split_where_it_does() -> None:
    records = ladder(sizes=(1024,))
    rungs = climb(group(records))
    assert kept(named(rungs, "graph", "u1r2"), rungs) == "yes"
    assert named(rungs, "kernel", "u1r2").pays is False
    assert kept(named(rungs, "kernel", "u1r2"), rungs) == "no, costs here"
    assert kept(named(rungs, "shard_modulation", "u2r1"), rungs) == "yes, for memory"
    blurred = next(r for r in records if r.point["ring"] == 2 and r.point.get("without", "").startswith("overlap"))
    blurred.step_s["ci95"] = [0.5 * blurred.step_s["median"], 1.5 * blurred.step_s["median"]]
    rungs = climb(group(records))
    assert named(rungs, "overlap", "u1r2").pays is None
    assert kept(named(rungs, "overlap", "u1r2"), rungs) == "yes, pays at 1024px u2r1"
    assert kept(named(rungs, "overlap", "u1r2"), []) == "not shown"


def test_all_but_one_is_measured_against_the_whole_engine() -> None:
    whole = record(1.0, execution="graph", ulysses=2, vae="none")
    less = record(1.1, execution="graph", ulysses=2, vae="none", without="overlap")
    rung = named(climb(group([whole, less])), "overlap", "u2r1")
    assert rung.saved_at_the_top_s == pytest.approx(less.step_s["median"] - whole.step_s["median"])
    assert (rung.below, rung.entry, rung.saved_s) == (None, None, None)


def test_what_is_left_out_of_the_whole_engine_decides_too() -> None:
    whole = record(1.0, execution="graph", ulysses=2, vae="none")
    less = record(1.1, execution="graph", ulysses=2, vae="none", without="keys_first")
    for one in (whole, less):
        one.step_s["ci95"] = [0.99 * one.step_s["median"], 1.01 * one.step_s["median"]]
    rungs = climb(group([whole, less, *ladder(sizes=(1024,), splits=((1, 2),))]))
    top = named(rungs, "keys_first", "u2r1")
    assert top.pays_at_the_top
    assert kept(top, rungs) == "yes, at the top"
    less.step_s["ci95"] = [0.9 * less.step_s["median"], 1.1 * less.step_s["median"]]
    rungs = climb(group([whole, less]))
    assert kept(named(rungs, "keys_first", "u2r1"), rungs) == "not shown"


def test_only_times_of_one_sitting_make_a_rung() -> None:
    morning = ladder(sizes=(1024,), splits=((2, 1),))
    for k, one in enumerate(morning):
        one.time = f"2026-11-01T08:{k:02d}:00.000+00:00"
    again = [copy.deepcopy(one) for one in morning if one.point.get("without", "").count("+") < 2]
    for k, one in enumerate(again):  # on a slower host, after lunch
        one.time = f"2026-11-01T14:{k:02d}:00.000+00:00"
        one.step_s["median"] *= 1.5
    rungs = climb(group([*morning, *again]))
    assert [(r.name, r.saved_s) for r in rungs] == [(r.name, r.saved_s) for r in climb(group(morning))]
    latest = group([*morning, *again])
    assert latest.best((1024, 1024), 2) == group(again).best((1024, 1024), 2), "elsewhere the last time stands"
    slow = copy.deepcopy(again[0])  # it began soon after the one before, and took an hour
    slow.telemetry["spent_s"] = {"whole": 3600.0}
    slow.time = f"2026-11-01T15:{len(again):02d}:00.000+00:00"
    counts = Counter(sittings([*morning, *again, slow]).values())
    assert counts == {0: len(morning), 1: len(again) + 1}


def test_the_table_shows_prediction_beside_saving() -> None:
    records = ladder(sizes=(1024,))
    for one in records:
        one.study = "engine_ladder"
    table = ladder_table(group_records(records))
    row = next(row for row in table.rows if (row[3].text, row[4].text) == ("u2r1", "modulation_once"))
    assert row[8].text == "1.4 ms"
    assert row[-1].text == "yes"
    sources = {row[0].text: row[2].text for row in rungs_table(group_records(records)).rows}
    assert list(sources) == list(RUNGS)
    assert "NCCL 73.0" in sources["symmetric"]


def test_parts_of_the_engine_stand_in_no_other_comparison() -> None:
    fast = {"execution": "graph", "without": "overlap"}
    records = [*study(sizes=(1024,)), record(0.01, ulysses=2, **fast), record(0.02, **fast)]
    one = group(records)
    clean = group(study(sizes=(1024,)))
    assert [entry.without for entry in one.rungs] == ["overlap", "overlap"]
    assert one.best((1024, 1024), 2) == clean.best((1024, 1024), 2)
    assert best_table([one]).rows == best_table([clean]).rows
    assert answer([one], records).sentences == answer([clean], records).sentences
    assert compared(one) == compared(clean)
    points = points_table([one])
    rows = [row for row in points.rows if "without overlap" in row[3].text]
    ratios = [points.columns.index(name) for name in (">Scaling", ">Gain")]
    assert [tuple(row[at].text for at in ratios) for row in rows] == [("–", "–")] * 2, "no speedup"
    assert len(points.rows) == len(clean.entries) + 2


def test_points_that_differ_in_it_never_merge() -> None:
    whole, less = record(1.0), record(1.1, without="overlap")
    verdicts = compare([whole], [whole, less])
    assert [row.verdict for row in verdicts].count(NOT_COMPARABLE) == 1
    assert list(to_frame([whole, less])["without"]) == ["", "overlap"]


def test_a_failed_rung_is_said_and_an_infeasible_split_only_once() -> None:
    records = ladder(sizes=(1024,))
    plain = next(r for r in records if r.point["ring"] == 2 and r.point["execution"] == "eager")
    records[records.index(plain)] = oom(**plain.point)
    for without in ({}, {"without": "overlap"}):
        point = {"ulysses": 2, "ring": 2, "execution": "graph", "vae": "none", **without}
        records.append(record(status="infeasible", **point))
    one = group(records)
    assert kept(named(climb(one), "graph", "u1r2"), []) == ""
    failures = markdown(failures_table([one]))
    assert failures.count("OOM") == 1
    assert failures.count("| infeasible |") == 1
    assert "u1r2 plain OOM, graph" in in_words(one)


def test_only_a_study_with_a_ladder_draws_one(tmp_path: Path) -> None:
    assert "ladder" not in [figure.name for figure in group_figures(group(study(sizes=(1024,))), [])]
    paths = write_report(ladder(sizes=(1024,)), "engine_ladder", tmp_path, formats=("png", "svg", "pdf"))
    names = {path.name for path in paths}
    assert {"ladder.png", "ladder.svg", "ladder.pdf"} <= names
    report = (tmp_path / "engine_ladder" / "report.md").read_text()
    assert "## The engine, rung by rung" in report
    assert "## What the rungs are" in report
    assert "![1024px: u1r1 plain" in report


def test_a_study_of_parts_alone_names_them() -> None:
    only = group([record(1.0, without="overlap"), record(1.1, without="fused")])
    assert [entry.runner for entry in only.entries] == ["usp/eager without overlap", "usp/eager without fused"]


def test_the_sweep_climbs_the_ladder_in_its_order_and_predicts_only_rungs() -> None:
    sweep = yaml.safe_load((data_dir("conf") / "sweeps" / "engine_ladder.yaml").read_text())
    values = [value.strip() for value in sweep["hydra"]["sweeper"]["params"]["without"].split(",")]
    assert [checked(value) for value in values] == ["+".join(tuple(RUNGS)[k:]) for k in range(len(RUNGS) + 1)]
    held = shipped_bounds("engine_ladder")["ladder"]
    assert set(held) <= set(RUNGS)
    assert all(rung["source"] for rung in held.values())
