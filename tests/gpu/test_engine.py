"""The engine `usp` on one GPU: every kernel and execution against diffusers, and what a graph may and may not keep."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import engine_cases as cases
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5Config, T5EncoderModel

from xdit_bench.backends.modules import fill_random
from xdit_bench.engine import flux as flux_module
from xdit_bench.engine.attention import KERNELS, available
from xdit_bench.engine.collectives import DistributedCarrier
from xdit_bench.engine.flux import Options, UspFlux
from xdit_bench.engine.mesh import Mesh, build_mesh, connect
from xdit_bench.engine.modulation import Modulation
from xdit_bench.engine.text import ShardedT5
from xdit_bench.engine.weights import bring_back, put_away

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def model(device: torch.device) -> Any:
    return cases.build(device, torch.bfloat16)


@pytest.fixture(scope="module")
def exact(device: torch.device) -> torch.Tensor:
    """The float32 result of diffusers."""
    inputs = [x.float() for x in cases.inputs(device, torch.bfloat16)]
    return cases.stock(cases.build(device, torch.bfloat16).float(), *inputs)


def make(model: Any, device: torch.device, **options: Any) -> UspFlux:
    mesh = build_mesh(1, 1, device)
    assert mesh is not None
    return UspFlux(model, mesh, height=cases.HEIGHT, width=cases.WIDTH, text_tokens=cases.TEXT, **options)


@pytest.mark.parametrize("execution", ["eager", "graph", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", list(KERNELS))
def test_bf16_is_as_near_to_float32_as_diffusers_is(
    attention: str, execution: str, model: Any, exact: torch.Tensor, device: torch.device
) -> None:
    if attention not in available(device, torch.bfloat16):
        pytest.skip(f"attention={attention} is not available here")
    inputs = cases.inputs(device, torch.bfloat16)
    flux = make(model, device, attention=attention, execution=execution)
    error = cases.relative(flux.denoise(*inputs, cases.SIGMAS, None), exact)
    flux.close()
    assert error <= 1.2 * cases.relative(cases.stock(model, *inputs), exact)


def test_t5_attends_with_a_fused_kernel_and_yields_what_transformers_yields(device: torch.device) -> None:
    config = T5Config(
        vocab_size=99, d_model=256, d_kv=64, num_heads=4, d_ff=512, num_layers=2, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config)
    fill_random(encoder, torch.Generator().manual_seed(3))
    encoder = encoder.to(device, torch.bfloat16).eval().requires_grad_(False)
    mesh = build_mesh(1, 1, device)
    assert mesh is not None
    ids = torch.arange(96, device=device)[None]
    fused = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    with torch.no_grad():
        plain = encoder(ids)[0]
        exact = encoder.float()(ids)[0]
        encoder.to(torch.bfloat16)
        with sdpa_kernel(fused):
            embedded = ShardedT5(encoder, mesh, DistributedCarrier(mesh))(ids)
    assert cases.relative(embedded, exact) <= 1.2 * cases.relative(plain, exact)


def test_fp32_equals_diffusers(device: torch.device) -> None:
    model, inputs = cases.build(device, torch.float32), cases.inputs(device, torch.float32)
    result = make(model, device).denoise(*inputs, cases.SIGMAS, None)
    assert cases.relative(result, cases.stock(model, *inputs)) <= 1e-5


def test_a_graph_takes_another_prompt_and_another_number_of_steps(model: Any, device: torch.device) -> None:
    graph, eager = make(model, device, execution="graph", attention="flash"), make(model, device, attention="flash")
    more = torch.tensor([1.0, 0.9, 0.5, 0.0])
    results = []
    for seed, sigmas in ((2, cases.SIGMAS), (3, cases.SIGMAS), (3, more), (2, cases.SIGMAS)):
        inputs = cases.inputs(device, torch.bfloat16, seed)
        results.append((graph.denoise(*inputs, sigmas, None), eager.denoise(*inputs, sigmas, None)))
    graph.close()
    for captured, expected in results:  # after all runs: a result must not live in memory a later replay writes
        assert torch.equal(captured, expected)
    assert cases.relative(results[0][0], results[1][0]) > 0.1


def test_closing_frees_a_graph_s_memory(model: Any, device: torch.device) -> None:
    make(model, device).denoise(*cases.inputs(device, torch.bfloat16), cases.SIGMAS, None)  # fuses, fills caches
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    flux = make(model, device, execution="graph")
    flux.denoise(*cases.inputs(device, torch.bfloat16), cases.SIGMAS, None)
    flux.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) <= before + (2 << 20)


@pytest.mark.parametrize(
    "options",
    [Options(fused=False), Options(modulation_once=False), Options(gelu_epilogue=False), Options(keys_first=False)],
    ids=repr,
)
def test_every_rung_of_the_ladder_is_correct(
    options: Options, model: Any, exact: torch.Tensor, device: torch.device
) -> None:
    inputs = cases.inputs(device, torch.bfloat16)
    error = cases.relative(make(model, device, options=options).denoise(*inputs, cases.SIGMAS, None), exact)
    assert error <= 1.2 * cases.relative(cases.stock(model, *inputs), exact)


def test_without_triton_plain_torch_runs_and_one_line_says_so(
    model: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flux_module, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        flux = make(model, device, attention="flash")
    assert [record.getMessage() for record in caplog.records] == [
        "triton is not installed: norms, RoPE and gates run as plain torch operations"
    ]
    assert torch.isfinite(flux.denoise(*cases.inputs(device, torch.bfloat16), cases.SIGMAS, None)).all()


def test_symmetric_exchange_delivers_eagerly_and_from_a_graph(device: torch.device, tmp_path: Path) -> None:
    """One rank that sends to itself: the interface, streams and capture; what peers do is for `test_engine_multi`."""
    from xdit_bench.engine.symmetric import SymmetricCarrier

    connect(0, 1, str(tmp_path / "store"), device)
    try:
        world = torch.distributed.group.WORLD
        carrier = SymmetricCarrier(Mesh(1, 1, 0, device, world, world, world))
        for value in (1.0, 2.0):
            sent = torch.full((6, 2, 3), value, device=device)
            assert torch.equal(carrier.scatter(sent, [6]).wait(), sent)
            assert torch.equal(carrier.gather(sent, [6]).wait(), sent)
            assert torch.equal(carrier.shift(sent, [6], 0).wait(), sent)
            assert torch.equal(carrier.collect(sent, [6]).wait(), sent)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            arrived = carrier.scatter(sent, [6]).wait() * 2
        sent.fill_(7.0)
        graph.replay()
        assert (arrived == 14).all()
    finally:
        torch.distributed.destroy_process_group()


def test_a_rank_keeps_only_its_share_of_the_modulation_until_closed(device: torch.device) -> None:
    model = cases.build(device, torch.bfloat16)
    before = torch.cuda.memory_allocated(device)
    mesh = Mesh(2, 1, 1, device)
    modulation = Modulation(model, mesh, DistributedCarrier(mesh))
    held = sum(layer.weight.numel() for layer in modulation.layers if layer.weight.is_cuda)
    everything = sum(layer.weight.numel() for layer in modulation.layers)
    assert 0.3 < held / everything < 0.7
    assert torch.cuda.memory_allocated(device) < before - everything // 2
    modulation.close()
    assert all(layer.weight.is_cuda and layer.bias.is_cuda for layer in modulation.layers)


def test_weights_that_come_back_hold_no_block_that_an_image_left(device: torch.device) -> None:
    layers = [torch.nn.Linear(4096, 4096, device=device, dtype=torch.bfloat16) for _ in range(8)]
    torch.cuda.empty_cache()
    tight = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    before = [layer.weight.detach().cpu() for layer in layers]
    put_away(layers, ranks=1)
    image = torch.empty(2 << 30, dtype=torch.uint8, device=device)
    del image
    bring_back(layers, device)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) < tight + (64 << 20)
    assert all(torch.equal(layer.weight.cpu(), weight) for layer, weight in zip(layers, before, strict=True))
