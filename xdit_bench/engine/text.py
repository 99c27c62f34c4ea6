"""T5's encoder over the ranks of a mesh, which hold 1/P of its layers each: by width or by depth.

By width every layer is shared out, its heads and the columns of its MLP, and two sums over the ranks a layer make it
whole again (Megatron-LM, arXiv:1909.08053): faster with every rank where links are fast. By depth each runs some of the
layers and passes what comes out on to the others: one exchange a rank (4 MB for 512 tokens), and as long as on one
rank. Either way two ranks hold 4.6 GB less each, eight 8.1 GB.

Leaves what a layer computes to transformers, but hands it the position bias in order: as transformers permutes it, its
last dimension has no stride of one, for which torch has no fused attention on GPUs (`sdp_utils_cpp.h`).

    t5 = ShardedT5(text_encoder_2, mesh, carrier)
    prompt = t5(ids); t5.close()
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xdit_bench.engine.collectives import Carrier
from xdit_bench.engine.mesh import Mesh, own_range, split_sizes
from xdit_bench.engine.weights import bring_back, put_away

log = logging.getLogger(__name__)


class ShardedT5:
    """A `T5EncoderModel` shared out over the ranks, `by_width` where every rank gets a head and host memory holds the
    whole.

    A GPU keeps its rank's share alone until `close`; all else waits in pinned host memory. The table of embeddings and
    the last norm (0.3 GB) stay on every rank.
    """

    def __init__(self, encoder: Any, mesh: Mesh, carrier: Carrier, *, by_width: bool = False) -> None:
        self.embed, self.mesh, self.carrier = encoder.encoder.embed_tokens, mesh, carrier
        self.stage: Any = None
        self.layers = layers = list(encoder.encoder.block)
        self.counts, own = split_sizes(len(layers), mesh.size), own_range(len(layers), mesh)
        self.close()  # a sharing that was never closed
        try:
            self.by_width = by_width and 1 < mesh.size <= encoder.config.num_heads and self._all_put_away()
            if self.by_width:
                self.stage = _slice(encoder, mesh, carrier)
            else:
                self.stage = _stage(encoder, own, last=own.stop == len(layers))
                if mesh.device.type == "cuda":
                    put_away([layer for i, layer in enumerate(layers) if i not in own], mesh.size)
        except BaseException:
            self.close()  # or the next point, of another engine, would find layers in host memory
            raise

    def __call__(self, ids: Tensor) -> Tensor:
        """Embeddings `B T C` of ids `B T`, on every rank. All ranks call in step."""
        hidden: Tensor = self.embed(ids)
        if self.by_width:
            whole: Tensor = self.stage(inputs_embeds=hidden, output_hidden_states=False)[0]
            return whole
        for rank, count in enumerate(self.counts):
            if count and rank == self.mesh.rank:
                hidden = self.stage(inputs_embeds=hidden, output_hidden_states=False)[0]
            if count:
                hidden = self.carrier.spread(hidden, rank)
        return hidden

    @property
    def copied_bytes(self) -> int:
        """Of this rank's share, where it is a copy and not the encoder's own tensors."""
        if not (self.by_width and self.mesh.device.type == "cuda"):
            return 0
        return sum(p.numel() * p.element_size() for p in self.stage.encoder.block.parameters())

    def _all_put_away(self) -> bool:
        """Puts every layer away; whether each rank's host had room for them. Else all are back."""
        if self.mesh.device.type == "cuda":
            try:
                put_away(self.layers, self.mesh.size)
            except RuntimeError as error:  # no pages to pin; the other ranks wait to hear of it
                log.warning("T5's layers can not be put away (%s)", error)
        mine = not any(parameter.is_cuda for layer in self.layers for parameter in layer.parameters())
        ranks = int(self.carrier.total(torch.tensor([float(mine)], device=self.mesh.device)))
        if ranks < self.mesh.size:
            self.close()
        return ranks == self.mesh.size

    def close(self) -> None:
        """Frees this rank's share and brings every layer back to the device."""
        self.stage = None
        bring_back(self.layers, self.mesh.device)


class _Summed(nn.Module):
    """A linear layer over a share of its inputs, summed over the ranks."""

    def __init__(self, linear: nn.Linear, carrier: Carrier) -> None:
        super().__init__()
        self.linear, self.carrier = linear, carrier

    @property
    def weight(self) -> Tensor:
        """Where transformers looks for the layer's number format."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.carrier.total(self.linear(x))


def _slice(encoder: Any, mesh: Mesh, carrier: Carrier) -> Any:
    """An encoder of all layers, narrowed to this rank's heads and columns of the MLP; on GPUs a copy of these, made a
    tensor at a time of layers that were put away."""
    config = copy.deepcopy(encoder.config)
    heads, wide = own_range(config.num_heads, mesh), own_range(config.d_ff, mesh)
    config.num_heads, config.d_ff = len(heads), len(wide)
    inner = slice(heads.start * config.d_kv, heads.stop * config.d_kv)
    columns, everything = slice(wide.start, wide.stop), slice(None)
    cuts = {  # name -> rows and columns of its weight
        "SelfAttention.q": (inner, everything), "SelfAttention.k": (inner, everything),
        "SelfAttention.v": (inner, everything), "SelfAttention.o": (everything, inner),
        "SelfAttention.relative_attention_bias": (everything, slice(heads.start, heads.stop)),
        "DenseReluDense.wi": (columns, everything), "DenseReluDense.wi_0": (columns, everything),
        "DenseReluDense.wi_1": (columns, everything), "DenseReluDense.wo": (everything, columns),
    }  # fmt: skip
    with torch.device("meta"):
        part = type(encoder)(config)
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        layer = re.match(r"encoder\.block\.\d+\.layer\.\d+\.(.*)\.weight", name)
        cut = cuts.get(layer[1]) if layer else None
        own = here = tensor.to(mesh.device)
        if cut:
            own = here[cut] if here is tensor else here[cut].clone()  # a view would keep the whole on the device
        tensors[name] = own
    part.load_state_dict(tensors, assign=True)
    for block in part.encoder.block:
        attention, mlp = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
        attention.o, mlp.wo = _Summed(attention.o, carrier), _Summed(mlp.wo, carrier)
    _order_bias(part)
    return part.eval().requires_grad_(False)


def _stage(encoder: Any, own: range, *, last: bool) -> nn.Module:
    """An encoder of the layers `own`, its weights the encoder's own tensors, without the norm at the end unless `last`.

    Its first layer gets the position bias, which the model keeps in the first layer of all and adds in each.
    """
    config = copy.deepcopy(encoder.config)
    config.num_layers = len(own)
    with torch.device("meta"):
        stage = type(encoder)(config)
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        layer = re.match(r"(encoder\.block\.)(\d+)(\..*)", name)
        if layer is None:
            tensors[name] = tensor
        elif int(layer[2]) in own:
            tensors[f"{layer[1]}{int(layer[2]) - own.start}{layer[3]}"] = tensor
        elif "relative_attention_bias" in name and own:
            tensors[name] = tensor
    stage.load_state_dict(tensors, assign=True)
    if own:
        _order_bias(stage)
    if not last:
        stage.encoder.final_layer_norm = nn.Identity()
    made: nn.Module = stage.eval().requires_grad_(False)
    return made


def _order_bias(stage: Any) -> None:
    attention = stage.encoder.block[0].layer[0].SelfAttention
    attention.compute_bias = partial(_in_order, attention.compute_bias)


def _in_order(bias: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    return bias(*arguments, **named).contiguous()
