"""Statistics of latency samples, free of any assumption about their distribution, without torch.

summarise([1.0, 1.1, 0.9])["median"]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from xdit_bench.results.schema import FEWEST_SAMPLES

CONFIDENCE = 0.95
STEADY = 0.05  # a time this close to the one before it ends the warm-up, and counts
EXTRA_WARMUPS = 5  # at most, beyond those asked for


def summarise(samples: Sequence[float]) -> dict[str, Any]:
    """`{median, p10, p90, ci95: [low, high], samples}` in the samples' unit. At least one sample is needed."""
    ordered = sorted(samples)
    low, high = median_interval(ordered)
    return {
        "median": statistics.median(ordered),
        "p10": quantile(ordered, 0.1),
        "p90": quantile(ordered, 0.9),
        "ci95": [low, high],
        "samples": list(samples),
    }


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from order statistics (David and Nagaraja, Order Statistics, 7.1).

    The number of samples below the median is binomial(n, 1/2), whatever their distribution. Up to five samples
    can not reach 95 %: the interval is then their whole range (94 % for five, 75 % for three).
    """
    ordered = sorted(samples)
    n = len(ordered)
    tail = 0.0
    rank = 0  # of the low end, from 0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank = k
    return ordered[rank], ordered[n - 1 - rank]


def quantile(samples: Sequence[float], q: float) -> float:
    """Linear between neighbouring samples; numpy's default."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def precise(samples: Sequence[float], share: float) -> bool:
    """Whether the median's 95 % interval lies within `share` of the median on both sides. Of fewer than five samples
    there is none."""
    if len(samples) < FEWEST_SAMPLES:
        return False
    low, high = median_interval(samples)
    median = statistics.median(samples)
    return high - median <= share * median and median - low <= share * median


def steady(samples: Sequence[float]) -> bool:
    """Whether the last two times are within `STEADY` of each other."""
    return len(samples) > 1 and abs(samples[-1] - samples[-2]) <= STEADY * samples[-2]
