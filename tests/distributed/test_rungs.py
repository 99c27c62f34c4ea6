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
