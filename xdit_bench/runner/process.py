"""A rank's process, which is another process's child: ended and waited for without mistaking a later one for it.

process = Process(pid)
process.kill(); process.wait_gone()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import time
from pathlib import Path

PR_SET_NAME = 15  # linux/prctl.h


class Process:
    """Held by a file descriptor where the kernel has those, so that its number can not be reused meanwhile."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):  # old kernels and some sandboxes have none
            self._descriptor = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL; nothing when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def wait_gone(self, timeout_s: float = 10.0) -> None:
        """Until it has ended, so that its device memory is free for the next; then lets go of it."""
        if self._descriptor is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._descriptor, selectors.EVENT_READ)
                selector.select(timeout_s)
            os.close(self._descriptor)
            return
        until = time.monotonic() + timeout_s
        while running(self.pid) and time.monotonic() < until:
            time.sleep(0.01)


def name_this(name: str) -> None:
    """Names this process as `top` and `ps` show it, in at most 15 characters."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
