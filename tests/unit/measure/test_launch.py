"""The host's cost to issue a block, on a clock of our own."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from xdit_bench.measure import launch
from xdit_bench.measure.launch import BLOCKS, PASSES, BlockLaunch


def test_it_is_the_mean_of_all_blocks_in_turn_after_a_pass_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = BlockLaunch(torch.device("cpu"), torch.float32)
    calls, now = itertools.count(1), 0.0

    def block(number: int) -> object:
        nonlocal now
        now += 100.0 if next(calls) <= BLOCKS else 2.0 + number  # seconds
        return probes[number]()

    probes = list(probe.blocks)
    probe.blocks = [partial(block, number) for number in range(BLOCKS)]
    monkeypatch.setattr(launch.time, "perf_counter", lambda: now)
    assert probe() == pytest.approx(2.0 + (BLOCKS - 1) / 2)
    assert next(calls) == BLOCKS * (1 + PASSES) + 1
