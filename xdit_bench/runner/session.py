"""Measures one cell after another on ranks that stay: the pool at hand, the weights it holds, the references.

Owns which pool is up and when it will do; leaves order and records to `execute`, processes to `pool`, verdicts to
`outcome`.

    session = Session(store, machine, code, telemetry, note, ranks_here=2)
    outcome = session.measure(cell, ranks=2, baseline_s=None)
    session.close(last=True)
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdit_bench.config import Point
from xdit_bench.errors import RankCrashed, ResultsError
from xdit_bench.measure.nvml import Telemetry
from xdit_bench.results.store import Store
from xdit_bench.runner.board import place
from xdit_bench.runner.cards import used_bytes, wait_until_free
from xdit_bench.runner.deadline import deadline_s
from xdit_bench.runner.outcome import START_STAGE, Outcome, judge, own_s
from xdit_bench.runner.plan import FAKE, STOCK, Cell, reference_key
from xdit_bench.runner.pool import Answer, Pool

LOAD_S = 1800.0  # a hub's weights may have to be downloaded first
MODULES = "xdit_bench.backends.modules"  # diffusers and transformers: seconds, and more where eight ranks read at once
COOL_DOWNS = 2  # times a throttled point is taken again


@dataclass
class Session:
    """The ranks of a plan. `note` prints a line; `ranks_here` are this machine's in a run over several."""

    store: Store
    machine: dict[str, Any]
    code: str
    telemetry: Callable[[], Telemetry]
    note: Callable[[str], None]
    ranks_here: int
    pool: Pool | None = None
    spare: Pool | None = None
    failed_starts: int = 0
    _spent_s: dict[str, float] = field(default_factory=dict)
    _used_before: list[int] | None = None
    _lost: set[str] = field(default_factory=set)  # references that could not be computed again

    def measure(self, cell: Cell, ranks: int, baseline_s: float | None) -> Outcome:
        """A measurement in the pool at hand, or in a new one of `ranks`; taken again after a cool-down while the
        device throttles. `baseline_s`: one image on one GPU, where it is known. Raises ResultsError for a full disk."""
        self._spent_s = {"start": 0.0, "load": 0.0, "own": 0.0}
        outcome = self._measure(cell, ranks, baseline_s)
        outcome.spent_s = self._spent_s
        return outcome

    def _measure(self, cell: Cell, ranks: int, baseline_s: float | None) -> Outcome:
        if cell.job.run.isolation == "point" and self.pool:
            with self._spending("start"):
                self.close()
        try:
            not_loaded = self._load(cell, self._pool(cell, ranks))
            if not_loaded:
                return not_loaded
            self._ensure_reference(cell, self._pool(cell, ranks))
            pool = self._pool(cell, ranks)
        except RankCrashed as error:
            return Outcome("crashed", str(error), failure={"stage": START_STAGE, **error.details})
        deadline = deadline_s(cell.job, baseline_s)
        for attempt in range(COOL_DOWNS + 1):
            telemetry = self.telemetry()
            with telemetry:
                answers = pool.run(self._command(cell), deadline)
            self._spent_s["own"] += own_s(answers)
            self._check_disk(answers)
            outcome = judge(answers, deadline)
            spans = [span for a in answers for span in a.body.get("spans", ())]
            outcome.telemetry = telemetry.report(spans, ranks=cell.point.gpus)
            throttled = outcome.telemetry.get("throttled_images", 0)
            if outcome.status != "ok" or not throttled:
                break
            if attempt < COOL_DOWNS:
                self.note(f"   throttled {cell.point.label}: {throttled} images; cooling down, then again")
                telemetry.cool_down()
            else:
                outcome.status = "unstable"
                outcome.reason = (
                    f"the device throttled during {throttled} of {len(spans)} images, {COOL_DOWNS + 1} times in a row "
                    f"({', '.join(outcome.telemetry.get('throttle_reasons', []))}); see to its cooling or power"
                )
        return outcome

    def whereabouts(self) -> str:
        """Where the ranks are, those of one place together: `rank 0 at vae 3, ranks 1, 2 at denoise 3`."""
        places: dict[str, list[str]] = {}
        for rank, note in (self.pool.whereabouts() if self.pool else {}).items():
            places.setdefault(place(*note), []).append(str(rank))
        return ", ".join(f"rank{'s' if len(r) > 1 else ''} {', '.join(r)} at {at}" for at, r in places.items())

    def close(self, *, last: bool = False) -> None:
        """Lets the ranks go; `last` lets the other machines of a run go too, by ranks that live to tell them."""
        if self.pool is not None:
            if last and self.pool.nnodes > 1 and not self.pool.check():
                self.pool = self.pool.again()
            self.pool.close(last=last)
            self.pool = None
        if last:
            self._drop_spare()

    def kill(self) -> None:
        """Ends the ranks now."""
        self._drop_spare()
        if self.pool is not None:
            self.pool.kill()
            self.pool = None

    def _pool(self, cell: Cell, ranks: int) -> Pool:
        """The pool at hand when it will do, else a new one."""
        pool = self.pool
        if pool and pool.check() and pool.ranks >= cell.point.gpus and pool.transport == cell.point.transport:
            return pool
        failed = pool is not None and not pool.alive
        with self._spending("start"):
            self.close()
            size = cell.point.gpus if cell.job.run.isolation == "point" else ranks
            launch = cell.job.launch
            if launch.nnodes > 1:  # the other machines start as many as they have
                size = self.ranks_here
            if self.machine["device"] == "cuda":
                self._wait_for_memory()
            self.failed_starts += 1
            self.pool = self._start(size, cell)
            self.failed_starts = 0
            if failed and launch.nnodes == 1:  # it may happen again: then the next launcher is at hand
                self.spare = self.pool.again(spare=True)
        return self.pool

    def _start(self, size: int, cell: Cell) -> Pool:
        """The spare pool when it will do, else a new one. Raises RankCrashed."""
        spare, self.spare = self.spare, None
        transport = cell.point.transport
        if spare is not None and spare.ranks >= size and spare.transport == transport:
            with suppress(RankCrashed):  # whatever ended it has not ended a new one
                spare.begin()
                return spare
        elif spare is not None:
            spare.kill()
        reads = () if cell.point.engine == FAKE else (MODULES,)
        return Pool(size, self.machine["device"], transport=transport, launch=cell.job.launch, reads=reads)

    def _drop_spare(self) -> None:
        if self.spare is not None:
            self.spare.kill()
            self.spare = None

    def _wait_for_memory(self) -> None:
        """Until the GPUs hold no more than before the first ranks: a driver may free a killed process's memory late."""
        if self._used_before is None:
            self._used_before = used_bytes()
        elif not wait_until_free(self._used_before):
            self.note("   GPU memory of the ranks before is not free yet; starting all the same")

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._spent_s[what] += time.monotonic() - begun

    def _load(self, cell: Cell, pool: Pool) -> Outcome | None:
        """Weights on all ranks at once, when the pool has others; an outcome when they can not be had."""
        point = cell.point
        key = (point.engine == FAKE, point.model, point.weights, point.dtype, point.seed)
        if pool.loaded == key:
            return None
        command = {"op": "load", "point": point.to_dict(), "model": dataclasses.asdict(cell.job.model)}
        with self._spending("load"):
            answers = pool.run(command, LOAD_S)
        if any(a.kind != "result" for a in answers):
            return judge(answers, LOAD_S)
        pool.loaded = key
        return None

    def _command(self, cell: Cell) -> dict[str, Any]:
        reference = self.reference(cell)
        judged = cell.job.measure.parity
        return {
            "op": "run",
            "point": cell.point.to_dict(),
            "model": dataclasses.asdict(cell.job.model),
            "measure": dataclasses.asdict(cell.job.measure),
            "reference": str(reference) if judged and reference.exists() else None,
            "truth": str(self._kept(cell.truth)) if judged and cell.truth != cell.reference else None,
            "save_reference": str(reference) if judged and not reference.exists() else None,
            "outputs": str(self.store.study_dir.resolve() / "outputs" / cell.run_id) if cell.job.save_outputs else None,
        }

    def _ensure_reference(self, cell: Cell, pool: Pool) -> None:
        """A resumed study may have its baseline's record and no longer its latents: computes them, untimed; once, where
        that fails. Raises ResultsError for a full disk."""
        if not cell.job.measure.parity or self.reference(cell).exists() or cell.reference in self._lost:
            return
        for record in self.store.records:
            if record.status == "ok" and record.point["engine"] == STOCK and record.fingerprint == self._fingerprint:
                point = Point.from_dict(record.point)
                if (
                    record.run_id != cell.run_id
                    and reference_key(point, self._fingerprint, self.code) == cell.reference
                ):
                    command = {**self._command(cell), "point": record.point, "measure": None, "outputs": None}
                    deadline = deadline_s(cell.job, record.total_s)
                    answers = pool.run(command, deadline)
                    self._check_disk(answers)
                    if any(answer.kind != "result" for answer in answers):
                        self._lost.add(cell.reference)
                        self.note(f"   no reference for {cell.point.label}: {judge(answers, deadline).reason}")
                    return

    def _check_disk(self, answers: Sequence[Answer]) -> None:
        """A full disk is no point's failure: it ends the plan. Raises ResultsError."""
        for answer in answers:
            if answer.body.get("kind") == "disk":
                raise ResultsError(
                    f"{self.store.study_dir} can not take the point's latents and image ({answer.body['message']}); "
                    f"earlier records are intact: make room and run the same command again, it goes on from here"
                )

    @property
    def _fingerprint(self) -> str:
        return str(self.machine["fingerprint"])

    def reference(self, cell: Cell) -> Path:
        return self._kept(cell.reference)

    def _kept(self, key: str) -> Path:
        return self.store.study_dir.resolve() / "references" / f"{key}.safetensors"
