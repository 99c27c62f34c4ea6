"""That no process outlives the one that started it, however that one ends.

Owns the two halves, which `runner` and `calibration` share: a child asks the kernel to be killed with its parent, and a
parent ends a launcher that leads a process group of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends, however it ends. Exits when that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_group(agent: subprocess.Popen[Any]) -> None:
    """Kills a launcher's process group and waits; nothing when it has ended: its number may be another's by now."""
    if agent.poll() is None:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
