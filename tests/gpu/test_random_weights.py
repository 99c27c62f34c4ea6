"""At full size, with random weights in bf16, a fault moves the latents clearly further than rounding does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.base import Embeddings, Modules
from xdit_bench.backends.modules import load_modules, make_inputs
from xdit_bench.backends.stock import StockBackend
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import build_mesh

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

POINT = Point(
    "flux_schnell", 1024, 1024, 4, 512, 1, 1, "stock", "eager", "cudnn", "none", "bf16", "random", 0, "auto", "p2p"
)
DEVICE = torch.device("cuda", 0)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def stock(modules: Modules, **knobs: object) -> StockBackend:
    model = ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model/flux_schnell.yaml")))
    backend, point = StockBackend(), dataclasses.replace(POINT, **knobs)
    backend.prepare(build_mesh(1, 1, DEVICE), modules, point, model, make_inputs(point, model, DEVICE, torch.bfloat16))
    return backend


@pytest.fixture(scope="module")
def modules() -> Iterator[Modules]:
    model = ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model/flux_schnell.yaml")))
    yield load_modules(POINT, model, DEVICE, torch.bfloat16)
    torch.cuda.empty_cache()


@torch.no_grad()
def test_faults_stand_out_from_rounding(modules: Modules, capsys: pytest.CaptureFixture[str]) -> None:
    backend = stock(modules)
    embeddings = backend.encode()
    truth = backend.denoise(embeddings)
    dropped = distance(backend.denoise(Embeddings(embeddings.prompt[:, :-7], embeddings.pooled)), truth)

    positions = modules.transformer.pos_embed
    plain = positions.forward
    positions.forward = lambda ids: plain(ids + (torch.arange(len(ids), device=ids.device)[:, None] // 64 == 10) * 3)
    try:
        moved = distance(backend.denoise(embeddings), truth)
    finally:
        positions.forward = plain
    backend.close()

    other = stock(modules, attention="flash")
    rounding = distance(other.denoise(embeddings), truth)
    other.close()
    with capsys.disabled():
        print(f"\nseven text tokens dropped {dropped:.4f}, RoPE of 64 tokens {moved:.4f}, other kernel {rounding:.4f}")
    assert torch.isfinite(truth).all()
    assert min(dropped, moved) > 1e-2
    assert rounding < 2.5e-2
    assert min(dropped, moved) > 1.5 * rounding
