"""From jobs to an ordered list of cells: baselines added, doubles dropped, infeasible ones known before anything runs.

Owns what is run and in which order; runs nothing.

    cells = make_cells(jobs, gpus=2, fingerprint="…", code="…")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig, infeasible, run_id
from xdit_bench.predict.advice import needs_no_more
from xdit_bench.results.schema import Record

FAKE = "fake"  # tests' engine; it has no plain diffusers to be compared with
STOCK = "stock"


@dataclass(frozen=True)
class Job:
    """One point to measure and how. `command` is the line that was typed; `why_not`, what its engine lacks for it;
    `guess`, of a search: the size it tries first, None for the largest."""

    point: Point
    model: ModelSpec
    measure: MeasureConfig
    run: RunConfig
    launch: LaunchConfig
    save_outputs: bool = False
    command: str = ""
    why_not: str | None = None
    guess: int | None = None


@dataclass(frozen=True)
class Cell:
    """A job with its identity. Cells of one `reference` must yield equal latents; `truth` is the reference of the same
    point in fp32; `why_not`: it can not run here."""

    job: Job
    run_id: str
    reference: str
    truth: str
    why_not: str | None = None

    @property
    def point(self) -> Point:
        """What is measured."""
        return self.job.point


def make_cells(jobs: Sequence[Job], *, gpus: int, fingerprint: str, code: str) -> list[Cell]:
    """All cells in running order; infeasible ones first, since they cost nothing."""
    cells: dict[str, Cell] = {}
    for job in [*jobs, *baselines(jobs, gpus)]:
        cell = make_cell(job, gpus=gpus, fingerprint=fingerprint, code=code)
        cells.setdefault(cell.run_id, cell)
    seed = ",".join(sorted(cells))
    return sorted(cells.values(), key=lambda cell: _order(cell, seed))


def make_cell(job: Job, *, gpus: int, fingerprint: str, code: str) -> Cell:
    """One job with its identity, and what keeps it from running here."""
    point = job.point
    why_not = job.why_not or infeasible(point, job.model, gpus=gpus)
    reference, truth = (reference_key(p, fingerprint, code) for p in (point, replace(point, dtype="fp32")))
    return Cell(job, run_id(point, fingerprint, code), reference, truth, why_not)


def reference_key(point: Point, fingerprint: str, code: str) -> str:
    """Points with equal keys must yield equal latents. 16 hex digits."""
    same = [point.model, point.height, point.width, point.steps, point.text_tokens, point.seed, point.weights,
            point.dtype, point.prompt, point.engine == FAKE]  # fmt: skip
    return hashlib.sha256(json.dumps([same, fingerprint, code]).encode()).hexdigest()[:16]


def doomed(cell: Cell, records: Iterable[Record]) -> str | None:
    """Why the cell must run out of memory, since a smaller one of the same kind has; None when it may fit."""
    point = cell.point
    for record in records:
        if record.status != "oom":
            continue
        other = Point.from_dict(record.point)
        if point.engine == FAKE and point.prompt != other.prompt:  # its prompt is the fault
            continue
        same = (point.execution, point.attention) == (other.execution, other.attention)
        if same and needs_no_more(other, point) and point.image_tokens > other.image_tokens:
            return (
                f"{other.label} already ran out of memory on {other.gpus} GPU{'s' if other.gpus > 1 else ''} "
                f"(run {record.run_id}); run.probe_all=true tries all the same"
            )
    return None


def cost(point: Point) -> float:
    """Relative time of an image, for estimates: linear work and attention over the ranks (12.9 GFLOP a token and
    4 L^2 h 57 a step, see the performance model), and a constant for what does not shrink."""
    tokens = point.image_tokens + point.text_tokens
    return 0.2 + point.steps * (tokens * 12.9e9 + 4 * tokens**2 * 3072 * 57) / 5e14 / point.gpus


def baselines(jobs: Sequence[Job], gpus: int) -> list[Job]:
    """Every feasible point's two one-GPU baselines: its own engine, and plain diffusers. Our engine with gains left out
    has the second alone: no speedup stands on it.

    Of plain diffusers the VAE is the single-GPU one; kernel and execution are what it does by itself.
    """
    added = []
    for job in jobs:
        point = job.point
        if job.why_not or infeasible(point, job.model, gpus=gpus):
            continue
        alone = replace(point, ulysses=1, ring=1)
        if not point.without:
            added.append(replace(job, point=alone))
        if point.engine != FAKE:
            vae = "none" if point.vae == "none" else "single"
            stock = replace(alone, engine=STOCK, execution="eager", attention="auto", vae=vae, without="")
            added.append(replace(job, point=stock))
    return added


def _order(cell: Cell, seed: str) -> tuple[object, ...]:
    """One pool and one set of weights at a time, small images before large, baselines first, the rest shuffled so
    that drift hits all configurations alike; a point with an exact decode first, as a reference needs its image."""
    point = cell.point
    baseline = 0 if point.engine == STOCK and point.gpus == 1 else 1 if point.gpus == 1 else 2
    shuffled = hashlib.sha256(f"{seed}{cell.run_id}".encode()).hexdigest() if cell.job.run.shuffle else ""
    return (
        cell.why_not is None,
        point.transport,
        point.model,
        point.weights,
        point.dtype != "fp32",  # the others' distance from it is taken
        point.seed,
        point.height * point.width,
        baseline,
        point.vae in ("none", "tiled"),
        shuffled,
        point.gpus,
        point.ulysses,
        cell.run_id,
    )
