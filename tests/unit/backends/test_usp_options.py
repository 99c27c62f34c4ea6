"""What a point leaves out is switched off in the engine, and nothing else is."""

from __future__ import annotations

import dataclasses

import pytest

from xdit_bench.backends.usp import options
from xdit_bench.config import Point
from xdit_bench.engine.flux import Options
from xdit_bench.rungs import RUNGS

POINT = Point(
    model="flux_schnell", height=1024, width=1024, steps=4, text_tokens=512, ulysses=1, ring=2, engine="usp",
    execution="graph", attention="auto", vae="none", dtype="bf16", weights="random", seed=0, topology="h200_nvlink",
    transport="p2p",
)  # fmt: skip


ELSEWHERE = ("graph", "kernel", "shard_text")  # in the point's execution and attention, in the text stage


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung not in ELSEWHERE])
def test_one_rung_is_one_option(rung: str) -> None:
    whole = dataclasses.asdict(Options())
    less = dataclasses.asdict(options(dataclasses.replace(POINT, without=rung)))
    assert sum(whole[name] != less[name] for name in whole) == 1


def test_every_option_is_a_rung_and_the_whole_engine_leaves_nothing_out() -> None:
    assert options(POINT) == Options()
    plain = options(dataclasses.replace(POINT, without="+".join(r for r in RUNGS if r not in ELSEWHERE)))
    assert all(getattr(plain, f.name) != f.default for f in dataclasses.fields(Options))


def test_a_transport_of_nccls_own_is_not_gone_around() -> None:
    assert options(dataclasses.replace(POINT, transport="host")) == Options(symmetric=False)
