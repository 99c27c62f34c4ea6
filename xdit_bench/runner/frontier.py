"""The search for the largest image that fits: which size to try next, from what is known of others.

Owns the order of sizes and of searches; runs nothing. A search is a job with `run.frontier`: its `res` is the largest
size it tries, and every trial is a point of its own with a record of its own. It begins at the job's `guess`, where the
memory model puts the largest that fits, and goes away from it in strides that double: a plain decode that runs out of
memory far above it has spent minutes on the attention before. What fits is what was run; a guess orders trials alone.

    search = Search(job, known={8192: False})
    search.next_size()   # 4096
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from xdit_bench.config import FRONTIER_STEP, Point
from xdit_bench.results.schema import Record
from xdit_bench.runner.plan import Job


@dataclass
class Search:
    """What is known of one search: whether a size fits, and what ended it when a trial showed neither."""

    job: Job
    known: dict[int, bool] = field(default_factory=dict)
    ended: str = ""

    @property
    def top(self) -> int:
        """The largest size it tries, pixels."""
        return self.job.point.height

    @property
    def fits(self) -> int:
        """The largest size known to fit, 0 where none is."""
        return max((size for size, fits in self.known.items() if fits), default=0)

    @property
    def fails(self) -> int | None:
        """The smallest size above it known to run out of memory."""
        return min((size for size, fits in self.known.items() if not fits and size > self.fits), default=None)

    def trial(self, size: int) -> Job:
        """The job of one size."""
        return replace(self.job, point=at_size(self.job.point, size))

    def tell(self, size: int, record: Record) -> None:
        """What a trial's record says of its size; one that says nothing ends the search."""
        if record.fits is None:
            self.ended = f"{record.status} at {size}px: {record.reason}"
        else:
            self.known[size] = record.fits

    def next_size(self, bound: int | None = None) -> int | None:
        """The size to try: the guess, then strides away from it that double, then the middle of what is open; without
        a guess the top, then the middle. None when there is nothing to learn.

        `bound` runs out of memory for a reason that holds here too.
        """
        fails = min((size for size in (self.fails, bound) if size is not None and size > self.fits), default=None)
        open_above = self.top + FRONTIER_STEP if fails is None else fails  # nothing to try from here on
        if self.ended or open_above - self.fits <= FRONTIER_STEP:
            return None
        guess = self.job.guess or self.top
        if self.fits < guess < open_above:
            return guess
        middle = self.fits + (open_above - self.fits) // (2 * FRONTIER_STEP) * FRONTIER_STEP
        if self.fits >= guess:
            stride = self.fits + max(FRONTIER_STEP, self.fits - guess)
            return min(stride, self.top if fails is None else middle)
        if self.job.guess is None:
            return middle
        return max(open_above - max(FRONTIER_STEP, guess - open_above), middle)

    def bound(self, others: Iterable[Search]) -> int | None:
        """The smallest size that ran out of a larger memory in the same search: it runs out of this one too."""
        mine = _memory(self.job.point)
        alike = [other for other in others if _same(other.job.point) == _same(self.job.point)]
        sizes = [other.fails for other in alike if _memory(other.job.point) > mine and other.fails is not None]
        return min(sizes, default=None)

    @property
    def said(self) -> str:
        """What came out, in a few words."""
        fits = f"{self.fits}px fits" if self.fits else "nothing fits"
        fails = f", {self.fails}px runs out of memory" if self.fails else ""
        return f"{fits}{fails}" + (f"; ended, {self.ended}" if self.ended else "")


def make_searches(jobs: Sequence[Job]) -> list[Search]:
    """One a job, in running order: one pool and one set of weights at a time, larger memory first, as what runs out
    there need not be tried below a cap; and exact decodes before tiled ones, as theirs is the better reference."""
    unique = {job.point: Search(job) for job in jobs}
    return sorted(unique.values(), key=lambda search: _order(search.job.point))


def at_size(point: Point, size: int) -> Point:
    """The point of a square image of `size` pixels."""
    return replace(point, height=size, width=size)


def trials(point: Point) -> list[Point]:
    """Every point that a search up to `point` may try."""
    return [at_size(point, size) for size in range(FRONTIER_STEP, point.height + 1, FRONTIER_STEP)]


def _memory(point: Point) -> float:
    return point.memory_cap_gb or float("inf")


def _same(point: Point) -> Point:
    return replace(at_size(point, 0), memory_cap_gb=None)


def _order(point: Point) -> tuple[object, ...]:
    pool = (point.transport, point.model, point.weights, point.dtype, point.seed)
    return (
        *pool,
        -_memory(point),
        point.gpus,
        point.vae,  # tiled comes last
        point.engine,
        point.ulysses,
        str(point),
    )
