"""The fused kernels against their twins in plain torch, on shapes that differ in every dim.

TRITON_INTERPRET=1 pytest tests/gpu/test_engine_kernels.py    # without a GPU, where triton is installed
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from xdit_bench.engine import ops
from xdit_bench.engine.modulation import Affine
from xdit_bench.engine.weights import Linear, Pair

pytest.importorskip("triton", reason="the fused kernels need triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(37, 1, 5), (23, 2, 8), (19, 1, 0), (16, 3, 16)]  # tokens, batch, text tokens
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).to(DEVICE, dtype)


def rows(batch: int, width: int, dtype: torch.dtype) -> Pair:
    """Modulation rows as the table hands them out: views with a stride."""
    return Pair(draw(batch, 6, width, dtype=dtype)[:, 2], draw(batch, 6, width, dtype=dtype)[:, 4])


def as_float(value: Any) -> Any:
    """The same in float32: the reference rounds nowhere."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(as_float(item) for item in value))
    return value


def close(result: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    assert result.shape == reference.shape
    error = (result.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-30)
    assert error.item() <= TOLERANCE[dtype]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "batch", "text"), SHAPES)
def test_modulated_norm(tokens: int, batch: int, text: int, dtype: torch.dtype) -> None:
    from xdit_bench.engine import kernels

    x, norm = draw(tokens, batch, 72, dtype=dtype), Affine(rows(batch, 72, dtype), rows(batch, 72, dtype))
    expected = ops.modulated_norm(x.float(), text, as_float(norm))
    close(kernels.modulated_norm(x, text, norm), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "batch", "text"), SHAPES)
def test_gated_add_norm(tokens: int, batch: int, text: int, dtype: torch.dtype) -> None:
    from xdit_bench.engine import kernels

    x, y = draw(tokens, batch, 72, dtype=dtype), draw(tokens, batch, 72, dtype=dtype)
    gate, norm = rows(batch, 72, dtype), Affine(rows(batch, 72, dtype), rows(batch, 72, dtype))
    expected = ops.gated_add_norm(x.float(), y.float(), text, as_float(gate), as_float(norm))
    for result, reference in zip(kernels.gated_add_norm(x, y, text, gate, norm), expected, strict=True):
        close(result, reference, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ulysses", [1, 2, 3])
@pytest.mark.parametrize(
    ("first", "stop", "whole", "packed"),
    [(0, 3, True, False), (0, 1, True, False), (1, 3, True, True), (0, 1, False, True), (1, 3, False, True)],
)
@pytest.mark.parametrize(("tokens", "batch", "text"), SHAPES)
def test_rotate(
    tokens: int,
    batch: int,
    text: int,
    whole: bool,
    first: int,
    stop: int,
    packed: bool,
    ulysses: int,
    dtype: torch.dtype,
) -> None:
    from xdit_bench.engine import kernels

    qkv = draw(tokens, batch, 3, 6, 16, dtype=dtype)
    heads = qkv[:, :, first:stop] if whole else qkv[:, :, first:stop].contiguous()
    weights = [Pair(draw(16, dtype=dtype), draw(16, dtype=dtype)) for _ in range(2)]
    angle = draw(tokens, 8)
    rest = (angle.cos(), angle.sin(), ulysses, packed)
    expected = ops.rotate(heads.float(), first, text, *(as_float(w) for w in weights), *rest)
    result = kernels.rotate(heads, first, text, *weights, *rest)
    assert result.is_contiguous() or not packed
    close(result, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", DTYPES)
def test_merge(dtype: torch.dtype, to: torch.dtype) -> None:
    from xdit_bench.engine import kernels, ring

    parts = [draw(2, 13, 6, 16, dtype=dtype), 5 * draw(2, 6, 13), draw(2, 13, 6, 16, dtype=dtype), 5 * draw(2, 6, 13)]
    merged, total = kernels.merge(*parts, to)
    expected, expected_total = ring.merge(*(part.float() for part in parts))
    assert merged.dtype == to
    close(merged, expected, to)
    close(total, expected_total, torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="GELU in the product's epilogue is the tanh form on GPUs alone")
@pytest.mark.parametrize("text", [0, 48])
@pytest.mark.parametrize("shared", [True, False])
def test_products_write_text_and_image_into_one_tensor(text: int, shared: bool) -> None:
    from xdit_bench.engine import kernels

    x = draw(272, 1, 128, dtype=torch.bfloat16)
    layers = [Linear(draw(256, 128, dtype=torch.bfloat16) / 11, draw(256, dtype=torch.bfloat16)) for _ in range(2)]
    layer = Pair(layers[0], layers[0]) if shared else Pair(*layers)
    second = [Linear(draw(128, 256, dtype=torch.bfloat16) / 16, draw(128, dtype=torch.bfloat16)) for _ in range(2)]
    back = Pair(second[0], second[0]) if shared else Pair(*second)
    exact, exact_back = (Pair(as_float(pair.text), as_float(pair.image)) for pair in (layer, back))
    close(kernels.linear(x, text, layer), ops.linear(x.float(), text, exact), torch.bfloat16)
    for epilogue in (True, False):
        fused = kernels.triton_ops(gelu_epilogue=epilogue)
        close(fused.linear_gelu(x, text, layer), ops.linear_gelu(x.float(), text, exact), torch.bfloat16)
        close(fused.mlp(x, text, layer, back), ops.mlp(x.float(), text, exact, exact_back), torch.bfloat16)
