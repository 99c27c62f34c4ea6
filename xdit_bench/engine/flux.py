"""The engine `usp`: diffusers' FluxTransformer2DModel over a mesh of ranks, from noise to final latents.

Uses the model's weights and none of its forward. Owns the denoising loop; leaves text encoding, the schedule of
sigmas and the VAE to others.

    flux = UspFlux(transformer, mesh, height=1024, width=1024, text_tokens=512)
    latents = flux.gather(flux.denoise(noise, prompt, pooled, sigmas, guidance=None))
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from xdit_bench.engine.attention import choose, exact, name_of
from xdit_bench.engine.blocks import Rope, double_block, make_parts, single_block
from xdit_bench.engine.collectives import Carrier, DistributedCarrier
from xdit_bench.engine.graphs import LoopGraphs
from xdit_bench.engine.mesh import Mesh, slowest
from xdit_bench.engine.modulation import Modulation, Table
from xdit_bench.engine.ops import TORCH, Ops
from xdit_bench.engine.shares import rope_angles, share_tokens
from xdit_bench.engine.usp import UspAttention
from xdit_bench.engine.weights import double_weights, single_weights
from xdit_bench.errors import Infeasible, either

SHAPES_COMPILED = 256  # of one part of a block in one process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What can be switched off, so that each gain can be measured by itself: a rung of `without=` each."""

    modulation_once: bool = True  # adaLN of all steps in one pass over its weights, before the loop
    shard_modulation: bool = True  # each rank holds its share of the adaLN weights alone until close()
    fused: bool = True  # Triton kernels for norm, RoPE and gates
    gelu_epilogue: bool = True  # with fused: GELU in the product's epilogue, not as a kernel of its own
    overlap: bool = True  # a single block's MLP runs while its heads and its attention travel
    keys_first: bool = True  # a double block's keys and values leave before its queries are projected
    symmetric: bool = True  # exchanges by copy engines where that works (GPUs of one host), not by NCCL
    keys: str = "auto"  # a ring's keys: ring (overlapped hops), gathered (one attention call), auto (measured)


class UspFlux:
    """One model bound to one mesh, image size and text length. Prompt, noise, steps and guidance may change."""

    def __init__(
        self,
        transformer: Any,
        mesh: Mesh,
        *,
        height: int,
        width: int,
        text_tokens: int,
        attention: str | None = "auto",
        execution: str = "eager",
        options: Options = Options(),  # frozen
        carrier: Carrier | None = None,
    ) -> None:
        """Fuses the model's q, k, v (they stay usable by diffusers), splits the tokens and builds the RoPE tables.

        `attention=None` is for a decode beside the engine: all that it keeps in memory, no kernel timed, no denoising.
        `carrier` replaces the one that `options` name. Raises Infeasible when heads, tokens or execution forbid
        it, MissingExtraError for a kernel not installed.
        """
        self.model, self.mesh, self.options = transformer, mesh, options
        self.heads = int(transformer.config.num_attention_heads)
        self.head_size = int(transformer.config.attention_head_dim)
        check_heads(self.heads, mesh.ulysses)
        if execution == "graph" and mesh.device.type != "cuda":
            raise Infeasible(f"execution=graph needs a CUDA GPU; this rank has {mesh.device.type}; use execution=eager")
        self.shares = share_tokens(height, width, text_tokens, mesh.size)
        self.image_range = self.shares.image_range(mesh.rank)
        self.text_range = self.shares.text_range(mesh.rank)
        self.rope = Rope(
            self.shares.text[mesh.rank],
            *rope_angles(
                transformer.pos_embed, self.shares, mesh.rank, mesh.device, transformer.x_embedder.weight.dtype
            ),
        )
        with torch.no_grad():
            self.double = [double_weights(block) for block in transformer.transformer_blocks]
            self.single = [single_weights(block) for block in transformer.single_transformer_blocks]
        self.ops = _operations(mesh.device, options, execution)
        self.compiled = execution == "compile"
        self.parts = make_parts(self.ops, _compiled) if self.compiled else make_parts(self.ops)
        shape, weight = self._attended(), transformer.x_embedder.weight
        agree = partial(slowest, mesh=mesh)
        kernel, seconds = (
            choose(attention, shape, shape, weight.dtype, weight.device, agree) if attention else (exact, {})
        )
        self.kernel_s = {name: s for name, s in seconds.items() if s < math.inf}
        self.carrier = carrier or _carrier(mesh, symmetric=options.symmetric)
        self.attention = UspAttention(
            mesh,
            self.shares,
            kernel,
            merge=self.ops.merge,
            carrier=self.carrier,
            overlap=options.overlap,
            keys_first=options.keys_first,
        )
        if mesh.ring > 1 and attention:
            self._choose_keys(options.keys)
        self.sent_bytes = 0  # to other ranks, a step of the last loop that was issued
        self.graphs = LoopGraphs(self._loop) if execution == "graph" else None
        # last, because close() undoes it
        self.modulation = Modulation(transformer, mesh, self.carrier, shard=options.shard_modulation)

    @torch.no_grad()
    def denoise(
        self, noise: Tensor, prompt_embeds: Tensor, pooled: Tensor, sigmas: Tensor, guidance: float | None
    ) -> Tensor:
        """All steps of one image. noise `B I 64`, prompt_embeds `B T C`, pooled `B C'`, whole on every rank; sigmas
        steps+1 float32, the last 0; guidance a scale for a model with guidance embeddings, else None.

        Returns this rank's image tokens, `B i 64`: global tokens `image_range`.
        """
        assert noise.shape[1] == sum(self.shares.image), "noise of another image size than the engine was made for"
        assert prompt_embeds.shape[1] == sum(self.shares.text), (
            "a prompt of another length than the engine was made for"
        )
        latents = noise[:, slice(*self.image_range)].transpose(0, 1).contiguous()
        prompt = prompt_embeds[:, slice(*self.text_range)].transpose(0, 1).contiguous()
        scale = None if guidance is None else torch.tensor([guidance], dtype=torch.float32, device=noise.device)
        sigmas = sigmas.to(noise.device, torch.float32)
        run = self.graphs or self._loop
        with _many_shapes() if self.compiled else nullcontext():
            return run(latents, prompt, pooled, sigmas, scale).transpose(0, 1).contiguous()

    def gather(self, latents: Tensor) -> Tensor:
        """The whole latents `B I 64` on every rank, from each rank's `B i 64`."""
        own = latents.transpose(0, 1).contiguous()
        return self.carrier.join(own, self.shares.image).transpose(0, 1).contiguous()

    def close(self) -> None:
        """Frees graphs and their memory, and gives the model back all its weights."""
        if self.graphs is not None:
            self.graphs.clear()
        self.carrier.close()
        self.modulation.close()

    @property
    def choices(self) -> dict[str, Any]:
        """What `auto` came to: the attention kernel, and the seconds of those that ran where several did, how exchanges
        travel, and a ring's keys in single and double blocks."""
        chosen: dict[str, Any] = {"attention": name_of(self.attention.kernel)}
        if self.kernel_s:
            chosen["attention_s"] = self.kernel_s
        if self.mesh.size > 1:
            chosen["exchange"] = "distributed" if type(self.carrier) is DistributedCarrier else "symmetric"
        if self.mesh.ring > 1:
            words = ["gathered" if way else "ring" for way in self.attention.gathered]
            chosen |= {"single_keys": words[0], "double_keys": words[1]}
        return chosen

    def _loop(self, latents: Tensor, prompt: Tensor, pooled: Tensor, sigmas: Tensor, guidance: Tensor | None) -> Tensor:
        """Euler steps of FlowMatchEulerDiscrete on latents `i B 64`, with its roundings."""
        once = self.options.modulation_once
        table = self.modulation.table(sigmas[:-1] if once else sigmas[:1], pooled, guidance)
        text = torch.nn.functional.linear(prompt, *_parameters(self.model.context_embedder))
        self.carrier.sent_bytes = 0
        for k, dt in enumerate(sigmas.diff().unbind()):
            if k > 0 and not once:
                table = self.modulation.table(sigmas[k : k + 1], pooled, guidance)
            velocity = self._velocity(latents, text, table, k if once else 0)
            latents = (latents.float() + dt * velocity).to(velocity.dtype)
        self.sent_bytes = self.carrier.sent_bytes // (len(sigmas) - 1)
        return latents

    def _velocity(self, latents: Tensor, text: Tensor, table: Table, k: int) -> Tensor:
        """The model's output for this rank's image tokens, `i B 64`, at step k. text is `t B h`."""
        norms, gates = table.step(k)
        image = torch.nn.functional.linear(latents, *_parameters(self.model.x_embedder))
        x = torch.cat([text, image])
        n = self.ops.modulated_norm(x, self.rope.text, norms[0])
        site = 0
        for double in self.double:
            x, n = double_block(
                self.parts, self.attention, self.rope, x, n, double,
                gates[site : site + 2], norms[site + 1 : site + 3],
            )  # fmt: skip
            site += 2
        for single in self.single:
            x, n = single_block(
                self.parts, self.attention, self.rope, x, n, single, gates[site], norms[site + 1]
            )  # fmt: skip
            site += 1
        return torch.nn.functional.linear(n[self.rope.text :], *_parameters(self.model.proj_out))

    def _attended(self) -> torch.Size:
        """Shape of q, k and v as this rank attends with them, `1 K H/U D`."""
        keys = self.shares.tokens
        count = sum(keys(self.mesh.rank_at(u, self.mesh.ring_rank)) for u in range(self.mesh.ulysses))
        return torch.Size((1, count, self.heads // self.mesh.ulysses, self.head_size))

    def _choose_keys(self, way: str) -> None:
        tokens, ulysses = self.shares.tokens(self.mesh.rank), self.mesh.ulysses
        shape = (self.heads // ulysses, self.head_size)
        slabs = tuple(self._random(ulysses, tokens, 1, parts, *shape) for parts in (2, 1))
        n = self._random(tokens, 1, self.heads * self.head_size)
        double, single, text = self.double[0], self.single[0], self.rope.text
        norms = (double.norm_q, double.norm_k)
        with _many_shapes() if self.compiled else nullcontext():
            self.attention.choose_keys(
                way,
                slabs,
                lambda: self.parts.single_mlp(n, text, single.mlp),
                lambda: self.parts.begin(n, self.rope, double.q, 0, 1, norms, ulysses, True),
            )

    def _random(self, *shape: int) -> Tensor:
        weight = self.model.x_embedder.weight
        return torch.randn(shape, dtype=weight.dtype, device=weight.device)


def _operations(device: torch.device, options: Options, execution: str) -> Ops:
    """Fused kernels where they run; else plain torch, with one log line where a GPU could do better."""
    if device.type != "cuda" or execution == "compile" or not options.fused:
        return TORCH
    if find_spec("triton") is None:
        log.warning("triton is not installed: norms, RoPE and gates run as plain torch operations")
        return TORCH
    from xdit_bench.engine.kernels import triton_ops

    return triton_ops(gelu_epilogue=options.gelu_epilogue)


def _carrier(mesh: Mesh, *, symmetric: bool) -> Carrier:
    """Symmetric memory where it is wanted and proves to work on all ranks, else torch.distributed."""
    if symmetric and mesh.size > 1 and mesh.device.type == "cuda":
        from xdit_bench.engine.symmetric import working_carrier

        carrier = working_carrier(mesh)
        if carrier is not None:
            return carrier
        log.warning("symmetric memory does not work between these GPUs; exchanging through torch.distributed")
    return DistributedCarrier(mesh)


def _many_shapes() -> AbstractContextManager[None]:
    """torch gives up on a function after 8 compilations; a study has more shapes than that."""
    import torch._dynamo  # seconds to import

    patched: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=SHAPES_COMPILED)
    return patched


def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(part, dynamic=False, fullgraph=True)


def check_heads(heads: int, ulysses: int) -> None:
    """Raises Infeasible when the heads can not be split evenly."""
    if heads % ulysses:
        divisors = [str(u) for u in range(1, heads + 1) if heads % u == 0]
        raise Infeasible(f"{heads} heads cannot be split over ulysses={ulysses}; use {either(divisors)}")


def _parameters(layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias
