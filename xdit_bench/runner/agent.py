"""The process that holds one pool's ranks: torch's elastic launcher, tied to the life of its parent.

It imports what every rank needs, waits for a line on stdin, and forks the ranks: modules are read once for all of
them, and a launcher started ahead of need has them read already. It makes no CUDA context, which no fork would
survive. `pool` starts it and gives it torch.distributed.run's own arguments.

    python -m xdit_bench.runner.agent <parent pid> now <module,...> --nproc-per-node 2 ... -m xdit_bench.runner.worker
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from importlib import import_module

from xdit_bench.lifetime import die_with_parent

GO = "go\n"
NOW, SPARE = "now", "spare"


def main() -> None:
    """Runs torch's launcher in this process, once it is told to."""
    parent, when, reads, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    read_modules(filter(None, reads.split(",")), meanwhile=when == SPARE)
    from torch.distributed.elastic.multiprocessing.errors import record
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    if sys.stdin.readline() != GO:
        return
    # asked for no binding, torch would count the GPUs to choose one, and may make a context for that
    config, _, _ = config_from_args(parse_args(["--numa-binding=node", *arguments]))  # type: ignore[no-untyped-call]
    config.numa_options = None
    config.start_method = "fork"
    # torch's formatter imports its compiler at the first line: a second, while a pool waits to hear how a rank ended
    for handler in [h for name in ("torch", "torch.distributed") for h in logging.getLogger(name).handlers]:
        handler.setFormatter(logging.Formatter())
    record(elastic_launch(config, rank_process))(os.getpid())


def read_modules(more: Iterable[str], *, meanwhile: bool) -> None:
    """Imports what launcher and ranks need, and `more`; `meanwhile` on idle cores alone: points are being timed."""

    def read() -> None:
        if meanwhile:  # this thread alone: only root could raise a process again
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        import torch.distributed.run  # noqa: F401

        import xdit_bench.runner.rank  # noqa: F401

        for name in more:
            with contextlib.suppress(Exception):  # the rank that needs it will say what is wrong
                import_module(name)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()


def rank_process(agent: int) -> None:
    """The life of a rank."""
    die_with_parent(agent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's handlers would wait for Python, which may wait for a GPU
    from xdit_bench.runner.worker import main as work

    try:
        work()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
