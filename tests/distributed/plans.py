"""Plans of the fake engine on real gloo ranks, for the tests of this folder."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from rich.console import Console

from xdit_bench import data_dir
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.runner.execute import run_plan
from xdit_bench.runner.plan import Job

MACHINE = {"fingerprint": "test", "device": "cpu", "gpus": 4}
QUICK = MeasureConfig(warmup=1, repeats=2, max_repeats=2, precision=0.5, time_cap_s=5.0)
T = TypeVar("T")


def tiny() -> ModelSpec:
    return ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))


def fake_point(ulysses: int = 1, ring: int = 1, *, engine: str = "fake", res: int = 64, **script: object) -> Point:
    """A point whose prompt tells the fake engine what to do."""
    return Point(
        model="flux_tiny", height=res, width=res, steps=2, text_tokens=12, ulysses=ulysses, ring=ring, engine=engine,
        execution="eager", attention="auto", vae="parallel", dtype="fp32", weights="random", seed=0, topology="cpu",
        transport="p2p", prompt=json.dumps(script),
    )  # fmt: skip


def run_points(
    points: list[Point],
    results: Path,
    *,
    measure: MeasureConfig = QUICK,
    printed: io.StringIO | None = None,
    launch: LaunchConfig = LaunchConfig(),  # noqa: B008  # never written to
    **knobs: object,
) -> tuple[list[Record], str]:
    """The study's records after a plan, and what was printed."""
    config = RunConfig(**{"recheck": 0.0, "deadline_s": 60.0, **knobs})  # type: ignore[arg-type]
    model = tiny()
    jobs = [Job(p, model, measure, config, launch, save_outputs=True) for p in points]
    printed = printed or io.StringIO()
    with Store.open(results, "s") as store:
        console = Console(file=printed, width=400)
        run_plan(jobs, store, machine=MACHINE, software={}, study="s", console=console)
        return list(store.records), printed.getvalue()


def wait_for(condition: Callable[[], T]) -> T:
    """The first true value of `condition`, looked for during a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError("waited a minute in vain")
