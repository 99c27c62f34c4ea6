"""A study as a DataFrame: columns, failures as rows, lazy import."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import oom, record, study

import xdit_bench.results
from xdit_bench.errors import ResultsError
from xdit_bench.results.frame import to_frame
from xdit_bench.results.schema import METRICS, POINT_KEYS
from xdit_bench.results.store import Store


def test_loads_a_study_with_a_row_a_record(tmp_path: Path) -> None:
    records = [*study(sizes=(1024, 4096), splits=((1, 1), (2, 1)))]
    with Store.open(tmp_path, "demo") as store:
        for item in records:
            store.append(item)
    frame = xdit_bench.results.load(str(tmp_path / "demo"))
    assert len(frame) == len(records)
    assert {*POINT_KEYS, *METRICS, "ok", "samples", "fingerprint", "gpu"} <= set(frame.columns)
    assert frame.loc[frame.ok, "total_s"].min() == pytest.approx(min(r.total_s or math.inf for r in records))
    assert len(frame.iloc[0]["samples"]) == 10


def test_every_documented_column_is_there_and_every_column_documented() -> None:
    text = xdit_bench.results.load.__doc__ or ""
    documented = {word.strip(".,`:;()") for line in text.splitlines() for word in line.replace("`", " ").split()}
    assert set(to_frame([record()], samples=True).columns) <= documented


def test_a_failure_is_a_row_without_a_time() -> None:
    frame = to_frame([record(), oom(), record(extra={"parity": {"ok": False}})])
    assert list(frame["ok"]) == [True, False, False]
    assert list(frame["total_s"].isna()) == [False, True, True]
    assert frame.loc[1, "reason"].startswith("vae on rank 0")
    assert frame.loc[0, ["step_s", "total_p10_s", "total_low_s"]].notna().all()
    wrong = to_frame([record(extra={"parity": {"ok": False}, "telemetry": {"energy_j_per_image": 5.0}})], samples=True)
    assert wrong.loc[0, ["step_s", "text_s", "total_p10_s", "total_low_s", "energy_j", "utilisation"]].isna().all()
    assert wrong.loc[0, "samples"] == []


def test_numbers_that_are_not_finite_are_nan() -> None:
    frame = to_frame([record(extra={"memory": {"peak_bytes": "nan"}, "telemetry": {"energy_j_per_image": True}})])
    assert frame["peak_bytes"].isna().all()
    assert frame["energy_j"].isna().all()


def test_a_prediction_gives_its_span() -> None:
    row = to_frame([record(2.0, source="predicted")]).iloc[0]
    assert (row["total_low_s"], row["total_high_s"]) == (pytest.approx(1.9), pytest.approx(2.1))


def test_fewer_than_five_images_give_no_interval() -> None:
    few, five = (to_frame([record(samples=[2.0] * n)]).iloc[0] for n in (4, 5))
    assert few[["total_low_s", "total_high_s"]].isna().all()
    assert (five["total_low_s"], five["total_high_s"]) == (pytest.approx(1.994), pytest.approx(2.006))


def test_the_newest_record_of_a_run_is_kept_unless_all_are_asked_for(tmp_path: Path) -> None:
    with Store.open(tmp_path, "demo") as store:
        store.append(record(1.0))
        store.append(record(2.0))
    assert list(xdit_bench.results.load(tmp_path / "demo")["total_s"]) == [2.0]
    assert len(xdit_bench.results.load(tmp_path / "demo", all_records=True)) == 2


def test_a_folder_without_records_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no records at"):
        xdit_bench.results.load(tmp_path)


def test_writing_records_imports_no_tables() -> None:
    code = "import sys, xdit_bench.results.schema, xdit_bench.results.store; print('pandas' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_watts_are_of_all_gpus_and_clocks_of_the_slowest() -> None:
    telemetry = {"watts": [300.0, 350.5], "sm_mhz": [1980, 1755], "throttled_images": 0}
    row = to_frame([record(extra={"telemetry": telemetry}), record()]).iloc[0]
    assert (row["watts"], row["sm_mhz"], row["throttled_images"]) == (650.5, 1755.0, 0.0)
    assert to_frame([record()])["watts"].isna().all()


def test_a_point_measured_again_by_other_code_is_one_row(tmp_path: Path) -> None:
    older = record(1.0)
    with Store.open(tmp_path, "demo") as store:
        store.append(older)
        store.append(dataclasses.replace(older, run_id="f" * 16, latency_s={"total": {"median": 2.0}}))
    assert list(xdit_bench.results.load(tmp_path / "demo")["total_s"]) == [2.0]
    assert len(xdit_bench.results.load(tmp_path / "demo", all_records=True)) == 2


def test_every_column_holds_the_field_that_it_is_named_after() -> None:
    stages = {name: {"median": seconds} for name, seconds in (("text", 1.0), ("denoise", 2.0), ("vae", 3.0))}
    total = {"median": 6.0, "p10": 5.0, "p90": 7.0, "ci95": [5.5, 6.5], "samples": 5 * [6.0]}
    item = record(extra={
        "latency_s": {**stages, "total": total}, "step_s": {"median": 0.5},
        "memory": {"peak_bytes": 11.0, "parameters_bytes": 12.0, "cap_bytes": 13.0, "alloc_retries": 14.0},
        "telemetry": {"watts": [400.0, 300.0], "sm_mhz": [1500.0, 1400.0], "throttled_images": 15.0},
        "parity": {"latents_rel_l2": 16.0, "image_max_abs": 17.0, "fp32_rel_l2": 18.0},
        "comm": {"seconds_per_step": 19.0, "bytes_per_step": 20.0}, "attribution": {"utilisation": 21.0},
    })  # fmt: skip
    (row,) = to_frame([item]).to_dict("records")
    wanted = {
        "text_s": 1.0, "denoise_s": 2.0, "vae_s": 3.0, "total_s": 6.0, "step_s": 0.5, "total_p10_s": 5.0,
        "total_p90_s": 7.0, "total_low_s": 5.5, "total_high_s": 6.5, "peak_bytes": 11.0, "parameters_bytes": 12.0,
        "cap_bytes": 13.0, "alloc_retries": 14.0, "watts": 700.0, "sm_mhz": 1400.0, "throttled_images": 15.0,
        "parity_l2": 16.0, "image_max_abs": 17.0, "fp32_l2": 18.0, "comm_s_per_step": 19.0,
        "comm_bytes_per_step": 20.0, "utilisation": 21.0,
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted
