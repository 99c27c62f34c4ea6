"""Model FLOP utilisation: what a step had to compute, over what its GPUs could have computed meanwhile.

Counts the model's own products and attention, once, whatever an engine computes besides or twice. The peak is the
datasheet's, dense bf16, of the topology that the point names.

    share = utilisation(record.point, record.step_s["median"])  # 0.63, or None where no file knows the GPU's peak
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import UserError
from xdit_bench.predict.points import load_model
from xdit_bench.predict.workload import step_flops
from xdit_bench.topology.specs import load


def utilisation(point: Mapping[str, Any], step_s: float, model: ModelSpec | None = None) -> float | None:
    """Share of the bf16 peak of all GPUs of a record's point that a step of so many seconds reached. None for other
    number formats, for a decode alone, and where the model or its GPU's peak is not known."""
    if point["dtype"] != "bf16" or not point["steps"] or step_s <= 0:
        return None
    peak = _peak_flops(str(point["topology"]))
    try:
        model = model or load_model(str(point["model"]))
        flops = step_flops(model, Point.from_dict(dict(point)))
    except UserError:
        return None
    return flops / (step_s * int(point["gpus"]) * peak) if peak else None


@functools.cache
def _peak_flops(topology: str) -> float:
    """0 where no shipped file has one."""
    try:
        return load(topology).gpu.peak_flops
    except UserError:
        return 0.0
