"""The model against our own measurements: times, peaks, out of memory or not, and what its advice would have cost.

Owns one comparison a study, machine and transport. A machine's numbers are its micro-benchmarks' where those are kept
(`results/calibrated/<topology>.yaml`, where `python -m xdit_bench.calibrate` writes them), else the shipped topology's.
No time of a study's images ever moves a number of either; the host's launch cost is the one taken beside each point.

    for latencies, peaks in compare_study(Path("results/h200x1")): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from xdit_bench.config import Point
from xdit_bench.errors import PointFailure, TopologyError
from xdit_bench.predict.compared import Row, Set, picture
from xdit_bench.predict.memory import MemoryPlan, plan_memory
from xdit_bench.predict.model import predict
from xdit_bench.predict.points import load_model
from xdit_bench.predict.profiles import find, op_s
from xdit_bench.results.schema import Record
from xdit_bench.results.store import latest, read_records
from xdit_bench.topology.specs import BESIDE, Number, Topology, load

CALIBRATED = "calibrated"  # folder of results/ that holds this machine's own topology files
HOST_BOUND = 0.05  # of a step waiting for launches: from there the host's speed shows in the image's time
NEAR = 0.05  # of the capacity: closer than that, either verdict may come true


def compare_study(folder: Path) -> Iterator[tuple[Set, Set]]:
    """Latencies and peaks of a study's measured records, by machine and transport."""
    whole = [r for r in latest(read_records(folder)) if r.source == "measured" and not r.point.get("without")]
    records = [r for r in whole if r.status in ("ok", "oom")]
    for name, transport in dict.fromkeys((str(r.point["topology"]), str(r.point["transport"])) for r in records):
        mine = [r for r in records if (r.point["topology"], r.point["transport"]) == (name, transport)]
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
    before = 0
    for record in records:
        point = Point.from_dict(record.point)
        model = load_model(point.model)
        try:
            plan = plan_memory(point, model, topology, find(point.engine, point.execution))
            verdicts.append((point.label, verdict(plan, record.status == "oom")))
            if record.status == "ok" and record.memory.get("peak_bytes"):
                if point.gpus == 1 or "symmetric_bytes_per_rank" in record.memory:
                    peaks.append(Row(point, float(record.memory["peak_bytes"]), plan.peak_bytes))
                else:
                    before += 1
            if record.status == "ok" and point.steps and record.total_s:
                here = on_its_host(topology, record)
                said = predict(point, model, here)
                bound = said.terms["launch"] > HOST_BOUND * said.step.median
                rows.append(Row(point, record.total_s, said.total_s, host_unknown=bound and here is topology))
        except PointFailure as failure:
            notes.append(f"{point.label}: {failure}")
    hosts = sum(on_its_host(topology, record) is not topology for record in records)
    if hosts:
        notes.append(f"the host's launch cost taken beside {hosts} of {len(records)} points")
    if before:
        notes.append(f"peaks of {before} points on several GPUs were taken while weights were still being put away")
    return (
        Set(title, "measured", tuple(rows), (), tuple(regrets(rows)), tuple(notes)),
        Set(title, "measured", tuple(peaks), verdicts=tuple(verdicts)),
    )


def on_its_host(topology: Topology, record: Record) -> Topology:
    """With the launch cost that was taken just before the record's images: a host's speed is its own, and changes from
    minute to minute where it is shared. The topology as it is for a record that has none."""
    issued = record.telemetry.get("block_launch_s")
    if not isinstance(issued, float) or not 0.0 < issued < 1.0:
        return topology
    cost = Number(op_s(issued), "measured beside the point")
    return replace(topology, host={**topology.host, "op_s": cost, BESIDE: cost})


def verdict(plan: MemoryPlan, ran_out: bool) -> str:
    """Whether the plan says of a point what happened to it: `right`, `wrong`, or `near` the capacity."""
    if abs(plan.peak_bytes / plan.cap_bytes - 1) <= NEAR:
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
            p.steps,
        )  # fmt: skip
        groups.setdefault(key, []).append(row)
    for group in groups.values():
        if len(group) > 1:
            pick, best = min(group, key=lambda row: row.predicted), min(group, key=lambda row: row.seen)
            p, split = pick.point, f"u{best.point.ulysses}r{best.point.ring}"
            label = f"{picture(p)} {p.engine}/{p.execution} {p.gpus} GPUs: u{p.ulysses}r{p.ring}, measured best {split}"
            yield label, pick.seen / best.seen - 1
