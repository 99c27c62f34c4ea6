"""The peer `xfuser`: xDiT's FLUX.1 transformer on our modules and inputs, any Ulysses x ring on the point's ranks.

What its own FLUX runner does for sequence parallelism, eager and compiled (`reduce-overhead` over the whole
transformer); the state it keeps in its modules is `xfuser_state`'s. Everything around the transformer is `stock`'s.

    backend = XfuserBackend(); backend.prepare(mesh, modules, point, model, inputs)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from xdit_bench.backends.base import Embeddings, Inputs, Modules
from xdit_bench.backends.distvae import DistVae
from xdit_bench.backends.pipeline import decode_whole
from xdit_bench.backends.stock import StockBackend, make_pipe
from xdit_bench.backends.xfuser_state import import_xfuser, join, setting, with_fa3
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.attention import named
from xdit_bench.engine.flux import check_heads
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible

# our names for attention kernels -> members of xfuser's AttentionBackendType; None: xfuser chooses
XFUSER_ATTENTION = {
    "auto": None,
    "cudnn": "CUDNN",
    "flash": "SDPA_FLASH",
    "flash_attn": "FLASH",
    "fa3": "FLASH_3",
    "sdpa": "SDPA",
}
WARM_UP_STEPS = 2  # as xfuser's runner: the first compiles, the second records the CUDA graph

# what xfuser's runner sets in torch._inductor.config before it compiles
OVERLAP = {
    "reorder_for_compute_comm_overlap": True,
    "reorder_for_compute_comm_overlap_passes": ["reorder_compute_for_overlap", "sink_waits", "raise_comms"],
}

log = logging.getLogger(__name__)


class XfuserBackend(StockBackend):
    """xDiT, eager or compiled. Every rank ends with the whole latents; rank 0 decodes."""

    def __init__(self) -> None:
        self.undo = ExitStack()
        self.warm_up: Callable[[], object] | None = None

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """Raises Infeasible for what xfuser can not do, MissingExtraError where it is not installed."""
        check_point(mesh, point, model)
        if point.attention not in ("auto", "sdpa"):
            named(point.attention, inputs.noise.dtype, mesh.device)  # says in our words what rules it out here
        import_xfuser(mesh.device)
        self.mesh, self.modules, self.point, self.inputs = mesh, modules, point, inputs
        self.twin = DistVae(modules.vae, mesh) if point.vae == "distvae" else None
        if point.attention == "fa3":
            self.undo.enter_context(with_fa3())
        self.undo.enter_context(wrapped(modules.transformer))
        self.pipe = make_pipe(modules, model)
        self.undo.callback(delattr, self, "pipe")
        kernel = self.undo.enter_context(join(mesh, self.pipe, point, XFUSER_ATTENTION[point.attention]))
        log.info("xfuser attends with %s", kernel)
        if point.execution == "compile":
            self._compile(modules.transformer)

    def denoise(self, embeddings: Embeddings) -> torch.Tensor:
        """See Backend.denoise. The first image compiles and records: what that takes of memory, the graph keeps."""
        if self.warm_up is not None:
            self.warm_up()
            self.warm_up = None
        return super().denoise(embeddings)

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """uint8 height width 3 on rank 0, None elsewhere and with vae=none."""
        if self.twin is not None:
            return self.twin.decode(latents, self.point)
        if self.point.vae == "none" or self.mesh.rank > 0:
            return None
        return decode_whole(self.modules.vae, latents, self.point)

    def close(self) -> None:
        """Gives the transformer back as diffusers built it, and xfuser's modules as they were imported."""
        self.undo.close()
        self.twin = self.warm_up = None

    def _compile(self, transformer: torch.nn.Module) -> None:
        """As xfuser's runner does it: the whole transformer; two steps before the first image compile and record."""
        from torch._inductor import config

        settings: dict[str, Any] = dict(OVERLAP)
        if hasattr(getattr(config, "aten_distributed_optimizations", None), "spmd_check"):
            # it asks all ranks of the world whether they compile the same; those outside the mesh compile nothing
            settings["aten_distributed_optimizations.spmd_check"] = False
        self.undo.callback(torch.compiler.reset)  # frees the graph's memory, which the next point would count
        self.undo.enter_context(config.patch(settings))
        self.undo.enter_context(rounded_timestep(transformer))
        self.pipe.transformer = torch.compile(transformer, mode="reduce-overhead")
        steps = min(WARM_UP_STEPS, self.point.steps)
        self.warm_up = lambda: self.run(self._empty_embeddings(transformer), steps)

    def _empty_embeddings(self, transformer: torch.nn.Module) -> Embeddings:
        widths, like = transformer.config, self.inputs.noise
        prompt = like.new_zeros(1, self.point.text_tokens, widths.joint_attention_dim)
        return Embeddings(prompt, like.new_zeros(1, widths.pooled_projection_dim))


@contextmanager
def rounded_timestep(transformer: Any) -> Iterator[None]:
    """Leaves the embedding of the timestep out of what is compiled, a dozen small operations a step.

    diffusers multiplies the timestep by 1000 in bf16 before it: 0.75 becomes 752. A whole compiled transformer would
    keep 750 and paint another picture (16 % of the latents after four steps), and no kernel saves time by that. To have
    the compiler round wherever eager does (`emulate_precision_casts`) made its steps 9 % longer on an H100.
    """
    embed = transformer.time_text_embed
    embed.forward = torch.compiler.disable(embed.forward)
    try:
        yield
    finally:
        del embed.forward


def check_point(mesh: Mesh, point: Point, model: ModelSpec) -> None:
    """Raises Infeasible where xfuser 0.7 computes something else than the image asked for, or refuses."""
    if point.vae == "parallel":
        raise Infeasible("engine=xfuser decodes in parallel with DistVAE; use vae=distvae, single, tiled or none")
    check_heads(model.heads, mesh.ulysses)
    for what, tokens, flaw in (
        ("text", point.text_tokens, "repeats text on every GPU and lets attention count it once for each"),
        ("image", point.image_tokens, "pads the image with tokens that it does not mask"),
    ):
        if tokens % mesh.size:
            raise Infeasible(
                f"{mesh.size} GPUs do not divide {tokens} {what} tokens, where xfuser {flaw}; "
                f"use {what} tokens that {mesh.size} divides, or engine=usp"
            )
    if point.attention == "sdpa" and mesh.ring > 1:
        raise Infeasible("xfuser's ring needs an attention kernel that returns its LSE; sdpa does not, use cudnn")


@contextmanager
def wrapped(transformer: torch.nn.Module) -> Iterator[None]:
    """diffusers' transformer as xfuser's, on the same weights: xfuser's class adds to diffusers' no more than code."""
    from xfuser.model_executor.models.transformers import transformer_flux as theirs

    # it would go before xfuser's, which shares out tokens: every rank would compute the right image by itself
    assert "forward" not in vars(transformer), "another engine left a forward of its own on the transformer"
    with ExitStack() as undo:
        undo.enter_context(setting(transformer, "__class__", theirs.xFuserFlux1Transformer2DWrapper))
        for attention in theirs.flux_attn_modules(transformer):
            undo.enter_context(setting(attention, "processor", theirs.xFuserFluxAttnProcessor()))
        yield
