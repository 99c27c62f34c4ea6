"""Which tokens each rank owns: static uneven splits of text and image from the size alone, and their RoPE angles.

No padding and no size is ever exchanged. Leaves moving tokens to `collectives`.

    shares = share_tokens(height=1024, width=1024, text_tokens=512, ranks=3)
    start, stop = shares.image_range(rank)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xdit_bench.engine.mesh import split_sizes
from xdit_bench.errors import Infeasible

TOKEN_PIXELS = 16  # pixels a token, each way: 8 a latent (AutoencoderKL), 2 latents a token


@dataclass(frozen=True)
class Shares:
    """Tokens of every mesh rank, in rank order; each rank's text and image are contiguous global ranges."""

    text: tuple[int, ...]
    image: tuple[int, ...]
    rows: int
    columns: int

    def tokens(self, rank: int) -> int:
        """Text and image tokens of a rank."""
        return self.text[rank] + self.image[rank]

    def text_range(self, rank: int) -> tuple[int, int]:
        """Global text tokens [start, stop) of a rank."""
        start = sum(self.text[:rank])
        return start, start + self.text[rank]

    def image_range(self, rank: int) -> tuple[int, int]:
        """Global image tokens [start, stop) of a rank."""
        start = sum(self.image[:rank])
        return start, start + self.image[rank]


def share_tokens(height: int, width: int, text_tokens: int, ranks: int) -> Shares:
    """Splits so that text plus image of any two ranks differ by at most one token.

    Image shares are whole rows of tokens (what a row-band VAE wants) wherever the text can even them out.
    Raises Infeasible when a side is no multiple of 16 pixels or there are more ranks than tokens.
    """
    for name, side in (("height", height), ("width", width)):
        if side < TOKEN_PIXELS or side % TOKEN_PIXELS:
            raise Infeasible(f"an image side must be a positive multiple of {TOKEN_PIXELS} pixels; got {name}={side}")
    rows, columns = height // TOKEN_PIXELS, width // TOKEN_PIXELS
    image_tokens = rows * columns
    if ranks > image_tokens:
        raise Infeasible(f"every rank needs an image token; {image_tokens} tokens cannot be split over {ranks} ranks")
    targets = split_sizes(image_tokens + text_tokens, ranks)
    image = [columns * band for band in split_sizes(rows, ranks)]
    if rows < ranks or any(own > target for own, target in zip(image, targets, strict=True)):
        image = split_sizes(image_tokens, ranks)
    text = [target - own for target, own in zip(targets, image, strict=True)]
    return Shares(tuple(text), tuple(image), rows, columns)


def rope_angles(
    pos_embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    shares: Shares,
    rank: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a rank's tokens by their global position, each `S D/2` float32, text first.

    `pos_embed` is the model's own (ids `S 3` to interleaved tables `S D`); text sits at (0, 0, 0), image at (0, row,
    column), as in FLUX.1, rounded to the model's `dtype` as diffusers' pipeline rounds it: above 4096px bf16 does not
    hold every position, and exact ones paint another picture.
    """
    start, stop = shares.image_range(rank)
    index = torch.arange(start, stop, device=device)
    image_ids = torch.stack(
        [torch.zeros_like(index), index.div(shares.columns, rounding_mode="floor"), index % shares.columns], dim=1
    )
    ids = torch.cat([image_ids.new_zeros(shares.text[rank], 3), image_ids])
    cos, sin = pos_embed(ids.to(dtype))
    return cos[:, ::2].float().contiguous(), sin[:, ::2].float().contiguous()
