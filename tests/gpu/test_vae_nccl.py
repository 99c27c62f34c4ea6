"""Row bands over NCCL: two real GPUs give the one-GPU image, launched one by one and as a CUDA graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL
from omegaconf import OmegaConf

from xdit_bench import data_dir
from xdit_bench.backends.modules import fill_random
from xdit_bench.engine.mesh import build_mesh, connect
from xdit_bench.engine.vae import BandVae

pytestmark = pytest.mark.multigpu

HEIGHT, WIDTH = 272, 176  # 34 rows of latents: 17 a rank


def worker(rank: int, folder: Path) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    connect(rank, 2, str(folder / "store"), device, timeout_s=60)
    config = OmegaConf.to_container(OmegaConf.load(data_dir("conf") / "model" / "flux_schnell.yaml").vae)
    vae = AutoencoderKL(**config).to(device, torch.bfloat16).eval().requires_grad_(False)
    fill_random(vae, torch.Generator(device).manual_seed(3))
    z = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5)).to(device)
    alone, both = build_mesh(1, 1, device), build_mesh(2, 1, device)
    assert both is not None
    images = {}
    if alone is not None:
        images["one"] = BandVae(vae, alone, height=HEIGHT, width=WIDTH).decode(z)
    for name, graph in [("two", False), ("captured", True)]:
        decode = BandVae(vae, both, height=HEIGHT, width=WIDTH, graph=graph)
        for _ in range(2):
            images[name] = decode.decode(z[:, :, slice(*decode.band)])
        decode.close()
    if rank == 0:
        torch.save(images, folder / "images.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_gpus_give_the_one_gpu_image(tmp_path: Path) -> None:
    mp.spawn(worker, args=(tmp_path,), nprocs=2)
    images = torch.load(tmp_path / "images.pt")
    assert images["one"].shape == (HEIGHT, WIDTH, 3)
    for name in ("two", "captured"):
        away = (images[name].float() - images["one"].float()).abs()
        assert away.mean() < 1, name  # bfloat16 rounding moves a value by a step or two, a fault by tens
