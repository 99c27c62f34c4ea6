"""Rules of fairness: what shares a curve, what a speedup stands on, what counts as success."""

from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from synthetic import CPU, H200, oom, record, study

from xdit_bench.errors import ResultsError
from xdit_bench.reporting import alternatives
from xdit_bench.reporting.alternatives import headline
from xdit_bench.reporting.answer import answer
from xdit_bench.reporting.draw_parts import attribution, energy, memory, vae_effect, vae_entry, vae_modes, vae_sizes
from xdit_bench.reporting.draw_scaling import speedups, strategies
from xdit_bench.reporting.entry import Entry, number
from xdit_bench.reporting.figures import group_figures
from xdit_bench.reporting.frontier import limits
from xdit_bench.reporting.peers import compared
from xdit_bench.reporting.study import group_records, whole_card
from xdit_bench.reporting.style import CYCLE, PAGE, PAPER, VAE_COLOURS, drawing, settle
from xdit_bench.reporting.tables import best_table, points_table, report_tables
from xdit_bench.reporting.words import digits, panel, short
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest

BIG = (4096, 4096)


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", None, True, "1.0"])
def test_what_is_not_a_finite_number_is_no_metric(value: object) -> None:
    assert number(value) is None


def test_unequal_fingerprints_sources_caps_and_links_never_share_a_group() -> None:
    records = [
        record(),
        record(machine=H200 | {"fingerprint": "other"}),
        record(source="predicted"),
        record(memory_cap_gb=80.0),
        record(transport="host"),
        record(model="flux_dev"),
        record(text_tokens=256),
    ]
    assert len(group_records(records)) == len(records)
    assert len(group_records([record(), record(ulysses=2), record(engine="stock"), record(vae="single")])) == 1


def test_measured_groups_stand_before_predicted_ones_and_successes_before_failures() -> None:
    groups = group_records([*study(source="predicted"), record(status="oom", model="flux_dev"), record()])
    assert [group.setting.source for group in groups] == ["measured", "predicted", "measured"]


def test_a_fingerprint_decides_no_order() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        records = [
            record(machine=H200 | {"fingerprint": first}, topology="l40_pcie", source="predicted"),
            record(machine=H200 | {"fingerprint": second}, topology="a100_nvlink", source="predicted"),
        ]
        assert [group.setting.topology for group in group_records(records)] == ["a100_nvlink", "l40_pcie"]


def test_the_newest_record_of_a_point_stands_even_when_it_failed() -> None:
    assert newest([record(1.0), record(2.0)])[0].total_s == 2.0
    assert newest([record(1.0), record(status="timeout")])[0].status == "timeout"


def test_what_an_older_model_predicted_of_a_topology_is_left_out_and_what_another_machine_measured_is_not() -> None:
    old, new = ({"fingerprint": f"predicted-{n}"} for n in (1, 2))
    records = [
        record(1.0, source="predicted", machine=old),
        record(2.0, source="predicted", machine=old, res=2048),
        record(3.0, source="predicted", machine=old, topology="l40_pcie"),
        record(4.0, machine=H200 | {"fingerprint": "other"}),
        record(5.0, source="predicted", machine=new),
        record(6.0),
    ]
    assert sorted(r.total_s or 0.0 for r in newest(records)) == pytest.approx([3.0, 4.0, 5.0, 6.0])


def test_best_is_the_fastest_success_over_factorizations() -> None:
    records = [record(2.0, ulysses=4), record(1.5, ulysses=2, ring=2), record(status="oom", ring=4), record(9.0)]
    group = group_records(records)[0]
    best = group.best((1024, 1024), 4)
    assert best is not None
    assert best.factors == "u2r2"
    assert group.gpu_counts == (1, 4)


def test_a_point_with_a_wrong_image_is_never_best() -> None:
    wrong = record(0.1, ulysses=2, extra={"parity": {"ok": False, "latents_rel_l2": 0.5}})
    group = group_records([wrong, record(1.0, ring=2), record(2.0)])[0]
    best = group.best((1024, 1024))
    assert best is not None
    assert best.factors == "u1r2"
    assert Entry.of(wrong).status == "incorrect"
    assert "0.5" in Entry.of(wrong).reason


def test_leaving_out_the_vae_or_tiling_it_wins_nothing() -> None:
    group = group_records([record(1.0), record(0.5, vae="none"), record(0.7, vae="tiled")])[0]
    best = group.best((1024, 1024))
    assert best is not None
    assert best.vae == "parallel"
    assert group.decode((1024, 1024)) == "exact"


def test_a_split_is_shown_in_the_execution_of_the_best_and_its_failure_is_not_hidden_by_another() -> None:
    graph = [record(0.04, ulysses=2, execution="graph"), record(status="crashed", ring=2, execution="graph")]
    (group,) = group_records([*graph, record(0.13, ring=2), record(0.14, ulysses=2)])
    assert group.split((1024, 1024), 1, 2) in [entry for entry in group.entries if entry.status == "crashed"]
    (eager,) = group_records([graph[0], record(0.13, ring=2)])
    assert eager.split((1024, 1024), 1, 2) in eager.entries  # where it was never tried as a graph


def test_what_ran_or_failed_instead_of_an_exact_decode_is_said() -> None:
    exact = [record(ulysses=2), record()]
    (group,) = group_records([*exact, record(height=2048, width=2048, vae="tiled", engine="stock")])
    assert group.absent((2048, 2048)) == "tiles alone"
    (group,) = group_records([*exact, oom(height=2048, width=2048, engine="stock")])
    assert group.absent((2048, 2048), 1) == "stock: OOM"
    assert group.absent((2048, 2048), 2) == "not run"


def test_both_speedups_stand_on_one_gpu() -> None:
    records = [record(3.0, engine="stock", vae="single"), record(2.0), record(1.0, ulysses=2)]
    group = group_records(records)[0]
    best = group.best((1024, 1024))
    assert best is not None
    gain, scaling = group.gain(best), group.scaling(best)
    assert gain is not None
    assert scaling is not None
    assert (gain.value, scaling.value) == (pytest.approx(3.0), pytest.approx(2.0))
    assert (gain.over, scaling.over) == ("stock on 1 GPU", "usp/eager on 1 GPU")


def test_a_gain_stands_on_plain_diffusers_as_a_user_runs_it_not_compiled() -> None:
    stock = [record(total, engine="stock", vae="single", execution=how)
             for how, total in (("compile", 2.0), ("eager", 3.0))]  # fmt: skip
    group = group_records([*stock, record(1.0, ulysses=2)])[0]
    best = group.best((1024, 1024))
    assert best is not None
    gain = group.gain(best)
    assert gain is not None
    assert gain.value == pytest.approx(3.0)
    alone = group_records([stock[0], record(1.0, ulysses=2)])[0]
    compiled = alone.stock((1024, 1024))
    assert compiled is not None
    assert compiled.execution == "compile", "where nothing else was measured"


def test_scaling_stands_on_one_gpu_with_the_same_decode_code_where_there_is_one() -> None:
    group = group_records([record(1.5, vae="single"), record(2.0), record(1.0, ulysses=2)])[0]
    best = group.best((1024, 1024))
    assert best is not None
    scaling = group.scaling(best)
    assert scaling is not None
    assert (scaling.value, scaling.base.vae) == (pytest.approx(2.0), "parallel")


def test_the_engine_shown_is_the_one_that_ran_on_several_gpus() -> None:
    alone = [record(1.0, engine="xfuser", vae="single", res=res) for res in (512, 1024, 2048)]
    assert group_records([*alone, record(1.0, engine="diffusers", vae="single", ulysses=2)])[0].engine == "diffusers"


def test_another_engine_is_faster_where_it_computes_as_much() -> None:
    ours = record(1.0, ulysses=2)
    less = [record(0.5, engine="xfuser", vae=vae, ulysses=2) for vae in ("none", "tiled")]
    other = [record(0.4, engine="xfuser", vae="distvae", ulysses=2, res=512)]
    group = group_records([ours, record(3.0, ring=4), *less, *other])[0]
    assert group.faster(Entry.of(ours)) is None
    group = group_records([ours, record(3.0, ring=4), *less, record(0.9, engine="xfuser", vae="distvae", ulysses=2)])[0]
    faster = group.faster(Entry.of(ours))
    assert faster is not None
    assert (faster.engine, faster.vae, faster.total_s) == ("xfuser", "distvae", pytest.approx(0.9))


def test_a_gain_without_vae_stands_on_a_baseline_without_vae() -> None:
    records = [
        record(3.0, engine="stock", vae="single"),
        record(2.0, engine="stock", vae="none"),
        record(1.0, vae="none"),
    ]
    group = group_records(records)[0]
    best = group.best((1024, 1024))
    assert best is not None
    gain = group.gain(best)
    assert gain is not None
    assert gain.value == pytest.approx(2.0)
    whole = group_records([*records, record(1.6)])[0]  # which competes now
    assert [e.vae for e in (whole.best((1024, 1024)),) if e] == ["parallel"]
    gain = whole.gain(best)
    assert gain is not None
    assert gain.value == pytest.approx(2.0)


def test_rebases_on_the_fewest_gpus_that_fit_and_says_so() -> None:
    group = group_records(study(sizes=(4096,)))[0]
    best = group.best(BIG, 8)
    assert best is not None
    scaling = group.scaling(best)
    assert scaling is not None
    assert scaling.rebased
    assert scaling.base.gpus == 2
    assert scaling.over == "usp/eager on 2 GPUs (1 GPU failed)"
    baseline = group.baseline(BIG)
    assert baseline is not None
    assert baseline[1] == "2 GPUs, usp (1 GPU: OOM)"
    assert group.gain(best) is None


def test_no_speedup_stands_on_several_gpus_where_one_was_never_tried() -> None:
    group = group_records([record(2.0, ulysses=2), record(1.0, ulysses=4)])[0]
    best = group.best((1024, 1024))
    assert best is not None
    assert group.scaling(best) is None
    other = group_records([oom(engine="stock", vae="single"), record(2.0, ulysses=2), record(1.0, ulysses=4)])[0]
    assert other.scaling(best) is None, "that another engine ran out of memory says nothing of this one"


def test_a_stock_baseline_that_ran_out_of_memory_gives_way_to_the_engine_on_one_gpu() -> None:
    group = group_records([oom(engine="stock", vae="single"), record(2.0), record(1.0, ulysses=2)])[0]
    baseline = group.baseline((1024, 1024))
    assert baseline is not None
    assert baseline[1] == "1 GPU, usp (stock: OOM)"


def test_a_baseline_under_memory_pressure_says_so() -> None:
    pressed = record(30.0, engine="stock", vae="single", extra={"memory": {"verdict": "pressure"}})
    group = group_records([pressed, record(3.0, ulysses=2)])[0]
    baseline, best = group.baseline((1024, 1024)), group.best((1024, 1024))
    assert baseline is not None
    assert best is not None
    assert baseline[1] == "1 GPU, stock, pressed"
    gain = group.gain(best)
    assert gain is not None
    assert gain.over == "stock on 1 GPU under memory pressure"


def test_the_headline_says_what_is_under_memory_pressure() -> None:
    tight = {"memory": {"verdict": "pressure", "peak_bytes": 47e9, "alloc_retries": 3}}
    pressed = [record(4.0, extra=tight), record(2.0, ulysses=2, extra=tight)]
    records = [*pressed, record(1.0, ulysses=4), record(9.0, res=2048)]
    figure = group_figures(group_records(records)[0], [])[0]
    assert figure.caption.endswith(" Under memory pressure: 1024px on 1 and 2 GPUs.")
    assert "2 GPUs (u2r1) 2.00 s, under memory pressure, 4 GPUs (u4r1) 1.00 s" in headline(group_records(records)[0])
    assert "pressure" not in group_figures(group_records(records[2:])[0], [])[0].caption


def test_overlapping_intervals_are_a_tie() -> None:
    group = group_records([record(1.0, ulysses=2), record(1.001, ring=2), record(2.0)])[0]
    best = group.best((1024, 1024))
    assert best is not None
    tie = group.tie(best)
    assert tie is not None
    assert tie.factors == "u1r2"
    apart = group_records([record(1.0, ulysses=2), record(1.1, ring=2)])[0]
    alone = apart.best((1024, 1024))
    assert alone is not None
    assert apart.tie(alone) is None


def test_what_was_measured_in_two_sittings_is_marked_and_ties_within_what_sittings_differ() -> None:
    later = {"time": "2026-11-01T15:00:00.000+00:00"}
    one = record(2.0, engine="stock", vae="single")
    group = group_records([one, record(1.0, ulysses=2), record(1.02, ring=2, extra=later)])[0]
    ulysses, ring = (group.split((1024, 1024), *split) for split in ((2, 1), (1, 2)))
    assert ulysses is not None
    assert ring is not None
    assert [group.gain(entry).two_sittings for entry in (ulysses, ring)] == [False, True]  # type: ignore[union-attr]
    assert group.tie(ulysses) is ring, "apart by 2 %, as sittings are"
    slower = group_records([one, record(1.0, ulysses=2), record(1.05, ring=2, extra=later)])[0]
    best = slower.best((1024, 1024))
    assert best is not None
    assert slower.tie(best) is None
    table = points_table([group])
    gains = {row[5].text: row[table.columns.index(">Gain")].text for row in table.rows}
    assert gains == {"u1r1": "1.00x", "u2r1": "2.00x", "u1r2": "1.96x †"}
    assert "†: of times measured in two sittings" in table.note
    assert points_table([slower, group_records([record(source="predicted")])[0]]).note
    assert not points_table(group_records([one, record(1.0, ulysses=2)])).note
    assert "2.00x at 1024px over plain diffusers on one GPU." in said([one, record(1.0, ulysses=2)])
    apart = [one, record(1.0, ulysses=2, extra=later)]
    assert "2.00x at 1024px over plain diffusers on one GPU, measured in another sitting" in said(apart)
    headline_of = {len(records): group_figures(group_records(records)[0], [])[0] for records in (apart, [one])}
    assert "At 1024px the best and the baseline were measured in two sittings." in headline_of[2].caption
    assert "sittings" not in headline_of[1].caption
    larger = [record(8.0, res=2048, engine="stock", vae="single"), record(4.0, res=2048, ulysses=2)]
    both = said([*apart, *larger])
    assert "2.00x at 1024px (in two sittings) and 2.00x at 2048px over plain diffusers on one GPU" in both
    times = [f"2026-11-01T{12 + 8 * k // 60}:{8 * k % 60:02d}:00.000+00:00" for k in range(23)]
    between = [record(1.0, steps=9, extra={"time": time}) for time in times]
    (group,) = (g for g in group_records([*apart, *between]) if g.setting.steps != 9)
    gain = group.gain(group.split((1024, 1024), 2, 1))  # type: ignore[arg-type]
    assert gain is not None
    assert not gain.two_sittings, "other points ran all the while"
    peers = [record(1.0, engine="diffusers", ulysses=2, execution="compile", extra=later), record(0.8, ulysses=2)]
    assert [row.two_sittings for row in compared(group_records(peers)[0]) if row.key == "peers"] == [True]


def said(records: list[Record]) -> str:
    return " ".join(sentence.text for sentence in answer(group_records(records), records).sentences)


def test_the_rule_of_a_tie_is_told_as_it_is_of_measurements_and_of_predictions() -> None:
    measured, predicted = record(), record(source="predicted", machine={"fingerprint": "p"})
    overlap = "the intervals overlap (of fewer than five images: their ranges and 1 %)"

    def rule(*records: Record) -> str:
        return best_table(group_records(records)).note.split("A tie: ")[1]

    assert rule(measured) == f"{overlap}."
    assert rule(predicted) == "the difference is within the model's error."
    assert rule(measured, predicted) == f"{overlap}; the difference of predictions is within the model's error."


def test_the_note_of_cpu_ranks_speaks_of_no_gpu() -> None:
    note = best_table(group_records([record(machine=CPU)])).note
    assert "on one rank" in note
    assert "GPU" not in note


@pytest.mark.parametrize(("images", "tied"), [([1.001], True), ([1.03], False), ([1.0, 1.02, 1.04], True)])
def test_a_point_of_few_images_has_no_interval_and_ties_within_one_percent_of_their_range(
    images: list[float], tied: bool
) -> None:
    (group,) = group_records([record(1.0, ulysses=2, samples=[1.0]), record(images[-1], ring=2, samples=images)])
    best = group.best((1024, 1024))
    assert best is not None
    assert (group.tie(best) is not None) is tied


def test_a_point_of_one_image_has_no_interval() -> None:
    groups = group_records([record(1.0, ulysses=2, samples=[1.0]), record(1.03, ring=2), record(2.0)])
    best = groups[0].best((1024, 1024))
    assert best is not None
    assert (best.low_s, best.high_s) == (None, None)
    row = next(row for row in best_table(groups).rows if row[5].text == "u2r1")
    assert row[7].text == "one image"
    thrice = best_table(group_records([record(1.0, samples=[1.0, 1.01, 1.02])])).rows[0][7]
    assert thrice.text == "3 images", "their range is no 95 % interval"
    cold = record(1.0, samples=[1.0])
    cold.telemetry["warmup_s"] = []
    assert best_table(group_records([cold])).rows[0][7].text == "one cold image"


def test_no_speedup_is_made_of_a_point_timed_without_a_warm_up() -> None:
    cold: dict[str, Any] = {"samples": [11.5], "extra": {"telemetry": {"warmup_s": []}}}
    stock, one, two = {"engine": "stock", "vae": "single"}, {"vae": "single"}, {"ulysses": 2}
    group = group_records([record(31.8, **stock), record(11.5, **cold, **one), record(28.4, **two)])[0]
    alone, pair = (next(e for e in group.entries if e.runner == "usp/eager" and e.gpus == n) for n in (1, 2))
    assert (group.gain(alone), group.scaling(alone), group.scaling(pair)) == (None, None, None)
    assert group.gain(pair) is not None
    assert group.over_baseline((1024, 1024)) is None, "the best is cold"
    assert "best is" not in headline(group)
    rows = {row[-12].text: (row[-12].text, row[-5].text, row[-4].text) for row in points_table([group]).rows}
    assert rows["11.5 s"][1:] == ("–", "–"), "a row with its time"
    warm = group_records([record(12.0), record(11.5, **cold, **one), record(6.0, **two)])[0]
    scaling = warm.scaling(next(e for e in warm.entries if e.gpus == 2))
    assert scaling is not None
    assert scaling.value == pytest.approx(2.0)
    base = group_records([record(11.5, **cold, **stock), record(6.0, **two)])[0]
    assert base.gain(next(e for e in base.entries if e.gpus == 2)) is None
    assert base.over_baseline((1024, 1024)) is None


def test_a_legend_of_many_rows_leaves_the_panels_their_height() -> None:
    def panel_inches(records: list[Record]) -> float:
        with drawing():
            figure = settle(speedups(group_records(records)[0], PAGE))
        return figure.axes[0].get_position().height * figure.get_figheight()

    sizes = (1024, 1536, 2048, 3072, 4096)
    fits = [record(res / gpus, res=res, ulysses=gpus) for res in sizes for gpus in (1, 2, 4)]
    short = [record(3.0 * res, res=res, engine="stock", vae="single") for res in sizes]
    long = [oom(res=res, engine="stock", vae="single") for res in sizes[1:]]
    assert panel_inches([*fits, *short[:1], *long]) > 0.9 * panel_inches([*fits, *short])


def test_a_point_left_out_as_a_smaller_one_ran_out_is_too_large() -> None:
    left_out = Entry.of(record(status="skipped"))
    never_started = Entry.of(record(status="skipped", extra={"failure": {"stage": "start"}}))
    assert (left_out.outcome, never_started.outcome) == ("too large", "skipped")


def test_counts_where_everything_is_infeasible_have_no_bar() -> None:
    group = group_records([record(), record(status="infeasible", ulysses=8, ring=2)])[0]
    assert group.gpu_counts == (1,)


def test_cpu_ranks_are_not_called_gpus() -> None:
    group = group_records([record(machine=CPU)])[0]
    assert group.on_cpu
    assert group.count(2) == "2 ranks"


def test_a_point_whose_numbers_are_no_numbers_is_refused_by_name() -> None:
    bad = record()
    bad.point["height"] = "<script>"
    with pytest.raises(ResultsError, match="height, width, ulysses and ring must be numbers"):
        group_records([bad])


def test_a_baseline_of_several_gpus_needs_a_failure_on_one() -> None:
    group = group_records([record(2.0, ulysses=2), record(1.0, ulysses=4)])[0]
    assert group.baseline((1024, 1024)) is None


def test_a_capped_point_stands_beside_the_very_same_one_on_the_whole_card() -> None:
    whole = [record(1.0, ulysses=2), record(4.0, res=2048), record(2.0, res=2048, ulysses=2)]
    groups = group_records([*whole, record(2.5, res=2048, ulysses=2, memory_cap_gb=48.0),
                            record(9.0, ring=2, memory_cap_gb=48.0)])  # fmt: skip
    capped = next(group for group in groups if group.setting.memory_cap_gb)
    found = {entry.factors: whole_card(groups, capped, entry) for entry in capped.entries}
    assert found["u1r2"] is None
    assert found["u2r1"] is not None
    assert found["u2r1"].total_s == pytest.approx(2.0)


def test_a_cap_is_the_memory_a_point_had() -> None:
    assert Entry.of(record(memory_cap_gb=48.0)).limit_bytes == 48e9
    assert Entry.of(record()).limit_bytes == H200["capacity_bytes"]


def test_the_frontier_is_the_largest_size_that_ran_and_the_smallest_that_did_not() -> None:
    records = [*study(splits=((1, 1), (2, 1)), vae="single"), oom(res=8192, ulysses=2, vae="single")]
    found = {(limit.engine, limit.gpus): (limit.fits, limit.fails) for limit in limits(group_records(records))}
    assert found == {("stock", 1): (2048, 4096), ("usp", 1): (2048, 4096), ("usp", 2): (4096, 8192)}
    assert limits(group_records([record(), record(status="crashed", res=2048)])) == []


def test_where_every_exact_decode_failed_the_time_without_one_is_shown_and_named() -> None:
    records = [oom(), record(2.0, vae="none"), record(1.0, vae="none", ulysses=2), record(3.0, res=2048),
               record(0.9, vae="tiled")]  # fmt: skip
    group = group_records(records)[0]
    best = group.best((1024, 1024))
    assert best is not None
    assert best.vae == "none"
    assert panel(group, (1024, 1024)) == "1024px, no VAE"
    assert panel(group, (2048, 2048)) == "2048px"


def test_the_kernel_says_what_auto_came_to() -> None:
    assert Entry.of(record(1.0)).kernel == "auto"
    chosen = {"telemetry": {"choices": {"attention": "fa3"}}}
    assert Entry.of(record(1.0, extra=chosen)).kernel == "auto: fa3"
    assert Entry.of(record(1.0, extra=chosen, attention="cudnn")).kernel == "cudnn"


@pytest.mark.parametrize(
    ("ran", "modes", "counts"),
    [
        ({1: "single parallel distvae", 2: "parallel distvae"}, ["single", "parallel", "distvae"], [1, 2]),
        ({1: "single parallel", 2: "parallel", 4: "single parallel"}, ["single", "parallel"], [1, 4]),
        ({1: "single", 2: "parallel"}, ["single"], [1, 2]),  # nothing stands beside another
    ],
)
def test_vae_modes_are_compared_where_two_of_them_ran_on_as_many_gpus(
    ran: dict[int, str], modes: list[str], counts: list[int]
) -> None:
    (group,) = group_records([record(vae=vae, ulysses=gpus) for gpus, some in ran.items() for vae in some.split()])
    assert vae_modes(group) == (modes, counts)


def test_a_size_that_one_gpu_alone_ran_is_a_point_in_the_figure_of_strategies() -> None:
    records = [record(1.0, res=res) for res in (1024, 2048)] + [record(0.6, res=1024, ulysses=2)]
    (group,) = group_records(records)
    line, point = (axis.get_lines() for axis in strategies(group, PAGE).axes[:2])
    assert [one.get_linestyle() for one in line] == ["-", ":"]
    assert [list(one.get_xdata()) for one in point if one.get_alpha() is None] == [[1]]


def test_groups_that_steps_or_tokens_alone_tell_apart_say_so() -> None:
    alone = group_records([record(1.0)])
    assert short(alone[0]) == "flux_schnell h200_nvlink"
    groups = group_records([record(1.0), record(2.0, steps=1), record(2.0, steps=1, text_tokens=64)])
    assert {short(group) for group in groups} == {
        "flux_schnell h200_nvlink 4 steps 512 text tokens",
        "flux_schnell h200_nvlink 1 step 512 text tokens",
        "flux_schnell h200_nvlink 1 step 64 text tokens",
    }


def test_predictions_tie_by_the_errors_they_do_not_share() -> None:
    def split(total: float, errors: dict[str, float], **point: object) -> Record:
        extra = {"telemetry": {"errors_s": errors}}
        return record(total, source="predicted", extra=extra, **point)  # type: ignore[arg-type]

    common = {"compute": 0.2}
    (group,) = group_records([split(1.0, common, ulysses=2), split(1.1, {"compute": 0.22}, ring=2)])
    best = group.best((1024, 1024))
    assert best is not None
    assert group.tie(best) is None, "both err alike"
    (group,) = group_records([split(1.0, common, ulysses=2), split(1.1, {"network": 0.2}, ring=2)])
    best = group.best((1024, 1024))
    assert best is not None
    assert group.tie(best) is not None


@pytest.mark.parametrize(
    "change", [{"weights": "a folder"}, {"dtype": "fp32"}, {"steps": 1}, {"text_tokens": 64}, {"model": "flux_dev"}]
)
def test_unequal_pictures_never_share_a_group(change: dict[str, object]) -> None:
    groups = group_records([record(), record(**change)])  # type: ignore[arg-type]
    assert len(groups) == 2


def test_plain_diffusers_of_another_decode_is_no_base_of_a_gain() -> None:
    stock = record(4.0, engine="stock", vae="single")
    bare = record(1.0, engine="usp", vae="none", execution="graph")
    (group,) = group_records([stock, bare])
    entry = next(e for e in group.entries if e.vae == "none")
    assert group.gain(entry) is None
    (group,) = group_records([stock, bare, record(2.0, engine="stock", vae="none")])
    entry = next(e for e in group.entries if e.vae == "none" and e.engine == "usp")
    gain = group.gain(entry)
    assert gain is not None
    assert gain.value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00005, "5.00e-05"), (0.00123, "0.00123"), (0.058, "0.0580"), (0.09, "0.0900"), (0.0897, "0.0897"),
        (0.09996, "0.100"), (0.1, "0.100"), (0.931, "0.931"), (0.99951, "1.00"), (9.996, "10.0"), (12.34, "12.3"),
        (1.39e-14, "0"), (-1e-12, "0"),
        (99.96, "100"), (999.4, "999"), (1234.0, "1234"), (0.0, "0"), (-0.06, "-0.0600"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_below_1000_read_with_three_significant_digits(value: float | None, said: str) -> None:
    assert digits(value) == said


def test_tables_name_a_group_by_what_sets_it_apart_in_that_report() -> None:
    def named(records: list[Record], name: str) -> tuple[list[str], str]:
        table = next(t for t in report_tables(group_records(records), ()) if t.name == name)
        return [row[0].text for row in table.rows] if table.columns[0] == "Group" else [], table.note

    assert named([record(), record(memory_cap_gb=48.0)], "best")[0] == ["no cap", "cap 48 GB"]
    two = [record(topology="h100_nvlink"), record(steps=1), record(steps=1, topology="h100_nvlink")]
    assert named(two, "best")[0] == ["h100_nvlink 4 steps", "h100_nvlink 1 step", "h200_nvlink"]
    models = [record(), record(model="flux_dev")]
    assert sorted(named(models, "best")[0]) == ["flux_dev", "flux_schnell"]
    assert named([record()], "best")[0] == []
    rows, note = named([*models, record(model="flux_dev", status="oom", res=2048)], "failures")
    assert rows == []
    assert note == "All of flux_dev."


def test_bars_of_a_vae_panel_are_of_the_execution_in_which_most_modes_ran() -> None:
    slow = [record(3.0, vae=vae, res=2048) for vae in ("single", "tiled", "parallel")]
    (group,) = group_records([*slow, record(1.0, vae="parallel", execution="graph", res=2048),
                              oom(vae="single", execution="graph", res=2048)])  # fmt: skip
    found = [vae_entry(group, (2048, 2048), mode, 1) for mode in ("single", "tiled", "parallel")]
    assert [e and (e.execution, e.ok) for e in found] == [("eager", True)] * 3
    assert vae_effect(group, PAGE).axes[0].get_title() == "2048px, 1 GPU, eager"
    assert "vae=parallel (eager) 3.00 s" in alternatives.vae(group)
    both = [record(total, vae=vae, execution=how)
            for how, total in (("eager", 3.0), ("graph", 1.0)) for vae in ("single", "parallel")]  # fmt: skip
    (group,) = group_records(both)
    single = vae_entry(group, (1024, 1024), "single", 1)
    assert single is not None
    assert single.execution == "graph", "of equals the one with the fastest parallel decode"


def _peaks(gigabytes: float, **more: object) -> dict[str, object]:
    return {"memory": {"verdict": "fits", "peak_bytes": 1e9 * gigabytes, **more}}


def test_terms_of_no_time_are_not_drawn_and_no_edge_thickens_the_others() -> None:
    terms = {"gemm_s": 0.1, "attention_s": 0.05}
    records = [record(1.0, extra={"attribution": {**terms, "launch_s": 1e-5}}),
               record(0.6, ulysses=2, extra={"attribution": {**terms, "ring_s": 0.02}})]  # fmt: skip
    (axis,) = attribution(group_records(records)[0], PAGE).axes
    bars = [bar for bar in axis.patches if isinstance(bar, Rectangle)]
    assert sorted(round(1e3 * bar.get_height()) for bar in bars) == [20_000, 50_000, 50_000, 100_000, 100_000]
    assert {bar.get_linewidth() for bar in bars} == {0.0}


def test_a_vae_mode_has_one_colour_in_every_figure() -> None:
    assert len(set(VAE_COLOURS.values()) & set(CYCLE)) == len(VAE_COLOURS) == 5
    (group,) = group_records([record(vae=vae, extra=_peaks(40)) for vae in ("tiled", "none")])
    for axis in vae_effect(group, PAGE).axes:
        colours = {to_hex(bar.get_facecolor()) for bar in axis.patches}
        assert {VAE_COLOURS["tiled"], VAE_COLOURS["none"]} & colours
        assert not set(CYCLE) & colours - {VAE_COLOURS["tiled"], VAE_COLOURS["none"]}


def _texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_a_bar_without_an_energy_reading_says_so_beside_one_that_has_it() -> None:
    read = record(1.0, extra={"telemetry": {"energy_j_per_image": 600.0}})
    (group,) = group_records([read, record(0.6, ulysses=2)])
    (axis,) = energy(group, PAGE).axes
    assert _texts(axis) == ["600", "not recorded"]
    assert len(axis.get_xticks()) == 2


@pytest.mark.parametrize(("source", "line", "hatch"), [("measured", "-", None), ("predicted", "--", "////")])
def test_predicted_is_dashed_in_the_legend_and_hatched_in_the_whole_image(
    source: str, line: str, hatch: str | None
) -> None:
    (group,) = group_records(study(sizes=(1024,), source=source))
    (legend,) = strategies(group, PAGE).legends
    assert [one.get_linestyle() for one in legend.get_lines()[:3]] == [line] * 3
    assert (legend.get_lines()[0].get_markerfacecolor() == PAPER) == (source == "predicted")
    (group,) = group_records([record(vae=vae, source=source) for vae in ("single", "parallel")])
    bars = vae_effect(group, PAGE).axes[0].patches
    assert {bar.get_hatch() for bar in bars} == {hatch}
    assert (to_hex(bars[0].get_facecolor()) == PAPER) == (source == "predicted")


def test_what_ran_out_of_memory_reaches_the_line_it_passed() -> None:
    cap = {"memory_cap_gb": 48.0}
    (group,) = group_records([record(extra=_peaks(27), **cap), oom(ulysses=2, **cap), record(ulysses=4, **cap)])
    (axis,) = memory(group, PAGE).axes
    assert max(bar.get_height() for bar in axis.patches) == pytest.approx(48.0)
    assert "not recorded" in _texts(axis)
    (group,) = group_records([record(vae="tiled", extra=_peaks(27), **cap), oom(vae="single", **cap)])
    under = vae_effect(group, PAGE).axes[1]
    assert max(bar.get_height() for bar in under.patches) == pytest.approx(48.0)
    (group,) = group_records([record(vae="tiled", extra=_peaks(27)), oom(vae="single")])
    under = vae_effect(group, PAGE).axes[1]
    assert max(bar.get_height() for bar in under.patches) == pytest.approx(H200["capacity_bytes"] / 1e9)


def test_a_size_where_one_vae_mode_alone_was_tried_has_no_panel() -> None:
    both = [record(vae=vae) for vae in ("single", "parallel")]
    (group,) = group_records([*both, record(res=2048), record(res=512), oom(res=512, vae="single")])
    assert vae_sizes(group) == [(512, 512), (1024, 1024)]
    (group,) = group_records([record(), record(vae="single", res=2048)])
    (figure,) = (figure for figure in group_figures(group, ()) if figure.name == "vae")
    assert figure.why_empty.startswith("needs two VAE modes at one size")


def test_two_machines_of_one_topology_are_told_apart_by_what_differs() -> None:
    newer = {**H200, "driver": "580.9", "fingerprint": "h200-cccc"}
    groups = group_records([record(1.0), record(1.1, machine=newer)])
    assert {group.apart for group in groups} == {"driver 570.1", "driver 580.9"}
    table = best_table(groups)
    assert len({row[0].text for row in table.rows}) == 2
    unknown = {**H200, "fingerprint": "h200-cccc"}
    assert {g.apart for g in group_records([record(1.0), record(1.1, machine=unknown)])} == {
        "machine h200-aaa",
        "machine h200-ccc",
    }


def test_scaling_prefers_a_base_of_the_same_attention_kernel() -> None:
    points = [record(1.0, attention="sdpa"), record(0.6), record(0.5, attention="sdpa", ulysses=2)]
    (group,) = group_records(points)
    (two,) = [e for e in group.entries if e.gpus == 2]
    scaling = group.scaling(two)
    assert scaling is not None
    assert scaling.value == pytest.approx(2.0)


def test_a_strategys_line_shows_the_failure_that_another_execution_would_hide() -> None:
    graph = [record(1.0, execution="graph"), record(0.5, execution="graph", ulysses=2)]
    failed = record(status="crashed", execution="graph", ring=2)
    (group,) = group_records([*graph, failed, record(2.0, ring=2)])
    (axis,) = strategies(group, PAGE).axes
    assert "crashed" in [text.get_text() for text in axis.texts]
    assert not [line for line in axis.lines if 2.0 in line.get_ydata()]
    assert alternatives.cells(group) == "1024px: u1r1 1.00 s, u2r1 0.500 s, u1r2 crashed"


def test_alternative_texts_tell_of_stock_failures_and_pressure() -> None:
    tight = {"memory": {"verdict": "pressure", "peak_bytes": 80e9, "alloc_retries": 3}}
    held = {"memory": {"verdict": "fits", "peak_bytes": 40e9}}
    stock = record(status="oom", engine="stock", vae="single")
    (group,) = group_records([stock, record(1.0, extra=tight), record(0.5, ulysses=2, extra=held)])
    assert alternatives.memory(group) == "1024px: stock on 1 GPU OOM, 1 GPU 80.0 GB, pressure, 2 GPUs 40.0 GB"
    assert alternatives.engine(group).startswith("1024px: usp/eager on 1 GPU 202 ms a step")
