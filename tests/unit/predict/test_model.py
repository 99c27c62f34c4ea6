"""Predictions: the published figures within the promised errors, sane behaviour everywhere else."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import Infeasible, OutOfMemory
from xdit_bench.predict.decode import FUSED_TRAFFIC, decode_s
from xdit_bench.predict.measured import with_host
from xdit_bench.predict.model import predict
from xdit_bench.predict.network import Network
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.profiles import find
from xdit_bench.predict.roofline import stream_s
from xdit_bench.predict.text import CLIP_OPS, T5_LAYER, T5_OPS
from xdit_bench.predict.workload import text_encoders, vae_decoder
from xdit_bench.topology.specs import PASSES, Number, Topology, load

A100, L40, H200 = load("a100_nvlink"), load("l40_pcie"), load("h200_nvlink")
Make = Callable[..., Point]


def test_terms_add_up_to_the_step_and_stages_to_the_total(study_point: Make, schnell: ModelSpec) -> None:
    point = study_point("l40_pcie", 1024, 2, 2, vae="parallel")
    prediction = predict(point, schnell, L40)
    once = find(point.engine, point.execution).once_ops * L40.op_s(4)
    assert sum(prediction.terms.values()) == pytest.approx(prediction.step.median - once / point.steps)
    stages = [prediction.stages[stage].median for stage in ("text", "denoise", "vae")]
    assert sum(stages) == pytest.approx(prediction.total_s)
    assert all(i.low < i.median < i.high for i in prediction.stages.values())


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_a_larger_picture_or_more_steps_never_take_less_time(ulysses: int, ring: int, schnell: ModelSpec) -> None:
    def total(**changes: object) -> float:
        point = make_point(schnell, topology="h200_nvlink", ulysses=ulysses, ring=ring, **changes)
        return predict(point, schnell, H200).total_s

    sizes = [total(height=side, width=side) for side in range(512, 3072, 128)]
    assert sizes == sorted(sizes)
    assert total(steps=5) > total(steps=4)
    assert total(text_tokens=512) >= total(text_tokens=77)


def test_twice_the_bandwidth_never_hurts(study_point: Make, schnell: ModelSpec) -> None:
    def faster(key: str) -> float:
        levels = tuple(dataclasses.replace(level, **{key: 2 * getattr(level, key)}) for level in L40.levels("p2p"))
        topology = dataclasses.replace(L40, links={"p2p": levels})
        return predict(study_point("l40_pcie", 2048, 4, 2), schnell, topology).total_s

    base = predict(study_point("l40_pcie", 2048, 4, 2), schnell, L40).total_s
    assert faster("all_to_all_bytes_per_s") < base
    assert faster("bytes_per_s") < base


def test_slow_links_cost_what_they_should(schnell: ModelSpec) -> None:
    totals = [
        predict(make_point(schnell, topology="h200_nvlink", ulysses=2, transport=t), schnell, H200).total_s
        for t in ("p2p", "host", "socket")
    ]
    assert totals == sorted(totals)
    assert totals[2] > 2 * totals[0]


def test_a_captured_graph_has_no_launch_floor(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=256, width=256, ulysses=2)
    eager = predict(point, schnell, H200)
    graph = predict(dataclasses.replace(point, execution="graph"), schnell, H200)
    assert eager.terms["launch"] > 0
    assert graph.terms["launch"] == pytest.approx(0.0, abs=1e-12)
    assert eager.bottleneck.startswith("launching operations")


@pytest.mark.parametrize(
    ("engine", "execution", "attention", "res", "measured_ms"),
    [
        ("stock", "eager", "cudnn", 1024, 182), ("stock", "eager", "cudnn", 2048, 869),
        ("stock", "eager", "flash", 4096, 10907), ("stock", "compile", "cudnn", 1024, 132),
        ("stock", "compile", "cudnn", 4096, 6428),
    ],
)  # fmt: skip
def test_plain_steps_on_one_h200_are_within_a_tenth(
    schnell: ModelSpec, engine: str, execution: str, attention: str, res: int, measured_ms: float
) -> None:
    point = make_point(
        schnell, topology="h200_nvlink", height=res, width=res, engine=engine, execution=execution,
        attention=attention, vae="none",
    )  # fmt: skip
    assert 1e3 * predict(point, schnell, H200).step.median == pytest.approx(measured_ms, rel=0.10)


def test_the_engine_compiled_on_8_a100s_is_what_was_published_and_never_fitted(
    study_point: Make, schnell: ModelSpec
) -> None:
    for res, seconds in ((1024, 0.82), (2048, 2.4)):
        point = study_point("a100_nvlink", res, 8, 1, vae="single", execution="compile")
        assert predict(point, schnell, A100).total_s == pytest.approx(seconds, rel=0.05)


def test_fewer_tokens_than_calibrated_widen_the_interval_with_a_warning(schnell: ModelSpec) -> None:
    def spread(side: int) -> tuple[float, tuple[str, ...]]:
        point = make_point(schnell, topology="a100_nvlink", height=side, width=side, vae="none")
        prediction = predict(point, schnell, A100)
        return prediction.stages["total"].high / prediction.total_s, prediction.warnings

    assert spread(1024)[1] == ()
    narrow, (warning,) = spread(512)
    assert narrow > spread(1024)[0]
    assert "1024 image tokens, outside the 4096 to 65536" in warning


def test_what_no_token_changes_is_no_less_certain_of_a_small_image(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=256, width=256, vae="none", execution="eager")
    eager, graph = predict(point, schnell, H200), predict(dataclasses.replace(point, execution="graph"), schnell, H200)
    assert eager.warnings, "outside of what was calibrated"
    assert eager.stages["total"].low > 0.5 * graph.total_s, "which the GPUs have to compute whatever the host does"
    assert eager.stages["total"].high < 3 * eager.total_s


def test_more_tokens_than_calibrated_widen_the_interval_with_a_warning(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=8192, width=8192, ulysses=8)
    prediction = predict(point, schnell, H200)
    assert "262144 image tokens, outside the 4096 to 65536" in prediction.warnings[0]
    assert "3 times as large" in prediction.warnings[0]


def test_another_width_of_model_is_predicted_with_a_warning(schnell: ModelSpec) -> None:
    tiny = load_model("flux_tiny")
    prediction = predict(make_point(tiny, topology="a100_nvlink", vae="none"), tiny, A100)
    assert any("flux_tiny is 128 wide" in warning for warning in prediction.warnings)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ulysses": 8, "ring": 2}, "needs 16 GPUs, and there are 8"),
        ({"ulysses": 5}, "24 heads cannot be split over ulysses=5"),
        ({"engine": "stock", "ulysses": 2}, "plain diffusers on one GPU"),
        ({"engine": "xfuser", "execution": "graph"}, "no profile of engine=xfuser execution=graph"),
        ({"engine": "xfuser", "ulysses": 8, "text_tokens": 77}, "8 GPUs do not divide all tokens, here 77"),
        ({"attention": "fa3"}, "no number for attention=fa3"),
        ({"transport": "host", "ulysses": 2}, "no link numbers for transport=host"),
        ({"dtype": "fp32"}, "dtype=fp32 has to be measured"),
    ],
)
def test_what_can_not_be_predicted_is_infeasible_with_a_reason(
    schnell: ModelSpec, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(Infeasible, match=reason):
        predict(make_point(schnell, topology="a100_nvlink", **changes), schnell, A100)


def test_cpu_ranks_are_never_predicted(schnell: ModelSpec) -> None:
    with pytest.raises(Infeasible, match="topology=cpu is measured only"):
        predict(make_point(schnell, topology="cpu"), schnell, load("cpu"))


def test_out_of_memory_names_stage_bytes_and_remedy(study_point: Make, schnell: ModelSpec) -> None:
    with pytest.raises(OutOfMemory, match=r"the vae stage needs 88\.\d GB .* use vae=parallel") as caught:
        predict(study_point("a100_nvlink", 3072, vae="single"), schnell, A100)
    assert caught.value.details["stage"] == "vae"
    assert caught.value.details["bytes_asked"] > 85e9


def test_importing_and_predicting_needs_no_torch() -> None:
    code = (
        "import sys; from xdit_bench.predict.points import *; from xdit_bench.predict.records import predicted_record;"
        "from xdit_bench.topology.specs import load; model = load_model('flux_schnell');"
        "record = predicted_record(make_point(model, ulysses=8), model, load('a100_nvlink'), 's');"
        "assert record.status == 'ok', record;"
        "assert not {'torch', 'diffusers', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_banded_decode_waits_for_its_passes_where_a_machine_knows_their_speed(schnell: ModelSpec) -> None:
    half = Number(0.5 * H200.efficiency["memory"].value, "")
    rest = {name: number for name, number in H200.efficiency.items() if name != PASSES}
    unknown = dataclasses.replace(H200, efficiency=rest)
    slow = dataclasses.replace(H200, efficiency={**rest, PASSES: half})

    def decode(machine: Topology, vae: str) -> float:
        point = make_point(schnell, topology="h200_nvlink", height=2048, width=2048, vae=vae, execution="graph")
        return predict(point, schnell, machine).stages["vae"].median

    streamed = stream_s(H200, 256**2 * vae_decoder(schnell).traffic_bytes * FUSED_TRAFFIC)
    assert decode(slow, "parallel") - decode(unknown, "parallel") == pytest.approx(streamed, rel=0.01)
    assert decode(slow, "single") == decode(unknown, "single")


def test_hosts_issue_their_layers_of_t5_at_once_and_devices_compute_them_in_turn(schnell: ModelSpec) -> None:
    def text(ulysses: int, op_s: float, engine: str = "usp") -> float:
        point = make_point(schnell, topology="h200_nvlink", ulysses=ulysses, execution="eager", engine=engine)
        return predict(point, schnell, with_host(H200, op_s)).stages["text"].median

    slow = 1e-3  # hosts that set everything
    assert [text(gpus, slow) for gpus in (1, 2, 8)] == pytest.approx(
        [slow * (T5_OPS / gpus + CLIP_OPS) for gpus in (1, 2, 8)]
    )
    assert text(2, slow, "diffusers") == pytest.approx(slow * (T5_OPS + CLIP_OPS)), "every rank issues all of it"
    half = dataclasses.replace(schnell, text_encoder_2={**schnell.text_encoder_2, "num_layers": 12})
    point = make_point(half, topology="h200_nvlink", execution="eager", engine="stock")
    issued = predict(point, half, with_host(H200, slow)).stages["text"].median / slow
    assert issued == pytest.approx(T5_OPS * (1 - 12 * T5_LAYER) + CLIP_OPS), "of a shallower T5 less"
    assert text(8, 1e-9) == pytest.approx(text(1, 1e-9)), "no device computes before the one ahead of it is done"
    device, waits = text(1, 1e-9), 1e-5
    t5 = device - text_encoders(schnell).other_kernels * H200.host["kernel_gap_s"].value
    assert T5_OPS / 2 * waits > t5 / 2
    assert text(2, waits) == pytest.approx(max(device + T5_OPS / 2 * waits - t5 / 2, (T5_OPS / 2 + CLIP_OPS) * waits))


@pytest.mark.parametrize("changes", [
    {"ulysses": 2, "steps": 1, "text_tokens": 256},
    {"ring": 2, "steps": 1, "text_tokens": 256},
    {"ulysses": 6, "height": 1168, "width": 464, "execution": "compile", "engine": "diffusers"},
    {"ring": 4, "height": 512, "width": 512},
])  # fmt: skip
def test_a_faster_device_host_or_link_is_never_slower(schnell: ModelSpec, changes: dict[str, Any]) -> None:
    point = make_point(schnell, topology="h100_nvlink", **{"execution": "eager", **changes})
    h100 = load("h100_nvlink")

    def gpu(by: float) -> Topology:
        return dataclasses.replace(h100, gpu=dataclasses.replace(h100.gpu, peak_flops=by * h100.gpu.peak_flops))

    def host(by: float) -> Topology:
        return with_host(h100, h100.op_s(1) / by)

    def links(by: float) -> Topology:
        faster = {
            name: tuple(dataclasses.replace(level, bytes_per_s=by * level.bytes_per_s) for level in levels)
            for name, levels in h100.links.items()
        }
        return dataclasses.replace(h100, links=faster)

    for faster in (gpu, host, links):
        times = [predict(point, schnell, faster(1.0 + 0.01 * step)).total_s for step in range(0, 60, 2)]
        assert times == sorted(times, reverse=True), faster.__name__


def test_what_diffusers_refuses_is_not_foretold(schnell: ModelSpec) -> None:
    def time(**changes: Any) -> float:
        point = make_point(schnell, topology="h100_nvlink", engine="diffusers", vae="none", **changes)
        return predict(point, schnell, load("h100_nvlink")).total_s

    uneven = {"height": 720, "width": 720}
    assert time(ulysses=2, **uneven) > 0
    assert time(ring=2, **uneven) > 0
    with pytest.raises(Infeasible, match="use one of the two alone"):
        time(ulysses=2, ring=2, **uneven)
    assert time(attention="fa3") > 0
    with pytest.raises(Infeasible, match="on several GPUs has attention=cudnn or flash; got fa3"):
        time(ulysses=2, attention="fa3")


def test_a_plain_decode_is_one_whichever_engine_runs_it(schnell: ModelSpec) -> None:
    def vae(engine: str, execution: str, kind: str = "single") -> float:
        changes = {"height": 256, "width": 256, "engine": engine, "execution": execution, "vae": kind}
        slow = with_host(load("h100_nvlink"), 2e-5)  # no engine's host is far ahead of the device
        made = make_point(schnell, topology="h100_nvlink", **changes)
        return decode_s(made, schnell, slow, find(engine, execution), Network(slow, "p2p", 1, 1))

    assert len({vae(*run) for run in (("stock", "eager"), ("usp", "eager"), ("usp", "graph"))}) == 1
    assert vae("usp", "graph", "parallel") < vae("usp", "graph") < vae("usp", "eager", "parallel")


def test_bands_take_as_long_as_the_fullest_ranks(schnell: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[float] = []
    real = Network.all_gather_s
    monkeypatch.setattr(Network, "all_gather_s", lambda self, sent: gathered.append(sent) or real(self, sent))

    def vae(height: int, kind: str = "parallel") -> float:
        made = make_point(schnell, topology="h100_nvlink", height=height, width=1280, ulysses=8, vae=kind)
        network = Network(load("h100_nvlink"), "p2p", 8, 1)
        return decode_s(made, schnell, load("h100_nvlink"), find("usp", "graph"), network)

    assert vae(720) / vae(768) == pytest.approx(1, rel=0.02), "90 and 96 rows of latents: 12 on the fullest of 8"
    share = 96 * 160 / 8
    assert max(gathered) == 2 * 2 * 512 * share, "keys and values of the mid block, which bands share out"
    gathered.clear()
    vae(768, "distvae")
    assert max(gathered) == 2 * 3 * 64 * share, "each rank of DistVAE computes all of it, and is told the whole image"


def test_eager_text_is_as_sure_as_the_hosts_launches(schnell: ModelSpec) -> None:
    eager, graph = (
        predict(make_point(schnell, topology="h200_nvlink", execution=run), schnell, H200) for run in ("eager", "graph")
    )
    host, flat = 0.4, 0.2  # H200's uncertainty of launches; that of what is counted of the stage
    text = eager.stages["text"].median
    assert eager.errors["text"] == pytest.approx(text * math.hypot(flat, host))
    assert graph.errors["text"] == pytest.approx(flat * graph.stages["text"].median)


def test_out_of_memory_by_waste_alone_says_more_than_there_is(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h100_nvlink", height=4096, width=4096, steps=1, memory_cap_gb=45.9)
    with pytest.raises(OutOfMemory) as caught:
        predict(point, schnell, load("h100_nvlink"))
    assert caught.value.details["bytes_asked"] > 45.95e9


def test_a_decode_is_issued_while_the_device_is_at_the_step_before(schnell: ModelSpec) -> None:
    def decode(lead_s: float) -> float:
        point = make_point(schnell, topology="h200_nvlink", ulysses=2, execution="eager", height=512, width=512)
        host = with_host(H200, 2e-5)
        return decode_s(point, schnell, host, find("usp", "eager"), Network(host, "p2p", 2, 1), lead_s)

    waits = decode(0.0)
    assert decode(waits / 2) < 0.7 * waits
    assert decode(1.0) == decode(2.0) < decode(waits / 2), "what the device takes remains"

    def vae(op_s: float, res: int) -> float:
        point = make_point(schnell, topology="h200_nvlink", ulysses=2, execution="eager", height=res, width=res)
        return predict(point, schnell, with_host(H200, op_s)).stages["vae"].median

    assert vae(1e-5, 2048) == pytest.approx(vae(1e-9, 2048)), "a long step hides all launches"
    assert vae(1e-4, 512) == pytest.approx(decode(0.0) * 5, rel=0.02), "a host that is behind has no lead"


def test_no_interval_reaches_below_what_the_gpus_can_compute(schnell: ModelSpec) -> None:
    topology = load("l40_pcie")
    point = make_point(schnell, topology="l40_pcie", height=8192, width=8192, ring=8)
    found = predict(point, schnell, topology)
    tokens = 512 * 512 + 512
    attention = 4 * 4.0 * tokens**2 * 3072 * (19 + 38)  # four steps of it alone
    least = attention / (8 * topology.gpu.peak_flops)
    assert least < found.stages["denoise"].low < found.stages["denoise"].median
    assert found.stages["total"].low >= found.stages["denoise"].low
    assert found.step.low == pytest.approx(found.stages["denoise"].low / 4)


def test_a_decode_that_presses_widens_the_interval_whatever_the_fuller_stage(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", height=2816, width=2816, engine="stock", vae="tiled",
                       memory_cap_gb=38.0)  # fmt: skip
    found = predict(point, schnell, H200)
    assert (found.memory.verdict, found.memory.stage) == ("pressure", "denoise")
    assert found.stages["vae"].high > 5 * found.stages["vae"].median
