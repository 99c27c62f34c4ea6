"""Which machine is which topology."""

from __future__ import annotations

from typing import Any

import pytest

from xdit_bench.topology.match import auto_name, auto_topology, differences, same_gpu
from xdit_bench.topology.specs import load


def machine(name: str, gib: float, gpus: int = 2, link: str = "NV12") -> dict[str, Any]:
    kind = {"name": name, "memory_bytes": int(gib * 2**30)}
    links = [["X" if i == j else link for j in range(gpus)] for i in range(gpus)]
    return {"device": "cuda", "gpus": gpus, "gpu": name, "capacity_bytes": kind["memory_bytes"],
            "gpu_kinds": [kind] * gpus, "links": links}  # fmt: skip


CPU = {"device": "cpu", "gpus": 0}


@pytest.mark.parametrize(("one", "other", "same"), [
    ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", True),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", True),
    ("NVIDIA L40", "NVIDIA L40S", False),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H200", False),
    ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4080", False),
])  # fmt: skip
def test_gpus_are_compared_by_kind(one: str, other: str, same: bool) -> None:
    assert same_gpu(one, other) is same


def test_machine_of_the_topology_has_no_differences_whatever_its_gpu_count() -> None:
    a100 = load("a100_nvlink")
    assert differences(a100, machine("NVIDIA A100-SXM4-80GB", 80.0, gpus=8)) == []
    assert differences(a100, machine("NVIDIA A100-SXM4-80GB", 79.3, gpus=1)) == []


def test_each_difference_is_a_sentence() -> None:
    a100 = load("a100_nvlink")
    assert differences(a100, CPU) == ["it has no GPU, a100_nvlink has NVIDIA A100-SXM4-80GB"]
    assert "its GPU is NVIDIA L40" in differences(a100, machine("NVIDIA L40", 45, link="SYS"))[0]
    assert "has 40 GiB, a100_nvlink has 80 GiB" in differences(a100, machine("NVIDIA A100-SXM4-40GB", 40))[0]
    over_pcie = differences(a100, machine("NVIDIA A100 80GB PCIe", 80, link="PHB"))
    assert over_pcie == ["its GPUs are joined by PCIe, those of a100_nvlink by NVLink"]


def test_auto_is_the_shipped_topology_this_machine_is() -> None:
    assert auto_name(machine("NVIDIA A100-SXM4-80GB", 80)) == "a100_nvlink"
    assert auto_name(machine("NVIDIA L40", 45, link="SYS")) == "l40_pcie"
    assert auto_name(CPU) == "a100_nvlink", "predicted where there is no GPU"


def test_gpu_that_no_file_knows_can_be_measured_and_not_predicted() -> None:
    topology = auto_topology(machine("NVIDIA GeForce RTX 4090", 24, link="PHB"))
    assert topology.name == "4090_geforce_rtx_pcie"
    assert not topology.predictable
    assert topology.gpus == 2


def test_any_machine_can_run_cpu_ranks() -> None:
    assert differences(load("cpu"), CPU) == []
