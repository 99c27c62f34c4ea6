"""What the runner asks of an engine: the `Backend` protocol, and what goes in and out of its stages.

All engines get the same `Inputs` (token ids and noise from the seed), so that their images can be compared.

    backend = make_backend("usp")
    backend.prepare(mesh, modules, point, model, inputs)
    latents = backend.denoise(backend.encode())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh


@dataclass(frozen=True)
class Inputs:
    """One image's inputs, equal for every engine and every number of GPUs.

    `clip_ids` B 77, `t5_ids` B T (int64), `noise` B I 64 (packed latents, I image tokens),
    `sigmas` steps+1 (float32, the last is 0; a 1 alone without steps), `guidance` scale or None.
    """

    clip_ids: torch.Tensor
    t5_ids: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    guidance: float | None


@dataclass(frozen=True)
class Embeddings:
    """What the text stage yields: `prompt` B T C (T5) and `pooled` B C' (CLIP)."""

    prompt: torch.Tensor
    pooled: torch.Tensor


@dataclass
class Modules:
    """The pipeline's parts on this rank's device: diffusers' and transformers' own classes."""

    text_encoder: Any
    text_encoder_2: Any
    transformer: Any
    vae: Any


class Backend(Protocol):
    """One engine. Every method runs on all ranks of the point's mesh, in step."""

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """Binds modules and shapes to the mesh. May raise Infeasible. Compiling and capturing may happen
        here or in the warm-up; must not change `modules` for other engines beyond `close`."""

    def encode(self) -> Embeddings:
        """The text stage: ids to embeddings, on every rank."""

    def denoise(self, embeddings: Embeddings) -> torch.Tensor:
        """All steps, from noise to final packed latents. May return this rank's share, B i 64."""

    def noise(self) -> torch.Tensor:
        """What denoising starts from, in the form that `denoise` leaves: the latents of a decode alone (0 steps)."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Final packed latents (as `denoise` left them) to pixels: uint8 height width 3 on rank 0, None elsewhere."""

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        """The whole packed latents, B I 64, on every rank. Not timed: for parity and outputs."""

    def close(self) -> None:
        """Undoes what `prepare` changed in the modules and drops buffers."""
