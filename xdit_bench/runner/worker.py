"""The process of one rank: joins the others, then runs the points the controller names until told to stop.

Ends when the controller does; `agent` forks it and ties it to the launcher. What a point is stands in `rank`.

    main()  # in a process with torch's variables RANK, WORLD_SIZE, ... and the launcher's own
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

from xdit_bench.runner.board import Board
from xdit_bench.runner.process import name_this
from xdit_bench.runner.wire import Link, connect

ENV = "XDIT_BENCH_"  # + CONTROL, TOKEN, STORE, BOARD, DEVICE, NODE, TIMEOUT: what the launcher tells its ranks
LOST_CONTROLLER = 70
MORE_TO_COME = 71  # tells another machine's launcher to start ranks again
STORE_KEY = "xdit_bench/control"


def main() -> None:
    """Returns when the controller has no more points for these ranks."""
    node, local = int(os.environ[f"{ENV}NODE"]), int(os.environ["LOCAL_RANK"])
    # torch numbers machines in an order of its own; rank 0 has to be where the controller is
    rank = node * int(os.environ["LOCAL_WORLD_SIZE"]) + local
    name_this(f"xdit_rank_{rank}")
    control, token = os.environ[f"{ENV}CONTROL"], os.environ[f"{ENV}TOKEN"]
    if not os.environ[f"{ENV}STORE"]:
        control, token = _tell_other_machines(control, token, first=node == local == 0)
    link = connect(control)
    link.send({"event": "hello", "rank": rank, "pid": os.getpid(), "node": node, "token": token})
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    board = Board(Path(os.environ[f"{ENV}BOARD"]))
    threading.Thread(target=_listen, args=(link, commands, board, rank), daemon=True).start()
    last = serve(rank, int(os.environ["WORLD_SIZE"]), link, commands, board)
    if node > 0 and not last:
        os._exit(MORE_TO_COME)


def _tell_other_machines(control: str, token: str, *, first: bool) -> tuple[str, str]:
    """The controller's address and token, through the store of torch's launchers."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if first:
        store.set(STORE_KEY, json.dumps([control, token]))
    address, secret = json.loads(store.get(STORE_KEY))
    return address, secret


def serve(rank: int, world: int, link: Link, commands: queue.SimpleQueue[dict[str, Any]], board: Board) -> bool:
    """Joins the group of all ranks, says so, and runs commands until `close`. Whether that was the last one."""
    import torch

    from xdit_bench.engine.mesh import connect as join
    from xdit_bench.runner.rank import Rank

    on_gpu = os.environ[f"{ENV}DEVICE"] == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_device(device)
    if world > 1:
        meet = os.environ[f"{ENV}STORE"] or "tcp://{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ)
        join(rank, world, meet, device, timeout_s=float(os.environ[f"{ENV}TIMEOUT"]))
    here = Rank(rank, device, lambda stage, iteration: board.note(rank, stage, iteration))
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
    return bool(command.get("last"))


def _listen(link: Link, commands: queue.SimpleQueue[dict[str, Any]], board: Board, rank: int) -> None:
    """Takes commands while the main thread works, says where that one is, ends the process with its controller."""
    main_thread = threading.main_thread().ident
    while (messages := link.receive()) is not None:
        for message in messages:
            if message["op"] == "where":
                frame = sys._current_frames().get(main_thread or 0)
                stack = "".join(traceback.format_stack(frame, limit=None)[-8:]) if frame else ""
                stage, iteration = board.read(rank)
                link.send(
                    {"event": "where", "stage": stage, "iteration": iteration, "stack": stack, **last_collective()}
                )
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
