"""A decoder's weights as the row-band decode uses them. Owns which VAEs it knows; computes nothing on pixels.

    parts = read_decoder(pipe.vae)      # errors.Infeasible names what it does not know

The VAE's own modules stay as they are, so that plain diffusers can decode with them in the same process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from xdit_bench.errors import Infeasible

Known = TypeVar("Known", bound=nn.Module)


@dataclass(frozen=True)
class Norm:
    """GroupNorm: `weight` and `bias` C (float32)."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float


@dataclass(frozen=True)
class Conv:
    """`weight` K C h w (channels last), `bias` K (float32); 1 column of zeros on both sides, rows come haloed."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Resnet:
    """One ResNet block. `shortcut` C K is the 1x1 convolution; its bias is already in `conv2.bias`."""

    norm1: Norm
    conv1: Conv
    norm2: Norm
    conv2: Conv
    shortcut: Tensor | None


@dataclass(frozen=True)
class MidAttention:
    """Single-head attention over all latent pixels; weights as `F.linear` takes them, K and V in one."""

    norm: Norm
    query: tuple[Tensor, Tensor]
    key_value: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class UpBlock:
    """ResNets, then a nearest 2x upsample and its convolution as `fuse_upsample` makes them, or None."""

    resnets: list[Resnet]
    upsample: Conv | None


@dataclass(frozen=True)
class DecoderParts:
    """The whole decoder, in the order it runs."""

    post_quant: Conv | None
    conv_in: Conv
    mid: list[Resnet | MidAttention]
    blocks: list[UpBlock]
    norm_out: Norm
    conv_out: Conv
    scale: int


def read_decoder(vae: AutoencoderKL) -> DecoderParts:
    """Weights of an `AutoencoderKL` decoder. Raises Infeasible, by name, on anything this decode does not compute."""
    decoder = _known(getattr(vae, "decoder", None), Decoder, "decoder")
    post_quant = getattr(vae, "post_quant_conv", None)
    mid = _known(decoder.mid_block, UNetMidBlock2D, "decoder.mid_block")
    middle: list[Resnet | MidAttention] = [_resnet(mid.resnets[0], "decoder.mid_block.resnets.0")]
    for i, (attention, resnet) in enumerate(zip(mid.attentions, mid.resnets[1:], strict=True)):
        if attention is not None:
            middle.append(_attention(attention, f"decoder.mid_block.attentions.{i}"))
        middle.append(_resnet(resnet, f"decoder.mid_block.resnets.{i + 1}"))
    blocks = [_up_block(block, f"decoder.up_blocks.{i}") for i, block in enumerate(decoder.up_blocks)]
    _rule(isinstance(decoder.conv_act, nn.SiLU), "decoder.conv_act", decoder.conv_act, "SiLU")
    conv_in, norm_out = _conv(decoder.conv_in, "decoder.conv_in"), _norm(decoder.conv_norm_out, "decoder.conv_norm_out")
    for name, module in decoder.named_modules():  # a tensor's moments are taken before its next norm is known
        same = not isinstance(module, nn.GroupNorm) or module.num_groups == norm_out.groups
        _rule(same, f"decoder.{name}", module, f"GroupNorm of {norm_out.groups} groups, as at conv_norm_out,")
    return DecoderParts(
        post_quant=None if post_quant is None else _conv(post_quant, "post_quant_conv", size=1),
        conv_in=conv_in,
        mid=middle,
        blocks=blocks,
        norm_out=norm_out,
        conv_out=_pad_outputs(_conv(decoder.conv_out, "decoder.conv_out")),
        scale=2 ** sum(block.upsample is not None for block in blocks),
    )


def fuse_upsample(weight: Tensor) -> Tensor:
    """K C 3 3 after a nearest 2x upsample -> 4K C 2 2 before it: 16 products a pixel instead of 36.

    Of the 2x2 outputs around a low-resolution corner, row `u` and column `v` see these sums of the three taps:
    `u = 0`: (w0 + w1, w2), `u = 1`: (w0, w1 + w2). Output channels are ordered `u v K`.
    """
    taps = torch.tensor([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], dtype=torch.float32, device=weight.device)
    fused = torch.einsum("uyi,vxj,kcij->uvkcyx", taps, taps, weight.float())
    return fused.flatten(0, 2).to(weight.dtype)


def _up_block(block: nn.Module, name: str) -> UpBlock:
    known = _known(block, UpDecoderBlock2D, name)
    resnets = [_resnet(resnet, f"{name}.resnets.{i}") for i, resnet in enumerate(known.resnets)]
    if known.upsamplers is None:
        return UpBlock(resnets, None)
    upsampler = _known(known.upsamplers[0], Upsample2D, f"{name}.upsamplers.0")
    plain = upsampler.use_conv and upsampler.interpolate and not upsampler.use_conv_transpose
    _rule(plain and upsampler.norm is None and len(known.upsamplers) == 1, f"{name}.upsamplers", upsampler,
          "one nearest 2x upsample with a 3x3 convolution")  # fmt: skip
    conv = _conv(upsampler.conv, f"{name}.upsamplers.0.conv")
    return UpBlock(resnets, Conv(_channels_last(fuse_upsample(conv.weight)), conv.bias))


def _resnet(block: nn.Module, name: str) -> Resnet:
    known = _known(block, ResnetBlock2D, name)
    plain = known.time_emb_proj is None and known.upsample is None and known.downsample is None
    _rule(plain and known.output_scale_factor == 1.0 and known.time_embedding_norm != "scale_shift", name, known,
          "a ResNet without time embedding, resampling or output scale")  # fmt: skip
    _rule(isinstance(known.nonlinearity, nn.SiLU), f"{name}.nonlinearity", known.nonlinearity, "SiLU")
    conv2, shortcut = _conv(known.conv2, f"{name}.conv2"), None
    if known.conv_shortcut is not None:
        narrow = _conv(known.conv_shortcut, f"{name}.conv_shortcut", size=1)
        shortcut = narrow.weight.flatten(1).t().contiguous()
        conv2 = Conv(conv2.weight, conv2.bias + narrow.bias)
    return Resnet(_norm(known.norm1, f"{name}.norm1"), _conv(known.conv1, f"{name}.conv1"),
                  _norm(known.norm2, f"{name}.norm2"), conv2, shortcut)  # fmt: skip


def _attention(attention: nn.Module, name: str) -> MidAttention:
    known = _known(attention, Attention, name)
    plain = known.spatial_norm is None and known.norm_q is None and known.norm_k is None
    _rule(plain and known.heads == 1 and known.residual_connection and known.rescale_output_factor == 1.0, name,
          known, "one head, a residual connection and no norm but GroupNorm")  # fmt: skip

    def linear(*layers: nn.Module) -> tuple[Tensor, Tensor]:
        known_layers = [_known(layer, nn.Linear, f"{name} projections") for layer in layers]
        weights: list[Tensor] = [layer.weight for layer in known_layers]
        biases: list[Tensor] = [w.new_zeros(len(w)) if layer.bias is None else layer.bias
                  for w, layer in zip(weights, known_layers, strict=True)]  # fmt: skip
        return torch.cat(weights).detach(), torch.cat(biases).detach()

    return MidAttention(_norm(known.group_norm, f"{name}.group_norm"), linear(known.to_q),
                        linear(known.to_k, known.to_v), linear(known.to_out[0]))  # fmt: skip


def _norm(norm: nn.Module | None, name: str) -> Norm:
    known = _known(norm, nn.GroupNorm, name)
    _rule(known.affine, name, known, "GroupNorm with weight and bias")
    return Norm(known.weight.detach().float(), known.bias.detach().float(), known.num_groups, known.eps)


def _conv(conv: nn.Module | None, name: str, size: int = 3) -> Conv:
    known = _known(conv, nn.Conv2d, name)
    wanted = ((size, size), (1, 1), (size // 2, size // 2), (1, 1), 1, "zeros")
    found = (known.kernel_size, known.stride, known.padding, known.dilation, known.groups, known.padding_mode)
    _rule(found == wanted, name, known, f"a plain {size}x{size} convolution")
    bias = known.weight.new_zeros(len(known.weight)) if known.bias is None else known.bias
    return Conv(_channels_last(known.weight.detach()), bias.detach().float())


def _pad_outputs(conv: Conv) -> Conv:
    # 3 output channels would keep cuDNN off the matrix units, which want multiples of 8
    missing = -len(conv.weight) % 8
    return Conv(_channels_last(F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing))), conv.bias)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _known(module: nn.Module | None, kind: type[Known], name: str) -> Known:
    _rule(isinstance(module, kind), name, module, kind.__name__)
    assert isinstance(module, kind)
    return module


def _rule(holds: bool, name: str, found: object, wanted: str) -> None:
    if not holds:
        raise Infeasible(f"the parallel VAE decode knows {wanted} at {name}, not {_describe(found)}; use vae=single")


def _describe(found: object) -> str:
    text = type(found).__name__ if isinstance(found, nn.Module) else str(found)
    detail = str(found) if isinstance(found, nn.Conv2d) else text
    return detail.splitlines()[0]
