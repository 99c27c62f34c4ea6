"""The pipeline's modules and inputs on a device: full size with random weights in seconds, or a real pipeline.

Owns how weights and inputs come about; leaves running them to the backends.

    modules = load_modules(point, model, device, torch.bfloat16)
    inputs = make_inputs(point, model, device, torch.bfloat16)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from xdit_bench.backends.base import Inputs, Modules
from xdit_bench.config import PATCH, PIPELINE_PARTS, VAE_SCALE, ModelSpec, Point, check_weights
from xdit_bench.errors import WeightsError, first_line

V_GAIN = 4.0  # brings what attention picked to the size of what the MLP adds: averaging over keys shrinks it to a third
TEXT_KEY_GAIN = 2.0  # lets 512 text keys draw as much as 4096 image keys do, so that a few of them are missed
CLIP_TOKENS = 77  # CLIP's whole context; FLUX.1's pipeline always pads to it
QK_GAIN = 1.6  # spreads the logits to a standard deviation of 2.5: attention that picks, as a trained one does


def load_modules(point: Point, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> Modules:
    """All four modules on `device`, in eval mode. Raises WeightsError for a folder or hub id that can not be used."""
    if point.weights == "random":
        return random_modules(model, device, dtype, point.seed)
    return _pretrained(point.weights, device, dtype)


def random_modules(model: ModelSpec, device: torch.device, dtype: torch.dtype, seed: int) -> Modules:
    """Full-size modules built on `device` from their configs; equal on every rank of one kind of device.

    Drawn in bf16 whatever `dtype` is, so that an fp32 point is the truth of the bf16 points of its seed.
    """
    with _building_on(device, torch.bfloat16):
        transformer = FluxTransformer2DModel(**model.transformer)
        text_encoder = CLIPTextModel(CLIPTextConfig(**model.text_encoder))
        text_encoder_2 = T5EncoderModel(T5Config(**model.text_encoder_2))
        vae = AutoencoderKL(**model.vae)
    modules = Modules(text_encoder, text_encoder_2, transformer, vae)
    for i, name in enumerate(PIPELINE_PARTS):
        module = getattr(modules, name)
        fill_random(module, torch.Generator(device).manual_seed(seed * len(PIPELINE_PARTS) + i))
        module.to(dtype).eval().requires_grad_(False)
    return modules


@torch.no_grad()
def fill_random(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of 1/sqrt(fan_in), so that activations stay spread and every token moves the result.

    Latency does not depend on learned values as long as activations stay finite and spread (zeros run faster).
    Norms get weights around one, query and key norms `QK_GAIN`, value projections `V_GAIN`: with them a wrong
    RoPE on some tokens or a few dropped text tokens move the latents by more than rounding does.
    """
    for name, tensor in module.named_parameters():
        tensor.normal_(generator=generator)
        leaf = name.rsplit(".", 2)
        if "norm_added_k" in name:
            tensor.mul_(0.1).add_(TEXT_KEY_GAIN)
        elif "norm_q" in name or "norm_k" in name or "norm_added_q" in name:
            tensor.mul_(0.1).add_(QK_GAIN)
        elif tensor.ndim == 1 and leaf[-1] == "weight":
            tensor.mul_(0.1).add_(1.0)  # a norm's scale
        elif tensor.ndim == 1:
            tensor.mul_(0.1)
        elif "embedding" in name or name.startswith("shared") or "embed_tokens" in name:
            pass  # rows are looked up, not summed: unit variance
        else:
            tensor.mul_(1.0 / math.sqrt(tensor[0].numel()))
            if name.endswith(("attn.to_v.weight", "attn.add_v_proj.weight")):
                tensor.mul_(V_GAIN)
            elif ".SelfAttention.q." in name:  # T5 divides its scores by nothing: its query weights do
                tensor.mul_(1.0 / math.sqrt(module.config.d_kv))


def make_inputs(point: Point, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Token ids, noise and sigmas of a point, equal on every rank and for every engine: drawn on the CPU."""
    generator = torch.Generator().manual_seed(point.seed)
    rows, cols = point.height // VAE_SCALE, point.width // VAE_SCALE
    channels = model.transformer["in_channels"] // PATCH**2
    noise = torch.randn(1, channels, rows, cols, generator=generator)
    packed = FluxPipeline._pack_latents(noise, 1, channels, rows, cols)
    clip_ids, t5_ids = (_random_ids if point.weights == "random" else _tokenized)(point, model)
    return Inputs(
        clip_ids=clip_ids.to(device),
        t5_ids=t5_ids.to(device),
        noise=packed.to(device, dtype),
        sigmas=sigmas(point, model),
        guidance=model.guidance,
    )


def make_scheduler(model: ModelSpec) -> FlowMatchEulerDiscreteScheduler:
    """The model's own scheduler."""
    return FlowMatchEulerDiscreteScheduler(**model.scheduler)


def sigmas(point: Point, model: ModelSpec) -> torch.Tensor:
    """steps+1 noise levels, float32, from near 1 to 0, with the model's shift (dynamic for dev) applied; without
    steps the 1 of pure noise."""
    if not point.steps:
        return torch.ones(1)
    scheduler = make_scheduler(model)
    raw = np.linspace(1.0, 1 / point.steps, point.steps)
    scheduler.set_timesteps(sigmas=raw, mu=image_shift(point.image_tokens, model))
    return scheduler.sigmas.to(torch.float32)


def image_shift(image_tokens: int, model: ModelSpec) -> float:
    """mu of the dynamic shift: linear in the image's tokens between the scheduler's two anchors."""
    s = model.scheduler
    slope = (s["max_shift"] - s["base_shift"]) / (s["max_image_seq_len"] - s["base_image_seq_len"])
    return float(s["base_shift"] + slope * (image_tokens - s["base_image_seq_len"]))


def parameter_bytes(modules: Modules) -> int:
    """Bytes of all weights on this rank's device; an engine may keep what other ranks hold in host memory."""
    device = next(modules.vae.parameters()).device
    tensors = {t.data_ptr(): t for name in PIPELINE_PARTS for t in getattr(modules, name).parameters()}
    return sum(t.numel() * t.element_size() for t in tensors.values() if t.device == device)


def _random_ids(point: Point, model: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(point.seed + 1)
    clip = torch.randint(3, model.text_encoder["vocab_size"], (1, CLIP_TOKENS), generator=generator)
    t5 = torch.randint(3, model.text_encoder_2["vocab_size"], (1, point.text_tokens), generator=generator)
    return clip, t5


def _tokenized(point: Point, model: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    del model
    clip = _tokenizer(CLIPTokenizer, point.weights, "tokenizer")
    t5 = _tokenizer(T5TokenizerFast, point.weights, "tokenizer_2")
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return (
        clip(point.prompt, max_length=CLIP_TOKENS, **options).input_ids,
        t5(point.prompt, max_length=point.text_tokens, **options).input_ids,
    )


def _tokenizer(kind: Any, weights: str, subfolder: str) -> Any:
    try:
        return kind.from_pretrained(weights, subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights={weights}: its {subfolder} can not be loaded ({first_line(error)})") from error


def _pretrained(weights: str, device: torch.device, dtype: torch.dtype) -> Modules:
    """The parts of a diffusers pipeline folder or hub id, from safetensors only: pickled weights can run code."""
    check_weights(weights)
    kinds = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
    }
    loaded = {}
    for name, kind in kinds.items():
        try:
            module = kind.from_pretrained(weights, subfolder=name, torch_dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(
                f"weights={weights}: its {name} can not be loaded ({first_line(error)}); give a hub id you have "
                f"access to, a folder with a whole diffusers pipeline, or weights=random"
            ) from error
        loaded[name] = module.to(device).eval().requires_grad_(False)
    return Modules(**loaded)


@contextmanager
def _building_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Parameters are born on the device in their final type: no copy through host memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
