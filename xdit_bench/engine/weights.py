"""The weights of diffusers' FLUX.1 blocks, as the engine's own forward wants them: q, k and v fused.

Fusing copies nothing twice: the module's parameters become views of the fused tensor, so that diffusers' forward
on the same module goes on working. Weights that other ranks hold wait in host memory. Leaves the adaLN projections to
`modulation`, T5's layers to `text`.

    double, single = [double_weights(b) for b in transformer.transformer_blocks], ...
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

HOST_SHARE = 0.8  # of the host's free memory that copies of weights may take

log = logging.getLogger(__name__)


class Linear(NamedTuple):
    """Weight `out in` and bias `out`."""

    weight: Tensor
    bias: Tensor


class Pair(NamedTuple):
    """One thing for text tokens and one for image tokens."""

    text: Any
    image: Any


class DoubleWeights(NamedTuple):
    """A double-stream block; every field a Pair, the norms' weights `D`. `q` and `kv` are rows of `qkv`."""

    qkv: Pair
    q: Pair
    kv: Pair
    norm_q: Pair
    norm_k: Pair
    out: Pair
    ff_in: Pair
    ff_out: Pair


class SingleWeights(NamedTuple):
    """A single-stream block. Its output projection comes in halves, so that the MLP's need not wait for attention."""

    qkv: Linear
    norm_q: Pair
    norm_k: Pair
    mlp: Linear
    out_mlp: Linear
    out_attention: Tensor


def double_weights(block: Any) -> DoubleWeights:
    """Of a `FluxTransformerBlock`; fuses its q, k, v in place."""
    attn = block.attn
    qkv = Pair(fuse([attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]), fuse([attn.to_q, attn.to_k, attn.to_v]))
    width = attn.to_q.weight.shape[0]
    return DoubleWeights(
        qkv=qkv,
        q=Pair(*(Linear(layer.weight[:width], layer.bias[:width]) for layer in qkv)),
        kv=Pair(*(Linear(layer.weight[width:], layer.bias[width:]) for layer in qkv)),
        norm_q=Pair(attn.norm_added_q.weight, attn.norm_q.weight),
        norm_k=Pair(attn.norm_added_k.weight, attn.norm_k.weight),
        out=Pair(_linear(attn.to_add_out), _linear(attn.to_out[0])),
        ff_in=Pair(_linear(block.ff_context.net[0].proj), _linear(block.ff.net[0].proj)),
        ff_out=Pair(_linear(block.ff_context.net[2]), _linear(block.ff.net[2])),
    )


def single_weights(block: Any) -> SingleWeights:
    """Of a `FluxSingleTransformerBlock`; fuses its q, k, v in place."""
    attn, out = block.attn, _linear(block.proj_out)
    width = out.weight.shape[0]
    return SingleWeights(
        qkv=fuse([attn.to_q, attn.to_k, attn.to_v]),
        norm_q=Pair(attn.norm_q.weight, attn.norm_q.weight),
        norm_k=Pair(attn.norm_k.weight, attn.norm_k.weight),
        mlp=_linear(block.proj_mlp),
        out_mlp=Linear(out.weight[:, width:], out.bias),
        out_attention=out.weight[:, :width],
    )


def fuse(layers: Sequence[torch.nn.Linear]) -> Linear:
    """The layers stacked by output, their parameters now views of the stack. A stack made before is found again."""
    return Linear(
        _stack([layer.weight for layer in layers]),
        _stack([layer.bias for layer in layers]),
    )


def _linear(layer: Any) -> Linear:
    return Linear(layer.weight, layer.bias)


def _stack(parameters: Sequence[Tensor]) -> Tensor:
    first, shape = parameters[0], list(parameters[0].shape)
    shape[0] = sum(parameter.shape[0] for parameter in parameters)
    end = first.data_ptr()
    adjoining = len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    for parameter in parameters:
        adjoining = adjoining and parameter.is_contiguous() and parameter.data_ptr() == end
        end += parameter.numel() * parameter.element_size()
    if adjoining:
        return first.detach().as_strided(shape, first.stride())
    stacked = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(stacked, [p.shape[0] for p in parameters]), strict=True):
        parameter.data = part
    return stacked


def put_away(modules: Sequence[torch.nn.Module], ranks: int) -> None:
    """Leaves the modules' weights in host memory alone. Their copy there is made once, pinned: copying takes far longer
    than an image, and weights never change.

    Where `ranks` of one host that all put as much away would fill its memory, they stay on the device, with a log line.
    """
    new = [module for module in modules if not hasattr(module, "host_copies")]
    needed = ranks * sum(p.numel() * p.element_size() for module in new for p in module.parameters())
    if needed > HOST_SHARE * (room := host_room()):
        log.warning("weights of other ranks stay on the GPU: %.0f GB of host memory are free of the %.0f GB that their "
                    "copies take", room / 1e9, needed / 1e9)  # fmt: skip
        return
    for module in new:
        copies = [torch.empty_like(p.data, device="cpu", pin_memory=True).copy_(p.data) for p in module.parameters()]
        object.__setattr__(module, "host_copies", copies)  # past nn.Module, which would look for parameters in it
    for module in modules:
        held_there: Any = module.host_copies
        for parameter, held in zip(module.parameters(), held_there, strict=True):
            parameter.data = held


def host_room(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes of host memory that this process may still take: what is available, or what a container's limit leaves."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    room = 1024.0 * int(available[1]) if available else math.inf
    with contextlib.suppress(OSError, ValueError):  # no limit, or not cgroup v2
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        room = min(room, limit - used)
    return room


def bring_back(modules: Iterable[torch.nn.Module], device: torch.device) -> None:
    """The weights that `put_away` left in host memory, on the device again.

    Into memory of their own: the allocator would cut them out of the large blocks that images left in its cache, and no
    block that holds a weight can be given back when a later decode needs all there is.
    """
    away = [p for module in modules for p in module.parameters() if p.device.type != device.type]
    if away and device.type == "cuda":
        torch.cuda.empty_cache()
    for parameter in away:
        parameter.data = parameter.data.to(device, non_blocking=True)
