"""The host's cost to issue a block, on a clock of our own."""

from __future__ import annotations

import itertools

import pytest
import torch

from xdit_bench.measure import launch
from xdit_bench.measure.launch import CALLS, WARM_UP, BlockLaunch


def test_it_is_the_mean_of_the_calls_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = BlockLaunch(torch.device("cpu"), torch.float32)
    whole, calls = probe.block, itertools.count(1)
    now = 0.0

    def block() -> object:
        nonlocal now
        now += 100.0 if next(calls) <= WARM_UP else 2.0
        return whole()

    probe.block = block
    monkeypatch.setattr(launch.time, "perf_counter", lambda: now)
    assert probe() == pytest.approx(2.0)
    assert next(calls) == WARM_UP + CALLS + 1
