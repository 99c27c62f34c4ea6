"""`python -m xdit_bench.recommend`: the best Ulysses x ring split of a machine for a picture, in a few sentences.

Owns the words; `predict.advice` compares. Measured records of the machine stand in for predictions where there are any.

    python -m xdit_bench.recommend topology=l40_pcie res=2048 [gpus=8] [latency_s=5] [model=flux_dev]

The engine runs in the execution that is its fastest there, unless one is named.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from xdit_bench import data_dir
from xdit_bench.config import ModelSpec, Point, check_side, check_together
from xdit_bench.errors import ConfigError, PointFailure, UserError, did_you_mean
from xdit_bench.keys import command, helped, parse, positive, whole
from xdit_bench.predict.advice import Advice, Option, advise, ties
from xdit_bench.predict.model import predict, roomier_decode
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.profiles import executions
from xdit_bench.reporting.words import digits, plural, px
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest, studies
from xdit_bench.topology.match import differences
from xdit_bench.topology.specs import SYMMETRIC, TRANSPORTS, Topology, load

DEFAULTS = {
    "topology": "a100_nvlink", "res": "1024", "height": "", "width": "", "gpus": "", "latency_s": "",
    "model": "flux_schnell", "engine": "usp", "execution": "", "vae": "", "steps": "", "text_tokens": "",
    "memory_cap_gb": "", "transport": "p2p", "inner": "ulysses", "results_dir": "results",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Prints the advice. Returns 0; 1 when no split can run; 2 on bad input."""
    typed = sys.argv[1:] if arguments is None else arguments
    if helped(typed, __doc__, DEFAULTS):
        return 0
    try:
        options = parse(typed, DEFAULTS, "recommend")
        if options["height"] and any(word.startswith("res=") for word in typed):
            raise ConfigError("an image has one size: give res=…, or height=… width=…, not both")
        topology, model = load(options["topology"]), load_model(options["model"])
        gpus = whole(options, "gpus") if options["gpus"] else topology.gpus
        if gpus > topology.gpus:
            raise ConfigError(f"gpus={gpus} is more than the {topology.gpus} of {topology.name}; use at most that")
        inner = _inner(options["inner"])
        latency_s = positive(options, "latency_s") if options["latency_s"] else None
        measured = _measured(Path(options["results_dir"]), topology)
        wanted = [options["execution"]] if options["execution"] else _executions(options)
        points = [_point({**options, "execution": execution}, model, topology) for execution in wanted]
        most = {point: gpus if options["execution"] else _reach(point, topology, gpus) for point in points}
        found = [(point, advise(point, model, topology, n, measured, ulysses_inner=inner)) for point, n in most.items()]
        point, advice = _fastest(found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in render(advice, point, model, topology, latency_s):
        print(line)
    if not inner:
        print("note: inner=ring is foretold alone: engines here put the ranks of an all-to-all side by side")
    return 0 if advice.options else 1


def _executions(options: Mapping[str, str]) -> list[str]:
    """Those to choose from: NCCL in a graph over host memory or sockets was slower than eager, which no model of ours
    says why, and `execution=auto` takes none there."""
    known = executions(options["engine"])
    return known if options["transport"] == "p2p" else [one for one in known if one != "graph"]


def _reach(point: Point, topology: Topology, gpus: int) -> int:
    """GPUs of a split at most: `execution=auto` takes a CUDA graph on one host, whose GPUs symmetric memory joins."""
    joined = topology.levels(SYMMETRIC)
    return min(gpus, joined[-1].gpus) if joined and point.execution == "graph" else gpus


def _fastest(found: list[tuple[Point, Advice]]) -> tuple[Point, Advice]:
    """The execution whose best split is the fastest; of those that tie, one that was measured, else the last: a graph
    or compiled blocks leave less to the host."""
    running = [pair for pair in found if pair[1].options]
    if not running:
        return found[0]
    fastest = min((advice.best for _, advice in running), key=lambda best: best.counted_s)
    tied = [pair for pair in running if pair[1].best is fastest or ties(fastest, pair[1].best)]
    measured = [pair for pair in tied if pair[1].best.source != "predicted"]
    return (measured or tied)[-1]


def _point(options: Mapping[str, str], model: ModelSpec, topology: Topology) -> Point:
    check_together(options["height"] or None, options["width"] or None)
    sides = ("height", "width") if options["height"] else ("res", "res")
    height, width = (whole(options, side) for side in sides)
    for name, side in zip(sides, (height, width), strict=True):
        check_side(name, side)
    changes: dict[str, float] = {key: whole(options, key) for key in ("steps", "text_tokens") if options[key]}
    if options["memory_cap_gb"]:
        changes["memory_cap_gb"] = positive(options, "memory_cap_gb")
    if changes.get("text_tokens", 1) > 512:
        raise ConfigError(f"FLUX.1 takes 1 to 512 text tokens; text_tokens={changes['text_tokens']} is outside")
    named = {key: options[key] for key in ("engine", "execution", "vae", "transport")}
    offered = _vaes(named["engine"])
    named["vae"] = named["vae"] or offered[0]
    for key, whose, allowed in (
        ("vae", f"vae of engine={named['engine']}", offered),
        ("transport", "transport", TRANSPORTS),
        ("execution", f"execution of engine={named['engine']}", executions(named["engine"])),
    ):
        if named[key] not in allowed:
            raise ConfigError(f"{whose} is one of {', '.join(allowed)}; got {key}={named[key]}")
    return make_point(model, topology=topology.name, height=height, width=width, **named, **changes)


def _vaes(engine: str) -> list[str]:
    """Decodes that an engine has, the best exact one first. Raises ConfigError with the nearest name."""
    files = {path.stem: path for path in (data_dir("conf") / "engine").glob("*.yaml")}
    if engine not in files:
        raise ConfigError(f"engine={engine!r} is none of {', '.join(sorted(files))}{did_you_mean(engine, files)}")
    return [str(vae) for vae in yaml.safe_load(files[engine].read_text())["vaes"]]


def _inner(axis: str) -> bool:
    """Which axis joins neighbouring GPUs: the exchange of heads, or the ring."""
    if axis not in ("ulysses", "ring"):
        raise ConfigError(f"inner is ulysses or ring, the axis that joins neighbouring GPUs; got inner={axis}")
    return axis == "ulysses"


def _measured(results: Path, topology: Topology) -> list[Record]:
    """Measured records of this machine in all studies, of whole engines in bf16, as predictions are; what was measured
    later comes last and wins. A file may bear the name of a machine and speak of another."""
    found = []
    for _, records in studies(results):
        for record in newest(records):
            alike = record.source == "measured" and record.point["topology"] == topology.name
            if alike and record.point.get("dtype") != "fp32" and not record.point.get("without"):
                found.append(record)
    found = [r for r in found if not differences(topology, r.machine)]
    return sorted(found, key=lambda record: record.time)


def render(advice: Advice, point: Point, model: ModelSpec, topology: Topology, latency_s: float | None) -> list[str]:
    """The advice as lines."""
    capped = point.memory_cap_gb and point.memory_cap_gb * 1e9 < topology.gpu.memory_bytes
    cap = f" capped at {point.memory_cap_gb:g} GB" if capped else ""
    where = f"{topology.name}{cap}, engine {point.engine}/{point.execution}"
    lines = [f"{model.name}, {px((point.height, point.width))}, {plural(point.steps, 'step')} on {where}"]
    if not advice.options:
        return [*lines, *_reasons("no split can run", advice.failures.values())]
    best, second = advice.best, advice.runner_up
    lines.append(f"best:      {_describe(best)}")
    limit = _limit(best, model, topology)
    lines.append(f"           limited by {limit}")
    if second is not None:
        tied = ", a tie: the difference is within the model's error" if ties(best, second) else ""
        tied += ", and the best takes fewer GPUs" if tied and second.counted_s < best.counted_s else ""
        lines.append(f"runner-up: {_describe(second)}{tied}")
        if not tied and (other := _limit(second, model, topology)) != limit:
            lines.append(f"           limited by {other}")
    if latency_s is not None:
        lines.append(_meeting(advice, latency_s))
    if all(option.point.gpus == 1 for option in advice.options):
        alone = [reason for split, reason in advice.failures.items() if split != "u1r1"]
        lines += _reasons("several GPUs can not run", alone)
    return [*lines, *_warnings(best, model, topology)]


def _reasons(what: str, reasons: Iterable[str]) -> list[str]:
    """A line a reason, of those that differ in numbers alone the first; what keeps most splits from running leads."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"[\d.]+", "", reason), []).append(reason)
    return [f"{what}: {alike[0]}" for alike in sorted(kinds.values(), key=len, reverse=True)]


def _limit(option: Option, model: ModelSpec, topology: Topology) -> str:
    """The largest part of a step; the model's word for a measurement that was not profiled."""
    if option.bottleneck:
        return option.bottleneck
    try:
        return f"{predict(option.point, model, topology).bottleneck}, predicted"
    except PointFailure:
        return "what was not profiled"


def _describe(option: Option) -> str:
    gpus = f"{option.point.gpus} GPU{'s' if option.point.gpus > 1 else ''}"
    interval = f"{digits(option.low)} to {digits(option.high)}"
    return (
        f"{option.split} on {gpus}, {digits(option.seconds)} s an image ({interval}, {option.source}), "
        f"{option.peak_bytes / 1e9:.1f} GB a GPU ({option.verdict}), {digits(option.gpu_seconds)} GPU-seconds an image"
    )


def _meeting(advice: Advice, latency_s: float) -> str:
    fewest = advice.fewest(latency_s)
    if fewest is None:
        fastest = advice.options[0]
        pressed = fastest.counted_s > fastest.seconds
        most = f", up to {digits(fastest.counted_s)} s under memory pressure" if pressed else ""
        at = f"{fastest.split} at {digits(fastest.seconds)} s{most}"
        return f"within {latency_s:g} s: no split meets it; the fastest is {at}"
    sure = "" if fewest.high <= latency_s else " (not certain: its interval reaches beyond)"
    return f"within {latency_s:g} s: {_describe(fewest)}{sure}"


def _warnings(best: Option, model: ModelSpec, topology: Topology) -> list[str]:
    if best.source != "predicted":
        if best.verdict != "pressure":
            return []
        return [f"warning: memory pressure, as measured: the decode waits for memory; use {roomier_decode(best.point)}"]
    return [f"warning: {warning}" for warning in predict(best.point, model, topology).warnings]


if __name__ == "__main__":
    sys.exit(command(main))
