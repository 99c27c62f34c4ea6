"""What every engine does the same way: the text stage, latents to pixels, pixels to uint8.

embeddings = encode_text(modules, inputs)
pixels = decode_whole(modules.vae, latents, point)   # uint8 height width 3
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers import FluxPipeline

from xdit_bench.backends.base import Embeddings, Inputs, Modules
from xdit_bench.config import VAE_SCALE, Point
from xdit_bench.measure.memory import alloc_retries


def encode_text(modules: Modules, inputs: Inputs) -> Embeddings:
    """T5 token embeddings B T C and CLIP's pooled vector B C', as FLUX.1's pipeline computes them."""
    prompt = encode_t5(modules, inputs.t5_ids)
    return Embeddings(prompt=prompt, pooled=encode_clip(modules, inputs.clip_ids).to(prompt.dtype))


def encode_t5(modules: Modules, ids: torch.Tensor) -> torch.Tensor:
    """T5 embeddings B T C of token ids B T."""
    return modules.text_encoder_2(ids, output_hidden_states=False)[0]


def encode_clip(modules: Modules, ids: torch.Tensor) -> torch.Tensor:
    """CLIP's pooled vector B C' of token ids B 77."""
    return modules.text_encoder(ids, output_hidden_states=False).pooler_output


def unpack(latents: torch.Tensor, height: int, width: int, vae: torch.nn.Module) -> torch.Tensor:
    """Packed latents B I 64 to the decoder's input B 16 height/8 width/8, unscaled and unshifted."""
    whole = FluxPipeline._unpack_latents(latents, height, width, VAE_SCALE)
    return whole / vae.config.scaling_factor + vae.config.shift_factor


def decode_whole(vae: torch.nn.Module, latents: torch.Tensor, point: Point) -> torch.Tensor:
    """Plain diffusers decode of packed latents B I 64 on one device; with its tiling when `vae=tiled`.

    Returns uint8 height width 3 of the first image.
    """
    return to_uint8(decode_image(vae, latents, point))


def decode_image(vae: torch.nn.Module, latents: torch.Tensor, point: Point) -> torch.Tensor:
    """Packed latents B I 64 to B 3 height width in about -1..1 by the VAE's own decode."""
    vae.use_tiling = point.vae == "tiled"
    try:
        return vae.decode(unpack(latents, point.height, point.width, vae), return_dict=False)[0]
    finally:
        vae.use_tiling = False


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """B 3 H W in about -1..1 to uint8 H W 3 of the first image, as diffusers' image processor rounds it."""
    unit = (image[0].float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


@contextlib.contextmanager
def no_blocks_left_by_pressure(device: torch.device) -> Iterator[None]:
    """Around a decode: where the allocator had to ask again in it, its cached blocks go back to the device.

    The next image's small tensors would be cut out of them, and a block that holds one can neither be given back nor
    serve the next decode whole: with two ranks below a cap of 48 GB, the third plain decode of 3072px ran out of memory
    that the first two had had.
    """
    before = alloc_retries(device)
    yield
    if alloc_retries(device) > before:
        torch.cuda.empty_cache()
