"""Where a study's wall time went."""

from __future__ import annotations

import dataclasses

from synthetic import record

from xdit_bench.reporting.page import _study_facts
from xdit_bench.reporting.spent import spent


def test_wall_time_is_the_sum_over_records_and_what_no_part_names_lies_between_points() -> None:
    first = record(extra={"telemetry": {"spent_s": {"whole": 10.0, "own": 3.0, "start": 4.0, "load": 2.0}}})
    second = record(res=2048, extra={"telemetry": {"spent_s": {"whole": 5.0, "own": 5.0, "start": 0.0, "load": 0.0}}})
    infeasible = record(res=512, extra={"telemetry": {"spent_s": {"whole": 0.5}}})
    rechecked = dataclasses.replace(first, telemetry={**first.telemetry, "recheck": {"status": "ok"}})
    found = spent([first, second, infeasible, rechecked])
    assert found is not None
    assert (found.points, found.starts, found.whole_s, found.rest_s) == (2, 1, 15.5, 1.5)
    assert found.sentence() == (
        "15.5 s for 2 points: 8.0 s their own (a failed one's until the failure showed), 4.0 s starting ranks (once), "
        "2.0 s loading weights, 1.5 s between points"
    )


def test_records_of_other_origin_say_nothing_about_wall_time() -> None:
    assert spent([record(), record(res=512, extra={"telemetry": {"spent_s": "long"}})]) is None


def test_a_record_that_gained_a_recheck_counts_once_in_the_facts() -> None:
    first = record(1.0, samples=[1.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    rechecked = dataclasses.replace(first, telemetry={**first.telemetry, "recheck": {"status": "ok"}})
    once, twice = dict(_study_facts([first])), dict(_study_facts([first, rechecked]))
    assert once["Outliers"] == twice["Outliers"]
    assert twice["Records"] == "1"
