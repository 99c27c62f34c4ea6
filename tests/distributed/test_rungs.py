"""Rungs of the engine's ladder on real gloo ranks: what is left out changes the time of an image, never the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plans import fake_point, run_points
from safetensors.torch import load_file

from xdit_bench.config import settle
from xdit_bench.rungs import RUNGS

CHANGES = ("modulation_once", "shard_modulation", "shard_text", "overlap", "keys_first")  # the others are a GPU's


@pytest.mark.usefixtures("no_process_left")
def test_an_image_is_the_same_whatever_the_engine_leaves_out(tmp_path: Path) -> None:
    whole = replace(fake_point(2, 2, engine="usp", res=64), prompt="", vae="none")
    points = [settle(replace(whole, without=without)) for without in ("", "+".join(RUNGS), *CHANGES)]
    assert [point.without for point in points] == ["", "+".join(CHANGES), *CHANGES]
    records, _ = run_points(points, tmp_path, probe_all=True)
    ours = {record.point.get("without", ""): record for record in records if record.point["gpus"] == 4}
    assert {name: record.status for name, record in ours.items()} == dict.fromkeys(
        [point.without for point in points], "ok"
    )
    assert len({record.run_id for record in ours.values()}) == len(points)
    assert all(record.parity["ok"] for record in ours.values())

    def latents(name: str) -> torch.Tensor:
        return load_file(tmp_path / "s" / "outputs" / ours[name].run_id / "latents.safetensors")["latents"]

    for name in ours:
        torch.testing.assert_close(latents(name), latents(""), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_process_left")
def test_a_record_says_what_auto_came_to_and_how_fast_links_through_the_host_were(tmp_path: Path) -> None:
    direct = replace(fake_point(2, 2, engine="usp", res=64), prompt="", vae="none")
    alone = replace(direct, ulysses=1, ring=2, transport="host")
    records, _ = run_points([direct, replace(direct, transport="host"), alone], tmp_path)
    found = {(r.point["transport"], r.point["ulysses"]): r.telemetry for r in records if r.point["engine"] == "usp"}
    ring = {"single_keys": "ring", "double_keys": "ring"}
    assert found["p2p", 2]["choices"] == {"attention": "sdpa", "exchange": "distributed", **ring}
    assert "link" not in found["p2p", 2]
    assert list(found["host", 2]["link"]) == ["all_to_all", "ring"]
    assert found["host", 2]["link"]["ring"]["bytes"] == 2 * found["host", 2]["link"]["all_to_all"]["bytes"] == 2**24
    assert all(row["seconds"] > 0 and row["calls"] > 1 for row in found["host", 2]["link"].values())
    assert list(found["host", 1]["link"]) == ["ring"]


@pytest.mark.usefixtures("no_process_left")
def test_points_in_bf16_say_how_far_they_are_from_fp32_where_that_was_run(tmp_path: Path) -> None:
    exact = replace(fake_point(engine="stock", res=64), prompt="", vae="none")
    coarse = [replace(exact, dtype="bf16", engine=engine, ulysses=u) for engine, u in (("stock", 1), ("usp", 2))]
    records, _ = run_points([*coarse, exact, replace(coarse[1], seed=1)], tmp_path)  # of seed 1 there is no fp32
    assert {record.status for record in records} == {"ok"}
    from_fp32 = {
        (r.point["engine"], r.point["ulysses"]): r.parity.get("fp32_rel_l2")
        for r in records
        if r.point["dtype"] == "bf16" and r.point["seed"] == 0
    }
    assert all(1e-4 < distance < 5e-2 for distance in from_fp32.values())
    assert from_fp32["usp", 2] < 1.2 * from_fp32["stock", 1]
    others = [r for r in records if (r.point["dtype"], r.point["seed"]) != ("bf16", 0)]
    assert len(others) == 4
    assert not any("fp32_rel_l2" in record.parity for record in others)
