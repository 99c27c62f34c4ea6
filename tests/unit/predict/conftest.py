"""Points of the published study, for tests of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.points import load_model, make_point


@pytest.fixture
def schnell() -> ModelSpec:
    return load_model("flux_schnell")


@pytest.fixture
def study_point(schnell: ModelSpec) -> Callable[..., Point]:
    """A point of the published engine: 256 text tokens, no VAE."""

    def make(topology: str, res: int, ulysses: int = 1, ring: int = 1, **changes: Any) -> Point:
        default = {"engine": "xdit_2024", "text_tokens": 256, "vae": "none"}
        return make_point(
            schnell, topology=topology, height=res, width=res, ulysses=ulysses, ring=ring, **{**default, **changes}
        )

    return make
