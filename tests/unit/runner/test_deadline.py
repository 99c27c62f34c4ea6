"""How long a point may take."""

from __future__ import annotations

from dataclasses import replace

from test_plan import BASE, MODEL

from xdit_bench.config import LaunchConfig, MeasureConfig, RunConfig
from xdit_bench.runner.deadline import deadline_s
from xdit_bench.runner.plan import Job

EXECUTIONS = ("eager", "compile", "graph")
JOB = Job(replace(BASE, execution="eager"), MODEL, MeasureConfig(), RunConfig(), LaunchConfig())


def test_deadline_that_was_given_stands_whatever_the_baseline() -> None:
    assert deadline_s(replace(JOB, run=RunConfig(deadline_s=7.0)), 100.0) == 7.0


def test_deadline_grows_with_the_baseline_and_is_long_without_one() -> None:
    short, long = deadline_s(JOB, 1.0), deadline_s(JOB, 30.0)
    images = JOB.measure.warmup + JOB.measure.repeats
    assert long - short >= 3 * 29.0 * images, "one that is three times slower than one GPU is not hung"
    assert deadline_s(JOB, None) > short


def test_warm_up_and_repeats_may_each_take_their_cap() -> None:
    longer = replace(JOB, measure=replace(JOB.measure, time_cap_s=JOB.measure.time_cap_s + 100.0))
    for baseline in (None, 1.0):
        assert deadline_s(longer, baseline) - deadline_s(JOB, baseline) >= 200.0


def test_compiling_gets_more_time() -> None:
    seconds = {how: deadline_s(replace(JOB, point=replace(BASE, execution=how)), 1.0) for how in EXECUTIONS}
    assert seconds["compile"] > 2 * seconds["graph"]
    assert seconds["graph"] == seconds["eager"]  # a capture takes seconds
