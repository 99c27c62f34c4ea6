"""From a composed configuration to a point of a machine: which topology, measured or predicted, against what.

Owns the plan that Hydra's jobs fill; leaves running it to `__main__`.

    plan = Plan(machine=probe())
    plan.add(cfg)  # inside a Hydra job
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xdit_bench.config import Config, ModelSpec, Point, check_available, lacking, resolve
from xdit_bench.errors import ConfigError, Infeasible, TopologyError, UserError
from xdit_bench.predict.memory import largest_that_fits, weights_bytes
from xdit_bench.runner.frontier import trials
from xdit_bench.runner.plan import Job, baselines
from xdit_bench.topology import match
from xdit_bench.topology.specs import Topology, from_dict


@dataclass(frozen=True)
class PlannedPoint:
    """One job's point with all that running it needs. `measured` says whether it is run or predicted; `why_not`, why it
    can be neither here."""

    point: Point
    model: ModelSpec
    topology: Topology
    cfg: Config
    measured: bool
    notes: tuple[str, ...] = ()
    why_not: str | None = None


@dataclass
class Plan:
    """The points of all jobs, collected before any runs, and the first thing wrong with any of them."""

    machine: dict[str, Any]
    points: list[PlannedPoint] = field(default_factory=list)
    error: UserError | None = None

    def add(self, raw: DictConfig) -> None:
        """One Hydra job. Never raises for bad input: Hydra would print a trace and go on."""
        try:
            self.points.append(plan_point(raw, self.machine))
        except UserError as error:
            self.error = self.error or error


def plan_point(raw: DictConfig, machine: dict[str, Any]) -> PlannedPoint:
    """A composed config as a point of this machine or of the named topology. Raises UserError."""
    cfg: Config = OmegaConf.to_object(raw)  # type: ignore[assignment]
    typed = {override.split("=")[0] for override in HydraConfig.get().overrides.task}
    point, model = resolve(cfg, size_typed="res" in typed)
    topology = _topology(cfg, machine)
    measured, notes = _source(cfg, topology, machine)
    dtype = cfg.dtype.value
    if dtype == "auto":
        dtype = "fp32" if topology.name == "cpu" else "bf16"
    if measured:
        check_available(cfg, point)
    elif cfg.run.frontier:
        raise ConfigError(
            f"run.frontier tries sizes on the machine, and this point would be predicted for {topology.name}; "
            f"run it where the GPUs are, or on topology=cpu"
        )
    point = dataclasses.replace(point, dtype=dtype, topology=topology.name)
    return PlannedPoint(
        point=point,
        model=model,
        topology=topology,
        cfg=cfg,
        measured=measured,
        notes=notes,
        why_not=lacking(cfg),
    )


def within_host(points: list[PlannedPoint], machine: dict[str, Any]) -> list[PlannedPoint]:
    """A study's points, those on CPU ranks refused whose weights the host can not hold: its last resort would be to
    kill processes. Ranks share none, and every rank of a sweep's pool loads them, also one that a point leaves idle."""
    memory = float(machine["memory_bytes"])

    def ranks(planned: PlannedPoint) -> int:
        return -(-planned.point.gpus // planned.cfg.launch.nnodes)

    def refused(planned: PlannedPoint, loading: int, remedy: str) -> PlannedPoint:
        point = planned.point
        each = weights_bytes(planned.model) * (2 if point.dtype == "fp32" else 1)
        if point.topology != "cpu" or planned.why_not or loading * each <= memory:
            return planned
        held = (
            f"{loading} CPU rank{'s' if loading > 1 else ''} of model={point.model} hold {loading * each / 1e9:.0f} GB"
        )
        reason = f"{held} of weights in {point.dtype}, and this host has {memory / 1e9:.0f} GB of memory; use {remedy}"
        return dataclasses.replace(planned, why_not=reason)

    points = [refused(planned, ranks(planned), "model=flux_tiny, or GPUs") for planned in points]
    pool = max((ranks(planned) for planned in points if not planned.why_not), default=1)
    alone = "a sweep of their own, as other points here have more ranks and all ranks load them"
    return [planned if planned.cfg.run.isolation == "point" else refused(planned, pool, alone) for planned in points]


def _topology(cfg: Config, machine: dict[str, Any]) -> Topology:
    """The topology named, or for `auto` this machine's when it has GPUs, else a100_nvlink."""
    if cfg.topology["name"] != "auto":
        return from_dict(cfg.topology, origin=f"topology={cfg.topology['name']}")
    return match.auto_topology(machine)


def _source(cfg: Config, topology: Topology, machine: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether the point is measured, and what a reader must be told about that. Raises UserError."""
    measured, notes = _measurable(cfg, topology, machine)
    if not measured and cfg.launch.nnodes > 1:
        raise ConfigError(
            f"launch.nnodes={cfg.launch.nnodes} is measured alone, as a topology is of one host; leave "
            f"launch.nnodes out to predict {topology.name}"
        )
    return measured, notes


def _measurable(cfg: Config, topology: Topology, machine: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    asked = cfg.source.value
    if "measured" not in cfg.engine["sources"]:
        if asked == "measured":
            raise ConfigError(f"engine={cfg.engine['name']} exists for predictions alone; use source=predicted")
        return False, ()
    if asked == "predicted":
        return False, ()
    if topology.name == "cpu":
        return True, ()
    if asked == "auto" and cfg.topology["name"] == "auto":
        if machine["device"] == "cuda":
            return True, ()
        return False, (f"no GPU here: predicted for {topology.name} ({topology.gpus} x {topology.gpu.name})",)
    wrong = match.differences(topology, machine)
    if not wrong:
        return True, ()
    if asked == "measured" and cfg.topology["name"] == "auto":
        raise TopologyError(
            "source=measured needs a GPU, and this machine has none; use topology=cpu model=flux_tiny to try it on CPU "
            "ranks, or source=predicted (which no search of run.frontier takes)"
        )
    if asked == "measured":
        raise TopologyError(
            f"source=measured needs the machine that topology={topology.name} names: {'; '.join(wrong)}; "
            f"use topology=auto to measure this machine, or source=predicted"
        )
    return False, (f"this machine is not {topology.name} ({'; '.join(wrong)}): predicted",)


def predicted_baselines(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """The one-GPU points that predictions are compared with, as a measured plan adds them. An engine that can not be
    measured is compared with itself alone: plain diffusers of today is no base for the figures of another year."""
    added: dict[Point, PlannedPoint] = {}
    for planned in points:
        job = to_job(planned, "")
        for base in baselines([job], planned.topology.gpus):
            if base.point.engine == planned.point.engine or "measured" in planned.cfg.engine["sources"]:
                added.setdefault(base.point, dataclasses.replace(planned, point=base.point))
    asked = {planned.point for planned in points}
    return [planned for point, planned in added.items() if point not in asked]


def to_job(planned: PlannedPoint, command: str) -> Job:
    """The point as the runner takes it."""
    cfg = planned.cfg
    return Job(
        point=planned.point,
        model=planned.model,
        measure=cfg.measure,
        run=cfg.run,
        launch=cfg.launch,
        save_outputs=cfg.save_outputs,
        command=command,
        why_not=planned.why_not,
        guess=_guess(planned) if cfg.run.frontier else None,
    )


def _guess(planned: PlannedPoint) -> int | None:
    """Where a search begins: the largest of its sizes that memory holds by the model, None where it knows no such."""
    if not planned.topology.predictable:
        return None
    sizes = [trial.height for trial in trials(planned.point)]
    try:
        return largest_that_fits(planned.point, planned.model, planned.topology, sizes)
    except Infeasible:  # no profile of the engine
        return None
