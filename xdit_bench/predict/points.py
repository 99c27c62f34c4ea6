"""Points and models without Hydra: for verbs that only predict, and for published figures.

model = load_model("flux_schnell")
point = make_point(model, topology="a100_nvlink", height=1024, width=1024, ulysses=4)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import yaml

from xdit_bench import data_dir
from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import ConfigError, did_you_mean


def model_names() -> list[str]:
    """Models that ship with the package."""
    return sorted(path.stem for path in (data_dir("conf") / "model").glob("*.yaml"))


@functools.cache
def load_model(name: str) -> ModelSpec:
    """A model by its name. Raises ConfigError with the nearest name."""
    if name not in model_names():
        raise ConfigError(f"model={name!r} is none of {', '.join(model_names())}{did_you_mean(name, model_names())}")
    return ModelSpec.from_dict(yaml.safe_load((data_dir("conf") / "model" / f"{name}.yaml").read_text()))


def make_point(model: ModelSpec, **changes: Any) -> Point:
    """A point of the model's own defaults (its steps and text length; usp, eager, parallel VAE), with changes."""
    default = Point(
        model=model.name, height=1024, width=1024, steps=model.steps, text_tokens=model.text_tokens, ulysses=1, ring=1,
        engine="usp", execution="eager", attention="auto", vae="parallel", dtype="bf16", weights="random", seed=0,
        topology="a100_nvlink", transport="p2p",
    )  # fmt: skip
    return dataclasses.replace(default, **changes)
