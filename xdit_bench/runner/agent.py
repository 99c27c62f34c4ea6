"""The process that holds one pool's ranks: torch's elastic launcher, tied to the life of its parent.

Owns nothing but that tie; `pool` starts it and gives it torch.distributed.run's own arguments.

    python -m xdit_bench.runner.agent <parent pid> --nproc-per-node 2 ... -m xdit_bench.runner.worker
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends, however it ends. Exits when that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Runs torch's launcher in this process."""
    die_with_parent(int(sys.argv[1]))
    from torch.distributed.run import main as launch

    launch(sys.argv[2:])


if __name__ == "__main__":
    main()
