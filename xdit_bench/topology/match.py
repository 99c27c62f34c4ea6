"""Whether this machine is a named topology: by the GPU's name and by NVLink or PCIe between its GPUs.

differences(load("h200_nvlink"), probe())  # [] on a host of H200s with NVLink
auto_name(probe())                         # "h200_nvlink"
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from xdit_bench.topology.probe import probe
from xdit_bench.topology.specs import GpuSpec, Topology, load, names

DEFAULT = "a100_nvlink"  # what `topology=auto` predicts for where there is no GPU
NOISE = {"nvidia", "tesla", "graphics", "device"}
# one GPU's variants that compute alike but differ in links or memory; the rest of the name tells them apart
FORMS = {"sxm", "sxm2", "sxm3", "sxm4", "sxm5", "pcie", "nvl", "hbm3", "hbm2e", "hbm3e"}


def differences(topology: Topology, machine: Mapping[str, Any]) -> list[str]:
    """What keeps this machine from being the topology, as sentences; empty when it is.

    Fewer GPUs than the topology has are fine: a point uses the first ones.
    """
    if topology.name == "cpu":
        return []
    if machine["device"] != "cuda":
        return [f"it has no GPU, {topology.name} has {topology.gpu.name}"]
    found = []
    for kind in machine["gpu_kinds"]:
        if not same_gpu(kind["name"], topology.gpu.name):
            found.append(f"its GPU is {kind['name']}, {topology.name} has {topology.gpu.name}")
        elif not _same_memory(kind["memory_bytes"], topology.gpu.memory_bytes):
            found.append(
                f"its {kind['name']} has {kind['memory_bytes'] / 2**30:.0f} GiB, "
                f"{topology.name} has {topology.gpu.memory_bytes / 2**30:.0f} GiB"
            )
    here, there = nvlinked(machine), _has_nvlink(topology)
    if here is not None and there is not None and here != there:
        words = {True: "NVLink", False: "PCIe"}
        found.append(f"its GPUs are joined by {words[here]}, those of {topology.name} by {words[there]}")
    return list(dict.fromkeys(found))


@functools.cache
def name_here() -> str:
    """The topology that `auto` is on this machine; asked of the driver once, where a sweep asks for every job."""
    return auto_name(probe())


def auto_name(machine: Mapping[str, Any]) -> str:
    """Name of the topology this machine is: a shipped one, one made of GPU and link, or a100_nvlink without GPUs."""
    return auto_topology(machine).name


def auto_topology(machine: Mapping[str, Any]) -> Topology:
    """The shipped topology this machine is, else one that can be measured and not predicted."""
    if machine["device"] != "cuda":
        return load(DEFAULT)
    for name in names():
        if name != "cpu" and not differences(topology := load(name), machine):
            return topology
    name = "_".join(sorted(_words(machine["gpu"])))
    link = "" if nvlinked(machine) is None else "_nvlink" if nvlinked(machine) else "_pcie"
    gpu = GpuSpec(machine["gpu"], machine["capacity_bytes"], 0.0, 0.0, 0.0, 0)
    note = "this machine, of which no file holds numbers: measured, never predicted"
    return Topology(f"{name}{link}", machine["gpus"], gpu, predictable=False, note=note)


def same_gpu(one: str, other: str) -> bool:
    """`NVIDIA A100-SXM4-80GB`, `NVIDIA A100 80GB PCIe` and `A100` are one GPU; memory and links are compared apart."""
    return _words(one) == _words(other)


def nvlinked(machine: Mapping[str, Any]) -> bool | None:
    """Whether all pairs of GPUs have NVLink; None with a single GPU, where nothing shows."""
    pairs = [link for row in machine.get("links", []) for link in row if link != "X"]
    return all(link.startswith("NV") for link in pairs) if pairs else None


def _has_nvlink(topology: Topology) -> bool | None:
    levels = topology.levels("p2p")
    return "nvlink" in f"{topology.name} {levels[0].name}".lower().replace(" ", "") if levels else None


def _same_memory(one: float, other: float) -> bool:
    """Within 8 %: ECC, the driver's share and GB for GiB all move the number a card reports."""
    return not other or abs(one - other) <= 0.08 * other


def _words(name: str) -> frozenset[str]:
    """The kind of GPU in a marketing name: `NVIDIA H100 80GB HBM3` is {h100}."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return frozenset(w for w in words if w not in NOISE | FORMS and not re.fullmatch(r"\d+g[bi]*", w)) or frozenset(
        words
    )
