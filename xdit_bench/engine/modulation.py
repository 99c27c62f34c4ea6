"""adaLN modulation: scales, shifts and gates of every norm, from timestep, guidance and pooled prompt.

It depends on no token, so all steps of an image are computed before the first: one pass over its 6.5 GB of
weights an image instead of one a step. Leaves applying it to `ops`.

    table = Modulation(transformer).table(timesteps, pooled, guidance)
    norms, gates = table.step(0)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.engine.weights import Pair


class Affine(NamedTuple):
    """What follows a LayerNorm: `x * (1 + scale) + shift`, for text and image, each `B h`."""

    scale: Pair
    shift: Pair


class Table(NamedTuple):
    """`double[i]` is a Pair of `K B 6 h`, `single[i]` `K B 3 h`, `last` `K B 2 h`, for K steps."""

    double: list[Pair]
    single: list[Tensor]
    last: Tensor

    def step(self, k: int) -> tuple[list[Affine], list[Pair]]:
        """Norms and gates of step k, in the order a forward meets them: norm i, gate i, norm i+1, ..., last norm.

        A double block holds two of each (attention, MLP), a single block one. Order inside a projection: diffusers'
        AdaLayerNormZero (shift, scale, gate, twice), AdaLayerNormZeroSingle, AdaLayerNormContinuous (scale, shift).
        """
        norms, gates = [], []
        for pair in self.double:
            text, image = (stream[k].unbind(1) for stream in pair)
            for shift in (0, 3):
                norms.append(Affine(Pair(text[shift + 1], image[shift + 1]), Pair(text[shift], image[shift])))
                gates.append(Pair(text[shift + 2], image[shift + 2]))
        for both in self.single:
            shift_row, scale_row, gate_row = both[k].unbind(1)
            norms.append(Affine(Pair(scale_row, scale_row), Pair(shift_row, shift_row)))
            gates.append(Pair(gate_row, gate_row))
        scale_row, shift_row = self.last[k].unbind(1)
        norms.append(Affine(Pair(scale_row, scale_row), Pair(shift_row, shift_row)))
        return norms, gates


class Modulation:
    """The adaLN projections of a `FluxTransformer2DModel`."""

    def __init__(self, transformer: Any) -> None:
        self.embed = transformer.time_text_embed
        self.double = [Pair(b.norm1_context.linear, b.norm1.linear) for b in transformer.transformer_blocks]
        self.single = [block.norm.linear for block in transformer.single_transformer_blocks]
        self.last = transformer.norm_out.linear

    def table(self, sigmas: Tensor, pooled: Tensor, guidance: Tensor | None) -> Table:
        """Modulation of K steps. sigmas `K` (timesteps over 1000), pooled `B C`, guidance one scale or None.

        Rounds timestep and guidance as diffusers' forward does, so that both agree in bf16.
        """
        steps, batch = sigmas.shape[0], pooled.shape[0]
        timestep = (sigmas.to(pooled.dtype) * 1000).repeat_interleave(batch)
        conditions = [timestep]
        if guidance is not None:
            conditions.append((guidance.to(pooled.dtype) * 1000).expand(steps * batch))
        embedded = F.silu(self.embed(*conditions, pooled.repeat(steps, 1)))

        def project(linear: torch.nn.Linear) -> Tensor:
            out: Tensor = F.linear(embedded, linear.weight, linear.bias)
            return out.view(steps, batch, -1, linear.in_features)

        return Table(
            [Pair(project(pair.text), project(pair.image)) for pair in self.double],
            [project(linear) for linear in self.single],
            project(self.last),
        )
