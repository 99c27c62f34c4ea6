"""Which attention kernel plain diffusers is given where none is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from xdit_bench.backends.stock import StockBackend
from xdit_bench.errors import Infeasible


@pytest.mark.parametrize(
    ("device", "dtype", "kernel"),
    [
        ("cuda", torch.bfloat16, "_native_cudnn"),
        ("cuda", torch.float32, "native"),  # cuDNN has none for fp32
        ("cpu", torch.float32, "native"),
    ],
)
def test_auto_takes_cudnn_where_it_has_a_kernel(device: str, dtype: torch.dtype, kernel: str) -> None:
    transformer = Mock(dtype=dtype)
    modules: Any = SimpleNamespace(transformer=transformer)
    point: Any = SimpleNamespace(attention="auto", execution="eager")
    with patch("xdit_bench.backends.stock.make_pipe"):
        StockBackend().bind(torch.device(device), modules, point, Mock(), Mock())
    transformer.set_attention_backend.assert_called_once_with(kernel)


@pytest.mark.parametrize("kernel", ["cudnn", "flash"])
def test_a_kernel_that_the_device_rules_out_is_a_reason(kernel: str) -> None:
    modules: Any = SimpleNamespace(transformer=Mock(dtype=torch.float32))
    point: Any = SimpleNamespace(attention=kernel, execution="eager")
    with patch("xdit_bench.backends.stock.make_pipe"), pytest.raises(Infeasible, match="needs a CUDA GPU and bf16"):
        StockBackend().bind(torch.device("cpu"), modules, point, Mock(), Mock())
