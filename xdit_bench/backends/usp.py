"""Our engine: sequence-parallel denoising and the row-band VAE over the same ranks.

backend = UspBackend(); backend.prepare(mesh, modules, point, model, inputs)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from xdit_bench.backends.base import Embeddings, Inputs, Modules
from xdit_bench.backends.distvae import DistVae
from xdit_bench.backends.pipeline import decode_whole, encode_clip, encode_t5, no_blocks_left_by_pressure, unpack
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.flux import Options, UspFlux
from xdit_bench.engine.graphs import LoopGraphs
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.text import ShardedT5
from xdit_bench.engine.vae import BandVae


class UspBackend:
    """Ulysses x Ring over the mesh; the VAE in row bands (`parallel`), by DistVAE, or plain on rank 0."""

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """May raise Infeasible: heads that do not divide, more ranks than rows, a VAE of unknown blocks."""
        del model
        self.mesh, self.modules, self.point, self.inputs = mesh, modules, point, inputs
        self.opened = ExitStack()
        self.sigmas = inputs.sigmas.to(mesh.device)  # else every image would wait for their way there
        self.flux = UspFlux(
            modules.transformer,
            mesh,
            height=point.height,
            width=point.width,
            text_tokens=point.text_tokens,
            attention=point.attention if point.steps else None,
            execution=point.execution,
            options=options(point),
        )
        self.opened.callback(self.flux.close)
        self._bind_text()
        self.bands = self.twin = None
        if point.vae == "parallel":
            graph = point.execution == "graph"
            self.bands = BandVae(modules.vae, mesh, height=point.height, width=point.width, graph=graph)
            self.opened.callback(self.bands.close)
        elif point.vae == "distvae":
            self.twin = DistVae(modules.vae, mesh)

    def _bind_text(self) -> None:
        """T5 shared out over the ranks; both encoders as CUDA graphs, where launching their operations takes longer
        than running them. By width it issues twice as much, which only a graph hides."""
        self.t5: Callable[[torch.Tensor], torch.Tensor] = partial(encode_t5, self.modules)
        self.clip: Callable[[torch.Tensor], torch.Tensor] = partial(encode_clip, self.modules)
        self.sharded_t5: ShardedT5 | None = None
        if "shard_text" not in left_out(self.point):
            carrier, encoder = self.flux.carrier, self.modules.text_encoder_2
            by_width = self.point.execution == "graph" and not carrier.holds_processors
            self.t5 = self.sharded_t5 = ShardedT5(encoder, self.mesh, carrier, by_width=by_width)
            self.opened.callback(self.sharded_t5.close)
            self.opened.callback(self.flux.close)  # before the layers come back: they may need what it frees
        if self.point.execution == "graph":
            self.t5, self.clip = LoopGraphs(self.t5), LoopGraphs(self.clip)
            self.opened.callback(self.t5.clear)
            self.opened.callback(self.clip.clear)

    def encode(self) -> Embeddings:
        """See Backend.encode."""
        prompt = self.t5(self.inputs.t5_ids)
        return Embeddings(prompt=prompt, pooled=self.clip(self.inputs.clip_ids).to(prompt.dtype))

    def denoise(self, embeddings: Embeddings) -> torch.Tensor:
        """This rank's share of the final packed latents, B i 64."""
        i = self.inputs
        return self.flux.denoise(i.noise, embeddings.prompt, embeddings.pooled, self.sigmas, i.guidance)

    @property
    def comm_bytes_per_step(self) -> int:
        """Bytes that this rank sends to others in a denoising step."""
        return self.flux.sent_bytes

    @property
    def choices(self) -> dict[str, Any]:
        """See UspFlux.choices; nothing for a decode alone."""
        return self.flux.choices if self.point.steps else {}

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights on this rank that are copies of a share of the pipeline's own."""
        return self.sharded_t5.copied_bytes if self.sharded_t5 else 0

    @property
    def symmetric_bytes(self) -> int:
        """Bytes of symmetric memory on this rank."""
        return self.flux.carrier.held_bytes

    def noise(self) -> torch.Tensor:
        """See Backend.noise."""
        return self.inputs.noise[:, slice(*self.flux.image_range)]

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """uint8 height width 3 on rank 0, None elsewhere."""
        if self.point.vae == "none":
            return None
        whole = self.flux.gather(latents)  # 128 bytes a token: 8 MB at 4096px, less than one exchange of a block
        if self.bands is not None:
            first, last = self.bands.band
            image = unpack(whole, self.point.height, self.point.width, self.modules.vae)
            return self.bands.decode(image[:, :, first:last])
        with no_blocks_left_by_pressure(self.mesh.device):
            if self.twin is not None:
                return self.twin.decode(whole, self.point)
            return decode_whole(self.modules.vae, whole, self.point) if self.mesh.rank == 0 else None

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        """The whole packed latents on every rank."""
        return self.flux.gather(latents)

    def close(self) -> None:
        """Frees graphs and buffers of the engine and the VAE."""
        self.opened.close()
        self.twin = None


def options(point: Point) -> Options:
    """The engine with what the point leaves out switched off."""
    chosen: dict[str, Any] = {}
    for rung in left_out(point) - {"shard_text"}:
        chosen |= {"keys": "ring"} if rung == "gathered" else {rung: False}
    if point.transport != "p2p":  # chosen by NCCL's variables, which symmetric memory does not heed
        chosen["symmetric"] = False
    return Options(**chosen)


def left_out(point: Point) -> set[str]:
    """The rungs that the point goes without."""
    return set(filter(None, point.without.split("+")))
