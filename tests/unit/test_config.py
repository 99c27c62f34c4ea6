"""Every rule of a knob: refused with rule, value and remedy; and the point's identity."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.config import (
    Attention,
    Config,
    Dtype,
    Execution,
    LaunchConfig,
    ModelSpec,
    Point,
    Transport,
    check_available,
    check_weights,
    infeasible,
    lacking,
    resolve,
    run_id,
)
from xdit_bench.errors import ConfigError, MissingExtraError, WeightsError


def model_dict(name: str = "flux_schnell") -> dict:
    return OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / f"{name}.yaml"))


def config(**knobs: object) -> Config:
    cfg = Config(
        model=model_dict(),
        engine={"name": "usp", "executions": ["eager", "compile", "graph"]},
        vae={"name": "parallel"},
        topology={"name": "cpu"},
    )
    return dataclasses.replace(cfg, **knobs)


def point(**knobs: object) -> Point:
    return dataclasses.replace(resolve(config())[0], **knobs)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"res": 1000}, ("multiple of 16", "res=1000", "992 or 1008")),
        ({"res": 0}, ("multiple of 16", "res=0")),
        ({"res": -16}, ("multiple of 16", "res=-16")),
        ({"height": 720}, ("height and width go together", "height=720")),
        ({"width": 1280}, ("height and width go together", "width=1280")),
        ({"height": 720, "width": 1281}, ("multiple of 16", "width=1281", "1280 or 1296")),
        ({"ulysses": 0}, ("ulysses must be at least 1", "got 0")),
        ({"ring": -1}, ("ring must be at least 1", "got -1")),
        ({"steps": -1}, ("steps must be at least 0",)),
        ({"text_tokens": 513}, ("1 to 512", "text_tokens=513")),
        ({"memory_cap_gb": 0.0}, ("memory_cap_gb must be above 0",)),
        ({"study": "../elsewhere"}, ("study", "letters")),
        ({"study": ""}, ("study", "letters")),
        ({"without": "fusd"}, ("joined by '+'", "'fusd'", "did you mean fused?")),
        ({"without": "fused+"}, ("joined by '+'", "got ''")),
    ],
)
def test_refuses_with_rule_and_value(knobs: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(config(**knobs))
    for word in words:
        assert word in str(caught.value)


def test_refuses_a_size_given_twice() -> None:
    cfg = config(res=512, height=720, width=1280)
    assert resolve(cfg)[0].height == 720
    with pytest.raises(ConfigError, match="not both"):
        resolve(cfg, size_typed=True)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"execution": Execution.graph}, "engine=stock has no execution=graph; use eager, or engine=usp"),
        ({}, "engine=stock has no vae=parallel; use single, none"),
        ({"vae": {"name": "single"}}, None),
    ],
)
def test_names_what_an_engine_lacks(knobs: dict, reason: str | None) -> None:
    engine = {"name": "stock", "executions": ["eager"], "vaes": ["single", "none"]}
    found = lacking(config(engine=engine, **knobs))
    assert found is None if reason is None else reason in found


def test_only_our_engine_can_be_taken_apart() -> None:
    engine = {"name": "stock", "executions": ["eager"], "vaes": ["single"]}
    cfg = config(engine=engine, vae={"name": "single"}, without="fused")
    assert "without=fused is for engine=usp alone; use without=none" in str(lacking(cfg))
    assert resolve(cfg)[0].without == "fused", "the cell is a record of its own, not the whole engine's"
    assert lacking(dataclasses.replace(cfg, without="none")) is None


def test_a_changed_model_needs_a_name_of_its_own() -> None:
    model = model_dict()
    shallow = {**model, "transformer": {**model["transformer"], "num_layers": 1}}
    with pytest.raises(ConfigError, match=r"transformer\.num_layers differs; give the changed model a name of its own"):
        resolve(config(model=shallow))
    assert resolve(config(model={**shallow, "name": "shallow"}))[0].model == "shallow"
    assert resolve(config(model={**model, "steps": 7}))[0].model == model["name"], "steps are a default, no definition"


@pytest.mark.parametrize(
    ("knobs", "left"),
    [
        ({"without": "none"}, ("graph", "auto", "")),
        ({"without": "overlap+fused+overlap"}, ("graph", "auto", "fused+overlap")),
        ({"without": "graph+overlap"}, ("eager", "auto", "overlap")),
        ({"without": "kernel"}, ("graph", "cudnn", "")),
        ({"without": "kernel", "attention": Attention.fa3}, ("graph", "fa3", "")),
        ({"without": "fused+gelu_epilogue"}, ("graph", "auto", "fused")),
        ({"without": "fused", "execution": Execution.compile}, ("compile", "auto", "")),
        ({"without": "fused+overlap+symmetric", "ulysses": 1}, ("graph", "auto", "fused")),
        ({"without": "symmetric+overlap", "transport": Transport.host}, ("graph", "auto", "overlap")),
        ({"without": "gathered"}, ("graph", "auto", "")),
        ({"without": "gathered", "ulysses": 1, "ring": 2}, ("graph", "auto", "gathered")),
        ({"without": "kernel+fused+keys_first", "topology": {"name": "cpu"}}, ("graph", "auto", "keys_first")),
    ],
)
def test_an_engine_has_one_name_whatever_is_left_out_of_it(knobs: dict, left: tuple[str, str, str]) -> None:
    gpu = {"topology": {"name": "h200_nvlink"}, "execution": Execution.graph, "ulysses": 2, **knobs}
    found, _ = resolve(config(**gpu))
    assert (found.execution, found.attention, found.without) == left


@pytest.mark.parametrize(
    ("knobs", "execution"),
    [
        ({}, "graph"),
        ({"topology": {"name": "cpu"}}, "eager"),
        ({"transport": Transport.host}, "eager"),
        ({"dtype": Dtype.fp32}, "eager"),
        ({"launch": LaunchConfig(nnodes=2, rdzv_endpoint="a:1")}, "eager"),
        ({"engine": {"name": "stock", "executions": ["eager", "compile"]}}, "eager"),
        ({"execution": Execution.eager}, "eager"),
        ({"without": "graph"}, "eager"),
    ],
)
def test_auto_is_a_graph_where_the_engine_has_it_and_gpus_reach_each_other(knobs: dict, execution: str) -> None:
    assert resolve(config(**{"topology": {"name": "auto"}, **knobs}))[0].execution == execution


def test_a_record_from_before_rungs_is_the_whole_engine() -> None:
    whole = point()
    assert "without" not in whole.to_dict()
    assert Point.from_dict(whole.to_dict()) == whole
    part = point(without="overlap")
    assert Point.from_dict(part.to_dict()) == part
    assert part.label.endswith(" without=overlap")


def test_a_label_tells_points_apart_and_says_no_more() -> None:
    base = point(topology="h200_nvlink", dtype="bf16")
    usual = base.label
    unlike = [
        {"steps": 1}, {"steps": 0}, {"attention": "cudnn"}, {"dtype": "fp32"}, {"text_tokens": 256},
        {"transport": "host"}, {"memory_cap_gb": 48.0}, {"without": "fused"}, {"ring": 2}, {"vae": "tiled"},
    ]  # fmt: skip
    labels = {dataclasses.replace(base, **knobs).label for knobs in unlike} | {usual}
    assert len(labels) == 1 + len(unlike)
    assert usual == "flux_schnell 1024px u1r1 usp/eager vae=parallel 4 steps"
    assert dataclasses.replace(base, topology="cpu", dtype="fp32").label == usual


def test_a_picture_that_is_not_square_has_no_res() -> None:
    wide, _ = resolve(config(height=720, width=1280))
    assert (wide.res, wide.image_tokens) == (None, 45 * 80)
    assert wide.to_dict()["res"] is None


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"ulysses": 5}, "24 heads cannot be split over ulysses=5; use 1, 2, 3, 4, 6, 8, 12 or 24"),
        ({"ulysses": 8, "ring": 2}, "needs 16 CPU ranks, and there are 8"),
        ({"ulysses": 8, "ring": 2, "topology": "l40_pcie"}, "needs 16 GPUs, and there are 8"),
        ({"engine": "stock", "ulysses": 2, "vae": "single"}, "engine=stock is plain diffusers on one GPU"),
        ({"height": 16, "width": 1024, "ring": 3}, "parallel VAE needs a row"),
    ],
)
def test_names_why_a_cell_can_not_run(knobs: dict, reason: str) -> None:
    assert reason in str(infeasible(point(**knobs), ModelSpec.from_dict(model_dict()), gpus=8))


def test_a_cell_that_can_run_has_no_reason() -> None:
    model = ModelSpec.from_dict(model_dict())
    assert infeasible(point(ulysses=3, ring=2), model, gpus=8) is None
    few = point(ulysses=2, text_tokens=1)
    assert infeasible(few, model, gpus=8) is None, "a rank of ours may hold image tokens alone"
    assert "1 of them" in str(infeasible(dataclasses.replace(few, engine="xfuser", vae="single"), model, gpus=8))


def test_identity_changes_with_every_field_and_with_machine_and_code() -> None:
    base = point()
    ids = {run_id(base, "m", "c"), run_id(base, "other", "c"), run_id(base, "m", "other")}
    other = {
        "height": 512,
        "memory_cap_gb": 48.0,
        "seed": 1,
        "vae": "none",
        "transport": "host",
        "ulysses": 2,
        "without": "overlap",
    }
    ids |= {run_id(dataclasses.replace(base, **{key: value}), "m", "c") for key, value in other.items()}
    assert len(ids) == 3 + len(other)
    assert run_id(base, "m", "c") == run_id(Point.from_dict(base.to_dict()), "m", "c")


def test_weights_that_can_not_be_used_are_named(tmp_path) -> None:
    check_weights("random")
    check_weights("black-forest-labs/FLUX.1-schnell")
    with pytest.raises(WeightsError, match="none of them"):
        check_weights(str(tmp_path / "missing"))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="lacks transformer, text_encoder, text_encoder_2"):
        check_weights(str(tmp_path))


@pytest.mark.parametrize("group", ["engine", "vae"])
def test_a_missing_package_names_the_extra_that_holds_it(group: str) -> None:
    needs = {"extra": "peers", "modules": ["a_package_nobody_has"]}
    cfg = config()
    getattr(cfg, group).update(needs)
    with pytest.raises(MissingExtraError, match=r"a_package_nobody_has.*pip install 'xdit_bench\[peers\]'"):
        check_available(cfg, point())
    check_available(config(), point())


@pytest.mark.parametrize(("group", "name"), [("engine", "xfuser"), ("vae", "distvae")])
def test_peers_are_of_the_extra_peers(group: str, name: str) -> None:
    offered = OmegaConf.load(data_dir("conf") / group / f"{name}.yaml")
    assert offered.extra == "peers"
    assert name in offered.modules


def test_a_model_file_without_a_key_is_refused() -> None:
    broken = model_dict()
    del broken["vae"]
    with pytest.raises(ConfigError, match="vae"):
        ModelSpec.from_dict(broken)
