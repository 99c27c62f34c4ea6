"""What xfuser can not do is a reason, and a missing package names its extra. Its results are tested on GPUs: it does
not import where torch was built without them."""

from __future__ import annotations

import builtins
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml

from xdit_bench import data_dir
from xdit_bench.backends.xfuser import XFUSER_ATTENTION, XfuserBackend, check_point
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
