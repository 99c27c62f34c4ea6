"""Ranks that live for many points: started once by torch's elastic launcher, commanded over a private socket.

Owns processes, sockets and the private folder, and that none of them outlives the pool; leaves what the ranks'
answers mean to `outcome`.

    with Pool(ranks=2, device="cpu") as pool:
        answers = pool.run({"op": "run", ...}, deadline_s=60)   # one Answer a rank
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from xdit_bench.errors import RankCrashed
from xdit_bench.runner.board import Board
from xdit_bench.runner.process import Process
from xdit_bench.runner.wire import Link, Message

START_S = 300.0  # a cold file system reads torch and diffusers slowly
CLOSE_S = 20.0
GRACE_S = 1.0  # a failing rank's peers get so long to fail too; whoever is left waits in a collective
COLLECTIVE_S = 7200.0  # collectives never time out before the point's deadline does
LOG_TAIL = 2000  # characters of a dead rank's log in its record

TRANSPORTS: dict[str, dict[str, str]] = {
    "p2p": {},
    "host": {"NCCL_P2P_DISABLE": "1"},
    "socket": {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
}


@dataclass
class Answer:
    """What one rank said about a command.

    `kind` is its event (`result`, `error`), or `died` (its process ended), or `silent` (it did not answer in time).
    """

    rank: int
    kind: str
    body: Message = field(default_factory=dict)
    after_s: float = 0.0


@dataclass
class _Member:
    """A rank's process and connection."""

    rank: int
    process: Process
    link: Link
    alive: bool = True


class Pool:
    """A fixed number of ranks of one device kind and transport. Use as a context manager."""

    def __init__(self, ranks: int, device: str, *, transport: str = "p2p", start_s: float = START_S) -> None:
        """Starts the ranks and waits until they have met. Raises RankCrashed with the log's end when they do not."""
        self.ranks = ranks
        self.transport = transport
        self.alive = True
        self.loaded: object = None  # what its ranks hold, for whoever loads it
        self._next_id = 0
        self._members: dict[int, _Member] = {}
        self._selector = selectors.DefaultSelector()
        self._folder = Path(tempfile.mkdtemp(prefix="xdit_bench_"))  # 0700: nobody else can reach the socket
        self._agent: subprocess.Popen[bytes] | None = None
        try:
            self._board = Board.create(self._folder / "board", ranks)
            self._start(device, time.monotonic() + start_s)
        except BaseException:
            self.kill()
            raise

    @property
    def pids(self) -> list[int]:
        """Of launcher and ranks."""
        agent = [self._agent.pid] if self._agent else []
        return agent + [member.process.pid for member in self._members.values()]

    def where(self, rank: int) -> tuple[str, int]:
        """Stage and iteration the rank noted last."""
        return self._board.read(rank)

    def run(self, command: Message, deadline_s: float) -> list[Answer]:
        """Sends a command to all ranks; their answers, in rank order.

        Returns once all have answered, or the first failure's grace is over, or the deadline is. A pool with a
        rank that died or kept silent, or whose device does not answer, is dead afterwards: `alive` is False.
        """
        assert self.alive, "a dead pool takes no commands"
        self._next_id += 1
        begun = time.monotonic()
        answers: dict[int, Answer] = {}
        for member in self._members.values():
            self._send(member, {**command, "id": self._next_id}, answers)
        until = begun + deadline_s
        while len(answers) < self.ranks and (left := until - time.monotonic()) > 0:
            for answer in self._collect(left):
                if answer.body.get("id", self._next_id) == self._next_id:
                    answer.after_s = time.monotonic() - begun
                    answers.setdefault(answer.rank, answer)
            if any(a.kind != "result" for a in answers.values()):
                until = min(until, time.monotonic() + GRACE_S) if until == begun + deadline_s else until
        missing = [rank for rank in range(self.ranks) if rank not in answers]
        if missing or any(a.kind == "died" for a in answers.values()):
            self._ask_where(missing, answers, time.monotonic() - begun)
            self.kill()
        elif any(a.kind == "error" for a in answers.values()):
            self._clean_up(answers)
        return [answers[rank] for rank in range(self.ranks)]

    def close(self) -> None:
        """Lets the ranks end by themselves, then makes sure."""
        if self.alive and self._agent:
            for member in self._members.values():
                with contextlib.suppress(OSError):
                    member.link.send({"op": "close"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._agent.wait(CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Ends launcher and ranks at once, whatever they do, and waits until they are gone."""
        self.alive = False
        if self._agent is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._agent.pid, signal.SIGKILL)  # its ranks are killed by the kernel with it
            self._agent.wait()
        for member in self._members.values():
            member.process.kill()
        for member in self._members.values():
            member.process.wait_gone()
            member.link.close()
        self._members.clear()
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _start(self, device: str, until: float) -> None:
        server = socket.socket(socket.AF_UNIX)
        with server:
            server.bind(str(self._folder / "control"))
            server.listen(self.ranks)
            self._agent = self._launch(device)
            self._selector.register(server, selectors.EVENT_READ)
            ready: set[int] = set()
            while len(ready) < self.ranks:
                if self._agent.poll() is not None or time.monotonic() > until:
                    reason = f"the {self.ranks} ranks could not be started: {self._last_words()}"
                    raise RankCrashed(reason, log_tail=self._log_tail(None))
                for key, _ in self._selector.select(0.2):
                    if key.fileobj is server:
                        self._welcome(Link(server.accept()[0]))
                    else:
                        ready.update(answer.rank for answer in self._read(key.data) if answer.kind == "ready")
            self._selector.unregister(server)

    def _launch(self, device: str) -> subprocess.Popen[bytes]:
        arguments = [
            "--nnodes=1", f"--nproc-per-node={self.ranks}", "--max-restarts=0", "--monitor-interval=0.1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={self._folder / 'rendezvous'}", "--rdzv-conf=store_type=file",
            "--local-addr=127.0.0.1", f"--log-dir={self._folder / 'logs'}", "--redirects=3",
            "-m", "xdit_bench.runner.worker",
        ]  # fmt: skip
        with (self._folder / "agent.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "xdit_bench.runner.agent", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=self._environment(device),
            )  # fmt: skip

    def _environment(self, device: str) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0))
        # a CPU rank stands for a device of one core, however many ranks there are
        threads = 1 if device == "cpu" else max(1, min(8, cores // self.ranks))
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "OMP_NUM_THREADS": str(threads),
            "NCCL_NVLS_ENABLE": "0",  # NVLink multicast hangs under some virtual machines
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order NVML counts in
            "TORCH_FR_BUFFER_SIZE": "256",  # the flight recorder: what a stuck rank waits in
            **os.environ,
            **TRANSPORTS[self.transport],
            "PYTHONPATH": os.pathsep.join(paths),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch's store would listen on every interface
            "NCCL_SOCKET_IFNAME": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
            "XDIT_BENCH_CONTROL": f"unix:{self._folder / 'control'}",
            "XDIT_BENCH_STORE": str(self._folder / "store"),
            "XDIT_BENCH_BOARD": str(self._folder / "board"),
            "XDIT_BENCH_DEVICE": device,
            "XDIT_BENCH_TIMEOUT": str(COLLECTIVE_S),
        }

    def _welcome(self, link: Link) -> None:
        for hello in link.receive() or []:
            member = _Member(hello["rank"], Process(hello["pid"]), link)
            self._members[member.rank] = member
            self._selector.register(link, selectors.EVENT_READ, member)

    def _send(self, member: _Member, message: Message, answers: dict[int, Answer]) -> None:
        try:
            member.link.send(message)
        except OSError:
            answers[member.rank] = Answer(member.rank, "died")

    def _collect(self, timeout_s: float) -> Iterable[Answer]:
        for key, _ in self._selector.select(min(timeout_s, 0.2)):
            yield from self._read(key.data)

    def _read(self, member: _Member) -> list[Answer]:
        messages = member.link.receive()
        if messages is None:
            self._selector.unregister(member.link)
            member.alive = False
            return [Answer(member.rank, "died")]
        return [Answer(member.rank, message.pop("event"), message) for message in messages]

    def _clean_up(self, answers: dict[int, Answer]) -> None:
        """After a failure that every rank survived: new groups for the next point, or an end when a rank is unwell."""
        if all(a.body.get("clean", True) for a in answers.values()):
            forgot: dict[int, Answer] = {}
            for member in self._members.values():
                self._send(member, {"op": "forget"}, forgot)
            until = time.monotonic() + CLOSE_S
            while len(forgot) < self.ranks and (left := until - time.monotonic()) > 0:
                forgot.update({a.rank: a for a in self._collect(left)})
            if len(forgot) == self.ranks and all(a.kind == "forgot" for a in forgot.values()):
                return
        self.kill()

    def _ask_where(self, missing: list[int], answers: dict[int, Answer], after_s: float) -> None:
        """Fills in the ranks that gave no answer, with where they are and what they wait in."""
        waiting = {rank for rank in missing if self._members[rank].alive}
        for rank in missing:
            answers[rank] = Answer(rank, "silent", after_s=after_s)
            if rank in waiting:
                self._send(self._members[rank], {"op": "where"}, {})
        until = time.monotonic() + GRACE_S
        while waiting and (left := until - time.monotonic()) > 0:
            for answer in self._collect(left):
                waiting.discard(answer.rank)
                if answer.kind == "where" and answer.rank in missing:
                    answers[answer.rank].body |= {"answered": True, **answer.body}
        for rank, answer in answers.items():
            if answer.kind in ("died", "silent"):
                stage, iteration = self.where(rank)
                answer.body |= {"stage": stage, "iteration": iteration, "log_tail": self._log_tail(rank)}
            if answer.kind == "died":
                answer.body["exit"] = self._exit_code(self._members[rank].process.pid)

    def _exit_code(self, pid: int) -> int | None:
        """Of a dead rank, from the launcher's report; negative is a signal."""
        if self._agent is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._agent.wait(GRACE_S)
        found = re.search(rf"exitcode\s*:\s*(-?\d+)\s*\(pid: {pid}\)", self._agent_log())
        return int(found[1]) if found else None

    def _agent_log(self) -> str:
        path = self._folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _log_tail(self, rank: int | None) -> str:
        """The end of a rank's stderr, or of the first that says anything."""
        pattern = f"logs/*/attempt_0/{'*' if rank is None else rank}/stderr.log"
        logs = [path.read_text(errors="replace") for path in sorted(self._folder.glob(pattern))]
        return next((text[-LOG_TAIL:] for text in logs if text.strip()), "")

    def _last_words(self) -> str:
        """The line that says most about why ranks did not start."""
        lines = [line for line in (self._log_tail(None) or self._agent_log()).splitlines() if line.strip()]
        return lines[-1].strip() if lines else "they said nothing in time"


def killed_by(code: int | None) -> str:
    """`killed by SIGKILL`, `ended with exit code 3`, or `ended` where the launcher did not say."""
    if code is None:
        return "ended"
    with contextlib.suppress(ValueError):
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def environment_warnings(environment: dict[str, str] | None = None, transport: str = "p2p") -> list[str]:
    """Variables of the caller's shell that slow the ranks down, as sentences for the report's first lines."""
    given: Any = os.environ if environment is None else environment
    names = (
        "CUDA_LAUNCH_BLOCKING",
        "NCCL_ALGO",
        "NCCL_IB_DISABLE",
        "NCCL_P2P_DISABLE",
        "NCCL_PROTO",
        "NCCL_SHM_DISABLE",
    )
    found = [name for name in names if given.get(name) not in (None, "", "0") and name not in TRANSPORTS[transport]]
    return [f"{name}={given[name]} is set in the environment and changes these times; unset it" for name in found]
