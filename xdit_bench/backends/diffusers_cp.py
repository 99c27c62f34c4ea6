"""The peer `diffusers`: FluxPipeline under diffusers' own context parallelism (Ulysses, ring, both).

Everything around the transformer's hooks is `stock`'s; on one GPU it is `stock`. diffusers has no parallel VAE:
rank 0 decodes.

    backend = DiffusersBackend(); backend.prepare(mesh, modules, point, model, inputs)
"""

from __future__ import annotations

import torch
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import DeviceMesh

from xdit_bench.backends.base import Inputs, Modules
from xdit_bench.backends.pipeline import decode_whole
from xdit_bench.backends.stock import StockBackend
from xdit_bench.config import SHARED_VAES, ModelSpec, Point
from xdit_bench.engine.flux import check_heads
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible


class DiffusersBackend(StockBackend):
    """diffusers with text and image sharded by its context-parallel hooks, eager or with blocks compiled."""

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """Raises Infeasible for what diffusers can not do: uneven hybrids, ring without a kernel that returns LSE."""
        self.parallel, self.mesh, self.modules = None, mesh, modules  # what close() looks at
        if point.vae in SHARED_VAES:
            raise Infeasible("engine=diffusers has no parallel VAE; use vae=single, tiled or none")
        config = context_parallel_config(mesh, point, model) if mesh.size > 1 else None
        self.bind(mesh.device, modules, point, model, inputs)
        if config is None:
            return
        self.parallel = ParallelConfig(context_parallel_config=config)
        for block in self.blocks():
            block.attn.processor._parallel_config = self.parallel
        apply_context_parallel(modules.transformer, config, modules.transformer._cp_plan)

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """uint8 height width 3 on rank 0, None elsewhere and with vae=none."""
        if self.point.vae == "none" or self.mesh.rank > 0:
            return None
        return decode_whole(self.modules.vae, latents, self.point)

    def close(self) -> None:
        """Takes the hooks out again."""
        if self.parallel is not None:
            transformer = self.modules.transformer
            remove_context_parallel(transformer, transformer._cp_plan)
            for module in transformer.modules():  # the hooks leave the class's forward on each instance they were on
                vars(module).pop("forward", None)
            for block in self.blocks():
                block.attn.processor._parallel_config = None
        super().close()


def context_parallel_config(mesh: Mesh, point: Point, model: ModelSpec) -> ContextParallelConfig:
    """diffusers' config on our groups. Its own set-up spans every rank of the process group, ours a point's ranks."""
    even = point.image_tokens % mesh.size == 0 and point.text_tokens % mesh.size == 0
    if not even and mesh.ulysses > 1 and mesh.ring > 1:
        raise Infeasible(
            f"diffusers' Ulysses x ring hybrid needs text and image tokens that {mesh.size} GPUs divide; "
            f"{point.text_tokens} and {point.image_tokens} are not; use one of the two alone, or engine=usp"
        )
    if mesh.device.type == "cpu" and point.image_tokens % mesh.size:
        raise Infeasible(
            f"diffusers joins the ranks' image tokens in a collective that gloo has for equal shares alone; "
            f"{mesh.size} ranks do not divide {point.image_tokens}; use a size that they do, or engine=usp"
        )
    if point.attention == "fa3":
        raise Infeasible("diffusers' context parallelism does not know attention=fa3; use cudnn, or engine=usp")
    if mesh.ring > 1 and (mesh.device.type == "cpu" or point.dtype == "fp32" or point.attention == "sdpa"):
        raise Infeasible(
            "diffusers' ring needs an attention kernel that returns its LSE, and has none for CPUs, fp32 or sdpa"
        )
    check_heads(model.heads, mesh.ulysses)
    config = ContextParallelConfig(
        ring_degree=mesh.ring,
        ulysses_degree=mesh.ulysses,
        ulysses_anything=not even and mesh.ulysses > 1,
        ring_anything=not even and mesh.ring > 1,
    )
    kind = mesh.device.type
    config._rank, config._world_size, config._device = mesh.rank, mesh.size, mesh.device
    config._flattened_mesh = DeviceMesh.from_group(mesh.group, kind)
    config._ring_local_rank, config._ulysses_local_rank = mesh.ring_rank, mesh.ulysses_rank
    config._ring_mesh = DeviceMesh.from_group(mesh.ring_group, kind) if mesh.ring_group else None
    config._ulysses_mesh = DeviceMesh.from_group(mesh.ulysses_group, kind) if mesh.ulysses_group else None
    return config
