"""DistVAE over our groups gives the one-device image and leaves the VAE as it was; where it can not, a reason."""

from __future__ import annotations

import builtins
import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml

from xdit_bench import data_dir
from xdit_bench.backends.distvae import DistVae
from xdit_bench.backends.modules import load_modules, make_inputs
from xdit_bench.backends.pipeline import decode_image, decode_whole
from xdit_bench.backends.stock import StockBackend
from xdit_bench.backends.usp import UspBackend
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh, build_mesh, connect
from xdit_bench.errors import Infeasible, MissingExtraError

CPU = torch.device("cpu")
MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
POINT = Point("flux_tiny", 208, 160, 1, 64, 2, 1, "usp", "eager", "auto", "distvae", "fp32", "random", 0, "cpu", "p2p")
needs_distvae = pytest.mark.skipif(find_spec("distvae") is None, reason="DistVAE (the extra `peers`) is not installed")


def _rank(rank: int, world: int, store: str, ranks: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    connect(rank, world, store, CPU)
    modules = load_modules(POINT, MODEL, CPU, torch.float32)
    parts = list(modules.vae.named_modules())
    inputs = make_inputs(POINT, MODEL, CPU, torch.float32)
    for size in ranks:
        mesh = build_mesh(1, size, CPU)
        if mesh is None:  # a rank outside the point takes no part in its collectives
            continue
        with torch.no_grad():
            truth = decode_image(modules.vae, inputs.noise, dataclasses.replace(POINT, vae="single"))
            twin = DistVae(modules.vae, mesh)
            image = decode_image(twin.vae, inputs.noise, POINT)
            pixels = twin.decode(inputs.noise, POINT)
        assert float((image - truth).norm() / truth.norm()) < 1e-5
        assert (pixels is None) == (rank > 0)
        assert list(modules.vae.named_modules()) == parts
        shared = {tensor.data_ptr() for tensor in modules.vae.parameters()}
        assert {tensor.data_ptr() for tensor in twin.vae.parameters()} <= shared


@needs_distvae
@pytest.mark.slow
def test_ranks_decode_the_one_device_image(tmp_path: Path) -> None:
    mp.spawn(_rank, (3, str(tmp_path / "store"), (2, 3)), nprocs=3)  # 26 rows of latents: uneven over three


def _engine_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    connect(rank, 2, store, CPU)
    modules = load_modules(POINT, MODEL, CPU, torch.float32)
    inputs = make_inputs(POINT, MODEL, CPU, torch.float32)
    mesh = build_mesh(2, 1, CPU)
    assert mesh is not None
    with torch.no_grad():
        engine = UspBackend()
        engine.prepare(mesh, modules, POINT, MODEL, inputs)
        latents = engine.denoise(engine.encode())
        pixels = engine.decode(latents)
        whole = engine.gather(latents)
        engine.close()
        truth = decode_whole(modules.vae, whole, dataclasses.replace(POINT, vae="single"))
    if rank == 0:
        assert pixels is not None
        assert int((pixels.int() - truth.int()).abs().max()) <= 1


@needs_distvae
@pytest.mark.slow
def test_our_engine_decodes_with_it(tmp_path: Path) -> None:
    mp.spawn(_engine_rank, (str(tmp_path / "store"),), nprocs=2)


@needs_distvae
def test_one_rank_decodes_plainly() -> None:
    vae = torch.nn.Module()
    assert DistVae(vae, Mesh(1, 1, 0, CPU)).vae is vae


@needs_distvae
def test_what_it_can_not_decode_is_a_reason() -> None:
    with pytest.raises(Infeasible, match="no adapter"):
        DistVae(torch.nn.Module(), Mesh(2, 1, 0, CPU))


def test_too_few_rows_are_a_reason_before_anything_is_sent() -> None:
    twin = DistVae.__new__(DistVae)
    twin.mesh, twin.vae = Mesh(4, 1, 0, CPU), None
    with pytest.raises(Infeasible, match="16px has 2"):
        twin.decode(torch.zeros(1), dataclasses.replace(POINT, height=16))


def test_engines_without_it_say_so() -> None:
    with pytest.raises(Infeasible, match="use vae=single"):
        StockBackend().prepare(Mesh(1, 1, 0, CPU), None, dataclasses.replace(POINT, ulysses=1), MODEL, None)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("distvae"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'xdit_bench\[peers\]'"):
        DistVae(torch.nn.Module(), Mesh(2, 1, 0, CPU))
