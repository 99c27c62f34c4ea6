"""Where a denoising step goes, from one profiled image: matrix products, attention, exposed communication, the rest.

seconds = profile_step(lambda: pipeline.denoise(embeddings), device, steps=4)
# {"gemm_s": ..., "attention_s": ..., "communication_s": ..., "elementwise_s": ..., "launch_s": ...}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]

# parts of kernel names (GPU) and operator names (CPU); the first class with a part in the name has it
CLASSES = (
    ("elementwise", ("triton_poi_", "triton_red_", "triton_per_", "cpp_fused_")),  # Inductor names what stood beside it
    ("communication", ("nccl", "gloo:", "c10d::", "memcpy ptop", "symm_mem", "multimem")),
    ("attention", ("flash", "fmha", "attention", "sdpa", "attn")),
    ("gemm", ("gemm", "cutlass", "cublas", "nvjet", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "mkldnn_linear",
              "aten::baddbmm", "splitk", "triton_tem_")),
)  # fmt: skip


def profile_step(
    denoise: Callable[[], Any], device: torch.device, steps: int, *, to_peers: bool = False
) -> dict[str, float]:
    """Runs `denoise` once under the profiler. Seconds a step by class; they add up to the profiled step.

    `to_peers`: what is copied from device to device goes to peers' memory, as where `usp` exchanges through it.

    `communication_s` is what no computation hides, `launch_s` is when the device did nothing. On a CPU the classes
    are those of the operators the rank's own thread ran, and `launch_s` is the rest: Python, and waiting for peers.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        begun = time.perf_counter()
        denoise()
        wall = time.perf_counter() - begun
        if on_gpu:
            torch.cuda.synchronize(device)
    if on_gpu:
        kernels = [e for e in profiler.events() or [] if e.device_type.name == "CUDA"]
        spans = [(_named(e.name, to_peers), (e.time_range.start * 1e-6, e.time_range.end * 1e-6)) for e in kernels]
        return {f"{name}_s": seconds / steps for name, seconds in attribute(spans).items()}
    found = dict.fromkeys(("gemm", "attention", "communication", "elementwise"), 0.0)
    for row in profiler.key_averages():
        found[classify(row.key)] += row.self_cpu_time_total * 1e-6
    found["launch"] = max(0.0, wall - sum(found.values()))
    return {f"{name}_s": seconds / steps for name, seconds in found.items()}


def _named(name: str, to_peers: bool) -> str:
    """A copy's name with where it goes: the profiler calls it device to device where a peer's memory is mapped."""
    return name.replace("DtoD", "PtoP") if to_peers else name


def classify(name: str) -> str:
    """The class of a kernel or operator by its name."""
    lower = name.lower()
    return next((kind for kind, parts in CLASSES if any(part in lower for part in parts)), "elementwise")


def attribute(spans: Iterable[tuple[str, Interval]]) -> dict[str, float]:
    """Seconds by class from kernels' names and intervals, from the first to the last.

    Where kernels run side by side a moment is given once: to the product, then attention, then the elementwise,
    and to communication only where nothing else runs.
    """
    by_class: dict[str, list[Interval]] = {"gemm": [], "attention": [], "elementwise": [], "communication": []}
    for name, interval in spans:
        by_class[classify(name)].append(interval)
    everything = [interval for intervals in by_class.values() for interval in intervals]
    if not everything:
        return {}
    found, taken = {}, 0.0
    earlier: list[Interval] = []
    for kind, intervals in by_class.items():
        earlier += intervals
        covered = length(earlier)
        found[kind], taken = covered - taken, covered
    found["launch"] = max(end for _, end in everything) - min(start for start, _ in everything) - taken
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Total length of a union of intervals."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total
