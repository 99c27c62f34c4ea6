"""The probe's facts on this machine, and its identity."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from xdit_bench.topology import probe as probing
from xdit_bench.topology.probe import code_version, fingerprint, probe, software, visible_handles


def test_probe_reads_this_machine_as_json_without_its_name() -> None:
    machine = probe()
    assert machine["device"] in ("cuda", "cpu")
    assert machine["cores"] == len(os.sched_getaffinity(0))
    assert machine["memory_bytes"] > 2**28
    assert platform.node() not in json.dumps(machine)


def test_probe_and_versions_need_no_torch() -> None:
    code = (
        "import sys; from xdit_bench.topology import probe as p; p.probe(); p.software(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_versions_are_those_installed() -> None:
    import torch

    assert software()["torch"] == torch.__version__
    assert software()["python"] == platform.python_version()


def test_fingerprint_changes_with_what_makes_times_incomparable_alone() -> None:
    gpu = {"device": "cuda", "gpus": 2, "gpu_kinds": [{"name": "A"}], "links": [["X"]], "driver": "1", "numa": [0]}
    base = fingerprint(gpu, {"torch": "2.13", "xdit_bench": "1"})
    assert fingerprint({**gpu, "numa": [1]}, {"torch": "2.13", "xdit_bench": "2"}) == base
    for change in ({"gpus": 4}, {"driver": "2"}, {"gpu_kinds": [{"name": "B"}]}, {"device": "cpu"}):
        assert fingerprint({**gpu, **change}, {"torch": "2.13"}) != base
    assert fingerprint(gpu, {"torch": "2.14"}) != base


def test_code_version_is_stable_and_short() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 16


class FakeNvml:
    """Three GPUs by number and UUID."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if not name.startswith(("GPU-", "MIG-")):
            raise self.NVMLError
        return name.lower()


@pytest.mark.parametrize(("visible", "handles"), [
    (None, ["gpu0", "gpu1", "gpu2"]), ("2,0", ["gpu2", "gpu0"]), ("GPU-B", ["gpu-b"]), ("MIG-x", ["mig-x"]), ("", []),
    ("1,7,0", ["gpu1"]),
])  # fmt: skip
def test_gpus_are_those_that_cuda_shows(
    visible: str | None, handles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_handles(FakeNvml()) == handles


def test_the_code_version_is_of_every_source_that_measures_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("engine", "backends", "measure", "reporting"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("x = 1")
    (tmp_path / "topology").mkdir()
    monkeypatch.setattr(probing, "__file__", str(tmp_path / "topology" / "probe.py"))
    seen = {probing.code_version()}
    (tmp_path / "reporting" / "a.py").write_text("x = 2")
    assert {probing.code_version()} == seen
    for folder in ("engine", "backends", "measure"):
        (tmp_path / folder / "a.py").write_text("x = 2")
        seen.add(probing.code_version())
    assert len(seen) == 4
