"""The first lines of a report: banners, three sentences, warnings."""

from __future__ import annotations

from synthetic import CPU, H200, oom, record, study

from xdit_bench.reporting.answer import Head, answer
from xdit_bench.reporting.study import group_records
from xdit_bench.results.schema import Record


def head(records: list[Record]) -> Head:
    return answer(group_records(records), records)


def test_names_best_configuration_speedup_and_limit_of_memory() -> None:
    best, speedup, memory = (sentence.text for sentence in head(study()).sentences)
    assert "0.224 s at 1024px on 8 GPUs (u8r1, usp/eager" in best
    assert "3.10 s at 4096px on 8 GPUs" in best
    assert "3.66x at 1024px" in speedup
    assert "over plain diffusers on one GPU" in speedup
    assert "3.85x at 4096px over usp/eager on 2 GPUs (1 GPU failed)" in speedup
    assert "At 4096px stock/eager with vae=single runs out on 1 GPU" in memory
    assert "the largest image run that fits is 4096px" in memory


def test_four_sizes_are_named_and_more_are_counted() -> None:
    sizes = (512, 1024, 1536, 2048, 3072)
    for count, more in ((4, ""), (5, "; the report's tables hold 1 more size")):
        best, speedup, _ = (sentence.text for sentence in head(study(sizes=sizes[:count], oom_at=9999)).sentences)
        for said in (best, speedup):
            assert said.endswith(f"{more}.")
            assert ("tables" in said) == bool(more)
            assert [f"at {size}px" in said for size in sizes[:count]].count(True) == 4
    five = [r for res in sizes for r in (record(res=res), record(2.0, res=res, engine="xfuser", execution="compile"))]
    peers = head(five).sentences[-1].text
    assert peers.endswith("3072px) on 1 GPU; the report's tables hold 1 more ratio.")


def test_a_study_without_oom_names_the_fullest_device_and_its_capacity() -> None:
    memory = head(study(oom_at=9999)).sentences[2].text
    assert "Nothing ran out" in memory
    assert "of 151 GB" in memory


def test_memory_speaks_of_every_size_whatever_its_steps_and_of_pressure() -> None:
    pressed = {"memory": {"verdict": "pressure", "peak_bytes": 68e9, "alloc_retries": 11}}
    records = [*study(oom_at=9999), record(30.0, res=8192, engine="stock", vae="single", steps=1, extra=pressed)]
    memory = next(sentence.text for sentence in head(records).sentences if sentence.lead == "Memory")
    assert "It was scarce, and slowed the decode, from 8192px on: stock/eager with vae=single on 1 GPU" in memory
    undecoded = head([record(res=8192, vae="none", extra=pressed)]).sentences
    assert "It was scarce from 8192px on" in next(sentence.text for sentence in undecoded if sentence.lead == "Memory")


def test_capped_points_say_where_they_run_out_and_what_still_fits_as_an_image() -> None:
    capped = {"memory_cap_gb": 48.0, "vae": "parallel"}
    records = [record(), record(res=2048, status="oom", **capped), record(**capped)]
    records += [record(res=4096, **(capped | {"vae": "none"}))]  # latents that nobody decodes
    memory = head(records).sentences[2].text
    assert "Capped at 48 GB, 2048px usp/eager with vae=parallel runs out on 1 GPU" in memory
    assert "the largest image run that fits is 1024px, on 1 GPU with vae=parallel" in memory


def test_a_tiled_decode_that_fits_on_fewer_gpus_or_larger_is_told_from_the_exact_one() -> None:
    out, exact = record(res=2048, status="oom", vae="single"), record(res=2048, ulysses=2)

    def said(*more: Record) -> str:
        return head([out, exact, *more]).sentences[2].text.split("; ")[1]

    assert said() == "the largest image run that fits is 2048px, on 2 GPUs with vae=parallel."
    assert said(record(res=1024, vae="tiled")) == said(), "a smaller one says nothing"
    assert said(record(res=2048, vae="tiled", ulysses=2)) == said()
    fewer, larger = record(res=2048, vae="tiled"), record(res=4096, vae="tiled", ulysses=2)
    begin = "the largest image run that fits with an exact decode is 2048px, on 2 GPUs with vae=parallel"
    assert said(fewer) == f"{begin} (approximate: 2048px on 1 GPU with vae=tiled)."
    assert said(fewer, larger) == f"{begin} (approximate: 4096px on 2 GPUs with vae=tiled)."


def test_where_every_point_is_capped_each_cap_has_its_say() -> None:
    below_48 = {"memory_cap_gb": 48.0, "vae": "parallel"}
    records = [record(res=res, memory_cap_gb=80.0) for res in (1024, 2048, 4096)]
    memory = head([*records, record(**below_48), record(res=2048, status="oom", **below_48)]).sentences[2].text
    assert "Nothing ran out of it below the cap of 80 GB; no peak was recorded" in memory
    assert "Capped at 48 GB, 2048px usp/eager with vae=parallel runs out on 1 GPU" in memory


def test_other_groups_stand_beside_the_answer() -> None:
    found = head([record(), *(record(3.0, model=f"other_{i}") for i in range(4))])
    assert len(found.sentences) == 3
    assert "other_0 h200_nvlink, 1024px: 3.00 s on 1 GPU" in found.elsewhere
    assert found.elsewhere.endswith("; 1 more section.")


def test_a_prediction_says_so_before_anything_else() -> None:
    found = head(study(source="predicted"))
    assert found.banners[0].startswith("PREDICTED")
    assert "is predicted to take" in found.sentences[0].text


def test_cpu_times_carry_their_note() -> None:
    assert any("nothing about a GPU" in banner for banner in head([record(machine=CPU)]).banners)


def test_unequal_machines_are_announced() -> None:
    found = head([record(), record(machine=H200 | {"fingerprint": "other"})])
    assert any("2 unequal machines" in banner for banner in found.banners)


def test_capped_points_are_announced() -> None:
    assert any(
        "cap of 48 and 80 GB" in b for b in head([record(memory_cap_gb=80.0), record(memory_cap_gb=48.0)]).banners
    )


def test_a_study_without_success_says_what_happened() -> None:
    found = head([record(status="oom"), record(status="oom", res=2048), record(status="crashed", res=4096)])
    assert [sentence.text for sentence in found.sentences] == [
        "No point succeeded: 1 crashed and 2 oom. The table of failures says why and what to do."
    ]


def test_a_study_without_a_baseline_states_no_speedup() -> None:
    assert "None can be stated" in head([record(ulysses=2)]).sentences[1].text


def test_where_what_could_be_compared_is_cold_the_speedup_says_so() -> None:
    cold = record(2.0, engine="stock", vae="single", samples=[2.0], extra={"telemetry": {"warmup_s": []}})
    said = head([cold, record(ulysses=2)]).sentences[1].text
    assert said.endswith("no one-GPU point of this group succeeded beside another, both timed with a warm-up.")


def test_a_speedup_names_the_execution_that_it_stands_on() -> None:
    small = [record(2.0, execution="graph"), record(1.0, execution="graph", ulysses=2)]
    large = [record(5.42, res=2048, execution="graph"), record(5.55, res=2048), record(2.99, res=2048, ulysses=2)]
    said = head([*small, *large]).sentences[1].text
    assert said == "2.00x at 1024px over usp/graph on 1 GPU; 1.86x at 2048px over usp/eager on 1 GPU."
    group = group_records([*small, *large])[0]
    lines = [line[1] for size in group.sizes if (line := group.baseline(size))]
    assert lines == ["1 GPU, usp", "1 GPU, usp/graph"], "named where the arrow divides by another execution"


def test_warnings_are_counted_once_each() -> None:
    warned = [record(res=res, extra={"warnings": ["NCCL_P2P_DISABLE=1 cripples this run"]}) for res in (1024, 2048)]
    assert head(warned).warnings == ("NCCL_P2P_DISABLE=1 cripples this run (2 points)",)


def test_another_engine_that_is_faster_is_not_hidden() -> None:
    records = [record(2.0), record(1.0, ulysses=2), record(0.9, engine="diffusers", execution="compile", ulysses=2)]
    best = head(records).sentences[0].text
    assert "1.00 s at 1024px on 2 GPUs (u2r1, usp/eager; diffusers/compile is faster, 0.900 s on 2 GPUs)" in best
    assert "faster" not in head(records[:2]).sentences[0].text


def test_a_point_that_drifted_when_it_was_measured_again_is_a_warning() -> None:
    noisy, quiet = (
        record(res=res, extra={"telemetry": {"recheck": {"drift": drift}}}) for res, drift in ((512, 0.3), (768, 0.01))
    )
    warnings = head([noisy, quiet]).warnings
    assert len(warnings) == 1
    assert "1 point measured again" in warnings[0]
    assert "the furthest by +30 %" in warnings[0]
    assert head([quiet]).warnings == ()


def test_where_one_gpu_is_the_fastest_no_speedup_is_stated_for_that_reason() -> None:
    said = head([record(1.0), record(1.2, ulysses=2)]).sentences[1].text
    assert said == "None: one GPU is the fastest, and plain diffusers has no time beside it."
    for other in ([], [record(1.2, ulysses=2, res=2048)], [record(status="crashed", ulysses=2)]):
        said = head([record(1.0), *other]).sentences[1].text
        assert said == "None: no more than one GPU has a time, and plain diffusers has no time beside it."


def test_of_equal_sections_the_head_speaks_of_most_steps_and_says_so() -> None:
    one, four = record(1.0, steps=1), record(4.0)
    for records in ([one, four], [four, one], [record(0.9, text_tokens=256), one, four]):
        assert "image of 4 steps took 4.00 s" in head(records).sentences[0].text
    assert "image took 1.00 s" in head([one]).sentences[0].text


def test_memory_names_the_largest_image_that_fits_whatever_its_steps() -> None:
    said = head([record(1.0), record(status="oom", res=3072, ulysses=2), record(9.0, res=4096, steps=1)]).sentences[2]
    assert "the largest image run that fits is 4096px, on 1 GPU" in said.text


def test_a_ratio_of_another_section_says_that_it_is_of_two_sittings() -> None:
    later = {"time": "2026-11-01T15:00:00.000+00:00"}
    host = [record(2.0, transport="host"), record(1.5, ulysses=2, transport="host", extra=later)]
    found = head([record(2.0), record(1.0, ulysses=2), record(0.9, ring=2), *host])
    said = found.elsewhere
    assert "1.33x over usp/eager on 1 GPU (in two sittings)" in said


def test_memory_speaks_of_the_first_that_ran_out_and_else_of_the_fullest() -> None:
    def memory(*records: Record) -> str:
        return head(list(records)).sentences[2].text

    fits = [record(1.0, extra={"memory": {"peak_bytes": 30e9}}),
            record(2.0, res=2048, extra={"memory": {"peak_bytes": 40e9}})]  # fmt: skip
    assert "the fullest device held 40.0 GB" in memory(*fits)
    out = [oom(res=4096), oom(res=3072)]
    assert memory(*fits, *out).startswith("At 3072px usp/eager with vae=parallel runs out on 1 GPU")
    pressed = [
        record(1.0, res=res, extra={"memory": {"peak_bytes": 40e9, "verdict": "pressure"}}) for res in (4096, 3072)
    ]
    assert "scarce, and slowed the decode, from 3072px on" in memory(*fits, *pressed)


def test_a_point_that_was_faster_the_second_time_is_drift_too() -> None:
    (warning,) = head([record(extra={"telemetry": {"recheck": {"drift": -0.3}}})]).warnings
    assert "the furthest by -30 %" in warning


def test_predictions_are_no_second_machine() -> None:
    banners = head([record(), record(source="predicted", machine={"fingerprint": "p"})]).banners
    assert not any("unequal machines" in banner for banner in banners)
