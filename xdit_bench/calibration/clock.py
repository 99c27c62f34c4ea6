"""Seconds of one call on a device that is kept busy.

A GPU at its power limit runs slower after a second than at first, and an image takes seconds: calls are repeated back
to back for `for_s` before and while they are timed.

    seconds = seconds_of(lambda: a @ b, torch.device("cuda"))
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from xdit_bench.measure.timers import synchronize

CALLS_AT_MOST = 2000


def seconds_of(call: Callable[[], object], device: torch.device, for_s: float = 0.1) -> float:
    """Mean seconds of `call` over `for_s` seconds of calls, after a warm-up of about as long (three calls at least)."""
    for _ in range(2):
        call()
    once = _timed(call, 1, device)
    calls = max(2, min(CALLS_AT_MOST, round(for_s / max(once, 1e-7))))
    _timed(call, max(1, calls // 2), device)
    return _timed(call, calls, device)


def _timed(call: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls
