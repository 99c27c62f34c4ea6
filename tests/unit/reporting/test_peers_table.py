"""Ours over the best peer's best, each comparison on the points it names, and the bounds of a sweep file."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import record

from xdit_bench.reporting.answer import answer
from xdit_bench.reporting.draw_peers import engine_rows, parity
from xdit_bench.reporting.peers import WHAT, compared, shipped_bounds
from xdit_bench.reporting.study import group_records
from xdit_bench.reporting.style import PAGE, drawing
from xdit_bench.reporting.tables import attribution_table, peers_table
from xdit_bench.results.schema import Record

SIZE = (1024, 1024)


def step(ms: float, gb: float = 40.0, **point: object) -> Record:
    """A point of the study `peers` whose step takes `ms`."""
    facts = {
        "step_s": {"median": ms / 1e3, "samples": 5 * [ms / 1e3]},
        "memory": {"peak_bytes": gb * 1e9},
        "study": "peers",
    }
    return record(ms, extra=facts, **{"vae": "none", **point})


RECORDS = [
    step(182, engine="stock"),
    step(130, engine="stock", execution="compile"),
    step(115, engine="xfuser", execution="compile"),
    step(110, engine="xfuser", execution="compile", attention="fa3"),
    step(104, 36.5),
    step(140, 39.0, engine="xfuser", ulysses=2),
    step(90, 41.0, engine="xfuser", execution="compile", ulysses=2),
    step(80, 41.0, engine="xfuser", execution="compile", ulysses=2, attention="fa3"),
    step(86, 40.0, engine="diffusers", execution="compile", ring=2),
    step(70, 34.0, ulysses=2),
    step(60, 35.0, execution="graph", ulysses=2),
    step(66, 35.0, execution="graph", ring=2),
]


def rows(records: list[Record]) -> dict[tuple[str, int], object]:
    (group,) = group_records(records)
    return {(row.key, row.gpus): row for row in compared(group)}


def test_the_answer_says_where_our_step_stands_where_other_engines_were_measured() -> None:
    (said,) = [s.text for s in answer(group_records(RECORDS), RECORDS).sentences if s.lead == "Beside the peers"]
    assert said == (
        "One step of usp over the fastest peer's: 0.90 (xfuser/compile, 1024px) on 1 GPU; "
        "0.70 (diffusers/compile, 1024px) on 2 GPUs."
    )
    eager = [r for r in RECORDS if r.point["engine"] == "usp" or r.point["execution"] == "eager"]
    assert "Beside the peers" not in [s.lead for s in answer(group_records(eager), eager).sentences]


def test_ours_is_compared_with_the_best_peers_best_and_with_itself() -> None:
    found = rows(RECORDS)
    values = {key: round(row.value, 3) for key, row in found.items()}
    assert values == {
        ("peers", 1): round(104 / 115, 3),
        ("peers_fa3", 1): round(104 / 110, 3),
        ("memory_gb", 1): 3.5,
        ("peers", 2): round(60 / 86, 3),  # ring of diffusers, not xfuser with a kernel given to it
        ("peers_fa3", 2): round(60 / 80, 3),
        ("memory_gb", 2): 4.0,  # below the peer with the lowest peak, not the fastest
        ("ring", 2): 1.1,
        ("scaling", 2): round(104 / 60, 3),
    }


def test_ring_is_held_to_ulysses_in_the_same_execution_alone() -> None:
    without = [r for r in RECORDS if (r.point["execution"], r.point["ring"]) != ("graph", 2)]
    assert ("ring", 2) not in rows([*without, step(64, ring=2)])  # eager, where the fastest is a graph


def test_bounds_are_those_of_the_sweep_file_and_both_verdicts_are_shown() -> None:
    (group,) = group_records(RECORDS)
    table = peers_table([group])
    texts = {(row[3].text, row[2].text): [cell.text for cell in row] for row in table.rows}
    assert texts[WHAT["peers"], "2"][-3:] == ["0.698", "≤ 0.780", "yes"]
    assert texts[WHAT["peers"], "1"][-3:] == ["0.904", "≤ 0.900", "no, narrowly"]
    assert texts[WHAT["memory_gb"], "2"][-3:] == ["4.00 GB", "≥ 3.00 GB", "yes"]
    (group,) = group_records([step(182, 36.3, engine="diffusers"), step(104, 36.301)])
    assert "0.00 GB" in [cell.text for row in peers_table([group]).rows for cell in row], "no zero is negative"
    assert texts[WHAT["scaling"], "2"][-3:] == ["1.733", "≥ 1.750", "no, narrowly"]
    assert texts[WHAT["peers_fa3"], "2"][-2:] == ["", ""]  # no bound at this size
    assert texts[WHAT["peers"], "2"][-4] == "5, 5"
    assert "xfuser/compile u2r1, fa3" in texts[WHAT["peers_fa3"], "2"]


def test_the_farthest_of_our_points_from_fp32_is_held_to_plain_diffusers_distance() -> None:
    from_fp32 = {("stock", 1): 0.010, ("usp", 1): 0.011, ("usp", 2): 0.013}
    records = [step(182, engine="stock"), step(104), step(104, execution="graph"), step(60, ulysses=2)]
    for item in records:
        item.parity["fp32_rel_l2"] = from_fp32[item.point["engine"], item.point["ulysses"]]
    records[1].parity["fp32_rel_l2"] = 0.009  # op by op it is nearer
    found = rows(records)
    assert found["accuracy", 1].value == pytest.approx(1.1)
    assert found["accuracy", 2].value == pytest.approx(1.3)
    table = peers_table(group_records(records))
    (two,) = [[c.text for c in row] for row in table.rows if row[3].text == WHAT["accuracy"] and row[2].text == "2"]
    assert two[-6:] == ["0.0130", "0.0100", "", "1.300", "≤ 1.200", "no"]


def test_the_shipped_bounds_name_known_comparisons_alone() -> None:
    bounds = shipped_bounds("peers")
    assert set(bounds) == set(WHAT)
    assert bounds["peers"][2] == {1024: 0.78, 2048: 0.87, 4096: 0.88}
    assert shipped_bounds("two_gpus") == {}
    assert shipped_bounds(f"..{Path('/')}sweeps/peers") == {}


def test_a_peer_that_failed_is_no_peer_to_beat() -> None:
    failed = record(status="crashed", engine="xfuser", execution="compile", ulysses=2, vae="none")
    found = rows([step(60, ulysses=2), step(104), step(130, engine="stock"), failed])
    assert found["peers", 2].value is None
    assert found["peers", 2].met is None
    (group,) = group_records([step(60, ulysses=2), step(104), step(130, engine="stock"), failed])
    assert any("every peer failed" in cell.text for row in peers_table([group]).rows for cell in row)


def test_predictions_are_held_to_no_bound() -> None:
    predicted = [
        record(1.0, source="predicted", engine=engine, extra={"study": "peers"}) for engine in ("usp", "stock")
    ]
    assert [row.bound for row in compared(group_records(predicted)[0])] == [None]


def test_a_study_of_our_engine_alone_has_no_such_table() -> None:
    (group,) = group_records([step(60, ulysses=2), step(104)])
    assert not peers_table([group]).rows


def test_a_peer_with_a_kernel_given_to_it_has_a_bar_of_its_own() -> None:
    (group,) = group_records(RECORDS)
    names = [name for count, name in engine_rows(group) if count == 2]
    assert {"xfuser/compile", "xfuser/compile, FA3"} <= set(names)


@pytest.mark.parametrize("study", ["peers", "peers_fa3"])
def test_both_sweeps_write_one_study(study: str) -> None:
    import yaml

    from xdit_bench import data_dir

    loaded = yaml.safe_load((data_dir("conf") / "sweeps" / f"{study}.yaml").read_text())
    assert loaded["study"] == "peers"
    assert loaded["steps"] == 4
    assert loaded["text_tokens"] == 512


def test_where_a_profiled_step_goes_and_how_much_of_the_peak_it_reached() -> None:
    parts = {"gemm_s": 0.06, "attention_s": 0.02, "elementwise_s": 0.01, "communication_s": 0.0, "launch_s": 0.005}
    profiled = record(0.4, extra={"step_s": {"median": 0.1}, "attribution": {**parts, "utilisation": 0.5}})
    predicted = record(0.4, source="predicted", extra={"step_s": {"median": 0.1}, "attribution": {"gemm_s": 0.1}})
    table = attribution_table(group_records([profiled, predicted, record(ulysses=2)]))
    (row,) = table.rows  # the model's terms are no profile, and a point that was not profiled has none
    shown = dict(zip([column.lstrip(">") for column in table.columns], [cell.text for cell in row], strict=True))
    assert [shown[name] for name in ("Products", "Attention", "Elementwise", "Communication", "Nothing ran")] == [
        "60.0 ms", "20.0 ms", "10.0 ms", "0.0 ms", "5.0 ms",
    ]  # fmt: skip
    assert shown["MFU"] == "75 %"  # 74.4 TFLOP in 0.1 s of a GPU that could do 98.9 in it


def test_latents_equal_to_the_last_bit_stand_at_the_left_edge() -> None:
    near, equal = step(104), step(60, ulysses=2)
    near.parity["latents_rel_l2"], equal.parity["latents_rel_l2"] = 0.003, 0.0
    (group,) = group_records([near, equal])
    with drawing():
        (axis,) = parity(group, PAGE).axes
        assert min(x for line in axis.lines for x in line.get_xdata()) == axis.get_xlim()[0]
