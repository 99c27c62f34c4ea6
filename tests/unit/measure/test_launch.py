"""The host's cost to issue a block, on a clock of our own."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from xdit_bench.measure import launch
from xdit_bench.measure.launch import BLOCKS, BRIEF, FOR_S, PASSES, BlockLaunch


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


def test_a_stall_counts_by_its_share_of_a_fifth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = BlockLaunch(torch.device("cpu"), torch.float32)
    now, calls = 0.0, itertools.count(1)

    def block() -> None:
        nonlocal now
        now += 0.02 if next(calls) == BLOCKS + 1 else 0.001  # seconds

    probe.blocks = [block] * BLOCKS
    monkeypatch.setattr(launch.time, "perf_counter", lambda: now)
    passes = math.ceil((FOR_S - 0.019) / (0.001 * BLOCKS))
    assert probe() == pytest.approx(0.001 + 0.019 / (passes * BLOCKS))


def test_a_brief_take_is_of_the_next_blocks_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = BlockLaunch(torch.device("cpu"), torch.float32)
    assert 0.0 < probe.brief() < 1.0
    now = 0.0

    def block(seconds: float) -> None:
        nonlocal now
        now += seconds

    steps = [100.0, *[1.0] * BRIEF, 100.0, *[3.0] * BRIEF]
    probe._turn = itertools.cycle([partial(block, seconds) for seconds in steps])
    monkeypatch.setattr(launch.time, "perf_counter", lambda: now)
    assert [probe.brief() for _ in range(3)] == pytest.approx([1.0, 3.0, 1.0])
