"""What a decode leaves in the allocator's cache, with a device whose counters are chosen."""

from __future__ import annotations

import pytest
import torch

from xdit_bench.backends.pipeline import no_blocks_left_by_pressure


@pytest.mark.parametrize(("device", "retries", "emptied"), [
    ("cuda", [3, 4], 1),
    ("cuda", [3, 3], 0),
    ("cuda", None, 0),  # nothing was allocated yet
    ("cpu", [3, 4], 0),
])  # fmt: skip
def test_blocks_go_back_only_where_the_decode_asked_again(
    monkeypatch: pytest.MonkeyPatch, device: str, retries: list[int] | None, emptied: int
) -> None:
    stats = iter([{"num_alloc_retries": n} for n in retries] if retries else [{}, {}])
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.memory_stats", lambda _: next(stats))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("emptied"))
    with no_blocks_left_by_pressure(torch.device(device)):
        assert not calls
    assert len(calls) == emptied
