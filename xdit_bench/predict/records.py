"""Predicted records: a prediction, or the reason there is none, as one line of `records.jsonl`.

Owns the mapping from `Prediction` to `Record`. Never raises a point's failure: it becomes the record's status.

    record = predicted_record(point, model, load("a100_nvlink"), study="a100_nvlink-flux_schnell")
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from xdit_bench import __version__
from xdit_bench.config import ModelSpec, Point, run_id
from xdit_bench.errors import Infeasible, PointFailure
from xdit_bench.predict.model import Interval, Prediction, predict
from xdit_bench.results.schema import Record
from xdit_bench.topology.specs import Topology

FINGERPRINT = "predicted-"


def predicted_record(
    point: Point, model: ModelSpec, topology: Topology, study: str, why_not: str | None = None
) -> Record:
    """The record of a point on a machine that is not here; source "predicted", intervals and no samples.

    `why_not` is what the point's engine is known to lack for it: the record is infeasible then.
    """
    point = dataclasses.replace(point, dtype="bf16") if point.dtype == "auto" else point
    identity = fingerprint(topology)
    machine = {"topology": topology.name, "gpu": topology.gpu.name, "gpus": topology.gpus, "fingerprint": identity}
    common: dict[str, Any] = {
        "run_id": run_id(point, identity, code_hash()),
        "study": study,
        "source": "predicted",
        "point": point.to_dict(),
        "machine": machine,
        "software": {"xdit_bench": __version__},
    }
    try:
        if why_not:
            raise Infeasible(why_not)
        prediction = predict(point, model, topology)
    except PointFailure as failure:
        return Record(status=failure.status, reason=str(failure), failure=dict(failure.details), **common)
    return Record(
        status="ok",
        latency_s={stage: _statistics(interval) for stage, interval in prediction.stages.items()},
        step_s=_statistics(prediction.step),
        memory=_memory(prediction),
        comm={"bytes_per_step": round(prediction.comm_bytes)},
        attribution={**prediction.terms, "bottleneck": prediction.bottleneck},
        telemetry={"errors_s": dict(prediction.errors)},
        warnings=list(prediction.warnings),
        **common,
    )


def fingerprint(topology: Topology) -> str:
    """Identity of a predicted machine: its data and the model's code. Differs from every measured one."""
    data = json.dumps(dataclasses.asdict(topology), sort_keys=True)
    return FINGERPRINT + hashlib.sha256((data + code_hash()).encode()).hexdigest()[:12]


@functools.cache
def code_hash() -> str:
    """Hash of the sources of `predict`; the wheel has no git."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _statistics(interval: Interval) -> dict[str, float]:
    return {"median": interval.median, "low": interval.low, "high": interval.high}


def _memory(prediction: Prediction) -> dict[str, Any]:
    plan = prediction.memory
    return {
        "verdict": plan.verdict,
        "parameters_bytes": plan.parameters_bytes,
        "peak_bytes_per_rank": list(plan.peak_bytes_per_rank),
        "peak_bytes": plan.peak_bytes,
        "cap_bytes": plan.cap_bytes,
    }
