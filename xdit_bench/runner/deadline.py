"""How long a point may take before it counts as hung.

deadline_s(job, baseline_s=2.7)
"""

from __future__ import annotations

from xdit_bench.measure.stats import EXTRA_WARMUPS
from xdit_bench.runner.plan import Job

UNKNOWN_S = 600.0  # no baseline yet: loading and a first image of a size nobody has seen
SETUP_S = 120.0
COMPILE_S = 900.0
SLACK = 5.0  # a configuration may be that much slower than one GPU before it counts as hung


def deadline_s(job: Job, baseline_s: float | None) -> float:
    """Seconds from the point's start. `baseline_s`: one image on one GPU, where it is known."""
    if job.run.deadline_s is not None:
        return job.run.deadline_s
    measure = job.measure
    setup = COMPILE_S if job.point.execution == "compile" else SETUP_S
    if baseline_s is None:
        return UNKNOWN_S + setup + 2 * measure.time_cap_s
    images = measure.warmup + EXTRA_WARMUPS + measure.repeats + 2  # and parity, and a first one that is slow
    return setup + 2 * measure.time_cap_s + SLACK * images * baseline_s
