"""How torch's elastic launcher is started on this machine, for one node or as one of several.

Owns its arguments, the ranks' environment and its logs; `pool` and `node` own the process.

    launcher = Launcher(folder, ranks=2, device="cpu", transport="p2p", launch=LaunchConfig())
    agent = launcher.start(control="unix:/…/control")  # reads its modules
    launcher.release(agent)                            # starts the ranks
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from xdit_bench.config import LaunchConfig
from xdit_bench.runner.agent import GO, NOW, SPARE
from xdit_bench.topology.specs import NO_MULTICAST, TRANSPORTS

COLLECTIVE_S = 7200.0  # collectives never time out before the point's deadline does
LOG_TAIL = 2000  # characters of a dead rank's log in its record

CRIPPLING = ("CUDA_LAUNCH_BLOCKING", "NCCL_ALGO", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_PROTO",
             "NCCL_SHM_DISABLE")  # fmt: skip
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the name before torch 2.9


@dataclass(frozen=True)
class Launcher:
    """One start of the elastic launcher. `ranks` are those of this machine; `folder` is private."""

    folder: Path
    ranks: int
    device: str
    transport: str
    launch: LaunchConfig
    reads: tuple[str, ...] = ()  # modules to import before the ranks are forked

    @property
    def alone(self) -> bool:
        """Whether this machine holds all ranks."""
        return self.launch.nnodes == 1

    def start(self, *, control: str = "", token: str = "", spare: bool = False) -> subprocess.Popen[bytes]:
        """The launcher's process, which waits to be released; a `spare` one keeps out of running points' way. Without
        `control` its ranks learn it from the first machine's."""
        about = [str(os.getpid()), SPARE if spare else NOW, ",".join(self.reads)]
        with (self.folder / "agent.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "xdit_bench.runner.agent", *about, *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**self._environment(), "XDIT_BENCH_CONTROL": control, "XDIT_BENCH_TOKEN": token},
            )

    def release(self, agent: subprocess.Popen[bytes]) -> None:
        """Lets it start the ranks."""
        assert agent.stdin is not None
        with contextlib.suppress(OSError), agent.stdin:  # it may have died: its log says why
            agent.stdin.write(GO.encode())

    def address(self) -> str:
        """This machine's address on the way to where the machines meet; loopback when it is alone."""
        if self.alone:
            return "127.0.0.1"
        host, _, port = str(self.launch.rdzv_endpoint).rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing: asks the kernel for the way
            return str(probe.getsockname()[0])

    def exit_code(self, pid: int) -> int | None:
        """Of a dead rank of this machine, from the launcher's report; negative is a signal."""
        found = re.search(rf"exitcode\s*:\s*(-?\d+)[^\n]*\(pid: {pid}\)", self._log())
        return int(found[1]) if found else None

    def log_tail(self, local_rank: int | None = None) -> str:
        """The end of a rank's stderr, or of the first that says anything."""
        pattern = f"logs/*/attempt_0/{'*' if local_rank is None else local_rank}/stderr.log"
        logs = [path.read_text(errors="replace") for path in sorted(self.folder.glob(pattern))]
        return next((text[-LOG_TAIL:] for text in logs if text.strip()), "")

    def last_words(self) -> str:
        """The line that says most about why ranks did not start."""
        lines = [line for line in (self.log_tail() or self._log()).splitlines() if line.strip()]
        return lines[-1].strip() if lines else "they said nothing in time"

    def _log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _arguments(self) -> list[str]:
        if self.alone:
            meet = [f"--rdzv-endpoint={self.folder / 'rendezvous'}", "--rdzv-conf=store_type=file"]
        else:
            is_host = int(self.launch.node_rank == 0)
            meet = [f"--rdzv-endpoint={self.launch.rdzv_endpoint}", f"--rdzv-conf=is_host={is_host}"]
        return [
            f"--nnodes={self.launch.nnodes}", f"--nproc-per-node={self.ranks}", "--max-restarts=0",
            "--monitor-interval=0.1", "--rdzv-backend=c10d", "--rdzv-id=xdit_bench", *meet,
            f"--local-addr={self.address()}", f"--log-dir={self.folder / 'logs'}", "--redirects=3",
            "-m", "xdit_bench.runner.worker",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0))
        # a CPU rank stands for a device of one core, however many ranks there are
        threads = 1 if self.device == "cpu" else max(1, min(8, cores // self.ranks))
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        interface = _interface(self.address())
        network = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}
        alone = {
            **network,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch's store would listen on every interface
        }
        return {
            "OMP_NUM_THREADS": str(threads),
            **NO_MULTICAST,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order NVML counts in
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch sees GPUs without a context, which the launcher must not have
            "TORCH_FR_BUFFER_SIZE": "256",  # the flight recorder: what a stuck rank waits in
            **({} if self.alone else network),
            **os.environ,
            **TRANSPORTS[self.transport],
            **(alone if self.alone else {}),
            "PYTHONPATH": os.pathsep.join(paths),
            "XDIT_BENCH_STORE": f"file://{self.folder / 'store'}" if self.alone else "",
            "XDIT_BENCH_BOARD": str(self.folder / "board"),
            "XDIT_BENCH_DEVICE": self.device,
            "XDIT_BENCH_NODE": str(self.launch.node_rank),
            "XDIT_BENCH_TIMEOUT": str(COLLECTIVE_S),
        }


def _interface(address: str) -> str | None:
    """Name of the network interface that has an address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return None


def environment_warnings(environment: Mapping[str, str] | None = None, transport: str = "p2p") -> list[str]:
    """Variables of the caller's shell that slow the ranks down, or let other sizes fit than torch does by itself, as
    sentences for the report's first lines."""
    given = os.environ if environment is None else environment
    found = [name for name in CRIPPLING if given.get(name) not in (None, "", "0") and name not in TRANSPORTS[transport]]
    slow = [f"{name}={given[name]} is set in the environment and changes these times; unset it" for name in found]
    return slow + [
        f"{name}={given[name]} is set in the environment and changes which sizes run out of memory; unset it to "
        f"compare with records without it"
        for name in ALLOCATOR
        if given.get(name)
    ]
