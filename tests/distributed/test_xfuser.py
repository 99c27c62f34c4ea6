"""What xfuser can not do is a reason, and a missing package names its extra. Its results are tested on GPUs: it does
not import where torch was built without them."""

from __future__ import annotations

import builtins
import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from xdit_bench import data_dir
from xdit_bench.backends.modules import random_modules
from xdit_bench.backends.xfuser import XFUSER_ATTENTION, XfuserBackend, check_point, rounded_timestep
from xdit_bench.backends.xfuser_state import import_xfuser, setting
from xdit_bench.config import Attention, ModelSpec, Point
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible, MissingExtraError

CPU = torch.device("cpu")
MODEL = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
POINT = Point(
    "flux_tiny", 192, 256, 2, 64, 2, 1, "xfuser", "eager", "auto", "single", "fp32", "random", 0, "cpu", "p2p"
)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"text_tokens": 77}, "77 text tokens.*use text tokens that 2 divides"),
        ({"height": 208, "width": 208}, "169 image tokens.*does not mask"),
        ({"ulysses": 3}, "heads cannot be split"),
        ({"vae": "parallel"}, "vae=distvae"),
        ({"ulysses": 1, "ring": 2, "attention": "sdpa"}, "LSE"),
        ({"attention": "cudnn", "ulysses": 1}, "needs a CUDA GPU"),
        ({}, "GPUs alone"),
    ],
)
def test_its_limits_are_reasons(knobs: dict, reason: str) -> None:
    point = dataclasses.replace(POINT, **knobs)
    inputs = SimpleNamespace(noise=torch.zeros(1))
    backend = XfuserBackend()
    with pytest.raises(Infeasible, match=reason):
        backend.prepare(Mesh(point.ulysses, point.ring, 0, CPU), None, point, MODEL, inputs)
    backend.close()  # nothing was changed, nothing to undo


def test_one_gpu_takes_any_number_of_tokens() -> None:
    point = dataclasses.replace(POINT, ulysses=1, text_tokens=77, height=208, width=208)
    check_point(Mesh(1, 1, 0, CPU), point, MODEL)


def test_every_attention_of_ours_has_a_name_there() -> None:
    assert set(XFUSER_ATTENTION) == {attention.value for attention in Attention}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler on CPUs")
def test_a_whole_compiled_transformer_takes_the_timestep_that_eager_takes() -> None:
    small = dataclasses.replace(MODEL, transformer={**MODEL.transformer, "num_layers": 1, "num_single_layers": 1})
    transformer = random_modules(small, CPU, torch.bfloat16, 0).transformer
    config = transformer.config
    sizes = {"hidden_states": (1, 16, 64), "encoder_hidden_states": (1, 8, config.joint_attention_dim)}
    inputs = {name: torch.randn(shape).bfloat16() for name, shape in sizes.items()}
    inputs["pooled_projections"] = torch.randn(1, config.pooled_projection_dim).bfloat16()
    ids = {"img_ids": torch.ones(16, 3), "txt_ids": torch.zeros(8, 3)}
    step = {"timestep": torch.tensor([0.75]).bfloat16(), "return_dict": False}
    with torch.no_grad():
        plain = transformer(**inputs, **ids, **step)[0].float()
        with rounded_timestep(transformer):
            compiled = torch.compile(transformer)(**inputs, **ids, **step)[0].float()
        torch.compiler.reset()
        careless = torch.compile(transformer)(**inputs, **ids, **step)[0].float()
    torch.compiler.reset()
    assert "forward" not in vars(transformer.time_text_embed)
    assert (compiled - plain).norm() < 0.02 * plain.norm()
    assert (careless - plain).norm() > 0.05 * plain.norm()  # where the product is not rounded


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("xfuser."):
            raise ImportError("No module named 'einops'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"einops.*pip install 'xdit_bench\[peers\]'"):
        import_xfuser(torch.device("cuda"))


def test_what_is_set_for_a_point_is_put_back_even_after_a_failure() -> None:
    owner = SimpleNamespace(kept=1)
    seen = []

    def fail() -> None:
        with setting(owner, "kept", 2), setting(owner, "new", 3):
            seen.append((owner.kept, owner.new))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [(2, 3)]
    assert vars(owner) == {"kept": 1}
