"""The Triton twin of the decode's arithmetic against the eager one, and the whole decode on a GPU."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.modules import fill_random
from xdit_bench.engine import vae_eager as eager
from xdit_bench.engine.mesh import build_mesh
from xdit_bench.engine.vae import BandVae
from xdit_bench.engine.vae_attention import blocked_attention_
from xdit_bench.engine.vae_operations import operations
from xdit_bench.engine.vae_parts import Norm, fuse_upsample

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
SHAPES = [(7, 37, 128, 32), (3, 1029, 512, 32), (5, 19, 16, 4), (6, 33, 320, 32)]  # rows, width, channels, groups


@pytest.fixture(autouse=True)
def _exact_float32() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def values(*shape: int, dtype: torch.dtype = torch.float32, offset: float = 0.0) -> torch.Tensor:
    return (torch.randn(*shape, device=CUDA) + offset).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_far_from_zero_equal_the_eager_twin(shape: tuple[int, int, int, int]) -> None:
    rows, width, channels, groups = shape
    x, bias = values(rows, width, channels, offset=50), values(channels)
    x += torch.linspace(0, 30, rows, device=CUDA)[:, None, None]
    ops = operations(CUDA)
    ours, truth = ops.merge(ops.moments(x, bias, groups)), eager.moments(x.double(), bias.double(), groups)
    torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_norms_and_edges_equal_the_eager_twin(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    rows, width, channels, groups = shape
    ops, bound = operations(CUDA), 1e-5 if dtype == torch.float32 else 4e-3
    x, y = values(rows, width, channels, dtype=dtype, offset=2), values(rows, width, channels, dtype=dtype)
    bias, norm = values(channels), Norm(values(channels), values(channels), groups, 1e-6)
    mine, theirs = x.clone(), x.clone()
    parts, truth = ops.add_(mine, y, bias, groups), eager.add_(theirs, y, bias, groups)
    assert distance(mine, theirs) < bound
    assert distance(ops.merge(parts), truth) < bound
    scale, shift = ops.affine(parts, norm, bias)
    wanted = eager.affine(parts, norm, bias)
    assert distance(scale, wanted[0]) < 1e-5
    assert distance(shift, wanted[1]) < 1e-5
    for silu, top, bottom in [(True, True, False), (False, False, True), (True, False, False)]:
        out = ops.normalize(mine, scale, shift, silu=silu, top=top, bottom=bottom)
        assert distance(out, eager.normalize(mine, scale, shift, silu=silu, top=top, bottom=bottom)) < bound
        assert (out[0] == 0).all() == top
        assert (out[-1] == 0).all() == bottom


@pytest.mark.parametrize("channels", [16, 48, 512])
def test_shuffle_and_convolution_equal_the_eager_twin(channels: int) -> None:
    ops = operations(CUDA)
    x, bias = values(9, 21, channels), values(channels)
    for weight in (values(channels, channels, 3, 3) / 50, fuse_upsample(values(channels, channels, 3, 3) / 50)):
        weight = weight.contiguous(memory_format=torch.channels_last)
        assert distance(ops.convolve(x, weight), eager.convolve(x, weight)) < 1e-5
    corners = ops.convolve(x, weight)
    out, truth = values(16, 42, channels), values(16, 42, channels)
    assert distance(ops.shuffle(corners, bias, out), eager.shuffle(corners, bias, truth)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_equal_the_eager_twin(dtype: torch.dtype) -> None:
    x, bias = values(13, 45, 8, dtype=dtype), values(3)
    out, truth = (torch.empty(13, 45, 3, dtype=torch.uint8, device=CUDA) for _ in range(2))
    assert torch.equal(operations(CUDA).to_uint8(x, bias, out), eager.to_uint8(x, bias, truth))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_blocked_attention_equals_softmax(dtype: torch.dtype, bound: float) -> None:
    q, k, v = values(300, 512) * 4, values(777, 512), values(777, 512)
    truth = torch.softmax(q.double() @ k.double().t() / 512**0.5, -1) @ v.double()
    parts = [(k[:400].to(dtype), v[:400].to(dtype)), (k[400:].to(dtype), v[400:].to(dtype))]
    out = q.to(dtype, copy=True)
    blocked_attention_(out, parts, operations(CUDA), torch.empty(300 * 128, dtype=dtype, device=CUDA))
    assert distance(out, truth) < bound


def vae_of(name: str, dtype: torch.dtype) -> AutoencoderKL:
    config = OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / f"{name}.yaml").vae)
    vae = AutoencoderKL(**config).to(CUDA).eval().requires_grad_(False)
    fill_random(vae, torch.Generator(CUDA).manual_seed(3))
    return vae.to(dtype)


@pytest.mark.parametrize("chunk_bytes", [1 << 18, 64 << 20])
def test_float32_decode_equals_diffusers(chunk_bytes: int) -> None:
    vae, z = vae_of("flux_tiny", torch.float32), values(1, 16, 34, 22)
    decode = BandVae(vae, build_mesh(1, 1, CUDA), height=272, width=176)
    decode.chunk_bytes = chunk_bytes
    assert distance(decode.decode_float(z), vae.decode(z).sample) < 1e-5


def test_bfloat16_error_is_at_most_a_fifth_above_that_of_diffusers() -> None:
    vae, z = vae_of("flux_schnell", torch.float32), values(1, 16, 64, 48)
    truth = vae.decode(z).sample
    vae = vae.to(torch.bfloat16)
    # the rounded weights are part of the error of both
    theirs = distance(vae.decode(z.bfloat16()).sample, truth)
    ours = distance(BandVae(vae, build_mesh(1, 1, CUDA), height=512, width=384).decode_float(z.bfloat16()), truth)
    assert ours < 1.2 * theirs


def test_captured_decode_equals_the_eager_one_for_new_latents() -> None:
    vae = vae_of("flux_tiny", torch.bfloat16)
    eager_decode = BandVae(vae, build_mesh(1, 1, CUDA), height=128, width=96)
    captured = BandVae(vae, build_mesh(1, 1, CUDA), height=128, width=96, graph=True)
    for _ in range(3):
        z = values(1, 16, 16, 12, dtype=torch.bfloat16)
        image, truth = captured.decode(z), eager_decode.decode(z)
        assert image is not None
        assert truth is not None
        assert (image.int() - truth.int()).abs().max() <= 1
    captured.close()


def test_peak_memory_of_a_1024px_decode_stays_below_a_gibibyte_and_a_half() -> None:
    vae, z = vae_of("flux_schnell", torch.bfloat16), values(1, 16, 128, 128, dtype=torch.bfloat16)
    decode = BandVae(vae, build_mesh(1, 1, CUDA), height=1024, width=1024)
    decode.decode(z)  # cuDNN tries its engines once, with workspaces of their own
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    decode.decode(z)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * 2**30
