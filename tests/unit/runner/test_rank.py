"""What a rank does around a point: memory it counts, weights it keeps, references it judges by."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from xdit_bench import data_dir
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh
from xdit_bench.measure.memory import MemoryWatch
from xdit_bench.measure.parity import save_result
from xdit_bench.runner import rank as ranks
from xdit_bench.runner.rank import Rank, _with_symmetric

CPU = torch.device("cpu")
TINY = yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text())
POINT = Point(
    model="flux_tiny", height=64, width=64, steps=2, text_tokens=77, ulysses=2, ring=1, engine="usp",
    execution="eager", attention="auto", vae="single", dtype="fp32", weights="random", seed=0, topology="cpu",
    transport="p2p",
)  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, rank: Rank, vae: str, close: Any = lambda: None) -> dict[str, Any]:
    """What the timer was given in a point of an engine that computes nothing."""
    given: dict[str, Any] = {}

    class Timer:
        def __init__(self, *_: object, **knobs: object) -> None:
            given.update(knobs)

        def image(self, *_: object) -> None: ...

    backend = SimpleNamespace(weightless=True, prepare=lambda *_: None, close=close)
    monkeypatch.setattr(ranks, "ImageTimer", Timer)
    monkeypatch.setattr(ranks, "make_backend", lambda _: backend)
    monkeypatch.setattr(rank, "_judge", lambda *_: {})
    mesh: Any = SimpleNamespace(group=None, rank=1, size=2)
    point, model = Point.from_dict({**POINT.to_dict(), "vae": vae}), ModelSpec.from_dict(TINY)
    rank._run_member({"measure": None}, point, model, mesh, MemoryWatch(CPU, None))
    return given


@pytest.mark.parametrize("vae", ["single", "tiled", "parallel", "distvae"])
def test_a_decode_of_all_ranks_is_one_whose_failure_is_told_at_once(monkeypatch: pytest.MonkeyPatch, vae: str) -> None:
    given = run(monkeypatch, Rank(0, CPU, lambda *_: None), vae)
    assert given["together"] is (vae in ("parallel", "distvae"))


def test_weights_that_did_not_come_back_are_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(0, CPU, lambda *_: None)
    rank._modules = weights = (("weights",), object())
    run(monkeypatch, rank, "single")
    assert rank._modules is weights

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(monkeypatch, rank, "single", fails)
    assert rank._modules is None


def test_an_engine_that_brings_the_first_image_leaves_the_reference_its_latents(tmp_path: Any) -> None:
    path, latents = tmp_path / "reference.safetensors", torch.randn(1, 16, 64)
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    save_result(path, latents, None, "stock u1r1 eager")
    rank, mesh = Rank(0, CPU, lambda *_: None), Mesh(1, 1, 0, CPU)

    def judged(engine: str, latents: torch.Tensor) -> dict[str, Any]:
        backend: Any = SimpleNamespace(gather=lambda latents: latents)
        timing: Any = SimpleNamespace(latents=latents, image=image)
        return rank._judge({"reference": str(path)}, backend, mesh, replace(POINT, ulysses=1, engine=engine), timing)

    near = latents * (1 + 5e-5)
    assert "image_max_abs" not in judged("usp", near)
    found = judged("diffusers", latents * (1 - 6e-5))
    assert found["ok"], "6e-5 from plain diffusers, 1.1e-4 from the engine whose image it is"
    assert (found["reference"], found["image_reference"]) == ("stock u1r1 eager", "usp u1r1 eager")


def test_nobody_is_held_to_an_approximate_decode_nor_is_it_held_to_an_exact_one(tmp_path: Any) -> None:
    rank, mesh, latents = Rank(0, CPU, lambda *_: None), Mesh(1, 1, 0, CPU), torch.randn(1, 16, 64)
    exact, tiles = (torch.full((64, 64, 3), value, dtype=torch.uint8) for value in (90, 120))
    exact[0], tiles[0] = 0, 255
    backend: Any = SimpleNamespace(gather=lambda latents: latents)

    def judged(vae: str, image: torch.Tensor, **where: str) -> dict[str, Any]:
        timing: Any = SimpleNamespace(latents=latents, image=image)
        return rank._judge(where, backend, mesh, replace(POINT, ulysses=1, vae=vae), timing)

    path = str(tmp_path / "reference.safetensors")
    judged("tiled", tiles, save_reference=path)
    assert judged("single", exact, reference=path)["ok"], "there is no image to be held to"
    assert judged("tiled", tiles, reference=path)["ok"]
    assert not judged("single", tiles, reference=path)["ok"], "the exact one is there now"


def test_buffers_that_peers_write_into_count_towards_peak_and_reservation() -> None:
    seen = {"peak_bytes": 10, "reserved_bytes": 20, "alloc_retries": 0, "verdict": "fits"}
    engine: Any = SimpleNamespace(symmetric_bytes=5)
    assert _with_symmetric(seen, engine) == seen | {"peak_bytes": 15, "reserved_bytes": 25, "symmetric_bytes": 5}
    others: Any = SimpleNamespace()
    assert _with_symmetric(seen, others) == seen | {"symmetric_bytes": 0}
