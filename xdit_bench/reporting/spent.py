"""Where the wall time of a study's measured points went: themselves, starting ranks, loading weights, the rest.

spent(records).sentence()  # "61.2 s for 14 points: 38.0 s their own, …"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import number
from xdit_bench.results.schema import Record


@dataclass(frozen=True)
class Spent:
    """Seconds by what they went to. `whole_s` is the plans' wall time up to their last record."""

    points: int
    starts: int
    whole_s: float
    own_s: float
    start_s: float
    load_s: float

    @property
    def rest_s(self) -> float:
        """Ending and asking ranks after a failure, cooling down, references, writing records."""
        return self.whole_s - self.own_s - self.start_s - self.load_s

    def sentence(self) -> str:
        """As a report says it."""
        times = "once" if self.starts == 1 else f"{self.starts} times"
        return (
            f"{self.whole_s:.1f} s for {words.plural(self.points, 'point')}: {self.own_s:.1f} s their own (a failed "
            f"one's until the failure showed), {self.start_s:.1f} s starting ranks ({times}), {self.load_s:.1f} s "
            f"loading weights, {self.rest_s:.1f} s between points"
        )


def spent(records: Iterable[Record]) -> Spent | None:
    """Of all measured records that say so, replaced ones too; None where none does.

    A record that gained a recheck is there twice, and is the same measurement.
    """
    measured = {(record.run_id, record.time): record.telemetry.get("spent_s") for record in records}
    tried = [entry for entry in measured.values() if isinstance(entry, dict) and number(entry.get("whole")) is not None]
    if not any(number(entry.get("own")) for entry in tried):
        return None
    sums = {key: sum(number(entry.get(key)) or 0.0 for entry in tried) for key in ("whole", "own", "start", "load")}
    return Spent(
        points=sum("own" in entry for entry in tried),
        starts=sum(bool(number(entry.get("start"))) for entry in tried),
        whole_s=sums["whole"],
        own_s=sums["own"],
        start_s=sums["start"],
        load_s=sums["load"],
    )
