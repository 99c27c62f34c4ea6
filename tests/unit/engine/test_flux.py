"""Rules checked before anything runs, and weights fused without a second copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xdit_bench.engine.flux import check_heads
from xdit_bench.engine.weights import fuse
from xdit_bench.errors import Infeasible


def test_rejects_heads_not_divisible_by_ulysses() -> None:
    with pytest.raises(Infeasible, match="24 heads cannot be split over ulysses=5; use 1, 2, 3, 4, 6, 8, 12 or 24"):
        check_heads(24, 5)
    check_heads(24, 8)


def test_fusing_turns_parameters_into_views_and_keeps_the_layers_working() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, width) for width in (4, 5, 3)]
    x = torch.randn(7, 6)
    before = [layer(x) for layer in layers]
    fused = fuse(layers)
    torch.testing.assert_close(nn.functional.linear(x, *fused), torch.cat(before, 1))
    for layer, expected in zip(layers, before, strict=True):
        assert torch.equal(layer(x), expected)
        assert layer.weight.untyped_storage().data_ptr() == fused.weight.untyped_storage().data_ptr()


def test_fusing_again_finds_the_same_memory() -> None:
    layers = [nn.Linear(6, 4) for _ in range(3)]
    first, second = fuse(layers), fuse(layers)
    assert first.weight.data_ptr() == second.weight.data_ptr()
    assert first.bias.data_ptr() == second.bias.data_ptr()
    assert torch.equal(first.weight, second.weight)
