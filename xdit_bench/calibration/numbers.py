"""From measured seconds to a topology's numbers: the same formulas as the model's, solved for its shares of peak.

Owns no benchmark and no file. Where several shapes speak of one share, it is their geometric mean, of attention
weighted by what attention is of a step of that length; the spread stands in its source.

    efficiency = efficiencies(measurements, gpu, model)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xdit_bench.config import ModelSpec
from xdit_bench.predict.network import Network
from xdit_bench.predict.profiles import find, op_s
from xdit_bench.predict.roofline import attention_quality, attention_tiles_s, gemm_quality
from xdit_bench.predict.step import fastest_kernel
from xdit_bench.predict.text import layer_s
from xdit_bench.predict.workload import Conv, vae_decoder
from xdit_bench.topology.specs import AWAKE, BESIDE, PASSES, SYMMETRIC, TAIL, GpuSpec, LinkSpec, Number, Topology

Measurement = Mapping[str, Any]
EAGER = find("stock", "eager")  # the counts that the model reads a block with
EVEN_TOKENS = 18_400  # a sequence whose attention has as many FLOPs as FLUX.1's linear layers: 12.9e9 / (4 h 57)
MOST = 0.999  # a share of peak, whatever a clock above its datasheet does


def efficiencies(measurements: Sequence[Measurement], gpu: GpuSpec, model: ModelSpec) -> dict[str, dict[str, Number]]:
    """`efficiency`, `attention` and `host` of a topology. A share that was not measured is left out."""
    found: dict[str, dict[str, Number]] = {"efficiency": {}, "attention": {}, "host": {}}
    found["efficiency"] |= _gemm(_of(measurements, "gemm"), gpu)
    kernels = dict.fromkeys(m["kernel"] for m in _of(measurements, "attention"))
    for kernel in kernels:
        calls = [m for m in _of(measurements, "attention") if m["kernel"] == kernel]
        shares = [_attention_share(m, gpu) for m in calls]
        weights = [m["keys"] / (m["keys"] + EVEN_TOKENS) for m in calls]
        found["attention"][kernel] = _share(shares, "attention of every split of 1 to 8 GPUs", weights)
    for m in _of(measurements, "copy"):
        found["efficiency"]["memory"] = _share([_rate(m["bytes"], m, gpu)], "a streaming copy")
    for m in _of(measurements, "block"):
        streamed = max(m["seconds"] - m["products_seconds"] - m["attention_seconds"], m["seconds"] / 10)
        rows = EAGER.rows[1] * m["tokens"] * m["row_bytes"]
        what = "an eager single-stream block less its products and attention"
        found["efficiency"]["elementwise"] = _share([rows / streamed / gpu.memory_bytes_per_s], what)
    for m in _of(measurements, "launch"):
        ranks = m.get("ranks", 1)
        what = f"issuing an eager single-stream block, over its {EAGER.host_ops[1]:g} operations"
        beside = f", {ranks} ranks at once" if ranks > 1 else ""
        cost = Number(op_s(m["seconds"]), f"measured: {what}{beside}")
        found["host"][BESIDE if ranks > 1 else "op_s"] = cost
    for m in _of(measurements, "beside_links"):
        what = f"a product beside {m['bytes'] / 1e6:.0f} MB sent every {m['every_s'] * 1e3:.0f} ms, over it alone"
        found["efficiency"][AWAKE] = _share([m["alone_seconds"] / m["seconds"]], what)
    for m in _of(measurements, "kernel_gap"):
        found["host"]["kernel_gap_s"] = Number(m["seconds"], "measured: tiny kernels queued one behind the other")
    found["efficiency"] |= _vae(measurements, gpu, model, found["efficiency"]["memory"].value)
    machine = Topology("", 1, gpu, efficiency=found["efficiency"], attention=found["attention"], host=found["host"])
    found["efficiency"] |= _text(measurements, machine, model)
    return found


def _text(measurements: Sequence[Measurement], machine: Topology, model: ModelSpec) -> dict[str, Number]:
    """Shares of what is counted of a T5 layer, its attention plain or fused."""
    found = {}
    for m in _of(measurements, "text_layer") if machine.attention and "kernel_gap_s" in machine.host else ():
        profile = find("usp" if m["way"] == "in_order" else "stock", "eager")
        counted = layer_s(machine, model, m["tokens"], profile, fastest_kernel(machine, profile))
        what = f"a layer of T5 at {m['tokens']} tokens, beside what is counted of it"
        found[profile.text_share] = _share([counted / m["seconds"]], what)
    return found


def _gemm(measurements: Sequence[Measurement], gpu: GpuSpec) -> dict[str, Number]:
    """Share of peak, and the tail with which it is the most alike over all shapes."""

    def shares(tail: float) -> list[float]:
        bare = Topology("", 1, gpu, efficiency={TAIL: Number(tail, "")})
        return [
            2.0 * m["m"] * m["k"] * m["n"] / m["seconds"] / gpu.peak_flops / gemm_quality(bare, m["m"], m["n"])
            for m in measurements
        ]

    def spread(tail: float) -> float:
        return statistics.pstdev(map(math.log, shares(tail)))

    tail = min((step / 100 for step in range(1, 101)), key=spread)
    return {
        "gemm": _share(shares(tail), "matrix products of the transformer's shapes"),
        TAIL: Number(tail, "measured: the tail with which these products differ least"),
    }


def _vae(measurements: Sequence[Measurement], gpu: GpuSpec, model: ModelSpec, memory: float) -> dict[str, Number]:
    """Shares of the decoder's convolutions (what norm and activation stream is the model's own term) and mid block."""
    found = {}
    for layout, key in (("nchw", "conv"), ("nhwc", "conv_nhwc")):
        convs = [m for m in _of(measurements, "conv") if m["layout"] == layout]
        if not convs:
            continue
        area = convs[0]["side"] ** 2
        flops = sum(m["count"] * area * Conv(m["cin"], m["cout"], m["kernel"], m["scale"]).flops for m in convs)
        seconds = sum(m["count"] * m["seconds"] for m in convs)
        if layout == "nchw":
            streamed = area * vae_decoder(model).traffic_bytes / (gpu.memory_bytes_per_s * memory)
            seconds = max(seconds - streamed, seconds / 3)  # the model adds the streaming itself
        found[key] = _share([flops / seconds / gpu.peak_flops], f"the decoder's convolutions, {layout.upper()}")
    passes = _of(measurements, "decode_pass")
    if passes:  # as a ResNet block has them, all together
        moved, seconds = (sum(m["count"] * m[key] for m in passes) for key in ("bytes", "seconds"))
        what = "norm, moments and sum of the decode's blocks in bands"
        found[PASSES] = _share([moved / seconds / gpu.memory_bytes_per_s], what)
    for way, key in (("plain", "vae_attention"), ("blocked", "vae_attention_blocked")):
        calls = [m for m in _of(measurements, "mid_attention") if m["way"] == way]
        shares = [4.0 * m["tokens"] ** 2 * m["width"] / m["seconds"] / gpu.peak_flops for m in calls]
        if shares:
            found[key] = _share(shares[-1:], f"one head of {calls[-1]['width']} over {calls[-1]['tokens']} positions")
    return found


def links(
    measurements: Sequence[Measurement], levels: Sequence[LinkSpec], ranks: int, speed: Topology
) -> tuple[LinkSpec, ...]:
    """The levels with what was measured between the first `ranks` GPUs; a level out of reach keeps its numbers.

    Each level is measured by groups that span just it: a ring of its child domains, an all-to-all of all its GPUs.
    `speed` is the GPU's own, from which the model knows what symmetric memory copies within a rank.
    """
    measurements = _without_launches([_over_the_link(m, speed) for m in measurements])
    found: list[LinkSpec] = []
    below = 1
    for level in levels:
        here = min(level.gpus, ranks)
        if here <= below:
            found.append(
                replace(level, source=f"{level.source or 'datasheet'}; not measured: {ranks} GPUs do not reach it")
            )
            below = level.gpus
            continue
        known = tuple(found)
        shift = _line(_of(measurements, "shift", below, here // below), known, level, "ring")
        exchange = _line(_of(measurements, "all_to_all", here, 1), known, level, "all_to_all")
        rate, latency = shift or (level.bytes_per_s, level.latency_s)
        all_rate, all_latency = exchange or (level.all_to_all_bytes_per_s, level.all_to_all_latency_s)
        source = f"measured between {here} ranks, all groups at once"
        found.append(LinkSpec(level.name, level.gpus, rate, all_rate, latency, all_latency, source))
        below = level.gpus
    return tuple(found)


def _over_the_link(m: Measurement, speed: Topology) -> Measurement:
    """A measurement less what the model adds for copies within a rank."""
    if m.get("path") != SYMMETRIC or m["kind"] != "all_to_all":
        return m
    own = Network(speed, SYMMETRIC, m["ulysses"], m["ring"]).own_copies_s(m["ulysses"], m["bytes"] / m["ulysses"])
    return {**m, "seconds": max(m["seconds"] - own, m["seconds"] / 10)}


def _without_launches(measurements: list[Measurement]) -> list[Measurement]:
    """Of an exchange measured both ways, the one inside a CUDA graph: what its launch costs the host is a term of the
    model's own."""

    def what(m: Measurement) -> tuple[Any, ...]:
        return m["kind"], m["ulysses"], m["ring"]

    captured = {what(m) for m in measurements if m.get("captured")}
    return [m for m in measurements if m.get("captured") or what(m) not in captured]


def _line(
    measurements: list[Measurement], known: tuple[LinkSpec, ...], level: LinkSpec, kind: str
) -> tuple[float, float] | None:
    """Capacity and latency of a level from seconds by size: least squares of the logarithm, by a search over latencies
    between nothing and the fastest message, the capacity following in closed form."""
    if not measurements:
        return None
    unit = replace(level, bytes_per_s=1.0, all_to_all_bytes_per_s=1.0, latency_s=0.0, all_to_all_latency_s=0.0)
    topology = Topology("", level.gpus, GpuSpec("", 0, 0.0, 0.0, 0.0, 0), {"p2p": (*known, unit)})
    points = []
    for m in measurements:
        network = Network(topology, "p2p", m["ulysses"], m["ring"])
        transfer = network.all_to_all_s(m["bytes"]) if kind == "all_to_all" else network.ring_step_s(m["bytes"])
        points.append((transfer.seconds, m["seconds"]))  # at one byte a second: bytes over the level
    fastest = min(seconds for _, seconds in points)
    best: tuple[float, float, float] | None = None
    for step in range(100):
        latency = fastest * (0.995 * step / 99 + 0.001)
        rates = sorted(size / (seconds - latency) for size, seconds in points)
        for rate in rates:
            misfit = sum(math.log((latency + size / rate) / seconds) ** 2 for size, seconds in points)
            if best is None or misfit < best[0]:
                best = misfit, rate, latency
    assert best is not None
    return best[1], best[2]


def _of(measurements: Iterable[Measurement], kind: str, ulysses: int = 0, ring: int = 0) -> list[Measurement]:
    split = (ulysses, ring)
    return [m for m in measurements if m["kind"] == kind and (split == (0, 0) or (m["ulysses"], m["ring"]) == split)]


def _share(shares: Sequence[float], what: str, weights: Sequence[float] = ()) -> Number:
    weights = weights or [1.0] * len(shares)
    mean = math.exp(sum(w * math.log(share) for w, share in zip(weights, shares, strict=True)) / sum(weights))
    spread = f", {min(shares):.2f} to {max(shares):.2f}" if len(shares) > 1 else ""
    return Number(min(mean, MOST), f"measured: {what}{spread}")


def _rate(moved: float, m: Measurement, gpu: GpuSpec) -> float:
    return moved / float(m["seconds"]) / gpu.memory_bytes_per_s


def _attention_share(m: Measurement, gpu: GpuSpec) -> float:
    shape = (str(m["kernel"]), float(m["heads"]), int(m["queries"]), gpu.sms)
    flops = 4.0 * float(m["heads"] * m["head_dim"] * m["queries"] * m["keys"])
    seconds = max(float(m["seconds"]) - attention_tiles_s(*shape), float(m["seconds"]) / 2)
    return flops / seconds / gpu.peak_flops / attention_quality(*shape)
