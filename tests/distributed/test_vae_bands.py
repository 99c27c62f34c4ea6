"""Row bands over real processes: equal to one AutoencoderKL.decode, and sensitive to every exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from torch import Tensor

from xdit_bench import data_dir
from xdit_bench.backends.modules import fill_random
from xdit_bench.engine import vae as vae_module
from xdit_bench.engine import vae_exchange
from xdit_bench.engine.mesh import Mesh, build_mesh, connect
from xdit_bench.engine.vae import BandVae

CPU = torch.device("cpu")
WORLD = 4
SIZES = [(112, 48), (48, 80), (32, 64)]  # 14, 6 and 4 rows of latents: most do not divide
CASES = [(ranks, *size) for ranks in range(1, WORLD + 1) for size in SIZES]


def tiny_vae() -> AutoencoderKL:
    config = OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_tiny.yaml").vae)
    vae = AutoencoderKL(**config).eval().requires_grad_(False)
    fill_random(vae, torch.Generator().manual_seed(3))
    return vae


def even_vae() -> AutoencoderKL:
    """As wide everywhere: what the mid block's keys leave of the slabs holds no scores."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(latent_channels=16, block_out_channels=[64] * 4, layers_per_block=1, norm_num_groups=32,
                        use_quant_conv=False, use_post_quant_conv=False, **blocks)  # fmt: skip
    fill_random(vae, torch.Generator().manual_seed(5))
    return vae.eval().requires_grad_(False)


def latents(height: int, width: int) -> Tensor:
    noise = torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(height))
    return noise + torch.linspace(-4, 4, height // 8)[:, None]  # statistics differ from band to band


def off_by_a_row(band: Tensor | None, moments: Tensor | None, mesh: Mesh) -> Tensor | None:
    if band is None or len(band) < 4:
        return vae_exchange.exchange(band, moments, mesh)
    wrong = band.clone()
    wrong[1], wrong[-2] = band[2], band[-3]
    parts = vae_exchange.exchange(wrong, moments, mesh)
    band[0], band[-1] = wrong[0], wrong[-1]
    return parts


def local_statistics(band: Tensor | None, moments: Tensor | None, mesh: Mesh) -> Tensor | None:
    vae_exchange.exchange(band, moments, mesh)
    return moments


def local_keys(x: Tensor, counts: list[int], mesh: Mesh, rooms: Sequence[Tensor]) -> list[Tensor]:
    return [x]


PATCHES: dict[str, tuple[str, Callable[..., object]]] = {
    "halo off by a row": ("exchange", off_by_a_row),
    "local statistics": ("exchange", local_statistics),
    "local keys": ("gather_tokens", local_keys),
}


def run(vae: AutoencoderKL, mesh: Mesh, height: int, width: int, chunk_bytes: int, folder: Path, name: str) -> None:
    z = latents(height, width)
    decode = BandVae(vae, mesh, height=height, width=width)
    decode.chunk_bytes = chunk_bytes
    mine = z[:, :, slice(*decode.band)]
    image = decode.decode(mine)
    assert (image is None) == (mesh.rank > 0)
    torch.save({"rows": decode.decode_float(mine), "image": image}, folder / f"{name}-{mesh.rank}.pt")


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    connect(rank, WORLD, str(folder / "store"), CPU, timeout_s=120)
    vae = tiny_vae()
    meshes = [build_mesh(1, ranks, CPU) for ranks in range(1, WORLD + 1)]  # collective: every rank, in this order
    for ranks, height, width in CASES:
        if (mesh := meshes[ranks - 1]) is not None:
            for chunk_bytes in (1 << 20, 5000):
                run(vae, mesh, height, width, chunk_bytes, folder, f"{ranks}-{height}-{width}-{chunk_bytes}")
    for fault, (name, wrong) in PATCHES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vae_module, name, wrong)
            if (mesh := meshes[2]) is not None:
                run(vae, mesh, 112, 48, 1 << 20, folder, fault)
    if (mesh := meshes[1]) is not None:
        run(even_vae(), mesh, 112, 48, 1 << 20, folder, "even")
    if (mesh := meshes[2]) is not None:
        run(tiny_vae().bfloat16(), mesh, 112, 48, 5000, folder, "bf16")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bands")
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(worker, args=(folder,), nprocs=WORLD)
    return folder


@pytest.fixture(scope="module")
def truths() -> dict[tuple[int, int], Tensor]:
    vae = tiny_vae()
    return {size: vae.decode(latents(*size)).sample for size in SIZES}


def rows_of(folder: Path, name: str, ranks: int) -> Tensor:
    return torch.cat([torch.load(folder / f"{name}-{rank}.pt")["rows"] for rank in range(ranks)], 2)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 5000])
@pytest.mark.parametrize(("ranks", "height", "width"), CASES)
def test_bands_equal_the_whole_decode(
    results: Path, truths: dict[tuple[int, int], Tensor], ranks: int, height: int, width: int, chunk_bytes: int
) -> None:
    truth = truths[height, width]
    name = f"{ranks}-{height}-{width}-{chunk_bytes}"
    assert distance(rows_of(results, name, ranks), truth) < 1e-5
    image = torch.load(results / f"{name}-0.pt")["image"]
    expected = ((truth[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    assert image.shape == (height, width, 3)
    assert (image - expected).abs().max() <= 1  # a value may sit on the edge between two
    assert (image != expected).float().mean() < 1e-3


def test_bands_in_bf16_are_about_as_near_as_the_whole_decode_of_diffusers(results: Path) -> None:
    coarse, z = tiny_vae().bfloat16(), latents(112, 48).bfloat16()
    theirs = coarse.decode(z).sample
    truth = coarse.to(torch.float64).decode(z.double()).sample
    ours = rows_of(results, "bf16", 3)
    assert ours.dtype == torch.bfloat16
    assert 1e-4 < distance(ours.double(), truth) < 1.2 * distance(theirs.double(), truth) < 0.02


@pytest.mark.parametrize("fault", PATCHES)
def test_planted_fault_moves_the_result(results: Path, truths: dict[tuple[int, int], Tensor], fault: str) -> None:
    assert distance(rows_of(results, fault, 3), truths[112, 48]) > 1e-2


def test_a_decoder_that_is_as_wide_everywhere_has_room_for_its_attention(results: Path) -> None:
    truth = even_vae().decode(latents(112, 48)).sample
    assert distance(rows_of(results, "even", 2), truth) < 1e-5
