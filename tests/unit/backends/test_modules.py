"""Random weights must make faults visible: every token matters, nothing vanishes, nothing blows up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.base import Embeddings
from xdit_bench.backends.modules import load_modules, make_inputs, sigmas
from xdit_bench.backends.stock import StockBackend
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import build_mesh
from xdit_bench.errors import Infeasible, WeightsError

CPU = torch.device("cpu")


def spec(name: str = "flux_tiny") -> ModelSpec:
    return ModelSpec.from_dict(OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / f"{name}.yaml")))


POINT = Point("flux_tiny", 192, 256, 2, 77, 1, 1, "stock", "eager", "auto", "single", "fp32", "random", 0, "cpu", "p2p")


@pytest.fixture(scope="module")
def backend() -> StockBackend:
    made = StockBackend()
    model = spec()
    modules = load_modules(POINT, model, CPU, torch.float32)
    with torch.inference_mode():
        made.prepare(build_mesh(1, 1, CPU), modules, POINT, model, make_inputs(POINT, model, CPU, torch.float32))
    return made


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.inference_mode()
def test_activations_stay_finite_and_spread(backend: StockBackend) -> None:
    embeddings = backend.encode()
    latents = backend.denoise(embeddings)
    image = backend.decode(latents)
    for tensor in (embeddings.prompt, embeddings.pooled, latents):
        assert torch.isfinite(tensor).all()
        assert 0.3 < float(tensor.std()) < 5
    assert image is not None
    assert image.shape == (192, 256, 3)
    assert image.dtype == torch.uint8
    assert float(image.float().std()) > 20


@torch.inference_mode()
def test_dropped_text_tokens_move_the_latents(backend: StockBackend) -> None:
    embeddings = backend.encode()
    whole = backend.denoise(embeddings)
    fewer = backend.denoise(Embeddings(embeddings.prompt[:, :-7], embeddings.pooled))
    assert distance(fewer, whole) > 1e-2


def test_weights_and_inputs_depend_on_the_seed_alone() -> None:
    model = spec()
    first, again = (load_modules(POINT, model, CPU, torch.float32) for _ in range(2))
    other = load_modules(dataclasses.replace(POINT, seed=1), model, CPU, torch.float32)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        a, b, c = (next(getattr(m, name).parameters()) for m in (first, again, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    noise = make_inputs(POINT, model, CPU, torch.float32).noise
    assert noise.shape == (1, 12 * 16, 64)
    assert torch.equal(noise, make_inputs(POINT, model, CPU, torch.float32).noise)


def test_sigmas_carry_the_models_own_shift() -> None:
    schnell = dataclasses.replace(POINT, model="flux_schnell", height=1024, width=1024, steps=4)
    torch.testing.assert_close(sigmas(schnell, spec("flux_schnell")), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    dev = sigmas(schnell, spec("flux_dev"))
    assert dev[0] == 1
    assert dev[2] > 0.5  # shifted towards noise, more so for larger images
    larger = dataclasses.replace(schnell, height=2048, width=2048)
    assert sigmas(larger, spec("flux_dev"))[2] > dev[2]


def test_the_baseline_refuses_what_is_not_plain_diffusers() -> None:
    with pytest.raises(Infeasible, match="vae=single"):
        StockBackend().prepare(build_mesh(1, 1, CPU), None, dataclasses.replace(POINT, vae="parallel"), spec(), None)


def test_a_weights_folder_that_is_not_safetensors_is_refused(tmp_path) -> None:
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="weights="):
        load_modules(dataclasses.replace(POINT, weights=str(tmp_path)), spec(), CPU, torch.float32)
