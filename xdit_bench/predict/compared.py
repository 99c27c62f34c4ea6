"""What was seen beside what the model says: samples, sets of them, and their errors.

Owns the words of a comparison; `validation` and `measured` make them.

    Row(point, seen=2.18, predicted=2.25).error  # 0.032
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from xdit_bench.config import Point


@dataclass(frozen=True)
class Row:
    """One sample: its point, what was seen, what the model says (seconds or bytes). `host_unknown` where a slower host
    of the kind could have bound it, and nobody took what launches cost then, or one image alone was timed. Under memory
    pressure the model has a range, from `predicted` to `at_most`."""

    point: Point
    seen: float
    predicted: float
    host_unknown: bool = False
    at_most: float = math.inf

    @property
    def inside(self) -> bool:
        """Whether what was seen is in the range."""
        return self.predicted <= self.seen <= self.at_most

    @property
    def error(self) -> float:
        """Relative error of the model."""
        return self.predicted / self.seen - 1


@dataclass(frozen=True)
class Set:
    """One published figure or measured study on one machine. `left_out` are leave-one-out errors, `regrets` those of
    the split the model picks, a group of one picture and GPU count; `fitted` are the machine's free numbers (key, what
    the file has, what a fit to these samples gives, the prior); `notes` say what could not be compared. `verdicts` are
    those of out of memory or not, a point: right, wrong, or near (within 5 % of the capacity, where either may be).
    `pressed` are samples under memory pressure that the model foretold, held to its range and in no error."""

    name: str
    kind: str  # published | measured
    rows: tuple[Row, ...]
    left_out: tuple[float, ...] = ()
    regrets: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    fitted: tuple[tuple[str, float, float, float], ...] = ()
    verdicts: tuple[tuple[str, str], ...] = ()
    pressed: tuple[Row, ...] = ()


def mean(errors: Iterable[float]) -> float:
    """Mean absolute error; nan of none."""
    values = [abs(error) for error in errors]
    return sum(values) / len(values) if values else math.nan


def worst(errors: Iterable[float]) -> float:
    """Largest absolute error; nan of none."""
    return max((abs(error) for error in errors), default=math.nan)


def picture(point: Point) -> str:
    """`1024px`, `1280x720px`."""
    return f"{point.res}px" if point.res else f"{point.width}x{point.height}px"
