"""How long the host takes to issue work: that of a narrow eager block, which its device never delays.

Eager execution of a small image is bound by it, and it differs from host to host and from minute to minute, so that
each record carries its own.

    launch = BlockLaunch(torch.device("cuda"), torch.bfloat16)
    seconds = launch()
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from xdit_bench.measure.timers import synchronize

BLOCKS = 38  # of FLUX.1's: one block over and over stays in the core's caches, and issues 8 to 10 % faster
PASSES = 2  # timed at least, of 30 to 70 ms each, after one that is not
FOR_S = 0.2  # and for so long: a shared host stalls for 20 ms now and then, which an image of many launches meets too
BRIEF = 4  # blocks of a take between two images: about 5 ms, so that the device hardly rests


class BlockLaunch:
    """Mean seconds to issue diffusers' single-stream block, 32 tokens wide 128, without waiting for the device; all of
    a model's in turn, as a step does."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.blocks = [single_block(128, 1, 32, device, dtype) for _ in range(BLOCKS)]
        self._turn = itertools.cycle(self.blocks)

    @torch.no_grad()
    def __call__(self) -> float:
        """Seconds a block."""
        self._pass()
        synchronize(self.device)
        start, passes, seconds = time.perf_counter(), 0, 0.0
        while passes < PASSES or seconds < FOR_S:
            self._pass()
            passes += 1
            seconds = time.perf_counter() - start
        synchronize(self.device)
        return seconds / (passes * len(self.blocks))

    @torch.no_grad()
    def brief(self) -> float:
        """Seconds a block by the next few alone, on a device that is done: how fast the host is between two images. A
        shared one goes on 1.6 times slower within a second, and back."""
        next(self._turn)()
        start = time.perf_counter()
        for block in itertools.islice(self._turn, BRIEF):
            block()
        return (time.perf_counter() - start) / BRIEF

    def _pass(self) -> None:
        for block in self.blocks:
            block()


def single_block(h: int, heads: int, tokens: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A call of diffusers' eager single-stream block of that width; an eighth of the tokens are text."""
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    with device:
        block = FluxSingleTransformerBlock(dim=h, num_attention_heads=heads, attention_head_dim=h // heads).to(dtype)
        text, image = torch.randn(1, tokens // 8, h, dtype=dtype), torch.randn(1, tokens - tokens // 8, h, dtype=dtype)
        vector, angles = torch.randn(1, h, dtype=dtype), torch.randn(tokens, h // heads)
    rotary = (angles.cos(), angles.sin())
    return lambda: block(image, text, vector, image_rotary_emb=rotary)
