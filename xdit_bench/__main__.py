"""The Hydra app: jobs plan points, then the plan runs, then the report and the exit code.

    python -m xdit_bench -m ulysses=1,2,4,8 ring=1,2 res=1024,2048,4096

Exit codes: 0 done (failed cells are records), 1 no point `ok`, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from xdit_bench import data_dir
from xdit_bench.config import Config, ModelSpec, Point, check_available, lacking, resolve
from xdit_bench.errors import ConfigError, RankCrashed, TopologyError, UserError
from xdit_bench.results.store import Store, read_records
from xdit_bench.runner.plan import Job, baselines
from xdit_bench.topology import match
from xdit_bench.topology.probe import fingerprint, probe, software
from xdit_bench.topology.specs import Topology, from_dict, load

CPU_RANKS = 8
KNOB = re.compile(r"^(?P<indent>\s*)(?P<dash>- )?(?P<name>\w+): *(?P<value>[^#]*?) *(?:# (?P<note>.*))?$")
NO_POINT_OK, BAD_INPUT, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class PlannedPoint:
    """One job's point with all that running it needs. `measured` says whether it is run or predicted."""

    point: Point
    model: ModelSpec
    topology: Topology
    cfg: Config
    measured: bool
    notes: tuple[str, ...] = ()


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
    return PlannedPoint(
        point=dataclasses.replace(point, dtype=dtype, topology=topology.name),
        model=model,
        topology=topology,
        cfg=cfg,
        measured=measured,
        notes=notes,
    )


def _topology(cfg: Config, machine: dict[str, Any]) -> Topology:
    """The topology named, or for `auto` this machine's when it has GPUs, else a100_nvlink."""

    if cfg.topology["name"] != "auto":
        return from_dict(cfg.topology, origin=f"topology={cfg.topology['name']}")
    return match.auto_topology(machine)


def _source(cfg: Config, topology: Topology, machine: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether the point is measured, and what a reader must be told about that. Raises UserError."""
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
    if asked == "measured":
        raise TopologyError(
            f"source=measured needs the machine that topology={topology.name} names: {'; '.join(wrong)}; "
            f"use topology=auto to measure this machine, or source=predicted"
        )
    return False, (f"this machine is not {topology.name} ({'; '.join(wrong)}): predicted",)


def run(plan: Plan, console: Console, command: str, *, shared: bool = False) -> int:
    """Runs or predicts every point of a plan, writes the reports, returns the exit code. Raises UserError.

    `shared` says that other jobs of the same sweep write the same studies meanwhile.
    """
    lent = next((planned for planned in plan.points if planned.measured and planned.cfg.launch.node_rank > 0), None)
    if lent is not None:  # before a store is opened: on a shared folder the first machine holds its lock
        from xdit_bench.runner.execute import lend

        lend(_job(lent, command), _machine(lent, plan.machine))
        return 0
    ok = False
    for study in dict.fromkeys(planned.cfg.study for planned in plan.points):
        points = [planned for planned in plan.points if planned.cfg.study == study]
        ok |= run_study(study, points, plan.machine, console, command, shared)
    return 0 if ok else NO_POINT_OK


def run_study(
    study: str,
    points: list[PlannedPoint],
    machine: dict[str, Any],
    console: Console,
    command: str,
    shared: bool,
) -> bool:
    """One study of a plan; True when a point of it is ok."""
    cfg = points[0].cfg
    with Store.open(Path(cfg.results_dir), study, shared=shared) as store:
        _predict(study, [p for p in points if not p.measured], store, console, command)
        try:
            _measure(study, [p for p in points if p.measured], store, machine, console, command)
        finally:
            if cfg.run.report and store.records:
                _report(store, study, Path(cfg.reports_dir), console)
        asked = {_identity(p.point.to_dict()) for p in points}
        return any(r.status == "ok" and _identity(r.point) in asked for r in store.records)


def _identity(point: dict[str, Any]) -> str:
    return str(sorted(point.items()))


def _predict(study: str, points: list[PlannedPoint], store: Store, console: Console, command: str) -> None:
    if not points:
        return
    from xdit_bench.predict.records import predicted_record

    for note in dict.fromkeys(note for planned in points for note in planned.notes):
        console.print(f"[bold yellow]PREDICTED[/] {note}", soft_wrap=True)
    for planned in [*points, *_baselines(points)]:
        why_not = lacking(planned.cfg) if planned in points else None
        record = predicted_record(planned.point, planned.model, planned.topology, study, why_not)
        record.command = command
        record.warnings = [*planned.notes, *record.warnings]
        if not store.find(record.run_id):
            store.append(record)
    seconds = "predictions never stand in for measurements: calibrate or measure before you buy"
    console.print(f"{len(points)} points predicted; {seconds}", soft_wrap=True)


def _baselines(points: list[PlannedPoint]) -> list[PlannedPoint]:
    """The one-GPU points that predictions are compared with, as a measured plan adds them. An engine that can not be
    measured is compared with itself alone: plain diffusers of today is no base for the figures of another year."""
    added: dict[Point, PlannedPoint] = {}
    for planned in points:
        job = _job(planned, "")
        for base in baselines([job], planned.topology.gpus):
            if base.point.engine == planned.point.engine or "measured" in planned.cfg.engine["sources"]:
                added.setdefault(base.point, dataclasses.replace(planned, point=base.point))
    asked = {planned.point for planned in points}
    return [planned for point, planned in added.items() if point not in asked]


def _job(planned: PlannedPoint, command: str) -> Job:
    cfg = planned.cfg
    return Job(
        point=planned.point,
        model=planned.model,
        measure=cfg.measure,
        run=cfg.run,
        launch=cfg.launch,
        save_outputs=cfg.save_outputs,
        command=command,
        why_not=lacking(cfg),
    )


def _measure(
    study: str,
    points: list[PlannedPoint],
    store: Store,
    machine: dict[str, Any],
    console: Console,
    command: str,
) -> None:
    if not points:
        return
    from xdit_bench.runner.execute import run_plan

    packages = software()
    here = _machine(points[0], machine)
    here = {**here, "fingerprint": fingerprint(here, packages)}
    jobs = [_job(planned, command) for planned in points]
    run_plan(jobs, store, machine=here, software=packages, study=study, console=console)


def _machine(planned: PlannedPoint, machine: dict[str, Any]) -> dict[str, Any]:
    """This machine as the point sees it: its GPUs, or CPU ranks whatever the cores."""
    on_cpu = planned.topology.name == "cpu"
    return {**machine, "device": "cpu", "gpus": CPU_RANKS} if on_cpu else machine


def _report(store: Store, study: str, reports_dir: Path, console: Console) -> None:
    from xdit_bench.reporting.page import summary, write_report

    records = read_records(store.study_dir)  # not the store's: other jobs of a cluster's sweep have written too
    write_report(records, study, reports_dir, outputs=store.study_dir / "outputs")
    for line in summary(records):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"report: {reports_dir / study / 'index.html'}", soft_wrap=True)


@dataclass
class Jobs:
    """What Hydra calls for each job: planning here, running at once in a process of a cluster's own."""

    plan: Plan
    command: str

    def __call__(self, raw: DictConfig) -> None:
        """Adds the job's point to the plan, or runs it where another launcher than Hydra's basic one sent it."""
        if str(HydraConfig.get().launcher.get("_target_", "")).endswith("BasicLauncher"):
            self.plan.add(raw)
            return
        alone = Plan(machine=probe())  # the machine that submitted may have no GPU
        alone.add(raw)
        if alone.error:
            raise alone.error
        run(alone, Console(highlight=False), self.command, shared=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()  # unpickled on a cluster's node, where nothing was composed yet


def compose_and_plan(argv: list[str], plan: Plan, command: str) -> None:
    """Lets Hydra compose every job of the command line into the plan. Raises UserError for what it refuses."""
    register()
    jobs = Jobs(plan, command)

    def job(cfg: DictConfig) -> None:  # Hydra asks for a function
        jobs(cfg)

    app: Callable[[], None] = hydra.main(version_base="1.3", config_path=str(data_dir("conf")), config_name="config")(
        job
    )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise it prints and exits 1; bad input is ours to word, exit code 2
    sys.argv = [sys.argv[0], *argv]
    try:
        # Hydra composes every job of a sweep once to see that it can, then again to run it. Our jobs only plan, so
        # composing them is the check, and nothing has run when one is refused.
        elsewhere = any(argument.startswith("hydra/launcher=") for argument in argv)
        with nullcontext() if elsewhere else patch.object(Sweeper, "validate_batch_is_legal"):
            app()
    except MissingConfigException as error:
        raise ConfigError(_nearest(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    except OSError as error:
        raise ConfigError(f"results can not be written ({error}); set results_dir to a folder that can") from error


def register() -> None:
    """Makes schema and resolver known to Hydra; doing it twice changes nothing."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver(
        "xdit_bench.study",
        lambda topology, model: f"{_study_topology(topology)}-{model}",
        replace=True,
        use_cache=True,
    )


def _study_topology(name: str) -> str:
    return match.auto_name(probe()) if name == "auto" else name


def _nearest(error: MissingConfigException) -> str:
    """`unknown topology 'a100_nvlnk'; did you mean a100_nvlink? There are …`."""
    group, _, given = str(error.missing_cfg_file or "").rpartition("/")
    options = [option for option in (error.options or []) if option != "auto"]
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown {group or 'config'} {given!r}; {hint}There are {', '.join(options)}"


def _one_line(error: Exception) -> str:
    """Hydra's message without its trace: what it refuses, then why."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith(("full_key", "object_type", "reference_type"))]
    return "; ".join(dict.fromkeys(wanted))


def with_topology_files(argv: list[str]) -> list[str]:
    """`topology=path/to/box.yaml` becomes Hydra's own form: the file's stem, from a config group of its own.

    The group is a folder that holds these files alone; a folder of the person's on Hydra's search path would make
    config groups of whatever lies in it. Raises TopologyError for a bad file.
    """
    files: list[Path] = []
    rewritten = []
    for argument in argv:
        key, _, value = argument.partition("=")
        if key == "topology" and any(choice.endswith((".yaml", ".yml")) for choice in value.split(",")):
            choices = [Path(choice) for choice in value.split(",")]
            files += [path for path in choices if path.suffix]
            argument = f"topology={','.join(path.stem for path in choices)}"
        rewritten.append(argument)
    if not files:
        return argv
    group = Path(tempfile.mkdtemp(prefix="xdit_bench_")) / "topology"  # stays: a cluster's job composes again
    group.mkdir()
    for path in files:
        load(str(path))  # refuses a bad file by file, key and rule, before Hydra sees it
        (group / f"{path.stem}.yaml").symlink_to(path.resolve())
    return [*rewritten, f"hydra.searchpath=[file://{group.parent}]"]


def reproducible(argv: list[str]) -> str:
    """The line to type again. Where the person kept results is left out: a record may be shown to others."""
    kept = [argument for argument in argv if not argument.startswith(("results_dir=", "reports_dir="))]
    return shlex.join(["python", "-m", "xdit_bench", *kept])


def knobs() -> str:
    """The help text: every knob with its default and one line, read from the comments of `conf/`."""
    lines = [(__doc__ or "").strip(), "", "knobs (name: default, then what it does); sweep any with -m name=a,b", ""]
    for file, prefix in (("config", ""), ("measure/default", "measure."), ("launch/local", "launch.")):
        section = prefix
        for line in (data_dir("conf") / f"{file}.yaml").read_text().splitlines():
            found = KNOB.match(line)
            if found and not found["indent"] and not found["value"]:
                section = f"{found['name']}."
            elif found and found["note"]:
                name = (section if found["indent"] and not found["dash"] else prefix) + found["name"]
                lines.append(f"  {name + ': ' + found['value'].strip().replace('>-', '…'):<34} {found['note']}")
    return "\n".join([*lines, "", "more: --cfg job shows the composed configuration, --hydra-help Hydra's own flags"])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(given):
        print(knobs())
        return 0
    command = reproducible(given)
    console = Console(stderr=False, highlight=False)
    plan = Plan(machine=probe())
    try:
        compose_and_plan(with_topology_files(given), plan, command)
        if plan.error:
            raise plan.error
        if not plan.points:
            return 0  # --cfg, --help and their kind, or a cluster's jobs
        return run(plan, console, command)
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", soft_wrap=True, markup=False)
        return BAD_INPUT
    except RankCrashed as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", soft_wrap=True, markup=False)
        return NO_POINT_OK
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what was done is kept, the same command goes on from there")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
