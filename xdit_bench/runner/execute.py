"""Runs a plan's measured points: one record a point, whatever happens to it.

Owns the story from jobs to records: resume, pools, references, rechecks. Leaves order to `plan`, processes to
`pool`, verdicts to `outcome`, and predictions to others.

    run_plan(jobs, store, machine=machine, software=software, study="quickstart", console=console)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from xdit_bench.config import Point
from xdit_bench.errors import RankCrashed, ResultsError
from xdit_bench.measure.nvml import Telemetry
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.runner.deadline import deadline_s
from xdit_bench.runner.launcher import environment_warnings
from xdit_bench.runner.node import serve_node
from xdit_bench.runner.outcome import Outcome, judge, to_record
from xdit_bench.runner.plan import FAKE, STOCK, Cell, Job, doomed, make_cells, reference_key
from xdit_bench.runner.pool import Answer, Pool
from xdit_bench.runner.progress import Progress
from xdit_bench.topology.probe import code_version

__all__ = ["Job", "run_plan"]

START_ATTEMPTS = 2  # pools in a row that may fail to start before the rest of a plan is given up
LOAD_S = 1800.0  # a hub's weights may have to be downloaded first
COOL_DOWNS = 2  # times a throttled point is taken again


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
    exists are left out (`run.resume`). On a machine with `launch.node_rank` above 0 it lends its ranks to the first
    machine's plan and writes nothing. Raises ResultsError when a record can not be written and KeyboardInterrupt;
    all processes are gone and all finished records are on disk then.
    """
    if not jobs:
        return
    launch = jobs[0].launch
    here = min(machine["gpus"], launch.gpus or machine["gpus"])
    if launch.node_rank > 0:
        serve_node(launch, ranks=here, device=machine["device"], transport=jobs[0].point.transport)
        return
    if launch.nnodes > 1:
        machine = {**machine, "nodes": launch.nnodes, "fingerprint": f"{machine['fingerprint']}x{launch.nnodes}"}
    code = code_version()
    jobs = [dataclasses.replace(job, point=_with_dtype(job.point, machine["device"])) for job in jobs]
    cells = make_cells(jobs, gpus=here * launch.nnodes, fingerprint=machine["fingerprint"], code=code)
    with Progress(console, cells) as progress:
        watch = telemetry or _telemetry(machine["device"])
        runner = _Runner(store, machine, software, study, code, progress, watch, here)
        try:
            runner.run(cells)
            runner.recheck(cells)
        except BaseException:
            runner.kill()
            raise
        runner.close(last=True)


@dataclass
class _Runner:
    """The state of one plan: what is pending, which pool is up, what baselines took."""

    store: Store
    machine: dict[str, Any]
    software: dict[str, Any]
    study: str
    code: str
    progress: Progress
    telemetry: Callable[[], Telemetry]
    ranks_here: int
    pool: Pool | None = None
    failed_starts: int = 0
    measured: list[Record] = field(default_factory=list)
    ours: set[str] = field(default_factory=set)

    def run(self, cells: Sequence[Cell]) -> None:
        """Every cell to its record."""
        done = [cell for cell in cells if self._done(cell)]
        for cell in done:
            self.progress.count(cell)
        self.ours = {cell.run_id for cell in cells}
        skip = {cell.run_id for cell in done}
        pending = [cell for cell in cells if cell.run_id not in skip]
        while pending:
            index = self._next(pending)
            ranks = _ranks(pending)
            cell = pending.pop(index)
            self.progress.begin(cell)
            record = self._record(cell, self._outcome(cell, ranks))
            self.store.append(record)
            self.measured.append(record)
            self.progress.end(cell, record)

    def recheck(self, cells: Sequence[Cell]) -> None:
        """Measures a share of the points again in fresh processes; their records gain `telemetry.recheck`.

        Proves that a pool warmed by other points gives the times a fresh process gives.
        """
        run = cells[0].job.run
        share = run.recheck if run.isolation == "pool" else 0.0
        by_id = {cell.run_id: cell for cell in cells}
        fresh = [record for record in self.measured if record.status == "ok"]
        chosen = sorted(fresh, key=lambda r: hashlib.sha256(r.run_id.encode()).hexdigest())
        for record in chosen[: math.floor(share * len(fresh) + 0.5)]:
            cell = by_id[record.run_id]
            self.progress.note(f"   recheck  {cell.point.label} in fresh processes")
            self.close()
            again = self._record(cell, self._measure(cell, cell.point.gpus))
            self.close()
            outcome: dict[str, Any] = {"status": again.status}
            if again.total_s is not None and record.total_s is not None:
                outcome |= {"total_s": again.latency_s["total"], "drift": again.total_s / record.total_s - 1.0}
            else:
                outcome["reason"] = again.reason
            self.store.append(dataclasses.replace(record, telemetry={**record.telemetry, "recheck": outcome}))

    def close(self, *, last: bool = False) -> None:
        """Lets the ranks go."""
        if self.pool is not None:
            self.pool.close(last=last)
            self.pool = None

    def kill(self) -> None:
        """Ends the ranks now."""
        if self.pool is not None:
            self.pool.kill()
            self.pool = None

    def _done(self, cell: Cell) -> bool:
        found = self.store.find(cell.run_id) if cell.job.run.resume else None
        return found is not None and (found.status == "ok" or not cell.job.run.retry_failed)

    def _next(self, pending: Sequence[Cell]) -> int:
        """The first in order; but while its kind has no reference yet, the one on the fewest GPUs, to become it."""
        first = pending[0]
        if first.why_not or self._reference(first).exists():
            return 0
        alike = [i for i, c in enumerate(pending) if c.reference == first.reference and not c.why_not]
        return min(alike, key=lambda i: pending[i].point.gpus)

    def _outcome(self, cell: Cell, ranks: int) -> Outcome:
        """Runs the cell, unless something says that it can not or need not."""
        if cell.why_not:
            return Outcome("infeasible", cell.why_not)
        if self.failed_starts >= START_ATTEMPTS:
            return Outcome("skipped", f"ranks could not be started {self.failed_starts} times in a row on this machine")
        ours = (record for record in self.store.records if record.run_id in self.ours)
        reason = None if cell.job.run.probe_all else doomed(cell, ours)
        if reason:
            return Outcome("skipped", reason)
        return self._measure(cell, ranks)

    def _measure(self, cell: Cell, ranks: int) -> Outcome:
        """A measurement in the pool at hand; taken again after a cool-down while the device throttles."""
        if cell.job.run.isolation == "point":
            self.close()
        try:
            not_loaded = self._load(cell, self._pool(cell, ranks))
            if not_loaded:
                return not_loaded
            self._ensure_reference(cell, self._pool(cell, ranks))
            pool = self._pool(cell, ranks)
        except RankCrashed as error:
            return Outcome("crashed", str(error), failure=dict(error.details))
        deadline = deadline_s(cell.job, self._baseline_s(cell.point))
        for attempt in range(COOL_DOWNS + 1):
            telemetry = self.telemetry()
            with telemetry:
                answers = pool.run(self._command(cell), deadline)
            self._check_disk(answers)
            outcome = judge(answers, deadline)
            spans = [span for a in answers for span in a.body.get("spans", ())]
            outcome.telemetry = telemetry.report(spans, ranks=cell.point.gpus)
            throttled = outcome.telemetry.get("throttled_images", 0)
            if outcome.status != "ok" or not throttled:
                break
            if attempt < COOL_DOWNS:
                self.progress.note(f"   throttled {cell.point.label}: {throttled} images; cooling down, then again")
                telemetry.cool_down()
            else:
                outcome.status = "unstable"
                outcome.reason = (
                    f"the device throttled during {throttled} of {len(spans)} images, {COOL_DOWNS + 1} times in a row "
                    f"({', '.join(outcome.telemetry.get('throttle_reasons', []))}); see to its cooling or power"
                )
        return outcome

    def _pool(self, cell: Cell, ranks: int) -> Pool:
        """The pool at hand when it will do, else a new one."""
        pool = self.pool
        if pool and not (pool.check() and pool.ranks >= cell.point.gpus and pool.transport == cell.point.transport):
            self.close()
        if self.pool is None:
            size = cell.point.gpus if cell.job.run.isolation == "point" else ranks
            launch = cell.job.launch
            if launch.nnodes > 1:  # the other machines start as many as they have
                size = self.ranks_here
            self.failed_starts += 1
            self.pool = Pool(size, self.machine["device"], transport=cell.point.transport, launch=launch)
            self.failed_starts = 0
        return self.pool

    def _load(self, cell: Cell, pool: Pool) -> Outcome | None:
        """Weights on all ranks at once, when the pool has others; an outcome when they can not be had."""
        point = cell.point
        key = (point.engine == FAKE, point.model, point.weights, point.dtype, point.seed)
        if pool.loaded == key:
            return None
        command = {"op": "load", "point": point.to_dict(), "model": dataclasses.asdict(cell.job.model)}
        answers = pool.run(command, LOAD_S)
        if any(a.kind != "result" for a in answers):
            return judge(answers, LOAD_S)
        pool.loaded = key
        return None

    def _command(self, cell: Cell) -> dict[str, Any]:
        reference = self._reference(cell)
        judged = cell.job.measure.parity
        return {
            "op": "run",
            "point": cell.point.to_dict(),
            "model": dataclasses.asdict(cell.job.model),
            "measure": dataclasses.asdict(cell.job.measure),
            "reference": str(reference) if judged and reference.exists() else None,
            "save_reference": str(reference) if judged and not reference.exists() else None,
            "outputs": str(self.store.study_dir.resolve() / "outputs" / cell.run_id) if cell.job.save_outputs else None,
        }

    def _ensure_reference(self, cell: Cell, pool: Pool) -> None:
        """A resumed study may have its baseline's record and no longer its latents: computes them, untimed."""
        if not cell.job.measure.parity or self._reference(cell).exists():
            return
        for record in self.store.records:
            if record.status == "ok" and record.point["engine"] == STOCK and record.fingerprint == self._fingerprint:
                point = Point.from_dict(record.point)
                if (
                    record.run_id != cell.run_id
                    and reference_key(point, self._fingerprint, self.code) == cell.reference
                ):
                    command = {**self._command(cell), "point": record.point, "measure": None, "outputs": None}
                    pool.run(command, deadline_s(cell.job, record.total_s))
                    return

    def _check_disk(self, answers: Sequence[Answer]) -> None:
        """A full disk is no point's failure: it ends the plan. Raises ResultsError."""
        for answer in answers:
            if answer.body.get("kind") == "disk":
                raise ResultsError(
                    f"{self.store.study_dir} can not take the point's latents and image ({answer.body['message']}); "
                    f"earlier records are intact: make room and run the same command again, it goes on from here"
                )

    def _record(self, cell: Cell, outcome: Outcome) -> Record:
        record = to_record(outcome, cell.point, cell.run_id, self.study)
        record.command = cell.job.command
        record.machine, record.software = self.machine, self.software
        if outcome.answers:
            record.warnings += environment_warnings(transport=cell.point.transport)
        return record

    def _baseline_s(self, point: Point) -> float | None:
        """One image of this size on one GPU, the slowest that was measured."""
        keys = ("model", "height", "width", "steps", "dtype")
        alike = [
            r for r in self.measured if r.point["gpus"] == 1 and all(r.point[k] == getattr(point, k) for k in keys)
        ]
        times = [r.total_s for r in alike if r.total_s is not None]
        return max(times, default=None)

    @property
    def _fingerprint(self) -> str:
        return str(self.machine["fingerprint"])

    def _reference(self, cell: Cell) -> Path:
        return self.store.study_dir.resolve() / "references" / f"{cell.reference}.safetensors"


def _ranks(cells: Sequence[Cell]) -> int:
    """The most ranks any of the cells needs: a pool is sized once."""
    return max((cell.point.gpus for cell in cells if not cell.why_not), default=1)


def _with_dtype(point: Point, device: str) -> Point:
    if point.dtype != "auto":
        return point
    return dataclasses.replace(point, dtype="bf16" if device == "cuda" else "fp32")


def _telemetry(device: str) -> Callable[[], Telemetry]:
    from xdit_bench.measure.nvml import HostTelemetry, NvmlTelemetry

    return NvmlTelemetry if device == "cuda" else HostTelemetry
