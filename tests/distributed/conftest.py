"""The proof that no process outlives a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psutil
import pytest

from xdit_bench.runner.process import running

MARK = "XDIT_BENCH_TEST"


@pytest.fixture
def no_process_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test after which a process it started still runs, wherever it went."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)  # inherited by every process below this one
    yield
    left = [p.pid for p in psutil.process_iter() if _mark(p) == mark and running(p.pid)]
    assert not left, f"processes left: {left}"


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None
