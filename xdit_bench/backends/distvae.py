"""The VAE of a peer: DistVAE's parallel decode over the ranks of a point (`vae=distvae`).

DistVAE puts adapters into a decoder in place. They go into a twin that shares the weights, so that the decoder of the
other engines stays as diffusers built it, and dropping the twin is all there is to undo.

    twin = DistVae(modules.vae, mesh); pixels = twin.decode(packed_latents, point)
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from xdit_bench.backends.pipeline import decode_image, to_uint8
from xdit_bench.config import VAE_SCALE, Point
from xdit_bench.engine.mesh import Mesh
from xdit_bench.errors import Infeasible, MissingExtraError


class DistVae:
    """Bands of rows from the up blocks on; the convolution before them and the mid block are done on every rank."""

    def __init__(self, vae: Any, mesh: Mesh) -> None:
        """Raises MissingExtraError where DistVAE is not installed, Infeasible for a VAE that it has no adapter for."""
        parallel = import_distvae()
        self.mesh = mesh
        self.vae = vae
        if mesh.size == 1:  # nothing to share out: DistVAE on one rank is the plain decode with more copies
            return
        if parallel.decoder_adapter_name(vae) is None:
            raise Infeasible(f"DistVAE has no adapter for the decoder of {type(vae).__name__}; use vae=single or tiled")
        self.vae = twin_of(vae)
        parallel.parallelize_decoder(self.vae, mesh.group)

    def decode(self, latents: torch.Tensor, point: Point) -> torch.Tensor | None:
        """Packed latents B I 64, whole on every rank, to uint8 height width 3 on rank 0, None elsewhere.

        DistVAE leaves the whole image on every rank; rank 0 alone makes pixels of it. Raises Infeasible before
        anything is sent where the latents have fewer rows than there are ranks.
        """
        rows = point.height // VAE_SCALE
        if rows < self.mesh.size:
            raise Infeasible(f"DistVAE needs a row of latents a GPU: {point.height}px has {rows}, for {self.mesh.size}")
        image = decode_image(self.vae, latents, point)
        return to_uint8(image) if self.mesh.rank == 0 else None


def import_distvae() -> Any:
    """DistVAE's module that fits adapters to a VAE. Raises MissingExtraError."""
    try:
        from distvae.vae import parallel
    except ImportError as error:
        raise MissingExtraError(
            f"vae=distvae needs the package distvae ({error}); pip install 'xdit_bench[peers]'"
        ) from error
    return parallel


def twin_of(module: torch.nn.Module) -> Any:
    """Modules of their own around the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
