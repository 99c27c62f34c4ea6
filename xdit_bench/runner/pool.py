"""Ranks that live for many points: started once by torch's elastic launcher, commanded over a private socket.

Owns processes, sockets and the private folder, and that none of them outlives the pool; leaves what the ranks'
answers mean to `outcome`.

    with Pool(ranks=2, device="cpu") as pool:
        answers = pool.run({"op": "run", ...}, deadline_s=60)   # one Answer a rank
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from xdit_bench.config import LaunchConfig
from xdit_bench.errors import RankCrashed
from xdit_bench.lifetime import end_group
from xdit_bench.runner.board import Board
from xdit_bench.runner.launcher import Launcher
from xdit_bench.runner.process import Process
from xdit_bench.runner.wire import Link, Message

START_S = 300.0  # a cold file system reads torch and diffusers slowly
OTHERS_S = 1800.0  # the same command has to be typed on the other machines
SOCKET_PATH = 80  # characters; the system allows a little over a hundred
CLOSE_S = 20.0
# a failing rank's peers get so long to fail too; whoever is left waits in a collective (a GPU's memory takes longer
# to give back)
GRACE_S = {"cpu": 1.0, "cuda": 4.0}
WHERE_S = 1.0
HELLO_BYTES = 4096
# the launcher sees how a rank ended once the kernel is done with it, and a GPU's driver takes its time over its memory
REPORT_S = {"cpu": 1.0, "cuda": 10.0}


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
    process: Process | None  # None on another machine, whose ranks end with their connection
    link: Link
    alive: bool = True


class Pool:
    """A fixed number of ranks of one device kind and transport. Use as a context manager."""

    def __init__(
        self,
        ranks: int,
        device: str,
        *,
        transport: str = "p2p",
        launch: LaunchConfig | None = None,
        reads: tuple[str, ...] = (),
        spare: bool = False,
    ) -> None:
        """Starts `ranks` on this machine (and waits for as many on each other one) until all have met.

        `reads` names modules that its points will need, imported once for all ranks. A `spare` one starts no more than
        its launcher, which reads its modules; `begin` does the rest. Raises RankCrashed with the log's end when ranks
        do not meet.
        """
        launch = launch or LaunchConfig()
        self._like = (ranks, device, transport, launch, reads)
        self.nnodes = launch.nnodes
        self.ranks = ranks * launch.nnodes
        self.device = device
        self.transport = transport
        self.alive = True
        self.loaded: object = None  # what its ranks hold, for whoever loads it
        self._next_id = 0
        self._members: dict[int, _Member] = {}
        self._selector = selectors.DefaultSelector()
        self._folder = _private_folder()
        self._agent: subprocess.Popen[bytes] | None = None
        self._server: socket.socket | None = None
        self._launcher = Launcher(self._folder, ranks, device, transport, launch, reads)
        self._token = secrets.token_hex(16)
        try:
            self._board = Board.create(self._folder / "board", self.ranks)
            self._server = self._listen()
            self._agent = self._launcher.start(control=self._control(), token=self._token, spare=spare)
            if not spare:
                self.begin()
        except BaseException:
            self.kill()
            raise

    def begin(self) -> None:
        """Starts the ranks of a spare pool. Raises RankCrashed."""
        assert self._agent is not None
        self._launcher.release(self._agent)
        try:
            self._meet(time.monotonic() + (START_S if self.nnodes == 1 else OTHERS_S))
        except BaseException:
            self.kill()
            raise

    def again(self, *, spare: bool = False) -> Pool:
        """A new pool like this one."""
        ranks, device, transport, launch, reads = self._like
        return Pool(ranks, device, transport=transport, launch=launch, reads=reads, spare=spare)

    @property
    def pids(self) -> list[int]:
        """Of launcher and ranks."""
        agent = [self._agent.pid] if self._agent else []
        return agent + [member.process.pid for member in self._members.values() if member.process]

    def whereabouts(self) -> dict[int, tuple[str, int]]:
        """Stage and iteration of every rank, as it noted them last; asks nobody."""
        return {rank: self._board.read(rank) for rank in range(self.ranks)}

    def check(self) -> bool:
        """Whether all ranks still live; ends the pool when one died since its last answer."""
        if self.alive:
            list(self._collect(0.0))
            if not all(member.alive for member in self._members.values()):
                self.kill()
        return self.alive

    def run(self, command: Message, deadline_s: float) -> list[Answer]:
        """Sends a command to all ranks; their answers, in rank order.

        Returns once all have answered, or the first failure's grace is over, or the deadline is. A pool with a
        rank that died or kept silent, or whose device does not answer, is dead afterwards: `alive` is False.
        """
        assert self.alive, "a dead pool takes no commands"
        self._next_id += 1
        begun = time.monotonic()
        answers: dict[int, Answer] = {}
        said: dict[int, Message] = {}
        for member in self._members.values():
            self._send(member, {**command, "id": self._next_id}, answers)
        until = begun + deadline_s
        failed = False
        while len(answers) < self.ranks and (left := until - time.monotonic()) > 0:
            for answer in self._collect(left):
                if answer.kind == "where":
                    said[answer.rank] = answer.body
                elif answer.body.get("id", self._next_id) == self._next_id:
                    answer.after_s = time.monotonic() - begun
                    answers.setdefault(answer.rank, answer)
            if not failed and any(a.kind != "result" for a in answers.values()):
                failed = True
                until = min(until, time.monotonic() + GRACE_S[self.device])
                # now: the launcher ends the peers of a dead rank, and what they wait in is known to them alone
                for rank in self._missing(answers):
                    self._send(self._members[rank], {"op": "where"}, {})
        missing = self._missing(answers)
        if missing or any(a.kind == "died" for a in answers.values()):
            self._ask_where(missing, answers, said, time.monotonic() - begun)
            self.kill()
        elif any(a.kind == "error" for a in answers.values()):
            self._clean_up(answers)
        return [answers[rank] for rank in range(self.ranks)]

    def close(self, *, last: bool = False) -> None:
        """Lets the ranks end by themselves, then makes sure. `last` tells other machines that no pool follows."""
        if self.alive and self._agent:
            for member in self._members.values():
                with contextlib.suppress(OSError):
                    member.link.send({"op": "close", "last": last})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._agent.wait(CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Ends launcher and ranks at once, whatever they do, and waits until they are gone."""
        self.alive = False
        if self._agent is not None:
            end_group(self._agent)  # its ranks are killed by the kernel with it
        processes = [member.process for member in self._members.values() if member.process]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait_gone()
        for member in self._members.values():
            member.link.close()
        self._members.clear()
        self._selector.close()
        if self._server is not None:
            self._server.close()
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

    def _meet(self, until: float) -> None:
        assert self._agent is not None
        assert self._server is not None
        with self._server as server:
            self._selector.register(server, selectors.EVENT_READ)
            ready: set[int] = set()
            while len(ready) < self.ranks:
                if self._agent.poll() is not None or time.monotonic() > until:
                    reason = f"the {self.ranks} ranks could not be started: {self._launcher.last_words()}"
                    raise RankCrashed(reason, log_tail=self._launcher.log_tail())
                for key, _ in self._selector.select(0.2):
                    if isinstance(key.fileobj, Link):
                        said = self._read(key.data) if key.data else self._welcome(key.fileobj)
                        ready.update(answer.rank for answer in said if answer.kind == "ready")
                    else:  # whoever it is, it may never say so
                        self._selector.register(Link(server.accept()[0]), selectors.EVENT_READ)
            self._selector.unregister(server)
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, Link) and not key.data:
                    self._turn_away(key.fileobj)

    def _control(self) -> str:
        """Where ranks reach this process."""
        assert self._server is not None
        if self._server.family == socket.AF_UNIX:
            return f"unix:{self._server.getsockname()}"
        return "tcp:{}:{}".format(*self._server.getsockname())

    def _listen(self) -> socket.socket:
        """A socket in the private folder, or, for several machines, at the address where they meet."""
        if self._launcher.alone:
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(self._folder / "control"))
        else:
            server = socket.socket(socket.AF_INET)
            server.bind((self._launcher.address(), 0))
        server.listen()  # strangers may knock too
        return server

    def _welcome(self, link: Link) -> list[Answer]:
        """Takes a rank in; what it said after its hello, which may have come with it."""
        try:
            said = link.receive()
        except ValueError:  # no JSON
            said = None
        if said == [] and link.held < HELLO_BYTES:  # not a line yet
            return []
        hello, *more = said or [{}]
        token = hello.get("token") if isinstance(hello, dict) else None
        if not secrets.compare_digest(str(token).encode(), self._token.encode()):
            self._turn_away(link)
            return []
        process = Process(hello["pid"]) if hello["node"] == 0 else None
        member = _Member(hello["rank"], process, link)
        self._members[member.rank] = member
        self._selector.modify(link, selectors.EVENT_READ, member)
        return _answers(member, more)

    def _turn_away(self, link: Link) -> None:
        """Whoever it is, it is none of ours."""
        self._selector.unregister(link)
        link.close()

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
        return _answers(member, messages)

    def _clean_up(self, answers: dict[int, Answer]) -> None:
        """After a failure that every rank survived: new groups for the next point, or an end when a rank is unwell."""
        if all(a.body.get("clean", True) for a in answers.values()):
            forgot: dict[int, Answer] = {}
            for member in self._members.values():
                self._send(member, {"op": "forget"}, forgot)
            until = time.monotonic() + CLOSE_S
            while len(forgot) < self.ranks and (left := until - time.monotonic()) > 0:
                forgot.update({a.rank: a for a in self._collect(left) if a.kind != "where"})  # it was asked too late
            if len(forgot) == self.ranks and all(a.kind == "forgot" for a in forgot.values()):
                return
        self.kill()

    def _missing(self, answers: dict[int, Answer]) -> list[int]:
        return [rank for rank in range(self.ranks) if rank not in answers]

    def _ask_where(
        self, missing: list[int], answers: dict[int, Answer], said: dict[int, Message], after_s: float
    ) -> None:
        """Fills in the ranks that gave no answer, with where they are and what they wait in; `said` what is known."""
        waiting = {rank for rank in missing if self._members[rank].alive}
        for rank in missing:
            answers[rank] = Answer(rank, "silent", after_s=after_s)
            if rank in waiting:
                self._send(self._members[rank], {"op": "where"}, {})
        until = time.monotonic() + WHERE_S
        while waiting and (left := until - time.monotonic()) > 0:
            for answer in self._collect(left):
                waiting.discard(answer.rank)
                if answer.kind == "where":
                    said[answer.rank] = answer.body
        for rank, answer in answers.items():
            if answer.kind in ("died", "silent"):
                stage, iteration = self._board.read(rank)
                known = {"stage": stage, "iteration": iteration, "log_tail": self._launcher.log_tail(rank)}
                if rank in said:
                    known |= {"answered": True, **said[rank]}
                answer.body = known | answer.body
            process = self._members[rank].process
            if answer.kind == "died" and process and self._agent:
                answer.body["exit"] = self._exit_code(process.pid)

    def _exit_code(self, pid: int) -> int | None:
        """How a dead rank ended, once its launcher has seen it."""
        until = time.monotonic() + REPORT_S[self.device]
        while (code := self._launcher.exit_code(pid)) is None and time.monotonic() < until:
            if self._agent is None or self._agent.poll() is not None:
                return self._launcher.exit_code(pid)
            time.sleep(0.01)
        return code


def _answers(member: _Member, messages: Iterable[Message]) -> list[Answer]:
    return [Answer(member.rank, message.pop("event"), message) for message in messages]


def _private_folder() -> Path:
    """0700: nobody else can reach what is in it."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="xdit_bench_", dir=base if len(base) < SOCKET_PATH else "/tmp"))


def killed_by(code: int | None) -> str:
    """`killed by SIGKILL`, `ended with exit code 3`, or `ended` where the launcher did not say."""
    if code is None:
        return "ended"
    with contextlib.suppress(ValueError):
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
