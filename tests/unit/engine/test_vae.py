"""The row-band decode on one rank: equal to AutoencoderKL.decode, whatever the chunks; refusals by name."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from omegaconf import OmegaConf
from torch import Tensor

from xdit_bench import data_dir
from xdit_bench.backends.modules import fill_random
from xdit_bench.engine import vae as vae_module
from xdit_bench.engine import vae_eager
from xdit_bench.engine.mesh import Mesh, build_mesh
from xdit_bench.engine.vae import BandVae
from xdit_bench.engine.vae_attention import attention_dtype, blocked_attention_
from xdit_bench.engine.vae_exchange import gather_tokens
from xdit_bench.engine.vae_memory import Slabs, chunks, slab_elements
from xdit_bench.engine.vae_operations import operations
from xdit_bench.engine.vae_parts import Norm, fuse_upsample, read_decoder
from xdit_bench.errors import Infeasible
from xdit_bench.predict.profiles import find

CPU = torch.device("cpu")


def tiny_vae(**changes: object) -> AutoencoderKL:
    config = OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_tiny.yaml").vae)
    vae = AutoencoderKL(**{**config, **changes}).eval().requires_grad_(False)
    fill_random(vae, torch.Generator().manual_seed(3))
    return vae


def latents(height: int, width: int, batch: int = 1) -> torch.Tensor:
    noise = torch.randn(batch, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(height))
    return noise + torch.linspace(-4, 4, height // 8)[:, None]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_vae()


@pytest.mark.parametrize("chunk_bytes", [64 << 20, 20_000, 1])
@pytest.mark.parametrize(("height", "width"), [(80, 48), (48, 112)])
def test_equals_diffusers_in_chunks_of_any_size(vae: AutoencoderKL, height: int, width: int, chunk_bytes: int) -> None:
    z = latents(height, width, batch=2)
    decode = BandVae(vae, build_mesh(1, 1, CPU), height=height, width=width)
    decode.chunk_bytes = chunk_bytes
    assert decode.band == (0, height // 8)
    assert distance(decode.decode_float(z), vae.decode(z).sample) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_rounded_as_diffusers_rounds_them(dtype: torch.dtype) -> None:
    z = latents(64, 48)
    decode = BandVae(tiny_vae().to(dtype), build_mesh(1, 1, CPU), height=64, width=48)
    processor = VaeImageProcessor(vae_scale_factor=8)
    ours = decode.decode_float(z)
    theirs = torch.from_numpy(processor.postprocess(ours, output_type="np")[0] * 255).round().to(torch.uint8)
    image = decode.decode(z)
    assert image is not None
    assert image.dtype == torch.uint8
    assert image.shape == (64, 48, 3)
    assert torch.equal(image, theirs)
    assert len(image.unique()) > 100


def test_a_decode_in_bf16_is_about_as_near_as_that_of_diffusers() -> None:
    z, coarse = latents(80, 48), tiny_vae().bfloat16()
    # of weights and latents that bf16 holds
    truth = coarse.to(torch.float64).decode(z.bfloat16().double()).sample
    coarse.bfloat16()
    decode = BandVae(coarse, build_mesh(1, 1, CPU), height=80, width=48)
    decode.chunk_bytes = 20_000
    ours, theirs = (distance(x.double(), truth) for x in (decode.decode_float(z), coarse.decode(z.bfloat16()).sample))
    assert 1e-4 < ours < 1.2 * theirs < 0.02  # 1.1: an upsample's fused weights are rounded too


def test_biases_of_a_bf16_decoder_are_added_up_before_they_are_rounded() -> None:
    vae = tiny_vae().bfloat16()
    block = vae.decoder.up_blocks[2].resnets[0]  # narrows, so that its shortcut has a bias too
    bias = read_decoder(vae).blocks[2].resnets[0].conv2.bias
    exact = block.conv2.bias.double() + block.conv_shortcut.bias.double()
    assert torch.equal(bias.double(), exact)
    assert not torch.equal(bias.bfloat16().double(), exact)


def test_decodes_with_a_post_quantization_convolution_and_without_mid_attention() -> None:
    vae = tiny_vae(use_post_quant_conv=True, mid_block_add_attention=False)
    z = latents(48, 32)
    decode = BandVae(vae, build_mesh(1, 1, CPU), height=48, width=32)
    assert distance(decode.decode_float(z), vae.decode(z).sample) < 1e-5


def test_leaves_the_vae_as_it_was(vae: AutoencoderKL) -> None:
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in vae.state_dict().items()}
    decode = BandVae(vae, build_mesh(1, 1, CPU), height=48, width=32)
    decode.decode(latents(48, 32))
    decode.close()
    after = vae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert strides == {name: tensor.stride() for name, tensor in after.items()}


def _spatial(vae: AutoencoderKL) -> None:
    vae.decoder.conv_norm_out = torch.nn.BatchNorm2d(16)


def _two_heads(vae: AutoencoderKL) -> None:
    vae.decoder.mid_block.attentions[0].heads = 2


def _relu(vae: AutoencoderKL) -> None:
    vae.decoder.up_blocks[1].resnets[0].nonlinearity = torch.nn.ReLU()


def _strided(vae: AutoencoderKL) -> None:
    vae.decoder.up_blocks[2].resnets[1].conv1 = torch.nn.Conv2d(16, 16, 5, padding=2)


def _other_groups(vae: AutoencoderKL) -> None:
    vae.decoder.up_blocks[3].resnets[1].norm2 = torch.nn.GroupNorm(8, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_other_groups, r"GroupNorm of 4 groups.* at decoder.up_blocks.3.resnets.1.norm2, not GroupNorm"),
        (_spatial, r"GroupNorm at decoder.conv_norm_out, not BatchNorm2d"),
        (_two_heads, r"one head.* at decoder.mid_block.attentions.0, not Attention"),
        (_relu, r"SiLU at decoder.up_blocks.1.resnets.0.nonlinearity, not ReLU"),
        (_strided, r"a plain 3x3 convolution at decoder.up_blocks.2.resnets.1.conv1, not Conv2d\(16, 16, .*\(5, 5\)"),
    ],
)
def test_refuses_by_name_what_it_does_not_know(change: object, named: str) -> None:
    vae = tiny_vae()
    change(vae)  # type: ignore[operator]
    with pytest.raises(Infeasible, match=named + r".*; use vae=single"):
        BandVae(vae, build_mesh(1, 1, CPU), height=48, width=32)


def test_refuses_other_block_types() -> None:
    vae = tiny_vae(up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3)
    with pytest.raises(Infeasible, match=r"knows UpDecoderBlock2D at decoder.up_blocks.0, not AttnUpDecoderBlock2D"):
        BandVae(vae, build_mesh(1, 1, CPU), height=48, width=32)


def test_refuses_more_ranks_than_rows_of_latents(vae: AutoencoderKL) -> None:
    mesh = Mesh(8, 1, 0, CPU)
    with pytest.raises(Infeasible, match="8 ranks cannot share 6 rows of latents; use at most 6"):
        BandVae(vae, mesh, height=48, width=256)


def test_refuses_sizes_that_are_not_multiples_of_16(vae: AutoencoderKL) -> None:
    with pytest.raises(Infeasible, match="multiples of 16, not 48 and 72"):
        BandVae(vae, build_mesh(1, 1, CPU), height=48, width=72)


def test_bands_cover_all_rows_unevenly(vae: AutoencoderKL) -> None:
    bands = [BandVae(vae, Mesh(4, 1, rank, CPU), height=112, width=32).band for rank in range(4)]
    assert bands == [(0, 4), (4, 8), (8, 11), (11, 14)]


def test_all_ranks_agree_whether_a_decode_may_be_captured(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [sum(slab_elements(read_decoder(vae), rows, 4)) * 4 for rows in (3, 4)]  # bands of 4, 4, 3 and 3 rows
    for limit, small in ((sizes[0] - 1, False), (sizes[0], False), (sizes[1] - 1, False), (sizes[1], True)):
        monkeypatch.setattr(BandVae, "captured_bytes", limit)
        ranks = [BandVae(vae, Mesh(4, 1, rank, CPU), height=112, width=32, graph=True) for rank in range(4)]
        assert [band.small for band in ranks] == [small] * 4


def test_fused_upsample_equals_upsample_then_convolution() -> None:
    x, weight, bias = torch.randn(1, 5, 4, 7), torch.randn(3, 5, 3, 3), torch.randn(3)
    truth = torch.nn.functional.conv2d(torch.nn.functional.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    haloed = torch.nn.functional.pad(x[0].permute(1, 2, 0), (0, 0, 0, 0, 1, 1))
    corners = vae_eager.convolve(haloed, fuse_upsample(weight))
    pixels = vae_eager.shuffle(corners, bias, torch.empty(10, 14, 3))
    torch.testing.assert_close(pixels[1:-1], truth[0].permute(1, 2, 0), rtol=1e-5, atol=1e-5)


def test_moments_merge_exactly_far_from_zero() -> None:
    x = torch.randn(12, 5, 8) * 0.01 + 100 + torch.linspace(0, 40, 12)[:, None, None]
    parts = torch.cat([vae_eager.moments(piece, None, 4) for piece in x.split([5, 1, 4, 2])], -1)
    norm = Norm(torch.rand(8) + 0.5, torch.randn(8), 4, 1e-6)
    scale, shift = vae_eager.affine(parts, norm, None)
    truth = torch.nn.functional.group_norm(x.double().permute(2, 0, 1)[None], 4, norm.weight.double(),
                                           norm.bias.double(), 1e-6)  # fmt: skip
    ours = vae_eager.normalize(x, scale, shift, silu=False, top=False, bottom=False)
    assert distance(ours.double(), truth[0].permute(1, 2, 0)) < 1e-5


@pytest.mark.parametrize("scratch", [23 * 64, 23 * 130, 23 * 640])
def test_blocked_attention_equals_softmax_over_keys_in_parts(scratch: int) -> None:
    q, k, v = torch.randn(23, 16) * 12, torch.randn(350, 16), torch.randn(350, 16)
    truth = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    parts = [(k[:217], v[:217]), (k[217:], v[217:])]
    blocked_attention_(q, parts, operations(CPU), torch.empty(scratch))
    torch.testing.assert_close(q, truth, rtol=1e-5, atol=1e-5)


def test_attention_of_a_bf16_decode_is_more_precise_than_bf16() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 16, generator=draw, dtype=torch.float64) for n in (40, 200, 200))
    truth = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    kind = attention_dtype(torch.bfloat16)
    ours, keys, values = (x.to(kind) for x in (q, k, v))
    blocked_attention_(ours, [(keys, values)], operations(CPU), torch.empty(40 * 128, dtype=kind))
    assert distance(ours.double(), truth) < 0.5 * distance(truth.bfloat16().double(), truth)
    assert attention_dtype(torch.float32) == torch.float32


def test_many_keys_of_little_weight_are_not_lost_in_float16() -> None:
    q, k, v = (torch.zeros(n, 16, dtype=torch.float16) for n in (3, 351, 351))
    q[:, 0], k[0, 0] = 16, 4.375  # one score of 17.5, all others 0
    v[1:, 0] = 1000
    truth = 350 * 1000 * math.exp(-17.5) / (1 + 350 * math.exp(-17.5))  # each weight is below half of 2**-24
    blocked_attention_(q, [(k, v)], operations(CPU), torch.empty(3 * 64, dtype=torch.float16))
    assert q[:, 0].tolist() == pytest.approx([truth] * 3, rel=0.02)


def test_chunks_stay_below_their_limit_and_cover_all_rows() -> None:
    assert chunks(10, 100, 10_000) == [(0, 10)]
    assert chunks(10, 100, 450) == [(0, 4), (4, 7), (7, 10)]
    assert chunks(3, 100, 1) == [(0, 1), (1, 2), (2, 3)]


def test_slabs_are_as_large_as_the_decode_needs_and_no_larger(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[int, int] = {}

    class Watched(Slabs):
        def take(self, slot: int, rows: int, width: int, channels: int) -> torch.Tensor:
            band = super().take(slot, rows, width, channels)
            taken[slot] = max(taken.get(slot, 0), band.numel())
            return band

    monkeypatch.setattr(vae_module, "Slabs", Watched)
    decode = BandVae(vae, build_mesh(1, 1, CPU), height=80, width=48)
    decode.decode(latents(80, 48))
    assert [taken[slot] for slot in range(3)] == slab_elements(read_decoder(vae), 10, 6)


@pytest.mark.parametrize("ranks", [1, 4])
def test_slabs_of_flux_take_640_bytes_a_pixel_of_the_band_and_chunks_on_several_ranks_half(ranks: int) -> None:
    config = OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_schnell.yaml").vae)
    with torch.device("meta"):
        flux = AutoencoderKL(**config)
    # in the last block 256 channels at half the size, which are upsampled as they are read, and 128 and 128 at full
    elements = slab_elements(read_decoder(flux), 256 // ranks, 256)
    pixels = 2048 * 2048 / ranks
    assert 2 * sum(elements) / pixels == pytest.approx(2 * (256 / 4 + 128 + 128), rel=0.01)  # halo rows besides
    decode = BandVae(flux, Mesh(ranks, 1, 0, CPU), height=2048, width=2048)
    profile = find("usp", "eager").vae  # the memory model's: five chunks
    assert 5 * decode.chunk_bytes == (profile.chunks_bytes if ranks == 1 else profile.chunks_bytes / 2)


def test_memory_is_free_again_after_a_decode_that_failed(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = BandVae(vae, build_mesh(1, 1, CPU), height=48, width=32)
    with monkeypatch.context() as patch:
        patch.setattr(vae_module, "blocked_attention_", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode.decode(latents(48, 32))
    assert not hasattr(decode, "_slabs")
    assert decode.decode(latents(48, 32)) is not None


def test_reads_the_scale_off_the_decoder(vae: AutoencoderKL) -> None:
    parts = read_decoder(vae)
    assert parts.scale == 8
    assert parts.conv_out.weight.shape == (8, 16, 3, 3)


@pytest.mark.parametrize(("sizes", "taken"), [((24, 99), 0), ((23, 24), 1), ((5, 23), None), ((), None)])
def test_gathered_tokens_lie_in_the_first_room_that_holds_them(
    sizes: tuple[int, ...], taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(received: Tensor, sent: Tensor, group: object) -> None:
        del group
        received.copy_(sent.repeat(3, 1))

    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", gather)
    x, rooms = torch.arange(6.0).view(3, 2), [torch.zeros(size) for size in sizes]
    parts = gather_tokens(x, [3, 4, 4], Mesh(3, 1, 0, torch.device("cpu")), rooms)  # padded to 3 x 4 x 2
    assert [part.shape for part in parts] == [(3, 2), (4, 2), (4, 2)]
    assert torch.equal(parts[0], x)
    assert torch.equal(parts[1], torch.cat([x, torch.zeros(1, 2)]))
    lies = [i for i, room in enumerate(rooms) if room.data_ptr() == parts[0].data_ptr()]
    assert lies == ([] if taken is None else [taken])
