"""Counts against what diffusers and transformers build, and against the study's own numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from xdit_bench.config import ModelSpec
from xdit_bench.predict import profiles, workload
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.utilisation import utilisation


def parameters(module: torch.nn.Module, prefix: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.startswith(prefix))


@pytest.mark.parametrize("name", ["flux_schnell", "flux_dev", "flux_tiny"])
def test_transformer_bytes_are_those_of_diffusers_module(name: str) -> None:
    model = load_model(name)
    with torch.device("meta"):
        module = FluxTransformer2DModel(**model.transformer)
    assert workload.transformer_bytes(model) == pytest.approx(2 * parameters(module), rel=0.02)


def test_modulation_bytes_are_those_of_the_adaln_linears(schnell: ModelSpec) -> None:
    with torch.device("meta"):
        module = FluxTransformer2DModel(**schnell.transformer)
    linears = sum(p.numel() for name, p in module.named_parameters() if "norm" in name and ".linear." in name)
    assert workload.modulation_bytes(schnell) == pytest.approx(2 * linears, rel=1e-3)


def test_linear_flops_are_those_of_the_modules_weights(schnell: ModelSpec) -> None:
    with torch.device("meta"):
        module = FluxTransformer2DModel(**schnell.transformer)
    image, text = 640, 77
    flops = {
        fused: sum(2 * g.m * g.k * g.n * g.count for g in workload.transformer_gemms(schnell, image, text, fused=fused))
        for fused in (False, True)
    }
    assert flops[False] == flops[True]
    expected = 0.0
    for name, weight in module.named_parameters():
        if weight.dim() != 2 or "norm" in name or "time_text_embed" in name:
            continue
        is_text = any(part in name for part in ("add_", "_added", "context"))
        single, one_stream = name.startswith("single"), name.startswith(("x_embedder", "proj_out"))
        rows = image + text if single else image if one_stream or not is_text else text
        expected += 2 * rows * weight.numel()
    assert flops[False] == pytest.approx(expected, rel=1e-9)


def test_one_step_at_1024px_is_74_tflop(schnell: ModelSpec) -> None:
    profile = profiles.find("stock", "eager")
    shard = workload.Shard.of(make_point(schnell, text_tokens=512), profile)
    linear = sum(2 * g.m * g.k * g.n * g.count for g in workload.transformer_gemms(schnell, 4096, 512, fused=False))
    calls = workload.attentions(schnell, shard, 1)
    attention = sum(4 * c.heads * 128 * c.queries * c.keys * c.count for c in calls)
    assert linear / 1e12 == pytest.approx(59.5, rel=0.01)
    assert attention / 1e12 == pytest.approx(14.9, rel=0.01)


@pytest.mark.parametrize(("ulysses", "ring"), [(2, 1), (1, 4), (2, 4), (8, 1), (3, 2)])
def test_sharded_attention_is_one_gpus_divided_by_the_ranks(schnell: ModelSpec, ulysses: int, ring: int) -> None:
    ranks = ulysses * ring
    point = make_point(schnell, height=1536, width=1536, text_tokens=ranks * 48, ulysses=ulysses, ring=ring)
    shard = workload.Shard.of(point, profiles.find("usp", "eager"))
    one = 4 * 57 * 3072 * (9216 + ranks * 48) ** 2
    rank = sum(4 * c.heads * 128 * c.queries * c.keys * c.count for c in workload.attentions(schnell, shard, ulysses))
    assert rank == pytest.approx(one / ranks, rel=1e-12)


def test_repeated_text_adds_keys_for_every_rank_in_single_blocks(schnell: ModelSpec) -> None:
    point = make_point(schnell, engine="xdit_2024", text_tokens=256, ulysses=4, ring=2)
    shard = workload.Shard.of(point, profiles.find("xdit_2024", "eager"))
    double, single = workload.attentions(schnell, shard, 4)
    assert shard.tokens == 4096 // 8 + 256
    assert (double.keys, single.keys) == (4096 + 256, 4096 + 8 * 256)
    assert (double.queries, single.queries) == (512 * 4 + 256, (512 + 256) * 4)
    assert (double.heads, double.count, single.count) == (6, 19, 38)


def test_uneven_splits_count_the_fullest_rank(schnell: ModelSpec) -> None:
    point = make_point(schnell, height=1008, width=1040, text_tokens=77, ulysses=1, ring=5)
    shard = workload.Shard.of(point, profiles.find("usp", "eager"))
    assert (shard.image, shard.text) == (-(-63 * 65 // 5), 16)


@pytest.mark.parametrize("name", ["flux_schnell", "flux_tiny"])
def test_vae_flops_are_those_counted_on_diffusers_decoder(name: str) -> None:
    model = load_model(name)
    with torch.device("meta"):
        vae = AutoencoderKL(**model.vae)
        flops = 0.0

        def count(module: torch.nn.Module, args: object, out: torch.Tensor) -> None:
            nonlocal flops
            flops += 2 * out.numel() * module.weight[0].numel()

        for module in vae.decoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        vae.decoder(torch.empty(1, model.vae["latent_channels"], 8, 12))
    assert workload.vae_decoder(model).conv_flops * 8 * 12 == pytest.approx(flops, rel=1e-9)


def test_text_encoder_bytes_make_the_published_33_75_gb(schnell: ModelSpec) -> None:
    total = workload.transformer_bytes(schnell) + workload.text_encoders(schnell).all_bytes
    assert (total + workload.vae_decoder(schnell).weights_bytes) / 1e9 == pytest.approx(33.75, abs=0.05)


def test_a_step_of_1024px_has_74_tflop_and_as_many_on_any_number_of_gpus(schnell: ModelSpec) -> None:
    alone = workload.step_flops(schnell, make_point(schnell))
    assert alone == pytest.approx(74.4e12, rel=2e-3)  # 59.5 linear, 14.9 attention
    assert workload.step_flops(schnell, make_point(schnell, ulysses=4, ring=2)) == alone
    assert workload.step_flops(schnell, make_point(schnell, height=2048, width=2048)) > 5 * alone


def test_utilisation_is_the_models_flops_over_the_peak_of_all_gpus(schnell: ModelSpec) -> None:
    point = make_point(schnell, topology="h200_nvlink", ulysses=2).to_dict()
    one = workload.step_flops(schnell, make_point(schnell)) / 989.4e12  # seconds of one GPU at its peak
    assert utilisation(point, one) == pytest.approx(0.5)
    assert utilisation(point | {"model": "mine"}, one, schnell) == pytest.approx(0.5)
    for unknown in ({"dtype": "fp32"}, {"steps": 0}, {"topology": "b200_nvlink"}, {"topology": "cpu"}, {"model": "?"}):
        assert utilisation(point | unknown, one) is None, unknown
