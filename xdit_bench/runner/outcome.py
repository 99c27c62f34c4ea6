"""What the ranks' answers mean for the point: its status, a reason a person can act on, and its record.

Owns the words of a failure and which of several is the cause; takes no measurements.

    outcome = judge(answers, deadline_s=600)
    record = to_record(outcome, point, run_id, study="quickstart")
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdit_bench.config import Point
from xdit_bench.measure.stats import STEADY, steady, summarise
from xdit_bench.results.schema import STATUSES, Record
from xdit_bench.runner.board import place
from xdit_bench.runner.pool import Answer, killed_by

MIB, GIB = 2**20, 2**30
BUSY_SHARE = 0.1  # of a machine's cores (one core at least), from which other work is warned of
START_STAGE = "start"  # of a failure that kept ranks from existing
# a peer's death reaches the others as one of these; it is never the cause
ECHOES = ("connection closed by peer", "connection reset", "broken pipe", "timed out waiting", "remote process exited",
          "nccl error", "process group aborted", "a peer failed")  # fmt: skip
TRACES = ("trace", "log_tail", "stack")
FAILURE_KEYS = ("bytes_asked", "bytes_free", "type", "trace", "exit", "log_tail", "stack")


@dataclass
class Outcome:
    """How a point ended. `answers` hold the measurements of one that ran; `spent_s` says what its time went to: `start`
    of ranks, `load` of weights, and its `own` (see `own_s`)."""

    status: str
    reason: str = ""
    failure: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    telemetry: dict[str, Any] = field(default_factory=dict)
    spent_s: dict[str, float] = field(default_factory=dict)


def own_s(answers: Sequence[Answer]) -> float:
    """Seconds the point itself took: until its slowest rank answered, or its first failure showed (a hang's at the
    deadline). What follows a failure (waiting for the others, new ranks) is no part of it."""
    failed = [a.after_s for a in answers if a.kind != "result"]
    return min(failed) if failed else max(a.after_s for a in answers)


def judge(answers: Sequence[Answer], deadline_s: float) -> Outcome:
    """One outcome from all ranks' answers."""
    failed = sorted((a for a in answers if a.kind != "result"), key=_blame)
    if not failed:
        return _judge_result(answers)
    cause = failed[0]
    told = next((a for a in failed if a.kind == "error"), None)
    if cause.kind == "silent" and cause.after_s < deadline_s and told:  # it was cut off in the grace after that error
        cause = told
    outcome = Outcome(*_explain(cause, deadline_s), answers=list(answers))
    stage, iteration = cause.body.get("stage", "?"), cause.body.get("iteration", -1)
    facts = {key: cause.body[key] for key in FAILURE_KEYS if cause.body.get(key) not in (None, "")}
    facts |= {key: without_folders(facts[key]) for key in TRACES if key in facts}
    outcome.failure = {"rank": cause.rank, "stage": stage, "iteration": iteration, **facts}
    outcome.failure["ranks"] = {str(a.rank): _whereabouts(a) for a in answers}
    collectives = {str(a.rank): a.body["last_collective"] for a in answers if a.body.get("last_collective")}
    if collectives:
        outcome.failure["last_collective"] = collectives
    return outcome


def without_folders(trace: str) -> str:
    """A trace whose files stand as they are imported, `torch/nn/modules/conv.py`: a record does not say where a machine
    keeps them."""
    roots = sorted((f"{Path(root).resolve()}/" for root in sys.path if root), key=len, reverse=True)

    def imported(match: re.Match[str]) -> str:
        path = match[1]
        *_, installed = re.split(r"/(?:site|dist)-packages/", path)
        if installed != path:
            return f'File "{installed}"'
        root = next((root for root in roots if path.startswith(root)), f"{Path(path).parent}/")
        return f'File "{path.removeprefix(root)}"'

    return re.sub(r'File "(/[^"\n]+)"', imported, trace)


def to_record(outcome: Outcome, point: Point, run_id: str, study: str) -> Record:
    """The record without machine, software and telemetry."""
    status = outcome.status
    record = Record(
        run_id=run_id,
        study=study,
        source="measured",
        status="skipped" if status == "ok" else status,  # a Record checks itself: an ok one needs its numbers first
        reason=outcome.reason or "being filled in",
        point=point.to_dict(),
        failure=outcome.failure,
    )
    members = [a for a in outcome.answers if a.kind == "result" and a.body.get("member")]
    if members and "samples" in members[0].body:
        _fill(record, members, point)
    record.telemetry |= outcome.telemetry
    if status == "oom":
        record.memory["verdict"] = "oom"
    if point.memory_cap_gb:
        record.memory["cap_bytes"] = int(point.memory_cap_gb * 1e9)
    if any((count or 0) > 1 for count in outcome.telemetry.get("processes_per_gpu", [])):
        record.warnings.append("another process computed on a GPU of this point while it was measured")
    cores = float(outcome.telemetry.get("cores", 0))
    if outcome.telemetry.get("others_cores", 0.0) > max(1.0, BUSY_SHARE * cores):
        record.warnings.append(
            f"other processes kept more than {100 * BUSY_SHARE:.0f} % of the machine's cores busy meanwhile "
            f"(telemetry.others_cores): what waits for the host may be slower than it is alone"
        )
    record.status, record.reason = status, outcome.reason
    return record


def _fill(record: Record, members: list[Answer], point: Point) -> None:
    first = members[0].body
    samples = {stage: values for stage, values in first["samples"].items() if values}
    if not samples:
        return
    record.latency_s = {stage: summarise(values) for stage, values in samples.items()}
    if point.steps:
        record.step_s = summarise([value / point.steps for value in samples["denoise"]])
    record.memory = _memory([a.body["memory"] for a in members])
    record.parity = dict(first["parity"])
    record.attribution = first.get("attribution", {})
    if first.get("comm_bytes_per_step") is not None:
        record.comm["bytes_per_step"] = first["comm_bytes_per_step"]
    if "communication_s" in record.attribution:
        record.comm["seconds_per_step"] = record.attribution["communication_s"]
    for name in ("choices", "link"):
        if first.get(name):
            record.telemetry[name] = first[name]
    record.telemetry["warmup_s"] = first["warmup"]
    if first["warmup"] and not steady([*first["warmup"], samples["total"][0]]):
        record.warnings.append(
            f"no two images in a row had taken as long, within {100 * STEADY:.0f} %, when timing began "
            f"(telemetry.warmup_s): its times may hold what a process's first images do"
        )
    record.telemetry["rank_total_s"] = [statistics.median(a.body["own_total"]) for a in members]
    issued = [a.body["block_launches_s"] for a in members if a.body.get("block_launches_s")]
    if issued:
        # in step, ranks go as fast as the slowest just then; what was taken between images is of their time
        slowest = list(map(max, zip(*issued, strict=True)))
        record.telemetry["block_launch_s"] = statistics.median(slowest[1:-1] or slowest)
        record.telemetry["block_launches_s"] = issued  # of each rank, before, between and after its images


def _memory(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "verdict": "pressure" if any(r["verdict"] == "pressure" for r in ranks) else "fits",
        "parameters_bytes": max(r["parameters_bytes"] for r in ranks),
        "peak_bytes": max(r["peak_bytes"] for r in ranks),
        "peak_bytes_per_rank": [r["peak_bytes"] for r in ranks],
        "reserved_bytes_per_rank": [r["reserved_bytes"] for r in ranks],
        "symmetric_bytes_per_rank": [r.get("symmetric_bytes", 0) for r in ranks],
        "alloc_retries": max(r["alloc_retries"] for r in ranks),
    }


def _judge_result(answers: Sequence[Answer]) -> Outcome:
    parity = answers[0].body.get("parity") or {}
    if parity.get("ok") is False:
        return Outcome("incorrect", parity["reason"], answers=list(answers))
    return Outcome("ok", answers=list(answers))


def _blame(answer: Answer) -> tuple[int, float]:
    """Smallest first: what can not be another failure's consequence comes before what can."""
    kind = answer.body.get("kind")
    if kind == "oom":
        return 0, answer.after_s
    if answer.kind == "error" and not _echo(answer):
        return 1, answer.after_s
    if answer.kind == "died":
        return 2, answer.after_s
    # silent: one that does not even say where it is (stopped) before one that waits for others in a collective
    if answer.kind == "silent":
        return 3 + bool(answer.body.get("answered")) + bool(answer.body.get("waiting")), answer.after_s
    return 6, answer.after_s


def _echo(answer: Answer) -> bool:
    text = str(answer.body.get("message", "")).lower()
    return any(sign in text for sign in ECHOES)


def _explain(cause: Answer, deadline_s: float) -> tuple[str, str]:
    """Status and reason."""
    body = cause.body
    stage = body.get("stage", "?")
    at = f"in stage {stage}" + (f" of image {body['iteration'] + 1}" if body.get("iteration", -1) >= 0 else "")
    if cause.kind == "silent":
        how = f"rank {cause.rank} was {at}"
        if not body.get("answered"):
            how += " and answers nothing: stopped, or stuck outside Python"
        elif body.get("last_collective"):
            how += f", its last collective {body['last_collective']}"
        return (
            "timeout",
            f"the point outlived its deadline of {deadline_s:g} s; {how}; raise run.deadline_s if it needs longer",
        )
    if cause.kind == "died":
        return "crashed", f"rank {cause.rank} {killed_by(body.get('exit'))} {at}; see failure.log_tail"
    if body["kind"] == "oom":
        return "oom", f"rank {cause.rank} ran out of memory {at}{_bytes(body)}"
    if body["kind"] in STATUSES:  # the engine said so itself
        return str(body["kind"]), str(body["message"])
    return "crashed", f"rank {cause.rank} failed {at}: {body.get('type')}: {body.get('message')}"


def _bytes(body: dict[str, Any]) -> str:
    """`: asked for 2.50 GiB with 12.00 MiB free`, as far as it is known."""
    words = {"bytes_asked": "asked for {}", "bytes_free": "with {} free"}
    known = [phrase.format(_size(body[key])) for key, phrase in words.items() if body.get(key) is not None]
    return f": {' '.join(known)}" if known else ""


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= 0.1 * GIB else f"{count / MIB:.2f} MiB"


def _whereabouts(answer: Answer) -> str:
    stage, iteration = answer.body.get("stage", ""), answer.body.get("iteration", -1)
    return f"{answer.kind} {place(stage, iteration)}".strip()
