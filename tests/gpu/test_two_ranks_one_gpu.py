"""NCCL's path on a machine with one GPU: two ranks share it, each under a host id of its own.

NCCL refuses two ranks on one GPU of one host; as two hosts they meet over sockets. It says nothing about speed,
and everything about collectives on device tensors, streams, and graphs that hold them.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.modules import load_modules, make_inputs
from xdit_bench.backends.stock import StockBackend
from xdit_bench.backends.usp import UspBackend
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh, build_mesh, connect

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

POINT = Point(
    "flux_tiny", 208, 256, 3, 77, 1, 1, "usp", "eager", "auto", "parallel", "bf16", "random", 0, "auto", "p2p"
)
CASES = [(2, 1, "eager"), (1, 2, "eager"), (2, 1, "graph"), (1, 2, "graph"), (2, 1, "compile")]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def _rank(rank: int, store: str, cases: list[tuple[int, int, str]]) -> None:
    os.environ |= {"NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    connect(rank, 2, store, device)
    model = ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_tiny.yaml")))
    modules = load_modules(POINT, model, device, torch.bfloat16)
    inputs = make_inputs(POINT, model, device, torch.bfloat16)
    with torch.no_grad():
        stock = StockBackend()
        stock.prepare(Mesh(1, 1, 0, device), modules, dataclasses.replace(POINT, vae="single"), model, inputs)
        embeddings = stock.encode()
        truth = stock.denoise(embeddings)
        picture = stock.decode(truth)
        stock.close()
        for ulysses, ring, execution in cases:
            point = dataclasses.replace(POINT, ulysses=ulysses, ring=ring, execution=execution)
            usp = UspBackend()
            usp.prepare(build_mesh(ulysses, ring, device), modules, point, model, inputs)
            for _ in range(2):  # the second replays a captured graph
                latents = usp.denoise(embeddings)
            assert distance(usp.gather(latents), truth) < 2e-2, (ulysses, ring, execution)
            image = usp.decode(latents)
            assert (image is None) == (rank > 0)
            if image is not None:
                assert distance(image, picture) < 5e-2, (ulysses, ring, execution)
            usp.close()
    torch.cuda.synchronize()


@pytest.mark.timeout(240)
def test_two_ranks_over_nccl_give_the_one_device_image(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), CASES), nprocs=2)
