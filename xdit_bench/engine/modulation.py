"""adaLN modulation: scales, shifts and gates of every norm, from timestep, guidance and pooled prompt.

It depends on no token, so all steps of an image are computed before the first: one pass over its 6.5 GB of
weights an image instead of one a step. Leaves applying it to `ops`.

    table = Modulation(transformer, mesh, carrier).table(timesteps, pooled, guidance)
    norms, gates = table.step(0)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.engine.collectives import Carrier
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.weights import Pair, bring_back, put_away


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
    """The adaLN projections of a `FluxTransformer2DModel`, shared out over the ranks of a mesh.

    Each rank projects its own layers and all gather the table: 6.5 GB of weights are read once an image by all ranks
    together. With `shard` a rank also keeps only its own layers in device memory until `close`; the others' wait in
    pinned host memory, where they stay for the next time.
    """

    def __init__(self, transformer: Any, mesh: Mesh, carrier: Carrier, *, shard: bool = True) -> None:
        self.embed, self.mesh, self.carrier = transformer.time_text_embed, mesh, carrier
        self.layers: list[torch.nn.Linear] = []
        for block in transformer.transformer_blocks:
            self.layers += [block.norm1_context.linear, block.norm1.linear]
        self.doubles = len(transformer.transformer_blocks)
        self.layers += [block.norm.linear for block in transformer.single_transformer_blocks]
        self.layers.append(transformer.norm_out.linear)
        self.own = range(mesh.rank, len(self.layers), mesh.size)  # dealt out: equal layers neighbour each other
        self.close()  # a sharing that was never closed
        if shard and mesh.device.type == "cuda":
            put_away([self.layers[i] for i in range(len(self.layers)) if i not in self.own], mesh.size)

    def close(self) -> None:
        """Brings every layer back to the device."""
        bring_back(self.layers, self.mesh.device)

    def table(self, sigmas: Tensor, pooled: Tensor, guidance: Tensor | None) -> Table:
        """Modulation of K steps. sigmas `K` (timesteps over 1000), pooled `B C`, guidance one scale or None.

        Rounds timestep and guidance as diffusers does, so that both agree in bf16: its pipeline rounds the timestep,
        divides it by 1000 and rounds again, its forward multiplies by 1000 and rounds once more. Other orders differ
        by up to 4 of 1000, and paint another picture in flux_dev's 28 steps.
        """
        steps, batch = sigmas.shape[0], pooled.shape[0]
        timestep = ((sigmas * 1000).to(pooled.dtype) / 1000 * 1000).repeat_interleave(batch)
        conditions = [timestep]
        if guidance is not None:
            conditions.append((guidance.to(pooled.dtype) * 1000).expand(steps * batch))
        embedded = F.silu(self.embed(*conditions, pooled.repeat(steps, 1)))
        own = [F.linear(embedded, self.layers[i].weight, self.layers[i].bias) for i in self.own]
        rows = self._gather(own or [embedded[:, :0]])  # more ranks than layers leave one without
        tables = [row.view(steps, batch, -1, embedded.shape[1]) for row in rows]
        doubles = [Pair(tables[2 * i], tables[2 * i + 1]) for i in range(self.doubles)]
        return Table(doubles, tables[2 * self.doubles : -1], tables[-1])

    def _gather(self, own: list[Tensor]) -> list[Tensor]:
        """Every layer's rows `K*B n*h`, in the order of the layers, from each rank's own."""
        if self.mesh.size == 1:
            return own
        dealt = [range(rank, len(self.layers), self.mesh.size) for rank in range(self.mesh.size)]
        widths = [[self.layers[i].out_features for i in mine] for mine in dealt]
        columns = torch.cat(own, dim=1).t().contiguous()  # the gather joins along dim 0
        whole = self.carrier.join(columns, [sum(mine) for mine in widths]).t().contiguous()
        parts = torch.split(whole, [width for mine in widths for width in mine], dim=1)
        place = {i: at for at, i in enumerate(i for mine in dealt for i in mine)}
        return [parts[place[i]] for i in range(len(self.layers))]
