"""xfuser and DistVAE on GPUs: results of the plain pipeline, both kernels in one process, nothing left behind."""

from __future__ import annotations

import dataclasses
import io
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from xdit_bench import data_dir
from xdit_bench.config import LaunchConfig, MeasureConfig, ModelSpec, Point, RunConfig
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store
from xdit_bench.runner.execute import run_plan
from xdit_bench.runner.plan import Job
from xdit_bench.topology.probe import fingerprint, probe, software

TINY = ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / "flux_tiny.yaml").read_text()))
HEADS = {"attention_head_dim": 128, "num_attention_heads": 4, "axes_dims_rope": [16, 56, 56]}  # as the kernels expect
MODEL = dataclasses.replace(TINY, transformer={**TINY.transformer, **HEADS})
BASE = Point(
    model="flux_tiny", height=256, width=320, steps=3, text_tokens=64, ulysses=1, ring=1, engine="xfuser",
    execution="eager", attention="auto", vae="none", dtype="bf16", weights="random", seed=0, topology="test",
    transport="p2p",
)  # fmt: skip
SPLITS = ((2, 1), (1, 2))

pytestmark = pytest.mark.skipif(
    find_spec("xfuser") is None or find_spec("yunchang") is None, reason="the extra `peers` is not installed"
)


def run(points: list[Point], results: Path) -> list[Record]:
    machine, packages = probe(), software()
    machine["fingerprint"] = fingerprint(machine, packages)
    measure = MeasureConfig(warmup=1, repeats=3, max_repeats=3, precision=0.5, time_cap_s=20.0)
    jobs = [Job(p, MODEL, measure, RunConfig(recheck=0.0), LaunchConfig()) for p in points]
    with Store.open(results, "s") as store:
        run_plan(jobs, store, machine=machine, software=packages, study="s", console=Console(file=io.StringIO()))
        return list(store.records)


def split(point: Point, ulysses: int, ring: int, **knobs: object) -> Point:
    return dataclasses.replace(point, ulysses=ulysses, ring=ring, **knobs)


@pytest.mark.gpu
def test_one_gpu_gives_the_plain_pipelines_latents_in_every_execution(tmp_path: Path) -> None:
    points = [dataclasses.replace(BASE, execution=execution) for execution in ("eager", "compile")]
    others = [dataclasses.replace(BASE, engine=engine) for engine in ("diffusers", "usp")]  # on the same modules
    records = run([*points, *others], tmp_path)
    assert {r.status for r in records} == {"ok"}, [(r.point["engine"], r.reason) for r in records]


@pytest.mark.multigpu
def test_two_gpus_give_the_plain_pipelines_latents_with_either_kernel(tmp_path: Path) -> None:
    kernels = ["auto"] + ["fa3"] * (find_spec("fa3_fwd_interface") is not None)
    points = [split(BASE, u, r, attention=kernel) for u, r in SPLITS for kernel in kernels]
    points += [split(BASE, u, r, execution="compile") for u, r in SPLITS]
    points += [split(BASE, 2, 1, engine=engine) for engine in ("diffusers", "usp")]
    records = run(points, tmp_path)
    assert {r.status for r in records} == {"ok"}, [(r.point["engine"], r.reason) for r in records]
    split_up = [r for r in records if r.point["gpus"] == 2]
    assert all(r.parity["latents_rel_l2"] < 5e-2 for r in split_up)


@pytest.mark.multigpu
def test_its_broken_paths_are_reasons(tmp_path: Path) -> None:
    records = run([split(BASE, 2, 1, text_tokens=77), split(BASE, 1, 2, height=208, width=208)], tmp_path)
    reasons = [r.reason for r in records if r.point["gpus"] == 2]
    assert all("engine=usp" in reason for reason in reasons)
    assert {r.status for r in records if r.point["gpus"] == 2} == {"infeasible"}


@pytest.mark.multigpu
@pytest.mark.skipif(find_spec("distvae") is None, reason="the extra `peers` is not installed")
def test_distvae_decodes_the_plain_pipelines_image(tmp_path: Path) -> None:
    points = [split(BASE, u, r, engine=e, vae="distvae") for e in ("usp", "xfuser") for u, r in SPLITS]
    records = run([*points, split(BASE, 2, 1, engine="usp", vae="parallel")], tmp_path)
    assert {r.status for r in records} == {"ok"}, [(r.point["engine"], r.reason) for r in records]
    images = [r.parity["image_rel_l2"] for r in records if r.point["vae"] == "distvae" and r.point["gpus"] == 2]
    assert len(images) == 4
