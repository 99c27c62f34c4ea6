"""Exchanges between ranks by size and placement, all groups at once: what one rank does, and how ranks are started.

Owns the communication benchmarks, and what launches cost while all ranks issue. Ranks are started by torch's elastic
launcher; rank 0 writes what the slowest took, a way of exchanging after the other, so that one that fails costs its own
numbers alone: NCCL (gloo) as torch calls it, the engine's symmetric memory, and NCCL inside a CUDA graph, where the
host's launches are not part of its latency.

    measurements = measure_exchanges(2, "cuda", "p2p", sizes=(1 << 20,))
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdit_bench.calibration import launcher
from xdit_bench.errors import RankCrashed
from xdit_bench.lifetime import die_with_parent, end_group
from xdit_bench.topology.specs import NO_MULTICAST, TRANSPORTS

if TYPE_CHECKING:
    import torch

    from xdit_bench.engine.collectives import Pending
    from xdit_bench.engine.mesh import Mesh

LIMIT_S = 120.0  # ranks that have not ended by then hang
GRACE_S = 30.0  # a killed rank is gone once its driver has given the GPU's memory back
FOR_S = 0.08  # seconds of calls a size is given
CAPTURED = 10  # exchanges in one CUDA graph
BLOCK_S = 0.05  # a block of 4096px on two GPUs, and what a rank sends beside it; at a product of its MLP's
BLOCK_BYTES = 400 << 20
SETTLE_S = 1.0  # until a GPU under load has found its clock; then timed as long
SLOW_S = 0.02  # a message that takes longer is timed a few times only


def measure_exchanges(ranks: int, device: str, transport: str, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Starts `ranks` ranks and returns what they measured, `path` the links that it went over: the transport's, and for
    p2p between GPUs `symmetric` too. What failed after that is an entry of kind `failed`.

    Raises RankCrashed with the log's end where not even the transport's exchanges ended.
    """
    with tempfile.TemporaryDirectory(prefix="xdit_bench_", ignore_cleanup_errors=True) as folder:
        arguments = [
            "--nnodes=1", f"--nproc-per-node={ranks}", "--max-restarts=0", "--rdzv-backend=c10d",
            f"--rdzv-endpoint={Path(folder) / 'rendezvous'}", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1",
            f"--log-dir={Path(folder) / 'logs'}",
            "-m", "xdit_bench.calibration.ranks", folder, device, transport, ",".join(map(str, sizes)),
        ]  # fmt: skip
        environment = {
            "OMP_NUM_THREADS": "1",
            **NO_MULTICAST,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            **os.environ,
            **TRANSPORTS[transport],
            "NCCL_SOCKET_IFNAME": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch's store would listen on every interface
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        code, log = _launch([sys.executable, "-m", launcher.__name__, str(os.getpid()), *arguments], environment)
        found = Path(folder) / "measurements.json"
        if not found.exists():
            raise RankCrashed(f"{ranks} ranks over transport={transport} failed: {_cause(log)}")
        measured: list[dict[str, Any]] = json.loads(found.read_text())
        if code:
            measured.append({"kind": "failed", "what": f"a part of transport={transport}", "error": _cause(log)})
        return measured


def _launch(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and log of the launcher; ended, ranks and all, when it takes longer than the limit or this is ended."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as run:  # fmt: skip
        try:
            log, _ = run.communicate(timeout=LIMIT_S)
        except BaseException as error:
            end_group(run)  # its ranks are killed by the kernel with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.communicate(timeout=GRACE_S)  # what they print into is closed once the last of them is gone
            if isinstance(error, subprocess.TimeoutExpired):
                return 1, f"TimeoutError: the ranks did not end in {LIMIT_S:g} s"
            raise
        return run.returncode, log


def _cause(log: str) -> str:
    """The last line of the log that names an error, else the log's end."""
    lines = [line.strip() for line in log.splitlines() if "Error" in line and "ChildFailedError" not in line]
    return lines[-1] if lines else log.strip()[-300:]


def splits(ranks: int) -> list[tuple[int, int]]:
    """Every (ulysses, ring) of 2 to `ranks` ranks with all groups busy, and rings of pairs and fours."""
    return [(u, n // u) for n in range(2, ranks + 1) for u in range(1, n + 1) if n % u == 0 and ranks % n == 0]


def main(folder: str, device_kind: str, transport: str, sizes: list[int]) -> None:
    """One rank: joins, measures every split in every way, rank 0 writes after each way."""
    import torch

    from xdit_bench.engine.mesh import build_mesh, connect

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if device_kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    connect(rank, world, str(Path(folder) / "store"), device)
    meshes = [build_mesh(ulysses, ring, device) for ulysses, ring in splits(world)]  # every rank takes part in groups
    direct = (device_kind, transport) == ("cuda", "p2p")
    found = [_launch_beside(world, device)] if direct else []
    for way in (_as_called, _symmetric, _captured) if direct else (_as_called,):
        for mesh in meshes:
            torch.distributed.barrier()
            if mesh is not None:  # else this rank waits at the barrier while others measure
                found += [{"path": transport, **m} for m in way(mesh, sizes)]
            if mesh is not None and way is _symmetric and mesh.ulysses == world:
                found += _beside_links(mesh, device)
        torch.distributed.barrier()
        if rank == 0:
            (Path(folder) / "measurements.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _launch_beside(world: int, device: torch.device) -> dict[str, Any]:
    """The slowest rank's seconds to issue an eager block while all do."""
    import torch
    import torch.distributed as dist

    from xdit_bench.measure.launch import BlockLaunch
    from xdit_bench.measure.timers import agree

    launch = BlockLaunch(device, torch.bfloat16)
    dist.barrier()
    (slowest,) = agree(dist.group.WORLD, [launch()])
    return {"kind": "launch", "path": "p2p", "ranks": world, "seconds": slowest}


def _beside_links(mesh: Mesh, device: torch.device) -> list[dict[str, Any]]:
    """The slowest rank's seconds of a matrix product by itself, and while all ranks send to each other now and then as
    the engine does at 4096px: links that are awake draw power, and a GPU at its limit computes slower for it."""
    import torch

    from xdit_bench.engine.symmetric import working_carrier
    from xdit_bench.measure.timers import agree

    carrier = working_carrier(mesh)
    if carrier is None:
        return []
    rows, weight = (torch.randn(n, 3072, dtype=torch.bfloat16, device=device) for n in (16384, 12288))
    slabs = torch.zeros(mesh.ulysses, BLOCK_BYTES // 2 // (mesh.ulysses - 1), dtype=torch.bfloat16, device=device)

    def rate(products: int, rounds: int, *, send: bool) -> float:
        """Seconds a product; every rank does as many."""
        agree(mesh.group, [0.0])
        start = time.perf_counter()
        for _ in range(rounds):
            pending = carrier.scatter(slabs, [1] * mesh.ulysses) if send else None
            for _ in range(products):
                rows @ weight.t()
            if pending:
                pending.wait()
            torch.cuda.current_stream().synchronize()
        return agree(mesh.group, [(time.perf_counter() - start) / rounds / products])[0]

    products = max(1, round(BLOCK_S / rate(20, 2, send=False)))
    rounds = round(SETTLE_S / BLOCK_S)
    seconds = {}
    for send in (False, True):
        rate(products, rounds, send=send)
        seconds[send] = rate(products, rounds, send=send)
    carrier.close()
    return [{
        "kind": "beside_links", "path": "p2p", "ranks": mesh.size, "bytes": BLOCK_BYTES,
        "every_s": products * seconds[True], "alone_seconds": seconds[False], "seconds": seconds[True],
    }]  # fmt: skip


def _as_called(mesh: Mesh, sizes: list[int]) -> list[dict[str, Any]]:
    """torch's own collectives, one call after the other."""
    return [_entry(kind, mesh, size, call) for size in sizes for kind, call in _collectives(mesh, size).items()]


def _captured(mesh: Mesh, sizes: list[int]) -> list[dict[str, Any]]:
    """The same inside a CUDA graph."""
    return [
        {**_entry(kind, mesh, size, _graph(call), CAPTURED), "captured": True}
        for size in sizes
        for kind, call in _collectives(mesh, size).items()
    ]


def _symmetric(mesh: Mesh, sizes: list[int]) -> list[dict[str, Any]]:
    """The engine's copies through symmetric memory, inside a CUDA graph, or an entry that says they do not work."""
    import torch

    from xdit_bench.engine.symmetric import working_carrier

    carrier = working_carrier(mesh)
    if carrier is None:
        failed = {"what": "symmetric memory", "error": "the engine exchanges through NCCL"}
        return [{"kind": "failed", "path": "symmetric", **failed}]
    found = []
    for size in sizes:
        width = _count(mesh, size) // 2 // mesh.ulysses
        slabs = torch.zeros(mesh.ulysses, width, dtype=torch.bfloat16, device=mesh.device)
        block = slabs.view(1, -1)
        calls: dict[str, Callable[[], Pending]] = {}
        if mesh.ulysses > 1:
            calls["all_to_all"] = partial(carrier.scatter, slabs, [1] * mesh.ulysses)
        if mesh.ring > 1:
            calls["shift"] = partial(carrier.shift, block, [1] * mesh.ring, 0)
        for kind, begin in calls.items():
            graph = _graph(lambda begin=begin: begin().wait())  # type: ignore[misc]
            found.append({**_entry(kind, mesh, size, graph, CAPTURED), "path": "symmetric"})
    carrier.close()
    return found


def _graph(call: Callable[[], object]) -> Callable[[], object]:
    """Replays CAPTURED calls, by the engine's own keeper of graphs."""
    import torch

    from xdit_bench.engine.graphs import LoopGraphs

    def calls() -> torch.Tensor:
        for _ in range(CAPTURED):
            call()
        return torch.zeros(1, device="cuda")

    return LoopGraphs(calls)


def _count(mesh: Mesh, size: int) -> int:
    """Bytes a rank, cut to whole chunks of 16 bytes."""
    return size // (16 * mesh.ulysses) * 16 * mesh.ulysses


def _entry(kind: str, mesh: Mesh, size: int, call: Callable[[], object], calls: int = 1) -> dict[str, Any]:
    seconds = _slowest(call, mesh) / calls
    return {
        "kind": kind, "ulysses": mesh.ulysses, "ring": mesh.ring, "bytes": _count(mesh, size), "seconds": seconds,
    }  # fmt: skip


def _collectives(mesh: Mesh, size: int) -> dict[str, Callable[[], object]]:
    """Each exchange of a mesh with `size` bytes a rank; torch's own collectives."""
    import torch
    import torch.distributed as dist

    count = _count(mesh, size)
    send = torch.zeros(count, dtype=torch.uint8, device=mesh.device)
    received = torch.empty_like(send)
    calls: dict[str, Callable[[], object]] = {}
    if mesh.ulysses > 1:
        calls["all_to_all"] = lambda: dist.all_to_all_single(received, send, group=mesh.ulysses_group)
    if mesh.ring > 1:
        after, before = (mesh.rank_at(mesh.ulysses_rank, (mesh.ring_rank + hop) % mesh.ring) for hop in (1, -1))

        def shift() -> None:
            ops = [
                dist.P2POp(dist.isend, send, after, mesh.ring_group),
                dist.P2POp(dist.irecv, received, before, mesh.ring_group),
            ]
            for work in dist.batch_isend_irecv(ops):
                work.wait()

        calls["shift"] = shift
    if mesh.ring == 1:
        gathered = [torch.empty_like(send) for _ in range(mesh.size)]
        calls["all_gather"] = lambda: dist.all_gather(gathered, send, group=mesh.group)
    return calls


def _slowest(call: Callable[[], object], mesh: Mesh) -> float:
    """Mean seconds of a call on the slowest rank; all ranks repeat it equally often, started together."""
    import torch
    import torch.distributed as dist

    from xdit_bench.measure.timers import synchronize

    def timed(calls: int) -> float:
        dist.barrier(group=mesh.group)
        synchronize(mesh.device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(mesh.device)
        taken = torch.tensor([(time.perf_counter() - start) / calls], device=mesh.device)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX, group=mesh.group)  # also agrees on how often to repeat
        return float(taken)

    timed(2)
    once = timed(2)
    return timed(3 if once > SLOW_S else max(5, min(500, round(FOR_S / once))))


if __name__ == "__main__":
    die_with_parent(int(os.environ[launcher.LAUNCHER]))
    main(sys.argv[1], sys.argv[2], sys.argv[3], [int(size) for size in sys.argv[4].split(",")])
