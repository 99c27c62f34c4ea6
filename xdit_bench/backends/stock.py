"""The baseline: diffusers' own FluxPipeline on one GPU, nothing of ours inside the denoising loop.

backend = StockBackend(); backend.prepare(mesh, modules, point, model, inputs)
"""

from __future__ import annotations

import torch
from diffusers import FluxPipeline

from xdit_bench.backends.base import Embeddings, Inputs, Modules
from xdit_bench.backends.modules import make_scheduler
from xdit_bench.backends.pipeline import decode_whole, encode_text
from xdit_bench.config import SHARED_VAES, ModelSpec, Point
from xdit_bench.engine.attention import named
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible

# our names for attention kernels -> diffusers' attention backends
DIFFUSERS_ATTENTION = {
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "flash_attn": "flash",
    "fa3": "_flash_3",
    "sdpa": "native",
}


class StockBackend:
    """Plain diffusers on one GPU, eager or with its blocks compiled."""

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """Raises Infeasible for more than one GPU and for a VAE mode that needs our engine."""
        self.modules = modules  # what close() looks at
        if mesh.size > 1:
            raise Infeasible(f"engine=stock runs on one GPU, not {mesh.size}; use engine=usp")
        if point.vae in SHARED_VAES:
            raise Infeasible("engine=stock decodes with plain diffusers; use vae=single, tiled or none")
        self.bind(mesh.device, modules, point, model, inputs)

    def bind(self, device: torch.device, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """The pipeline around the transformer, its attention kernel, and compiled blocks where asked for."""
        self.modules, self.point, self.inputs = modules, point, inputs
        self.pipe = make_pipe(modules, model)
        kernel = point.attention
        if kernel in ("cudnn", "flash", "flash_attn"):  # diffusers' FlashAttention-3 is another package than ours
            named(kernel, modules.transformer.dtype, device)  # says in our words what rules it out here
        if kernel == "auto":  # cuDNN is the fastest that torch ships on GPUs that have it; it takes no fp32
            kernel = "cudnn" if device.type == "cuda" and modules.transformer.dtype != torch.float32 else "sdpa"
        modules.transformer.set_attention_backend(DIFFUSERS_ATTENTION[kernel])
        if point.execution == "compile":
            modules.transformer.compile_repeated_blocks(fullgraph=True)

    def encode(self) -> Embeddings:
        """See Backend.encode."""
        return encode_text(self.modules, self.inputs)

    def denoise(self, embeddings: Embeddings) -> torch.Tensor:
        """Final packed latents B I 64."""
        return self.run(embeddings, self.point.steps)

    def run(self, embeddings: Embeddings, steps: int) -> torch.Tensor:
        """So many steps of the pipeline; final packed latents B I 64."""
        guidance = self.inputs.guidance
        return self.pipe(
            prompt_embeds=embeddings.prompt,
            pooled_prompt_embeds=embeddings.pooled,
            latents=self.inputs.noise,
            height=self.point.height,
            width=self.point.width,
            num_inference_steps=steps,
            guidance_scale=0.0 if guidance is None else guidance,
            output_type="latent",
        ).images

    def noise(self) -> torch.Tensor:
        """See Backend.noise."""
        return self.inputs.noise

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """uint8 height width 3, or None with vae=none."""
        return None if self.point.vae == "none" else decode_whole(self.modules.vae, latents, self.point)

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        """One GPU holds everything already."""
        return latents

    def close(self) -> None:
        """Gives the transformer back uncompiled, with its default attention."""
        self.modules.transformer.reset_attention_backend()
        for block in self.blocks():
            block._compiled_call_impl = None

    def blocks(self) -> list[torch.nn.Module]:
        """The transformer's double-stream and single-stream blocks."""
        transformer = self.modules.transformer
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def make_pipe(modules: Modules, model: ModelSpec) -> FluxPipeline:
    """diffusers' pipeline around the transformer and the VAE; the text stage is run apart."""
    pipe = FluxPipeline(
        scheduler=make_scheduler(model),
        vae=modules.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=modules.transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
