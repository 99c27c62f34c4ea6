"""Rules checked before anything runs, and weights fused without a second copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xdit_bench.engine import modulation, text, weights
from xdit_bench.engine.flux import UspFlux, check_heads
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.modulation import Modulation
from xdit_bench.engine.weights import fuse, host_room, put_away
from xdit_bench.errors import Infeasible


def test_rejects_heads_not_divisible_by_ulysses() -> None:
    with pytest.raises(Infeasible, match="24 heads cannot be split over ulysses=5; use 1, 2, 3, 4, 6, 8, 12 or 24"):
        check_heads(24, 5)
    check_heads(24, 8)


def test_fusing_turns_parameters_into_views_and_keeps_the_layers_working() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, width) for width in (4, 5, 3)]
    x = torch.randn(7, 6)
    before = [layer(x) for layer in layers]
    fused = fuse(layers)
    torch.testing.assert_close(nn.functional.linear(x, *fused), torch.cat(before, 1))
    for layer, expected in zip(layers, before, strict=True):
        assert torch.equal(layer(x), expected)
        assert layer.weight.untyped_storage().data_ptr() == fused.weight.untyped_storage().data_ptr()


def test_fusing_again_finds_the_same_memory() -> None:
    layers = [nn.Linear(6, 4) for _ in range(3)]
    first, second = fuse(layers), fuse(layers)
    assert first.weight.data_ptr() == second.weight.data_ptr()
    assert first.bias.data_ptr() == second.bias.data_ptr()
    assert torch.equal(first.weight, second.weight)


def test_weights_stay_where_their_copies_would_fill_the_hosts_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = nn.Linear(100, 100, bias=False)  # 40 kB
    monkeypatch.setattr(weights, "host_room", lambda: 99e3)
    with caplog.at_level("WARNING"):
        put_away([layer], ranks=2)
    assert not hasattr(layer, "host_copies")
    assert "weights of other ranks stay on the GPU" in caplog.text


def test_room_on_the_host_is_what_is_available_or_what_the_container_leaves(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert host_room(meminfo, tmp_path) == 1024e3
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert host_room(meminfo, tmp_path) == 1024e3
    (tmp_path / "memory.max").write_text("500000\n")
    assert host_room(meminfo, tmp_path) == 200e3


MESH = Mesh(1, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Any:
    from diffusers import FluxTransformer2DModel

    from xdit_bench.backends.modules import fill_random

    transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
        pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    fill_random(transformer, torch.Generator().manual_seed(0))
    return transformer.requires_grad_(False)


def inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, prompt and pooled prompt of an 80 by 48 image with 7 text tokens."""
    draw = torch.Generator().manual_seed(1)
    noise, prompt, pooled = (torch.randn(batch, *shape, generator=draw) for shape in ((15, 64), (7, 24), (8,)))
    return noise, prompt, pooled


def make(model: Any, **options: Any) -> UspFlux:
    return UspFlux(model, MESH, height=80, width=48, text_tokens=7, **options)


def test_a_cuda_graph_without_a_gpu_is_infeasible_and_names_another_execution(model: Any) -> None:
    with pytest.raises(Infeasible, match="use execution=eager"):
        make(model, execution="graph")


def test_a_step_between_equal_sigmas_leaves_the_latents_alone(model: Any) -> None:
    latents = make(model).denoise(*inputs(), torch.tensor([0.5, 0.5]), None)
    assert torch.equal(latents, inputs()[0])


def test_images_of_a_batch_do_not_mix(model: Any) -> None:
    sigmas, flux = torch.tensor([1.0, 0.4, 0.0]), make(model)
    both = flux.denoise(*inputs(batch=2), sigmas, None)
    for i in range(2):
        alone = flux.denoise(*(x[i : i + 1] for x in inputs(batch=2)), sigmas, None)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_prompt_of_another_length_is_refused(model: Any) -> None:
    noise, prompt, pooled = inputs()
    with pytest.raises(AssertionError, match="another length"):
        make(model).denoise(noise, prompt[:, 1:], pooled, torch.tensor([1.0, 0.0]), None)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_blocks_equal_eager(model: Any) -> None:
    sigmas = torch.tensor([1.0, 0.4, 0.0])
    compiled = make(model, execution="compile").denoise(*inputs(), sigmas, None)
    torch.testing.assert_close(compiled, make(model).denoise(*inputs(), sigmas, None), rtol=1e-5, atol=1e-5)


class Joined:
    """A carrier that keeps what a rank gives, then hands out what all gave."""

    def __init__(self, whole: Tensor | None = None) -> None:
        self.whole = whole

    def join(self, own: Tensor, rows: list[int]) -> Tensor:
        assert own.shape[0] in rows
        self.own = own
        return own.new_zeros(sum(rows), *own.shape[1:]) if self.whole is None else self.whole


def test_more_ranks_than_modulated_layers_leave_one_without(model: Any) -> None:
    five, sigmas, pooled = 5, torch.tensor([1.0, 0.5]), torch.randn(1, 8)  # 4 layers
    meshes = [Mesh(1, five, rank, torch.device("cpu")) for rank in range(five)]
    given = []
    for mesh in meshes:
        carrier: Any = Joined()
        Modulation(model, mesh, carrier).table(sigmas, pooled, None)
        given.append(carrier.own)
    assert len(given[4]) == 0
    last: Any = Joined(torch.cat(given))
    alone: Any = None
    whole = Modulation(model, MESH, alone).table(sigmas, pooled, None)
    torch.testing.assert_close(Modulation(model, meshes[4], last).table(sigmas, pooled, None).last, whole.last)


def test_a_rank_keeps_its_own_layers_of_the_modulation_on_a_gpu_until_it_is_closed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[Any] = []
    back: list[Any] = []
    monkeypatch.setattr(modulation, "put_away", lambda layers, ranks: away.extend([*layers, ranks]))
    monkeypatch.setattr(modulation, "bring_back", lambda layers, device: back.extend(layers))
    carrier: Any = None
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    layers = [double.norm1_context.linear, double.norm1.linear, single.norm.linear, model.norm_out.linear]
    for device, shard, theirs in (("cuda", True, [0, 2]), ("cuda", False, None), ("cpu", True, None)):
        shared = Modulation(model, Mesh(1, 2, 1, torch.device(device)), carrier, shard=shard)
        assert away == ([] if theirs is None else [*(layers[i] for i in theirs), 2])
        assert back == layers, "also those that another mesh's rank had put away"
        back.clear()
        away.clear()
        shared.close()
        assert back == layers
        back.clear()


def test_an_engine_that_is_closed_gives_the_model_back_all_its_weights(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    back: list[Any] = []
    flux = make(model)
    monkeypatch.setattr(modulation, "bring_back", lambda layers, device: back.extend(layers))
    flux.close()
    assert len(back) == 4


def test_t5_brings_back_every_layer_of_a_sharing_that_was_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import T5Config, T5EncoderModel

    shape = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3}
    encoder, back = T5EncoderModel(T5Config(vocab_size=9, feed_forward_proj="gated-gelu", **shape)), []
    monkeypatch.setattr(text, "bring_back", lambda layers, device: back.extend(layers))
    carrier: Any = None
    text.ShardedT5(encoder, Mesh(1, 2, 0, torch.device("cpu")), carrier)
    assert back == list(encoder.encoder.block), "also those that another mesh's rank had put away"


def test_t5_is_shared_out_by_depth_on_all_ranks_where_the_host_of_one_has_no_room() -> None:
    from transformers import T5Config, T5EncoderModel

    class Short:
        """Another rank has no room."""

        def total(self, block: torch.Tensor) -> torch.Tensor:
            return block

    shape = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3}
    encoder = T5EncoderModel(T5Config(vocab_size=9, feed_forward_proj="gated-gelu", **shape))
    carrier: Any = Short()
    shared = text.ShardedT5(encoder, Mesh(1, 2, 0, torch.device("cpu")), carrier, by_width=True)
    assert not shared.by_width
    assert len(shared.stage.encoder.block) == 2


def test_t5_brings_its_layers_back_where_sharing_it_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import T5Config, T5EncoderModel

    def fail(*given: object, last: bool) -> None:
        raise RuntimeError("no memory")

    shape = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 3}
    encoder = T5EncoderModel(T5Config(vocab_size=9, feed_forward_proj="gated-gelu", **shape))
    back: list[object] = []
    carrier: Any = None
    monkeypatch.setattr(text, "bring_back", lambda layers, device: back.extend(layers))
    monkeypatch.setattr(text, "_stage", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        text.ShardedT5(encoder, Mesh(1, 2, 0, torch.device("cpu")), carrier)
    assert back == 2 * list(encoder.encoder.block)
