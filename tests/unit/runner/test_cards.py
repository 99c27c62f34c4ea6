"""Waiting for a GPU's memory, on made-up readings."""

from __future__ import annotations

import itertools

import pytest

from xdit_bench.runner import cards


def test_waits_until_every_gpu_is_back_and_no_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.chain([[40 * 2**30, 0], [2**29, 8 * 2**30]], itertools.repeat([2**29, 2**29]))
    monkeypatch.setattr(cards, "used_bytes", lambda: next(readings))
    assert cards.wait_until_free([0, 0], timeout_s=5.0)
    assert next(readings) == [2**29, 2**29]

    monkeypatch.setattr(cards, "used_bytes", lambda: [40 * 2**30])
    assert not cards.wait_until_free([0], timeout_s=0.05)


def test_driver_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "used_bytes", list)
    assert cards.wait_until_free([], timeout_s=0.0)
