"""FLOPs, bytes and shapes of every stage, from the model's own config and the shape of a point.

Owns counting; turning counts into seconds is `roofline` and `network`. Pure arithmetic, no machine in it.

    work = Shard.of(point, profile)
    gemms = transformer_gemms(model, work.image, work.text, fused=False)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xdit_bench.config import VAE_SCALE, ModelSpec, Point
from xdit_bench.predict.profiles import EngineProfile

BF16 = 2  # bytes


@dataclass(frozen=True)
class Gemm:
    """`count` products of M x K by K x N."""

    m: int
    k: int
    n: int
    count: int = 1


class Conv(NamedTuple):
    """A k x k convolution at `scale` pixels a latent each way."""

    cin: int
    cout: int
    kernel: int
    scale: int

    @property
    def flops(self) -> float:
        """FLOPs a latent pixel."""
        return 2.0 * self.kernel**2 * self.cin * self.cout * self.scale**2


@dataclass(frozen=True)
class Shard:
    """What the fullest rank holds: tokens of image and of text, and the whole lengths."""

    image: int
    text: int
    whole_image: int
    whole_text: int
    ranks: int

    @classmethod
    def of(cls, point: Point, profile: EngineProfile) -> Shard:
        """Static uneven splits: the fullest rank has the rounded-up share."""
        ranks = point.gpus
        text = -(-point.text_tokens // ranks) if profile.text_sharded else point.text_tokens
        return cls(-(-point.image_tokens // ranks), text, point.image_tokens, point.text_tokens, ranks)

    @property
    def tokens(self) -> int:
        """Tokens of this rank."""
        return self.image + self.text

    @property
    def repeated(self) -> bool:
        """Every rank holds all of the text, although there are several."""
        return self.ranks > 1 and self.text == self.whole_text


def blocks(model: ModelSpec) -> tuple[int, int]:
    """Double-stream and single-stream blocks."""
    return int(model.transformer["num_layers"]), int(model.transformer["num_single_layers"])


def transformer_gemms(
    model: ModelSpec, image: int, text: int, *, fused: bool, keys_first: bool = False, split_out: bool = False
) -> list[Gemm]:
    """Linear layers of one step on one rank, modulation left out (12 h² a block: FLUX.1's MLP ratio is 4).

    `fused`: one product for q, k and v; `keys_first`: in double blocks one for k and v, one for q; `split_out`: a
    single block's output projection of the MLP and of attention apart.
    """
    h, (double, single) = model.hidden, blocks(model)
    config = model.transformer
    channels, joint = int(config["in_channels"]), int(config["joint_attention_dim"])
    gemms = [Gemm(image, channels, h), Gemm(text, joint, h), Gemm(image, h, channels)]
    for rows in (image, text):
        if keys_first:
            gemms += [Gemm(rows, h, 2 * h, double), Gemm(rows, h, h, double)]
        else:
            gemms += [Gemm(rows, h, 3 * h, double)] if fused else [Gemm(rows, h, h, 3 * double)]
        gemms += [Gemm(rows, h, h, double), Gemm(rows, h, 4 * h, double), Gemm(rows, 4 * h, h, double)]
    tokens = image + text
    qkv = [Gemm(tokens, h, 3 * h, single)] if fused else [Gemm(tokens, h, h, 3 * single)]
    out = (
        [Gemm(tokens, 4 * h, h, single), Gemm(tokens, h, h, single)] if split_out else [Gemm(tokens, 5 * h, h, single)]
    )
    return [*gemms, *qkv, Gemm(tokens, h, 4 * h, single), *out]


def modulation_bytes(model: ModelSpec) -> float:
    """Weights of all adaLN modulations: 2 x 6 h² a double, 3 h² a single block, 2 h² at the end."""
    double, single = blocks(model)
    return float(BF16 * (12 * double + 3 * single + 2) * model.hidden**2)


def transformer_bytes(model: ModelSpec) -> float:
    """Weights of the transformer."""
    double, single = blocks(model)
    h, config = model.hidden, model.transformer
    linears = (24 * double + 12 * single) * h**2
    embeds = h * (
        2 * int(config["in_channels"]) + int(config["joint_attention_dim"]) + int(config["pooled_projection_dim"])
    )
    embeds += h * (256 + h) * (2 if config["guidance_embeds"] else 1) + h * h  # timestep, guidance, pooled text
    return float(BF16 * (linears + embeds)) + modulation_bytes(model)


@dataclass(frozen=True)
class Attention:
    """`count` attentions of one rank: `heads` heads, `queries` by `keys` each."""

    heads: float
    queries: int
    keys: int
    count: int


def attentions(model: ModelSpec, shard: Shard, ulysses: int) -> list[Attention]:
    """Attention of one step on one rank, in double and in single blocks; keys over all ring steps.

    Repeated text (xdit_2024): a single block takes the text of every rank for tokens of their own; a double block holds
    the text once, its heads split over Ulysses, its queries repeated on each ring rank.
    """
    double, single = blocks(model)
    heads = model.heads / ulysses
    if not shard.repeated:
        whole = shard.whole_image + shard.whole_text
        return [Attention(heads, shard.tokens * ulysses, whole, blocks) for blocks in (double, single)]
    joint = shard.image * ulysses + shard.text
    return [
        Attention(heads, joint, shard.whole_image + shard.whole_text, double),
        Attention(heads, shard.tokens * ulysses, shard.whole_image + shard.ranks * shard.whole_text, single),
    ]


def step_flops(model: ModelSpec, point: Point) -> float:
    """FLOPs that one step of an image has to compute, on all ranks together: linear layers and attention. Modulation, a
    few products with one row, is left out."""
    gemms = transformer_gemms(model, point.image_tokens, point.text_tokens, fused=True)
    linear = sum(2.0 * gemm.m * gemm.k * gemm.n * gemm.count for gemm in gemms)
    return linear + 4.0 * (point.image_tokens + point.text_tokens) ** 2 * model.hidden * sum(blocks(model))


class Text(NamedTuple):
    """Both text encoders: bytes of T5's layers, and of both encoders; of a T5 layer the elementwise passes over a row
    of its width, those of its MLP's inside (in such rows), kernels, attention heads and their size; kernels of all
    else."""

    layers: int
    layers_bytes: float
    all_bytes: float
    rows: float
    wide_rows: float
    row_bytes: float
    kernels: float
    heads: int
    head_dim: int
    other_kernels: float


def text_encoders(model: ModelSpec) -> Text:
    """Counts of T5's encoder (gated MLP) and CLIP's text model."""
    t5, clip = model.text_encoder_2, model.text_encoder
    layers, width, wide = int(t5["num_layers"]), int(t5["d_model"]), int(t5["d_ff"])
    linears = layers * sum(gemm.count * gemm.k * gemm.n for gemm in text_gemms(model, 1))
    table = int(t5["vocab_size"]) * width
    c, f = int(clip["hidden_size"]), int(clip["intermediate_size"])
    clip_weights = int(clip["num_hidden_layers"]) * (4 * c * c + 2 * c * f) + int(clip["vocab_size"]) * c
    # transformers' modules, op by op, a layer: two RMSNorms through fp32 (17 rows each), two sums, a transposed output,
    # and the tanh GELU with its gate, 21 passes over the wide rows; 36 kernels, CLIP 14
    rows, wide_rows = 2 * 17 + 2 * 3 + 2.0, 21 * wide / width
    return Text(
        layers, float(BF16 * linears), float(BF16 * (linears + table + clip_weights)), rows, wide_rows,
        float(BF16 * width), 36.0, int(t5["num_heads"]), int(t5["d_kv"]), 14.0 * int(clip["num_hidden_layers"]) + 43,
    )  # fmt: skip


def text_gemms(model: ModelSpec, tokens: int, ranks: int = 1) -> list[Gemm]:
    """Products of the fullest rank's share of a T5 layer for a prompt of so many tokens. CLIP's, of 77 tokens 768 wide,
    are too small to count."""
    t5 = model.text_encoder_2
    inner, width = -(-int(t5["num_heads"]) // ranks) * int(t5["d_kv"]), int(t5["d_model"])
    wide = -(-int(t5["d_ff"]) // ranks)
    shapes = ((3, width, inner), (1, inner, width), (2, width, wide), (1, wide, width))
    return [Gemm(tokens, k, n, count) for count, k, n in shapes]


class Vae(NamedTuple):
    """The decoder a latent pixel: FLOPs of convolutions, and of those with upsampling folded into them; bytes of
    activations moved; the mid block's channels."""

    conv_flops: float
    fused_conv_flops: float
    traffic_bytes: float
    mid_channels: int
    wide_channels: int  # of the widest tensor at full resolution
    weights_bytes: float


ACTIVATION_PASSES = 17  # reads and writes a ResNet block: two norms (3), SiLU (2), convolutions (2), the residual (3)


def vae_decoder(model: ModelSpec) -> Vae:
    """Walks diffusers' `AutoencoderKL` decoder: conv_in, mid block, up blocks, conv_out."""
    channels = [int(c) for c in model.vae["block_out_channels"]]
    convs = list(decoder_convs(model))
    traffic = 0.0
    for conv in convs:
        passes = ACTIVATION_PASSES / 2 if conv.kernel == 3 and conv.cout > 3 else 2
        traffic += passes * BF16 * (conv.cin + conv.cout) / 2 * conv.scale**2
    weights = BF16 * sum(c.kernel**2 * c.cin * c.cout for c in convs)
    wide = channels[1] if len(channels) > 1 else channels[0]
    flops = sum(c.flops for c in convs)
    return Vae(
        flops, flops - _folded_flops(channels), traffic, channels[-1], wide, 2.0 * weights
    )  # the encoder weighs as much


def _folded_flops(channels: list[int]) -> float:
    """What a latent pixel saves where an upsample and its convolution are four 2x2 kernels before it, 16 products for
    36 (engine.vae_parts); the last one, whose output is narrowed, is computed twice instead of stored."""
    saved, scale = 0.0, 1
    for number in range(len(channels) - 1, 0, -1):
        scale *= 2
        last = number == 1 and channels[1] != channels[0]
        saved += Conv(channels[number], channels[number], 3, scale).flops * (1 - 16 / 36 * (2 if last else 1))
    return saved


def decoder_convs(model: ModelSpec) -> Iterator[Conv]:
    """The decoder's convolutions in their order."""
    channels = [int(c) for c in reversed(model.vae["block_out_channels"])]
    yield Conv(int(model.vae["latent_channels"]), channels[0], 3, 1)
    yield from (Conv(channels[0], channels[0], 3, 1) for _ in range(4))  # the mid block's two ResNets
    scale, previous = 1, channels[0]
    for number, cout in enumerate(channels):
        for _ in range(int(model.vae["layers_per_block"]) + 1):
            yield Conv(previous, cout, 3, scale)
            yield Conv(cout, cout, 3, scale)
            if previous != cout:
                yield Conv(previous, cout, 1, scale)
            previous = cout
        if number < len(channels) - 1:
            scale *= 2
            yield Conv(cout, cout, 3, scale)
    yield Conv(previous, int(model.vae["in_channels"]), 3, scale)


def band_share(point: Point) -> float:
    """The fullest rank's share of a decode in bands: rows of the latent, rounded up."""
    rows = point.height // VAE_SCALE
    return -(-rows // point.gpus) / rows


def latent_pixels(point: Point) -> int:
    """Positions of the VAE's latent."""
    return (point.height // VAE_SCALE) * (point.width // VAE_SCALE)
