"""The process of one rank: joins the others, then runs the points the controller names until told to stop.

Owns the process's life: it ends when its launcher or the controller does. What a point is stands in `rank`.
Started by torch's elastic launcher; nobody types it.

    torchrun --nproc-per-node 2 -m xdit_bench.runner.worker
"""

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from xdit_bench.runner.agent import die_with_parent
from xdit_bench.runner.board import Board
from xdit_bench.runner.wire import Link, connect

ENV = "XDIT_BENCH_"  # + CONTROL, STORE, BOARD, DEVICE, TIMEOUT: what the pool tells its ranks
LOST_CONTROLLER = 70


def main() -> None:
    """Never returns normally while the controller lives and has points."""
    die_with_parent(os.getppid())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    link = connect(os.environ[f"{ENV}CONTROL"])
    link.send({"event": "hello", "rank": rank, "pid": os.getpid()})
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, commands), daemon=True).start()
    serve(rank, world, link, commands)


def serve(rank: int, world: int, link: Link, commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Joins the group of all ranks, says so, and runs commands until `close`."""
    import torch

    from xdit_bench.engine.mesh import connect as join
    from xdit_bench.runner.rank import Rank

    on_gpu = os.environ[f"{ENV}DEVICE"] == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    board = Board(Path(os.environ[f"{ENV}BOARD"]))
    if world > 1:
        join(rank, world, os.environ[f"{ENV}STORE"], device, timeout_s=float(os.environ[f"{ENV}TIMEOUT"]))
    here = Rank(rank, world, device, lambda stage, iteration: board.note(rank, stage, iteration))
    gc.freeze()  # what is imported stays: collecting between points need not look at it
    link.send({"event": "ready"})
    while (command := commands.get())["op"] != "close":
        if command["op"] == "forget":
            here.forget_meshes()
            link.send({"event": "forgot"})
        else:
            act = {"load": here.load, "run": here.run, "exchanges": here.exchanges}[command["op"]]
            link.send({"id": command["id"], **act(command)})
    if world > 1:
        torch.distributed.destroy_process_group()


def _listen(link: Link, commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Takes commands while the main thread works, says where that one is, ends the process with its controller."""
    main_thread = threading.main_thread().ident
    while (messages := link.receive()) is not None:
        for message in messages:
            if message["op"] == "where":
                frame = sys._current_frames().get(main_thread or 0)
                stack = "".join(traceback.format_stack(frame, limit=None)[-8:]) if frame else ""
                link.send({"event": "where", "stack": stack, **last_collective()})
            else:
                commands.put(message)
    os._exit(LOST_CONTROLLER)


def last_collective() -> dict[str, Any]:
    """From torch's flight recorder on this rank: the collective it waits in, else the last it finished, in words."""
    try:
        c10d: Any = import_module("torch._C._distributed_c10d")
        entries = json.loads(c10d._dump_fr_trace_json()).get("entries") or []
    except (ImportError, RuntimeError, ValueError, AttributeError):
        return {}
    if not entries:
        return {}
    waiting = [entry for entry in entries if not entry.get("retired", True)]
    entry = (waiting or entries[-1:])[0]
    name, number = entry.get("profiling_name", "?"), entry.get("collective_seq_id", "?")
    return {"last_collective": f"{name} number {number} ({'waiting' if waiting else 'done'})", "waiting": bool(waiting)}


if __name__ == "__main__":
    main()
