"""One point over two 'hosts': network namespaces joined by a virtual cable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses, io, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from plans import MACHINE, QUICK, fake_point, tiny
from rich.console import Console
from xdit_bench.config import LaunchConfig, RunConfig
from xdit_bench.results.store import Store
from xdit_bench.runner.execute import lend, run_plan
from xdit_bench.runner.plan import Job
launch = LaunchConfig(nnodes=2, node_rank=int(sys.argv[1]), rdzv_endpoint="10.77.0.1:29411", gpus=1)
points = [fake_point(2, 1), fake_point(1, 2, fault="raise", rank=1, stage="vae"), fake_point(1, 2)]
jobs = [Job(p, tiny(), QUICK, RunConfig(recheck=0.0, deadline_s=60.0), launch) for p in points]
if launch.node_rank > 0:
    lend(jobs[0], MACHINE)
    sys.exit()
with Store.open(Path({results!r}) / sys.argv[1], "s") as store:
    run_plan(jobs, store, machine=MACHINE, software={{}}, study="s", console=Console())
"""


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces that reach each other at 10.77.0.1 and 10.77.0.2."""
    names = [f"xdit{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
        sh(f"ip link add v{names[0][-6:]} netns {names[0]} type veth peer name v{names[1][-6:]} netns {names[1]}")
        for i, name in enumerate(names, 1):
            sh(f"ip -n {name} addr add 10.77.0.{i}/24 dev v{name[-6:]} && ip -n {name} link set v{name[-6:]} up")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    try:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_left")
def test_two_hosts_run_points_over_the_rendezvous(tmp_path: Path, hosts: list[str]) -> None:
    script = SCRIPT.format(folder=str(Path(__file__).parent), results=str(tmp_path))
    runs = [
        subprocess.Popen(["ip", "netns", "exec", host, sys.executable, "-c", script, str(number)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number, host in enumerate(hosts)
    ]  # fmt: skip
    said = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said

    lines = [json.loads(line) for line in (tmp_path / "0" / "s" / "records.jsonl").read_text().splitlines()]
    found = sorted((line["point"]["gpus"], line["status"]) for line in lines)
    assert found == [(1, "ok"), (1, "ok"), (2, "crashed"), (2, "ok"), (2, "ok")], lines
    assert all(line["machine"]["fingerprint"] == "testx2" for line in lines)
    assert all(
        len(line["memory"]["peak_bytes_per_rank"]) == line["point"]["gpus"] for line in lines if line["status"] == "ok"
    )
    assert not (tmp_path / "1").exists(), "the second host lends its rank alone"
