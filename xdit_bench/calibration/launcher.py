"""torch's elastic launcher, tied to the life of the process that calibrates, and its ranks to its own.

python -m xdit_bench.calibration.launcher <parent pid> --nproc-per-node=2 ... -m xdit_bench.calibration.ranks
"""

from __future__ import annotations

import os
import sys

from xdit_bench.lifetime import die_with_parent

LAUNCHER = "XDIT_BENCH_LAUNCHER"  # its process id, for the ranks


def main() -> None:
    """Runs torch's launcher in this process."""
    parent, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    os.environ[LAUNCHER] = str(os.getpid())
    from torch.distributed.run import main as run

    run(arguments)


if __name__ == "__main__":
    main()
