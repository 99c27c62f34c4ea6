"""Memory of one rank while a point runs: parameters, peaks, allocator retries, and what an out-of-memory error said.

watch = MemoryWatch(device, cap_bytes=None)
...
watch.report()  # {"peak_bytes": ..., "reserved_bytes": ..., "alloc_retries": ..., ...}
watch.close()
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import psutil
import torch

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
ASKED = re.compile(r"(?:Tried to allocate|allocate memory: you tried to allocate) ([\d.]+) (bytes|[KMGT]iB)")


class MemoryWatch:
    """Peaks between construction, or the last `restart`, and `report`. On a CPU: of the process's resident memory."""

    def __init__(self, device: torch.device, cap_bytes: int | None) -> None:
        self._device = device
        self._cap_bytes = cap_bytes
        self._held_free: int | None = None
        self.restart()
        if device.type != "cuda":
            return
        self._retries = alloc_retries(device)
        if cap_bytes is not None:
            total = torch.cuda.mem_get_info(device)[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total), device)

    def restart(self) -> None:
        """Forgets the peak so far: what an engine put away while it prepared is not held while images are made."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_resident_peak()

    def report(self) -> dict[str, Any]:
        """Bytes; `alloc_retries` counts how often the allocator had to give memory back and ask again."""
        if self._device.type != "cuda":
            resident = _resident_peak()
            return {"peak_bytes": resident, "reserved_bytes": resident, "alloc_retries": 0, "verdict": "fits"}
        retries = alloc_retries(self._device) - self._retries
        return {
            # active, not allocated alone: also blocks that were given up while another stream may still use them
            "peak_bytes": int(torch.cuda.memory_stats(self._device)["active_bytes.all.peak"]),
            "reserved_bytes": torch.cuda.max_memory_reserved(self._device),
            "alloc_retries": retries,
            "verdict": "pressure" if retries else "fits",
        }

    def hold_free(self) -> None:
        """Takes what is free now as `free_bytes` from here on: what cleans up after an error gives memory back."""
        with contextlib.suppress(RuntimeError):  # the device may not answer any more
            self._held_free = self.free_bytes()

    def free_bytes(self) -> int:
        """What an allocation may still get: the device's free memory, or what is left below the cap."""
        if self._held_free is not None:
            return self._held_free
        if self._device.type != "cuda":
            return int(psutil.virtual_memory().available)
        free = int(torch.cuda.mem_get_info(self._device)[0])
        if self._cap_bytes is None:
            return free
        return max(0, min(free, self._cap_bytes - torch.cuda.memory_reserved(self._device)))

    def close(self) -> None:
        """Lifts the cap."""
        if self._device.type == "cuda" and self._cap_bytes is not None:
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)


def alloc_retries(device: torch.device) -> int:
    """How often the process's allocator had to give memory back and ask again; a CPU's never has."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host had not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text.lower() for sign in ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    )


def bytes_asked(error: BaseException) -> int | None:
    """What the allocation that failed wanted, as its message says, or None."""
    found = ASKED.search(str(error))
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def _reset_resident_peak() -> None:
    with contextlib.suppress(OSError):  # a container may forbid it; the peak is then the process's own
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
