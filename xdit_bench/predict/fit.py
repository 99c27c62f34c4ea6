"""Corrects a topology's free numbers by latencies: least squares with priors, in logarithms.

Owns the fit and the leave-one-out error it is judged by. A free number keeps its prior where no
latency speaks about it, so that five of them over eight latencies do not chase single bars.

    fitted = fit(topology, [(point, model, 2.18), …])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from scipy.optimize import least_squares

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.model import predict
from xdit_bench.topology.specs import Number, Topology

Sample = tuple[Point, ModelSpec, float]  # a point, its model, seconds an image
NOISE = 0.03  # relative error of a published latency: one run, read from a figure


def get(topology: Topology, key: str) -> float:
    """The number at a dotted key of a topology."""
    value: Any = topology
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else value[part] if isinstance(value, dict) else getattr(value, part)
    return float(value.value if isinstance(value, Number) else value)


def put(topology: Topology, key: str, number: float) -> Topology:
    """A copy of the topology with another number at a dotted key."""
    changed: Topology = _put(topology, key.split("."), number)
    return changed


def _put(node: Any, parts: list[str], number: float) -> Any:
    if not parts:
        return dataclasses.replace(node, value=number) if isinstance(node, Number) else number
    head, rest = parts[0], parts[1:]
    if isinstance(node, dict):
        return {**node, head: _put(node[head], rest, number)}
    if isinstance(node, tuple):
        return tuple(_put(item, rest, number) if place == int(head) else item for place, item in enumerate(node))
    return dataclasses.replace(node, **{head: _put(getattr(node, head), rest, number)})


def priors(topology: Topology) -> Topology:
    """The topology before any latency was looked at."""
    for free in topology.free:
        topology = put(topology, free.key, free.prior)
    return topology


def fit(topology: Topology, samples: Sequence[Sample]) -> Topology:
    """The topology with its free numbers at the maximum a posteriori of `samples`."""
    start = priors(topology)

    def moved(steps: Sequence[float]) -> Topology:
        changed = start
        for free, step in zip(topology.free, steps, strict=True):
            changed = put(changed, free.key, free.prior * math.exp(step * free.spread))
        return changed

    def residuals(steps: Sequence[float]) -> list[float]:
        changed = moved(steps)
        misfit = [
            math.log(predict(point, model, changed).total_s / seconds) / NOISE for point, model, seconds in samples
        ]
        return [*misfit, *steps]

    if not topology.free:
        return topology
    return moved(least_squares(residuals, [0.0] * len(topology.free), diff_step=1e-4).x)


def leave_one_out(topology: Topology, samples: Sequence[Sample]) -> list[float]:
    """Relative error of each sample, predicted by a fit to all others."""
    errors = []
    for left_out, (point, model, seconds) in enumerate(samples):
        others = [sample for number, sample in enumerate(samples) if number != left_out]
        errors.append(predict(point, model, fit(topology, others)).total_s / seconds - 1)
    return errors
