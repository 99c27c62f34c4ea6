"""What this machine is: GPUs and the links between them, CPU, driver, versions; and the identity made of it.

Reads NVML and /proc, so that it works where torch is not installed. Never reads a serial number or a host name.

    machine = probe()                                 # {"device": "cuda", "gpus": 2, "gpu": "NVIDIA H200", ...}
    machine["fingerprint"] = fingerprint(machine, software())
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("xdit_bench", "torch", "diffusers", "transformers", "triton", "flash-attn", "fa3-fwd", "xfuser", "yunchang",
            "distvae")  # fmt: skip
# wheels of CUDA's libraries carry the CUDA version in their name
LIBRARIES = {"nccl": "nvidia-nccl-cu", "cudnn": "nvidia-cudnn-cu", "cublas": "nvidia-cublas"}
# nvml.h, nvmlGpuTopologyLevel; the letters are those of `nvidia-smi topo -m`
ANCESTORS = {0: "INT", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
MEASURING_CODE = ("engine", "backends", "measure")  # folders whose sources decide what a time means
NVLINKS = 18  # at most, on one GPU


def probe() -> dict[str, Any]:
    """Facts of this machine, JSON types. `device` is cuda or cpu, `gpus` a count, `capacity_bytes` one GPU's memory."""
    machine: dict[str, Any] = {
        "device": "cpu",
        "gpus": 0,
        "gpu": "",
        "capacity_bytes": None,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return machine | _gpus()


def _memory_bytes(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Of the host, or what a container's limit leaves of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no limit, or not cgroup v2
        return min(physical, int(cgroup.read_text(encoding="utf-8")))
    return physical


def software() -> dict[str, str]:
    """Versions of Python, of the packages that make a time, and of CUDA's libraries."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        for key, prefix in LIBRARIES.items():
            if name.startswith(prefix):
                found[key] = distribution.version
    return found


def fingerprint(machine: Mapping[str, Any], packages: Mapping[str, str]) -> str:
    """16 hex digits: GPU kinds and count, links, driver, versions; of a CPU machine its model and cores.

    Our own version is left out: the code version stands beside the fingerprint in a point's identity.
    """
    keys = ("gpu_kinds", "links", "pcie", "driver") if machine["device"] == "cuda" else ("cpu", "cores")
    kept = {key: machine.get(key) for key in ("device", "gpus", *keys)}
    versions = {name: version for name, version in packages.items() if name != "xdit_bench"}
    return hashlib.sha256(json.dumps([kept, versions], sort_keys=True).encode()).hexdigest()[:16]


def code_version() -> str:
    """16 hex digits of the sources that decide what a measured time means: engine, backends, measure."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for folder in MEASURING_CODE:
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _gpus() -> dict[str, Any]:
    """Everything NVML knows, or nothing where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        handles = visible_handles(pynvml)
        if not handles:
            return {}
        kinds = [{"name": _text(pynvml.nvmlDeviceGetName(h)), "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(h).total}
                 for h in handles]  # fmt: skip
        return {
            "device": "cuda",
            "gpus": len(handles),
            "gpu": " + ".join(sorted({kind["name"] for kind in kinds})),
            "gpu_kinds": kinds,
            "capacity_bytes": min(kind["memory_bytes"] for kind in kinds),
            "links": [[_link(pynvml, a, b) if a is not b else "X" for b in handles] for a in handles],
            "p2p": [[_peers(pynvml, a, b) if a is not b else None for b in handles] for a in handles],
            "pcie": [_pcie(pynvml, handle) for handle in handles],
            "numa": [_numa_node(pynvml, handle) for handle in handles],
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda_driver": pynvml.nvmlSystemGetCudaDriverVersion(),
            "mig": any(_mig(pynvml, handle) for handle in handles),
        }
    finally:
        pynvml.nvmlShutdown()


def visible_handles(nvml: Any) -> list[Any]:
    """NVML handles of the GPUs that CUDA shows (CUDA_VISIBLE_DEVICES by number or UUID), in CUDA's order. NVML is up.

    The orders agree where CUDA_DEVICE_ORDER=PCI_BUS_ID, which the ranks get.
    """
    count = nvml.nvmlDeviceGetCount()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    handles = []
    for name in (part.strip() for part in visible.split(",")):
        try:
            by_number = name.isdigit() and int(name) < count
            handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:
            break  # CUDA, too, ignores the list from its first unknown name on
        handles.append(handle)
    return handles


def _link(nvml: Any, a: Any, b: Any) -> str:
    """`NV18` for NVLink (direct or through switches), else the nearest PCIe ancestor in nvidia-smi's letters."""
    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetP2PStatus(a, b, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK:
            return f"NV{_active_nvlinks(nvml, a)}"
    with contextlib.suppress(nvml.NVMLError):
        return ANCESTORS.get(int(nvml.nvmlDeviceGetTopologyCommonAncestor(a, b)), "SYS")
    return "unknown"


def _active_nvlinks(nvml: Any, handle: Any) -> int:
    active = 0
    for link in range(NVLINKS):
        with contextlib.suppress(nvml.NVMLError):
            active += nvml.nvmlDeviceGetNvLinkState(handle, link) == nvml.NVML_FEATURE_ENABLED
    return active


def _peers(nvml: Any, a: Any, b: Any) -> bool | None:
    # nvidia-ml-py has the constant as a tuple by mistake, which its own function does not take (seen in 13.615)
    read = nvml.NVML_P2P_CAPS_INDEX_READ
    with contextlib.suppress(nvml.NVMLError):
        status = nvml.nvmlDeviceGetP2PStatus(a, b, read[0] if isinstance(read, tuple) else read)
        return bool(status == nvml.NVML_P2P_STATUS_OK)
    return None


def _pcie(nvml: Any, handle: Any) -> str:
    """The most the slot and card do together; the current state sinks while a card idles."""
    with contextlib.suppress(nvml.NVMLError):
        generation = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
        return f"Gen{generation} x{nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)}"
    return "unknown"


def _numa_node(nvml: Any, handle: Any) -> int | None:
    with contextlib.suppress(nvml.NVMLError, OSError, ValueError):
        bus = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()
        node = int((Path("/sys/bus/pci/devices") / bus[-12:] / "numa_node").read_text())
        return node if node >= 0 else None
    return None


def _mig(nvml: Any, handle: Any) -> bool:
    with contextlib.suppress(nvml.NVMLError):
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    return False


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
