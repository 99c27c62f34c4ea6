"""The peer's context parallelism, on our groups, gives the one-device result and leaves the modules as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.diffusers_cp import DiffusersBackend
from xdit_bench.backends.modules import load_modules, make_inputs
from xdit_bench.backends.stock import StockBackend
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh, build_mesh, connect
from xdit_bench.errors import Infeasible

CPU = torch.device("cpu")
POINT = Point(
    "flux_tiny", 192, 256, 2, 64, 2, 1, "diffusers", "eager", "auto", "single", "fp32", "random", 0, "cpu", "p2p"
)


def _rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    connect(rank, 2, store, CPU)
    mesh, alone = build_mesh(2, 1, CPU), Mesh(1, 1, 0, CPU)
    model = ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_tiny.yaml")))
    modules = load_modules(POINT, model, CPU, torch.float32)
    for text_tokens in (64, 77):  # 77 is odd: diffusers' uneven mode
        point = dataclasses.replace(POINT, text_tokens=text_tokens)
        inputs = make_inputs(point, model, CPU, torch.float32)
        stock, peer = StockBackend(), DiffusersBackend()
        with torch.inference_mode():
            stock.prepare(alone, modules, point, model, inputs)
            embeddings = stock.encode()
            truth = stock.denoise(embeddings)
            stock.close()
            peer.prepare(mesh, modules, point, model, inputs)
            shared = peer.denoise(embeddings)
            image = peer.decode(shared)
            peer.close()
            # a forward of the instance's own would go before that of an engine that brings its class, as xfuser does
            assert not [name for name, m in modules.transformer.named_modules() if "forward" in vars(m)]
            stock.prepare(alone, modules, point, model, inputs)
            again = stock.denoise(embeddings)
            stock.close()
        assert float((shared - truth).norm() / truth.norm()) < 1e-5
        assert torch.equal(again, truth)
        assert (image is None) == (rank > 0)


@pytest.mark.slow
def test_two_ranks_give_the_one_device_latents(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"vae": "parallel"}, "no parallel VAE"),
        ({"ring": 2, "ulysses": 1}, "LSE"),
        ({"ring": 2, "text_tokens": 77}, "hybrid"),
        ({"attention": "fa3"}, "does not know attention=fa3"),
        ({"height": 48, "width": 48}, "2 ranks do not divide 9"),
    ],
)
def test_its_limits_are_reasons(knobs: dict, reason: str) -> None:
    point = dataclasses.replace(POINT, **knobs)
    model = ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_tiny.yaml")))
    with pytest.raises(Infeasible, match=reason):
        DiffusersBackend().prepare(Mesh(point.ulysses, point.ring, 0, CPU), None, point, model, None)
