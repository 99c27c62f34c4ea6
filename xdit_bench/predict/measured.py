"""The model against our own measurements: times, peaks, out of memory or not, and what its advice would have cost.

Owns one comparison a study, machine and transport. A machine's numbers are its micro-benchmarks' where those are kept
(`results/calibrated/<topology>.yaml`, where `python -m xdit_bench.calibrate` writes them), else the shipped topology's.
No time of a study's images ever moves a number of either; the speed of links through the host is that taken beside each
point, the host's launch cost that of the takes of its minute.

    for latencies, peaks in compare_study(folder, read_records(folder)): ...
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from xdit_bench.config import Point
from xdit_bench.errors import PointFailure, TopologyError
from xdit_bench.predict.compared import Row, Set, picture
from xdit_bench.predict.memory import MemoryPlan, plan_memory
from xdit_bench.predict.model import predict
from xdit_bench.predict.points import load_model
from xdit_bench.predict.profiles import find, op_s
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest
from xdit_bench.topology.specs import BESIDE, Number, Topology, load

CALIBRATED = "calibrated"  # folder of results/ that holds this machine's own topology files
SLOW_HOST = 2.65  # times as long for a launch, between two sittings on hosts of one kind (docs/numbers.md)
HOST_BOUND = 0.05  # of an image's time that such a host would add: where it could show
IMAGES = 2  # at least, for a time that such a host binds: the same image took 0.10 and 0.17 s in two points of a study
OTHER_WEIGHTS = 0.03  # of a rank's weights: farther from the plan's, another engine held them
MINUTE_S = 60.0
OUTSIDE = 2  # takes of a launch cost that lie outside a point's images, before and after


def compare_study(folder: Path, records: Iterable[Record]) -> Iterator[tuple[Set, Set]]:
    """Latencies and peaks of a study's measured records, by machine and transport."""
    whole = [r for r in newest(records) if r.source == "measured" and not r.point.get("without")]
    kept = [r for r in whole if r.status in ("ok", "oom") and r.point.get("dtype") != "fp32"]
    for name, transport in dict.fromkeys((str(r.point["topology"]), str(r.point["transport"])) for r in kept):
        mine = [r for r in kept if (r.point["topology"], r.point["transport"]) == (name, transport)]
        title = f"{folder.name}: {name}" + (f" over {transport}" if transport != "p2p" else "")
        try:
            topology, notes = calibrated(name, folder.parent)
        except TopologyError as error:
            yield Set(title, "measured", (), notes=(str(error),)), Set(title, "measured", ())
            continue
        if not topology.predictable:
            notes.append(f"{name} is measured only; {topology.note}")
            mine = []
        yield _compare(title, mine, topology, notes)


def calibrated(name: str, results: Path) -> tuple[Topology, list[str]]:
    """The machine's own numbers where they are kept below `results`, and a note that says so; else the shipped ones.

    Raises TopologyError for a name that neither has, or a file that is no topology.
    """
    own = results / CALIBRATED / f"{name}.yaml"
    if own.is_file():
        return load(str(own)), [f"predicted from {own}, measured operators and links"]
    return load(name), []


def _compare(title: str, records: Sequence[Record], topology: Topology, notes: list[str]) -> tuple[Set, Set]:
    rows: list[Row] = []
    peaks: list[Row] = []
    verdicts: list[tuple[str, str]] = []
    pressed_times: list[Row] = []
    pressed_peaks: list[Row] = []
    others = hosts = links = 0
    costs = launch_costs(records)
    for record in records:
        point = Point.from_dict(record.point)
        model = load_model(point.model)
        try:
            plan = plan_memory(point, model, topology, find(point.engine, point.execution))
            verdicts.append((point.label, verdict(plan, record.status == "oom")))
            pressed = record.memory.get("verdict") == "pressure"
            presses = pressed and plan.verdict == "pressure"
            held = float(record.memory.get("parameters_bytes") or plan.parameters_bytes)
            if record.status == "ok" and record.memory.get("peak_bytes"):
                seen = float(record.memory["peak_bytes"])
                if abs(held / plan.parameters_bytes - 1) <= OTHER_WEIGHTS:
                    if pressed and plan.verdict != "fits" and plan.least_bytes < plan.peak_bytes:
                        # where it ended past the edge too: the verdict is judged above, and no peak passes the capacity
                        pressed_peaks.append(Row(point, seen, plan.least_bytes, at_most=plan.cap_bytes))
                    else:
                        peaks.append(Row(point, seen, plan.peak_bytes))
                else:
                    others += 1
            if record.status == "ok" and point.steps and record.total_s:
                op, link = costs.get(record.run_id), link_taken(record)
                here = with_link(with_host(topology, op) if op else topology, point.transport, link)
                found = predict(point, model, here)
                said = found.total_s
                slow = with_host(here, SLOW_HOST * here.op_s(point.gpus))
                once = len(record.latency_s["total"].get("samples", ())) < IMAGES
                unknown = (not op or once) and predict(point, model, slow).total_s > (1 + HOST_BOUND) * said
                if presses:
                    total = found.stages["total"]
                    pressed_times.append(Row(point, record.total_s, total.low, at_most=total.high))
                else:
                    rows.append(Row(point, record.total_s, said, host_unknown=unknown))
                hosts, links = hosts + bool(op), links + bool(link)
        except PointFailure as failure:
            notes.append(f"{point.label}: {failure}")
    timed = len(rows) + len(pressed_times)
    if hosts:
        notes.append(f"the host's launch cost taken beside {hosts} of {timed} points")
    if links:
        notes.append(f"the speed of links taken beside {links} of {timed} points")
    if others:
        notes.append(f"peaks of {others} points left out: the engine of then held other weights on a rank")
    return (
        Set(title, "measured", tuple(rows), (), tuple(regrets(rows)), tuple(notes), pressed=tuple(pressed_times)),
        Set(title, "measured", tuple(peaks), verdicts=tuple(verdicts), pressed=tuple(pressed_peaks)),
    )


def launch_costs(records: Sequence[Record]) -> dict[str, float]:
    """Seconds an operation of each record that says what its host took to launch, by run id: a host's speed is its own,
    and changes from minute to minute where it is shared.

    A record that took it between its images has it of then. A take before them or after lies 20 % off now and then, so
    that of others it is the mean of a minute's, of as many ranks on the same machine.
    """
    takes = [
        (record, datetime.fromisoformat(record.time).timestamp(), issued)
        for record in records
        if isinstance(issued := record.telemetry.get("block_launch_s"), float) and 0.0 < issued < 1.0
    ]

    def near(record: Record, at: float) -> Iterator[float]:
        for other, then, issued in takes:
            alike = (other.fingerprint, other.point["gpus"]) == (record.fingerprint, record.point["gpus"])
            if alike and abs(then - at) <= MINUTE_S:
                yield issued

    def own(record: Record) -> bool:
        return any(len(of_rank) > OUTSIDE for of_rank in record.telemetry.get("block_launches_s", ()))

    return {
        record.run_id: op_s(issued if own(record) else statistics.fmean(near(record, at)))
        for record, at, issued in takes
    }


def with_host(topology: Topology, cost_s: float) -> Topology:
    """With another launch cost, seconds an operation."""
    cost = Number(cost_s, "measured beside the point")
    return replace(topology, host={**topology.host, "op_s": cost, BESIDE: cost})


def link_taken(record: Record) -> dict[str, dict[str, float]]:
    """Exchanges that were timed beside the record's images: bytes and seconds by kind (`measure.collectives`).

    Without `calls` a row is a single exchange, by which links through memory seemed 25 % slower than they were.
    """
    taken = record.telemetry.get("link") or {}
    return {kind: row for kind, row in taken.items() if row["seconds"] > 0 and row["bytes"] > 0 and "calls" in row}


def with_link(topology: Topology, transport: str, taken: dict[str, dict[str, float]]) -> Topology:
    """With the speed that exchanges had just then, on a machine whose transport is one level of links: a link through
    the host's memory or sockets is as fast as its cores are free. As it is where nothing was taken."""
    levels = topology.levels(transport)
    if not taken or len(levels) != 1:
        return topology

    def rate(kind: str, latency_s: float, usual: float) -> float:
        row = taken.get(kind)
        return row["bytes"] / max(row["seconds"] - latency_s, row["seconds"] / 2) if row else usual

    (level,) = levels
    level = replace(
        level,
        bytes_per_s=rate("ring", level.latency_s, level.bytes_per_s),
        all_to_all_bytes_per_s=rate("all_to_all", level.all_to_all_latency_s, level.all_to_all_bytes_per_s),
    )
    return replace(topology, links={**topology.links, transport: (level,)})


def verdict(plan: MemoryPlan, ran_out: bool) -> str:
    """Whether the plan says of a point what happened to it: `right`, `wrong`, or `near` the capacity."""
    if plan.near:
        return "near"
    return "right" if (plan.verdict == "oom") is ran_out else "wrong"


def regrets(rows: Iterable[Row]) -> Iterator[tuple[str, float]]:
    """Of each picture, engine and GPU count measured in several splits: the time of the one the model picks, over the
    best."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        p = row.point
        key = (
            p.model, p.height, p.width, p.engine, p.execution, p.attention, p.vae, p.transport, p.text_tokens, p.gpus,
            p.steps, p.memory_cap_gb,
        )  # fmt: skip
        groups.setdefault(key, []).append(row)
    for group in groups.values():
        if len({(row.point.ulysses, row.point.ring) for row in group}) > 1:
            pick, best = min(group, key=lambda row: row.predicted), min(group, key=lambda row: row.seen)
            p, split = pick.point, f"u{best.point.ulysses}r{best.point.ring}"
            label = f"{picture(p)} {p.engine}/{p.execution} {p.gpus} GPUs: u{p.ulysses}r{p.ring}, measured best {split}"
            yield label, pick.seen / best.seen - 1
