"""The decode by VAE mode: which stand beside each other, ours over each, and the goals of a sweep file."""

from __future__ import annotations

import pytest
from synthetic import oom, record

from xdit_bench.reporting.decode_table import decode_table, decodes
from xdit_bench.reporting.peers import shipped_bounds
from xdit_bench.reporting.study import group_records
from xdit_bench.results.schema import Record

COMMAND = "python -m xdit_bench -m +sweeps=vae_effect study=mine"


def decode(
    seconds: float,
    peak_gb: float,
    vae: str,
    *,
    off: float | None = None,
    reference: str = "stock u1r1 eager",
    image: str = "",
    **point: object,
) -> Record:
    """A 2048px image whose decode takes `seconds` and whose peak is `peak_gb`, 34 of them weights."""
    stages = {"text": 0.05, "denoise": 0.6, "vae": seconds, "total": 0.65 + seconds}
    parity: dict[str, object] = (
        {} if off is None else {"image_rel_l2": off, "image_max_abs": 18, "reference": reference}
    )
    if image:
        parity["image_reference"] = image
    extra = {
        "latency_s": {name: {"median": value, "samples": [value]} for name, value in stages.items()},
        "memory": {"peak_bytes": peak_gb * 1e9, "parameters_bytes": 34e9, "verdict": "fits"},
        "parity": parity,
        "command": COMMAND,
        **point.pop("extra", {}),  # type: ignore[dict-item]
    }
    return record(res=2048, vae=vae, steps=1, extra=extra, **point)


RECORDS = [
    decode(0.40, 44.0, "single", engine="stock"),
    decode(0.42, 44.0, "single"),
    decode(0.66, 36.5, "tiled", off=0.043),
    decode(0.10, 37.5, "parallel", off=0.023),
    decode(0.08, 36.5, "parallel", ulysses=2),
    decode(0.06, 36.9, "parallel", ring=2),
    decode(0.20, 39.0, "distvae", ulysses=2),
]


def test_ours_stands_beside_each_modes_fastest_decode_on_as_many_gpus() -> None:
    (group,) = group_records(RECORDS)
    found = {(row.gpus, row.entry.vae): row for row in decodes(group)}
    assert list(found) == [(1, "single"), (1, "tiled"), (1, "parallel"), (2, "parallel"), (2, "distvae")]
    assert found[1, "single"].entry.engine == "stock"
    assert found[1, "single"].ours_over == pytest.approx(0.25)
    assert found[1, "tiled"].ours_over == pytest.approx(0.10 / 0.66)
    assert found[2, "distvae"].ours_over == pytest.approx(0.3)
    assert found[2, "parallel"].entry.factors == "u1r2"
    assert found[1, "parallel"].ours_over is None
    assert found[1, "parallel"].beyond == pytest.approx(3.5e9)


def test_the_goals_are_the_sweeps_that_made_the_record_whatever_its_study() -> None:
    table = decode_table(group_records(RECORDS))
    said = {(row[2].text, row[3].text): [cell.text for cell in row] for row in table.rows}
    assert said["1", "single"][6:8] == ["0.250", "≤ 0.327, met"]
    assert said["1", "tiled"][6:8] == ["0.152", ""]
    assert said["1", "tiled"][-1] == "4.3e-02, 18"
    assert said["1", "parallel"][6:10] == ["–", "", "3.50 GB", "≤ 4.29 GB, met"]
    assert said["2", "parallel"][8:10] == ["2.90 GB", "≤ 2.15 GB, missed"]
    other = [decode(0.4, 44.0, "single", extra={"command": "x"}), decode(0.1, 37.5, "parallel", extra={"command": "x"})]
    assert not any("Goal" in column for column in decode_table(group_records(other)).columns)
    assert {len(row) for row in decode_table(group_records(other)).rows} == {9}


def test_goals_are_of_their_machine_and_distances_of_plain_diffusers_alone() -> None:
    elsewhere = [
        decode(0.4, 44.0, "single", topology="h100_nvlink"),
        decode(0.1, 37.5, "parallel", topology="h100_nvlink", off=0.0, reference="usp u1r1 eager"),
        decode(0.2, 37.5, "distvae", topology="h100_nvlink", off=0.0, image="usp u1r1 eager"),
    ]
    table = decode_table(group_records(elsewhere))
    assert "Goal" not in [column.removeprefix(">") for column in table.columns]
    assert [row[-1].text for row in table.rows[1:]] == ["–", "–"]


def test_predictions_are_held_to_no_goal() -> None:
    (group,) = group_records([decode(0.4, 44.0, vae, source="predicted") for vae in ("single", "parallel")])
    assert [row.goal or row.beyond_goal for row in decodes(group)] == [None, None]


def test_a_decode_that_ran_out_of_memory_says_so_and_a_cold_one_makes_no_ratio() -> None:
    failed = oom(res=2048, vae="single", steps=1)
    cold = decode(0.9, 36.0, "tiled", extra={"telemetry": {"warmup_s": []}})
    (group,) = group_records([failed, cold, decode(0.1, 37.5, "parallel")])
    rows = decode_table([group]).rows
    assert [(row[3].text, row[5].text, row[6].text) for row in rows] == [
        ("single", "OOM", "–"),
        ("parallel", "0.100 s", "–"),
    ]


def test_one_mode_alone_is_no_table_and_ratios_of_two_sittings_are_marked() -> None:
    assert decode_table(group_records([decode(0.1, 37.5, "parallel")])).rows == ()
    later = decode(0.4, 44.0, "single", extra={"time": "2026-11-01T15:00:00.000+00:00"})
    table = decode_table(group_records([later, decode(0.1, 37.5, "parallel")]))
    assert table.rows[0][6].text == "0.250 †"
    assert "two sittings" in table.note


def test_the_shipped_goals_name_modes_gpus_and_sizes() -> None:
    bounds = shipped_bounds("vae_effect")
    assert set(bounds) == {"topology", "decode", "beyond_gb"}
    assert bounds["decode"]["distvae"][2][4096] == 0.230
