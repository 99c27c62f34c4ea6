"""A small FLUX.1 of the real head size, its inputs, and diffusers' own result: for the engine's GPU tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SPEC = {
    "patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 128,
    "num_attention_heads": 4, "joint_attention_dim": 256, "pooled_projection_dim": 64, "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
HEIGHT, WIDTH, TEXT = 240, 304, 77
SIGMAS = torch.tensor([1.0, 0.6, 0.0])


def build(device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import FluxTransformer2DModel

    from xdit_bench.backends.modules import fill_random

    model = FluxTransformer2DModel(**SPEC)
    fill_random(model, torch.Generator().manual_seed(1))
    return model.to(device, dtype).eval().requires_grad_(False)


def inputs(device: torch.device, dtype: torch.dtype, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, prompt and pooled prompt."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(1, (HEIGHT // 16) * (WIDTH // 16), 64), (1, TEXT, 256), (1, 64)]
    noise, prompt, pooled = (torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes)
    return noise, prompt, pooled


@torch.no_grad()
def stock(model: Any, noise: Tensor, prompt: Tensor, pooled: Tensor, sigmas: Tensor = SIGMAS) -> Tensor:
    """diffusers' forward and scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist(), device=noise.device)
    image_ids = FluxPipeline._prepare_latent_image_ids(1, HEIGHT // 16, WIDTH // 16, noise.device, noise.dtype)
    latents = noise
    for t in scheduler.timesteps:
        velocity = model(
            hidden_states=latents, encoder_hidden_states=prompt, pooled_projections=pooled,
            timestep=t.expand(1).to(noise.dtype) / 1000, img_ids=image_ids,
            txt_ids=torch.zeros(TEXT, 3, device=noise.device), return_dict=False,
        )[0]  # fmt: skip
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def relative(result: Tensor, reference: Tensor) -> float:
    return ((result.float() - reference.float()).norm() / reference.float().norm()).item()
