"""Runs a plan's measured points: one record a point, whatever happens to it.

Owns the story from jobs to records: what is left out, skipped and measured again. Leaves order to `plan`, ranks to
`session`, and predictions to others.

    run_plan(jobs, store, machine=machine, software=software, study="quickstart", console=console)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from xdit_bench.config import LaunchConfig, Point
from xdit_bench.measure.nvml import Telemetry
from xdit_bench.predict.utilisation import utilisation
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store, latest
from xdit_bench.runner.frontier import Search, make_searches, trials
from xdit_bench.runner.launcher import environment_warnings
from xdit_bench.runner.node import serve_node
from xdit_bench.runner.outcome import START_STAGE, Outcome, to_record
from xdit_bench.runner.plan import Cell, Job, doomed, make_cell, make_cells
from xdit_bench.runner.progress import Progress
from xdit_bench.runner.session import Session
from xdit_bench.topology.probe import code_version

COLD = "timed without a warm-up (measure.warmup=0): such an image is not like those after it; no speedup is made of it"
START_ATTEMPTS = 2  # pools in a row that may fail to start before the rest of a plan is given up


def run_plan(
    jobs: Sequence[Job],
    store: Store,
    *,
    machine: dict[str, Any],
    software: dict[str, Any],
    study: str,
    console: Console,
    telemetry: Callable[[], Telemetry] | None = None,
) -> None:
    """Measures every job and the one-GPU baselines the grid lacks, appending a record each to `store`.

    `machine` holds `fingerprint`, `device` (cuda or cpu) and `gpus` (ranks there may be). Points whose record
    exists are left out (`run.resume`). Raises ResultsError when a record can not be written and KeyboardInterrupt;
    all processes are gone and all finished records are on disk then.
    """
    if not jobs:
        return
    launch = jobs[0].launch
    here = ranks_here(launch, machine)
    if launch.nnodes > 1:
        machine = {**machine, "nodes": launch.nnodes, "fingerprint": f"{machine['fingerprint']}x{launch.nnodes}"}
    code = code_version()
    identity = {"gpus": here * launch.nnodes, "fingerprint": machine["fingerprint"], "code": code}
    cells = make_cells([job for job in jobs if not job.run.frontier], **identity)
    searches = make_searches([job for job in jobs if job.run.frontier])
    with Progress(console, cells) as progress:
        watch = telemetry or _telemetry(machine["device"])
        session = Session(store, machine, code, watch, progress.note, here)
        runner = _Runner(store, machine, software, study, progress, session)
        try:
            runner.run(cells)
            runner.recheck(cells)
            runner.search(searches, partial(make_cell, **identity))
        except BaseException:
            session.kill()
            raise
        session.close(last=True)


def lend(job: Job, machine: dict[str, Any]) -> None:
    """On a machine after the first (`launch.node_rank` above 0): its ranks for the first one's plan, nothing written.

    Raises RankCrashed when the first machine can not be reached, and KeyboardInterrupt.
    """
    serve_node(
        job.launch,
        ranks=ranks_here(job.launch, machine),
        device=machine["device"],
        transport=job.point.transport,
    )


def ranks_here(launch: LaunchConfig, machine: dict[str, Any]) -> int:
    """Ranks that this machine starts at most."""
    return int(min(machine["gpus"], launch.gpus or machine["gpus"]))


@dataclass
class _Runner:
    """The state of one plan: what has been measured, and on what."""

    store: Store
    machine: dict[str, Any]
    software: dict[str, Any]
    study: str
    progress: Progress
    session: Session
    measured: list[Record] = field(default_factory=list)
    ours: set[str] = field(default_factory=set)
    begun: float = 0.0  # when the point at hand began, or the last one ended

    def run(self, cells: Sequence[Cell]) -> None:
        """Every cell to its record."""
        done = [cell for cell in cells if self._done(cell)]
        for cell in done:
            self.progress.count(cell)
        if tried := sum(cell.why_not is None for cell in done):
            told = f"{tried} point{'s' * (tried > 1)} of this command stood in the study before; run.resume=false"
            self.progress.note(f"{told} measures {'them' if tried > 1 else 'it'} anew")
        self.ours = {cell.run_id for cell in cells}
        skip = {cell.run_id for cell in done}
        pending = [cell for cell in cells if cell.run_id not in skip]
        self.begun = time.monotonic()
        while pending:
            index = self._next(pending)
            ranks = _ranks(pending)
            self._measure(pending.pop(index), ranks)

    def search(self, searches: Sequence[Search], cell_of: Callable[[Job], Cell]) -> None:
        """Every search to the largest size that fits; a trial whose record may stand is not run again."""
        for search in searches:
            for point in trials(search.job.point):
                cell = cell_of(dataclasses.replace(search.job, point=point))
                if self._done(cell) and (record := self.store.find(cell.run_id)):
                    search.tell(point.height, record)
        ranks = _ranks([cell_of(search.job) for search in searches])
        self.begun = time.monotonic()
        for search in searches:
            while size := search.next_size(search.bound(searches)):
                search.tell(size, self._measure(cell_of(search.trial(size)), ranks))
            self.progress.note(f"  frontier  {search.job.point.label} and below: {search.said}")

    def _measure(self, cell: Cell, ranks: int) -> Record:
        """The cell's record, kept and shown."""
        self.progress.begin(cell)
        try:
            record = self._record(cell, self._outcome(cell, ranks))
        except (KeyboardInterrupt, SystemExit):  # often because it seems to hang: then this is where
            took = f"{time.monotonic() - self.begun:.0f} s in"
            where = ", ".join(filter(None, [took, self.session.whereabouts()]))
            self.progress.note(f"interrupted  {cell.point.label}  {where}")
            raise
        now = time.monotonic()
        record.telemetry.setdefault("spent_s", {})["whole"] = now - self.begun  # a plan's add up to its wall time
        self.begun = now
        self.store.append(record)
        self.measured.append(record)
        self.progress.end(cell, record)
        return record

    def recheck(self, cells: Sequence[Cell]) -> None:
        """Measures a share of the points again in fresh processes; their records gain `telemetry.recheck`.

        Proves that a pool warmed by other points gives the times a fresh process gives. The first point of all is the
        first of them: it is a baseline, taken before the rest, and shows how far the machine has drifted since.
        """
        share = max((cell.job.run.recheck for cell in cells if cell.job.run.isolation == "pool"), default=0.0)
        by_id = {cell.run_id: cell for cell in cells}
        fresh = [record for record in self.measured if record.status == "ok"]
        chosen = fresh[:1] + sorted(fresh[1:], key=lambda r: hashlib.sha256(r.run_id.encode()).hexdigest())
        for record in chosen[: math.floor(share * len(fresh) + 0.5)]:
            cell = by_id[record.run_id]
            self.progress.note(f"   recheck  {cell.point.label} in fresh processes")
            self.session.close()
            again = self._record(cell, self.session.measure(cell, cell.point.gpus, record.total_s))
            self.session.close()
            outcome: dict[str, Any] = {"status": again.status}
            if again.total_s is not None and record.total_s is not None:
                outcome |= {"total_s": again.latency_s["total"], "drift": again.total_s / record.total_s - 1.0}
            else:
                outcome["reason"] = again.reason
            self.store.append(dataclasses.replace(record, telemetry={**record.telemetry, "recheck": outcome}))

    def _done(self, cell: Cell) -> bool:
        """Whether its record may stand: not when nothing was tried, and what kept it from being tried may be gone."""
        run = cell.job.run
        found = self.store.find(cell.run_id) if run.resume else None
        if found is None or found.failure.get("stage") == START_STAGE:
            return False
        if found.status == "skipped" and run.probe_all:
            return False
        if found.status == "infeasible" and not found.failure and not cell.why_not:  # this command can run it
            return False
        return found.status == "ok" or not run.retry_failed

    def _next(self, pending: Sequence[Cell]) -> int:
        """The first in order; but while its kind has no reference yet, the one on the fewest GPUs, to become it."""
        first = pending[0]
        if first.why_not or self.session.reference(first).exists():
            return 0
        alike = [i for i, c in enumerate(pending) if c.reference == first.reference and not c.why_not]
        return min(alike, key=lambda i: pending[i].point.gpus)

    def _outcome(self, cell: Cell, ranks: int) -> Outcome:
        """Runs the cell, unless something says that it can not or need not."""
        if cell.why_not:
            return Outcome("infeasible", cell.why_not)
        failed = self.session.failed_starts
        if failed >= START_ATTEMPTS:
            why = f"ranks could not be started {failed} times in a row on this machine"
            return Outcome("skipped", why, failure={"stage": START_STAGE})
        ours = (record for record in latest(self.store.records) if record.run_id in self.ours)
        run = cell.job.run  # a search knows by itself what need not be tried
        reason = None if run.probe_all or run.frontier else doomed(cell, ours)
        if reason:
            return Outcome("skipped", reason)
        return self.session.measure(cell, ranks, self._baseline_s(cell.point))

    def _record(self, cell: Cell, outcome: Outcome) -> Record:
        record = to_record(outcome, cell.point, cell.run_id, self.study)
        record.command = cell.job.command
        record.machine, record.software = self.machine, self.software
        if record.step_s:
            share = utilisation(record.point, record.step_s["median"], cell.job.model)
            if share is not None:
                record.attribution["utilisation"] = share
        if outcome.spent_s:
            record.telemetry["spent_s"] = dict(outcome.spent_s)
        if outcome.answers:
            record.warnings += environment_warnings(transport=cell.point.transport)
        if record.status == "ok" and cell.point.steps and not cell.job.measure.warmup:
            record.warnings.append(COLD)
        return record

    def _baseline_s(self, point: Point) -> float | None:
        """One image of this size on one GPU, the slowest that was measured."""
        keys = ("model", "height", "width", "steps", "dtype")
        alike = [
            r for r in self.measured if r.point["gpus"] == 1 and all(r.point[k] == getattr(point, k) for k in keys)
        ]
        times = [r.total_s for r in alike if r.total_s is not None]
        return max(times, default=None)


def _ranks(cells: Sequence[Cell]) -> int:
    """The most ranks any of the cells needs: a pool is sized once."""
    return max((cell.point.gpus for cell in cells if not cell.why_not), default=1)


def _telemetry(device: str) -> Callable[[], Telemetry]:
    from xdit_bench.measure.nvml import HostTelemetry, NvmlTelemetry

    return NvmlTelemetry if device == "cuda" else HostTelemetry
