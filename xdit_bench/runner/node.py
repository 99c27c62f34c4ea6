"""The part of every machine but the first in a run over several: it lends its ranks and decides nothing.

The same command is typed on each with its own `launch.node_rank`; the first machine's plan runs the points and
writes the records.

    serve_node(launch, ranks=8, device="cuda")
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from xdit_bench.config import LaunchConfig
from xdit_bench.errors import RankCrashed
from xdit_bench.lifetime import end_group
from xdit_bench.runner.board import Board
from xdit_bench.runner.launcher import Launcher

IN_VAIN = 2  # starts in a row without a first machine before this one gives up


def serve_node(launch: LaunchConfig, *, ranks: int, device: str, transport: str = "p2p") -> None:
    """Starts this machine's ranks again and again until the first machine has had its last point.

    Raises RankCrashed when the first machine can not be reached, and KeyboardInterrupt.
    """
    in_vain = 0
    while in_vain < IN_VAIN:
        folder = Path(tempfile.mkdtemp(prefix="xdit_bench_"))
        try:
            launcher = Launcher(folder, ranks, device, transport, launch)
            Board.create(folder / "board", ranks * launch.nnodes)
            code = _run(launcher)
            if code == 0:
                return
            met = any(folder.glob("logs/*/attempt_0/*"))  # ranks exist once all launchers have met
            in_vain = 0 if met else in_vain + 1
            last_words = launcher.last_words()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise RankCrashed(
        f"machine {launch.node_rank} of {launch.nnodes} found no first machine at {launch.rdzv_endpoint}: {last_words}"
    )


def _run(launcher: Launcher) -> int:
    """The launcher's exit code; it never outlives this call."""
    agent = launcher.start()
    launcher.release(agent)
    try:
        return agent.wait()
    finally:
        end_group(agent)
