"""What out-of-memory errors say, in the words torch uses on GPUs and CPUs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from xdit_bench.measure.memory import MemoryWatch, bytes_asked, out_of_memory

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free."
)


@pytest.mark.parametrize(("error", "asked"), [
    (torch.OutOfMemoryError(CUDA), int(2.5 * 2**30)),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB (GPU 1; ..."), 512 * 2**20),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000 bytes."), 8000),
    (RuntimeError("CUDA error: out of memory"), None),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    (MemoryError(), None),
])  # fmt: skip
def test_out_of_memory_is_recognised_with_what_it_asked_for(error: Exception, asked: int | None) -> None:
    assert out_of_memory(error)
    assert bytes_asked(error) == asked


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory is what I say")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not out_of_memory(error)


def test_real_allocation_that_no_machine_grants_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert bytes_asked(caught.value) == 2**60


def test_peak_of_a_cpu_rank_holds_what_lived_in_between() -> None:
    watch = MemoryWatch(torch.device("cpu"), None)
    before = watch.report()["peak_bytes"]
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = watch.report()["peak_bytes"]
    del held
    assert after - before >= 60 * 2**20
    watch.restart()
    assert after - watch.report()["peak_bytes"] >= 60 * 2**20
    assert watch.free_bytes() > 0


def test_free_memory_can_be_held_before_cleaning_up_gives_more_back(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, left = MemoryWatch(torch.device("cpu"), None), SimpleNamespace(available=5)
    monkeypatch.setattr("psutil.virtual_memory", lambda: left)
    assert watch.free_bytes() == 5
    watch.hold_free()
    left.available = 13
    assert watch.free_bytes() == 5
