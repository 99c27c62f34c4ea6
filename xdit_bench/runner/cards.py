"""Memory that all processes together hold on this machine's GPUs, as the driver counts it. No CUDA context is made.

before = used_bytes()
...  # ranks start and are killed
wait_until_free(before)
"""

from __future__ import annotations

import time

from xdit_bench.topology.probe import visible_handles

SLACK_BYTES = 2**30  # of a context, or of another program that came meanwhile
WAIT_S = 30.0


def used_bytes() -> list[int]:
    """A number a GPU that this process may use; none where the driver does not say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in visible_handles(pynvml)]
    except pynvml.NVMLError:
        return []


def wait_until_free(before: list[int], timeout_s: float = WAIT_S) -> bool:
    """Whether every GPU was back to `before`, but for a little, in time."""
    until = time.monotonic() + timeout_s
    while any(now > then + SLACK_BYTES for now, then in zip(used_bytes(), before, strict=False)):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
