"""What a rank's record counts as its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from xdit_bench.runner.rank import _with_symmetric


def test_buffers_that_peers_write_into_count_towards_peak_and_reservation() -> None:
    seen = {"peak_bytes": 10, "reserved_bytes": 20, "alloc_retries": 0, "verdict": "fits"}
    engine: Any = SimpleNamespace(symmetric_bytes=5)
    assert _with_symmetric(seen, engine) == seen | {"peak_bytes": 15, "reserved_bytes": 25, "symmetric_bytes": 5}
    others: Any = SimpleNamespace()
    assert _with_symmetric(seen, others) == seen | {"symmetric_bytes": 0}
