"""Figures against pictures that were looked at. After a wanted change: `python tests/golden/test_golden_figures.py`
draws them anew; look at each before committing it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from synthetic import CPU, frontier, ladder, oom, record, study  # noqa: E402

from xdit_bench.reporting import draw_frontier, draw_headline, draw_ladder, draw_parts, draw_peers, draw_scaling  # noqa: E402
from xdit_bench.reporting.marks import mark_group  # noqa: E402
from xdit_bench.reporting.published import load_published, match  # noqa: E402
from xdit_bench.reporting.study import Group, group_records  # noqa: E402
from xdit_bench.reporting.style import COLUMN, PAGE, drawing, settle  # noqa: E402

DPI = 60
RMS, STRONG = 12.0, 0.02  # grey levels of 255, and the share of pixels that may differ by more than 64 of them


def measured(scale: float = 1.0) -> Group:
    """The study's grid with the one-GPU OOM, two VAE modes, and a second engine."""
    records = study(scale=scale) + study(scale=1.1 * scale, vae="single", splits=((2, 1), (8, 1)))
    records += [r for r in study(scale=1.3 * scale, vae="tiled", splits=((8, 1),)) if r.point["engine"] == "usp"]
    records += [record(0.5 * scale, engine="diffusers", ulysses=2, execution="compile")]
    return group_records(records)[0]


def predicted() -> Group:
    """The same grid as a prediction for the published machine."""
    machine = {"fingerprint": "predicted-1", "gpu": "A100", "gpus": 8}
    return group_records(study(source="predicted", machine=machine, topology="a100_nvlink", oom_at=9999, scale=3.0))[0]


def cpu() -> Group:
    """Two small sizes on CPU ranks, where more ranks are slower."""
    return group_records(study(machine=CPU, sizes=(256, 384), splits=((1, 1), (2, 1), (2, 2)), topology="cpu"))[0]


def profiled() -> Group:
    """Splits whose steps were profiled: more terms than the figure tells apart."""
    records = study(sizes=(1024, 2048), splits=((1, 1), (2, 1), (4, 1)))
    for item in records:
        names = ("gemm", "attention", "elementwise", "communication", "launch", "merge", "ring", "pack")
        item.attribution = {f"{name}_s": item.step_s["median"] / 2 ** (k + 1) for k, name in enumerate(names)}
    return group_records(records)[0]


def searched() -> list[Group]:
    """The largest size that fits, of three VAE modes and two GPU counts, on a whole card and below a cap."""
    tops = {("single", 1): 4096, ("single", 2): 4096, ("tiled", 1): 8192, ("parallel", 1): 6464, ("parallel", 2): 8192}
    found = {(cap, gpus, vae): top // (2 if cap else 1) // 64 * 64
             for cap in (None, 48.0) for (vae, gpus), top in tops.items()}  # fmt: skip
    return group_records(frontier(found))


def climbed() -> Group:
    """The engine's ladder on one GPU and over two in both splits; the plain one runs out of memory once."""
    records = ladder()
    plain = next(r for r in records if (r.point["res"], r.point["ring"], r.point["execution"]) == (2048, 2, "eager"))
    records[records.index(plain)] = oom(**plain.point)
    return group_records(records)[0]


FIGURES: dict[str, Callable[[], object]] = {
    "headline": lambda: draw_headline.headline(measured(), PAGE),
    "headline_column": lambda: draw_headline.headline(measured(), COLUMN),
    "headline_predicted": lambda: mark_group(draw_headline.headline(predicted(), PAGE), predicted()),
    "headline_cpu": lambda: mark_group(draw_headline.headline(cpu(), PAGE), cpu()),
    "strategies": lambda: draw_scaling.strategies(measured(), PAGE),
    "heatmap": lambda: draw_scaling.heat_map(measured(), PAGE),
    "speedups": lambda: draw_scaling.speedups(measured(), PAGE),
    "stages": lambda: draw_parts.stages(measured(), PAGE),
    "memory": lambda: draw_parts.memory(measured(), PAGE),
    "vae": lambda: draw_parts.vae_effect(measured(), PAGE),
    "attribution": lambda: draw_parts.attribution(profiled(), PAGE),
    "energy": lambda: draw_parts.energy(measured(), PAGE),
    "parity": lambda: draw_peers.parity(measured(), PAGE),
    "frontier_column": lambda: draw_frontier.frontier(searched(), COLUMN),
    "ladder": lambda: draw_ladder.climb(climbed(), PAGE),
    "ladder_column": lambda: draw_ladder.climb(climbed(), COLUMN),
    "engines": lambda: draw_peers.engines(measured(), PAGE),
    "published": lambda: draw_peers.published(predicted(), match(predicted(), load_published()), PAGE),
}


def draw(make: Callable[[], object]) -> np.ndarray:
    """The figure as grey levels."""
    with drawing():
        figure = settle(make())  # type: ignore[arg-type]
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return np.asarray(Image.open(buffer).convert("L"), dtype=float)


def differs(seen: np.ndarray, golden: np.ndarray) -> str:
    """How two pictures differ beyond the tolerance; empty where they do not."""
    if seen.shape != golden.shape:
        return f"size {seen.shape} instead of {golden.shape}"
    apart = np.abs(seen - golden)
    rms, strong = float(np.sqrt((apart**2).mean())), float((apart > 64).mean())
    return f"rms {rms:.1f}, {100 * strong:.1f} % of pixels far off" if rms > RMS or strong > STRONG else ""


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_looks_like_the_picture_that_was_approved(name: str) -> None:
    golden = np.asarray(Image.open(HERE / f"{name}.png").convert("L"), dtype=float)
    assert not differs(draw(FIGURES[name]), golden)


def test_the_tolerance_notices_one_bar_that_changed() -> None:
    golden = draw(lambda: draw_headline.headline(measured(), PAGE))
    changed = study(scale=1.0)
    for item in changed:
        if (item.point["res"], item.point["gpus"], item.status) == (2048, 2, "ok"):
            item.latency_s["total"]["median"] *= 1.6
    assert differs(draw(lambda: draw_headline.headline(group_records(changed)[0], PAGE)), golden)


if __name__ == "__main__":
    for name, make in FIGURES.items():
        Image.fromarray(draw(make).astype("uint8")).save(HERE / f"{name}.png", optimize=True)
        print(HERE / f"{name}.png")
