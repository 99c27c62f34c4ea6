"""CUDA graphs of a whole denoising loop, collectives included, one for each shape of its inputs.

A graph replays fixed memory, so inputs are copied into the buffers it was captured with: a new prompt, noise or
schedule needs no capture, another number of steps does. Leaves the loop itself to the caller.

    graphs = LoopGraphs(loop)
    latents = graphs(noise, prompt, pooled, sigmas, None)    # captures on first sight of these shapes
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]


class LoopGraphs:
    """Captured loops by input shape. Every rank must call it in step: the capture holds collectives."""

    def __init__(self, loop: Callable[..., Tensor]) -> None:
        self.loop = loop
        self.captured: dict[tuple[torch.Size | None, ...], tuple[torch.cuda.CUDAGraph, Inputs, Tensor]] = {}

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The loop's result for these inputs, in memory of its own."""
        key = tuple(None if value is None else value.shape for value in inputs)
        if key not in self.captured:
            self.captured[key] = self._capture(inputs)
        graph, buffers, result = self.captured[key]
        for buffer, value in zip(buffers, inputs, strict=True):
            if buffer is not None and value is not None:
                buffer.copy_(value)
        graph.replay()
        return result.clone()

    def clear(self) -> None:
        """Frees every graph and its memory, cuBLAS's workspace in it included."""
        self.captured.clear()
        torch._C._cuda_clearCublasWorkspaces()

    def _capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, Tensor]:
        buffers = tuple(None if value is None else value.clone() for value in inputs)
        self.loop(*buffers)  # communicators, library handles and kernels come about outside the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # graphs of one model never run at once, so they share one pool of memory
        pool = next((made[0].pool() for made in self.captured.values()), None)
        # thread_local: the communicator's watchdog thread queries events meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self.loop(*buffers)
        return graph, buffers, result
