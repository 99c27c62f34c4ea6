"""The exact shapes that are measured: FLUX.1's on a GPU, small ones on a CPU.

shapes = Shapes.of(device, load_model("flux_schnell"))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xdit_bench.config import ModelSpec
from xdit_bench.predict.workload import Attention, Gemm

MIB = 1 << 20


@dataclass(frozen=True)
class Shapes:
    """Matrix products, attention calls (one ring step each), tokens of elementwise work and of a prompt, latents a side
    of the decode, bytes of messages, bytes of a streaming copy, and seconds each is repeated."""

    gemms: tuple[Gemm, ...]
    attentions: tuple[Attention, ...]
    tokens: int
    text_tokens: int
    latent_sides: tuple[int, ...]
    messages: tuple[int, ...]
    copy_bytes: int
    for_s: float

    @classmethod
    def of(cls, device: torch.device, model: ModelSpec) -> Shapes:
        """Splits of 1 to 8 GPUs at 1024 and 2048px, of 1 and 2 at 4096px, on a GPU; little of each on a CPU."""
        h, heads, text = model.hidden, model.heads, model.text_tokens
        if device.type != "cuda":
            gemms = tuple(Gemm(m, h, 4 * h) for m in (64, 128))
            return cls(
                gemms, _attentions(heads, (128,), (1, 2)), 256, 32, (16,), (1 << 12, 1 << 16, 1 << 20), MIB, 0.005
            )
        rows = [(side // 16) ** 2 + text for side in (1024, 2048)]
        tokens = sorted({-(-row // ranks) for row in rows for ranks in (1, 2, 4, 8)})
        weights = ((h, h), (h, 3 * h), (h, 4 * h), (4 * h, h), (5 * h, h))
        gemms = tuple(Gemm(m, k, n) for m in tokens for k, n in weights)
        attentions = (*_attentions(heads, rows, (1, 2, 4, 8)), *_attentions(heads, (65536 + text,), (1, 2)))
        messages = tuple(MIB * size // 4 for size in (1, 4, 16, 64, 256, 1024))
        return cls(gemms, attentions, rows[1], text, (128, 256), messages, 512 * MIB, 0.06)


def _attentions(heads: int, rows: list[int] | tuple[int, ...], ranks: tuple[int, ...]) -> tuple[Attention, ...]:
    """One ring step's call of every split of up to the most ranks: heads / u, and tokens / r both ways."""
    found = []
    for row in rows:
        for u in ranks:
            for r in ranks:
                if u * r <= max(ranks) and heads % u == 0:
                    found.append(Attention(heads / u, row // r, row // r, 1))
    return tuple(dict.fromkeys(found))
