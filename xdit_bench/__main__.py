"""Measures a grid of FLUX.1 images over GPUs, or predicts it for a machine that is not here; writes records, a report.

    python -m xdit_bench -m ulysses=1,2,4,8 ring=1,2 res=1024,2048,4096

Exit codes: 0 done (failed cells are records), 1 no point `ok`, 2 bad input, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
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

from xdit_bench import __version__, data_dir, keys
from xdit_bench.arguments import check_added, knobs, nearest, one_line, reproducible, submits, with_topology_files
from xdit_bench.config import Config, Point, check_study
from xdit_bench.errors import ConfigError, RankCrashed, UserError, first_line
from xdit_bench.planning import Plan, PlannedPoint, predicted_baselines, to_job, within_host
from xdit_bench.results.store import Store, newest, read_records
from xdit_bench.runner.frontier import trials
from xdit_bench.topology import match
from xdit_bench.topology.probe import fingerprint, probe, software
from xdit_bench.topology.specs import Topology

NO_POINT_OK, BAD_INPUT = 1, 2
GOES_ON = "what was done is kept, the same command goes on from there"


def run(plan: Plan, console: Console, command: str, *, shared: bool = False) -> int:
    """Runs or predicts every point of a plan, writes the reports, returns the exit code. Raises UserError.

    `shared` says that other jobs of the same sweep write the same studies meanwhile.
    """
    lent = next((planned for planned in plan.points if planned.measured and planned.cfg.launch.node_rank > 0), None)
    if lent is not None:  # before a store is opened: on a shared folder the first machine holds its lock
        from xdit_bench.runner.execute import lend

        lend(to_job(lent, command), _machine(lent, plan.machine))
        return 0
    machines: dict[str, Topology] = {}
    for planned in plan.points:
        name = planned.topology.name
        if not planned.measured and machines.setdefault(name, planned.topology) != planned.topology:
            raise ConfigError(f"two topologies of this sweep are named {name}; give one a name of its own")
    ok = False
    for study in dict.fromkeys(planned.cfg.study for planned in plan.points):
        points: dict[tuple[Point, bool, bool], PlannedPoint] = {}  # a value that was typed twice adds none
        for planned in plan.points:
            if planned.cfg.study == study:
                points.setdefault((planned.point, planned.measured, planned.cfg.run.frontier), planned)
        ok |= run_study(study, list(points.values()), plan.machine, console, command, shared)
    return 0 if ok else NO_POINT_OK


def run_study(
    study: str,
    points: list[PlannedPoint],
    machine: dict[str, Any],
    console: Console,
    command: str,
    shared: bool,
) -> bool:
    """One study of a plan; True when the newest record of one of its points is ok."""
    cfg = points[0].cfg
    if cfg.run.report:
        _writable(Path(cfg.reports_dir), study)
    with Store.open(Path(cfg.results_dir), study, shared=shared) as store:
        _predict(study, [p for p in points if not p.measured], store, console, command)
        try:
            _measure(study, [p for p in points if p.measured], store, machine, console, command)
        finally:
            statuses = {(Point.from_dict(r.point), r.source == "measured"): r.status for r in store.records}
            asked = [(trials(p.point) if p.cfg.run.frontier else [p.point], p.measured) for p in points]
            ok = any(statuses.get((point, measured)) == "ok" for listed, measured in asked for point in listed)
            if cfg.run.report and store.records:
                _report(store, study, Path(cfg.reports_dir), console, answers=ok)
        return ok


def _predict(study: str, points: list[PlannedPoint], store: Store, console: Console, command: str) -> None:
    if not points:
        return
    from xdit_bench.predict.records import predicted_record

    for note in dict.fromkeys(note for planned in points for note in planned.notes):
        console.print(f"[bold yellow]PREDICTED[/] {note}", soft_wrap=True)
    said, warned = 0, dict.fromkeys(note for planned in points for note in planned.notes)
    # others were predicted from other numbers, and do not count any more
    current = {record.run_id for record in newest(store.records)}
    for number, planned in enumerate([*points, *predicted_baselines(points)]):
        record = predicted_record(planned.point, planned.model, planned.topology, study, planned.why_not)
        record.command = command
        record.warnings = [*planned.notes, *record.warnings]
        if record.run_id not in current:
            store.append(record)
        said += record.status == "ok" and number < len(points)
        state = "predicted" if record.status == "ok" else record.status
        what = record.took or record.reason
        console.print(f"{state:>10}  {planned.point.label}  {what}", soft_wrap=True, markup=False)
        for warning in (one for one in record.warnings if one not in warned and number < len(points)):
            console.print(f"{'warning':>10}  {warning}", soft_wrap=True, markup=False)
            warned[warning] = None
    caution = "predictions never stand in for measurements: calibrate or measure before you buy"
    console.print(f"{said} point{'s' * (said != 1)} predicted; {caution}", soft_wrap=True)


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
    jobs = [to_job(planned, command) for planned in within_host(points, machine)]
    run_plan(jobs, store, machine=here, software=packages, study=study, console=console)


def _machine(planned: PlannedPoint, machine: dict[str, Any]) -> dict[str, Any]:
    """This machine as the point sees it: its GPUs, or CPU ranks whatever the cores."""
    on_cpu = planned.topology.name == "cpu"
    return {**machine, "device": "cpu", "gpus": planned.topology.gpus} if on_cpu else machine


def _writable(reports_dir: Path, study: str) -> None:
    """Refuses before the sweep what would else end it without its report. Raises ConfigError."""
    folder = reports_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (reports_dir / study).exists():
            folder = reports_dir / study
            folder.mkdir(exist_ok=True)  # a file of that name says so
        if not os.access(folder, os.W_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        raise ConfigError(
            f"reports go to {folder}, which can not be written ({error.strerror or error}); set reports_dir to a "
            f"folder that can, or run.report=false"
        ) from error


def _report(store: Store, study: str, reports_dir: Path, console: Console, *, answers: bool) -> None:
    """Writes it; prints its answer where a point of this command has a part in it."""
    from xdit_bench.reporting.page import summary, write_report

    records = read_records(store.study_dir)  # not the store's: other jobs of a cluster's sweep have written too
    write_report(records, study, reports_dir, outputs=store.study_dir / "outputs")
    for line in summary(records) if answers else ["No point of this command succeeded."]:
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
    for study in (argument.removeprefix("study=") for argument in argv if argument.startswith("study=")):
        for name in study.split(","):
            check_study(name)  # before Hydra makes its folder
    check_added(argv)
    register()
    jobs = Jobs(plan, command)

    def job(cfg: DictConfig) -> None:  # Hydra asks for a function
        jobs(cfg)

    app: Callable[[], None] = hydra.main(version_base="1.3", config_path=str(data_dir("conf")), config_name="config")(
        job
    )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise it prints and exits 1; bad input is ours to word, exit code 2
    sys.argv = [sys.argv[0], *argv]
    elsewhere = submits(argv)
    try:
        # Hydra composes every job of a sweep once to see that it can, then again to run it. Our jobs only plan, so
        # composing them is the check, and nothing has run when one is refused.
        with nullcontext() if elsewhere else patch.object(Sweeper, "validate_batch_is_legal"):
            app()
    except MissingConfigException as error:
        raise ConfigError(nearest(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    except OSError as error:
        raise ConfigError(f"results can not be written ({error}); set results_dir to a folder that can") from error
    except ValueError as error:
        if "Config group override must be" in str(error):
            raise ConfigError("model, engine, topology, vae and measure take a name each, not null") from error
        if "Only one of" not in str(error):
            raise
        raise ConfigError(
            "--cfg and --info show what one point is composed of, and -m asks for many; leave -m out"
        ) from error
    except RuntimeError as error:
        if not elsewhere:
            raise
        raise ConfigError(
            f"the cluster's launcher can not submit here ({first_line(error)}); see docs/clusters.md"
        ) from error


def register() -> None:
    """Makes schema and resolver known to Hydra; doing it twice changes nothing."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver(
        "xdit_bench.study",
        lambda topology, model: f"{_study_topology(topology)}-{model}",
        replace=True,
    )
    match.name_here.cache_clear()  # another command may be of another machine


def _study_topology(name: str) -> str:
    return match.name_here() if name == "auto" else name


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(given):
        print(knobs(__doc__ or ""))
        return 0
    if "--version" in given:
        print(f"xdit_bench {__version__}")
        return 0
    gc.set_threshold(50_000, 20, 20)  # a tenth of a sweep's planning went into looking for garbage among its points
    # Hydra takes its own flags before all knobs alone
    given = sorted(given, key=lambda argument: "=" in argument and not argument.startswith("-"))
    command = reproducible(given)
    console = Screen(stderr=False, highlight=False)
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
    except (KeyboardInterrupt, keys.Terminated) as told:
        Console(stderr=True).print(f"interrupted; {GOES_ON}")
        return told.code if isinstance(told, keys.Terminated) else keys.INTERRUPTED
    except BrokenPipeError:
        Console(stderr=True).print(f"nobody reads these lines any more, which ends the sweep; {GOES_ON}")
        raise


class Screen(Console):
    """Rich's, which would end the process with 1, the code of a sweep without a success, where its reader is gone."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


if __name__ == "__main__":
    sys.exit(keys.command(main))
