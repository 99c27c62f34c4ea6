"""An engine that computes nothing and fails on demand, so that everything around engines is tested without a GPU.

No config file names it: tests reach it alone. What it does stands in the point's prompt as JSON, so that it is
part of the point's identity and reaches every rank the normal way:

    {"step_s": 0.002}                                         how long a step takes on one rank
    {"fault": "oom", "rank": 1, "stage": "denoise"}           one rank fails there; without rank: all of them
    {"fault": "nan", "gpus": 2}                               only on so many ranks, so that its baseline is sound
    {"fault": "oom", "stage": "vae", "above": 320}            only at sizes above so many pixels

Faults: oom, raise, infeasible, exit, kill, stop, hang, slow, wrong_latents, wrong_image, nan.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist

from xdit_bench.backends.base import Embeddings, Inputs, Modules
from xdit_bench.config import ModelSpec, Point
from xdit_bench.engine.mesh import Mesh, split_sizes
from xdit_bench.errors import Infeasible

PIXELS = 32  # side of the image it leaves behind, whatever the point's size


class FakeBackend:
    """Sleeps where an engine computes; exchanges one small tensor a step, so that a missing rank is felt."""

    weightless = True

    def prepare(self, mesh: Mesh, modules: Modules, point: Point, model: ModelSpec, inputs: Inputs) -> None:
        """Raises Infeasible when the script says so."""
        del modules, model, inputs
        self.mesh, self.point = mesh, point
        self.script: dict[str, Any] = json.loads(point.prompt) if point.prompt.startswith("{") else {}
        tokens = torch.Generator().manual_seed(point.seed)
        self.latents = torch.randn(1, 64, 64, generator=tokens)
        self._fail("prepare")

    def encode(self) -> Embeddings:
        """Nothing to encode."""
        self._fail("text")
        return Embeddings(torch.zeros(1, 1, 1), torch.zeros(1, 1))

    def denoise(self, embeddings: Embeddings) -> torch.Tensor:
        """This rank's rows of the latents, B i 64."""
        del embeddings
        for _ in range(self.point.steps):
            time.sleep(self.script.get("step_s", 0.001) / self.mesh.size)
            self._exchange()
        self._fail("denoise")
        self._exchange()
        return self.noise()

    def noise(self) -> torch.Tensor:
        """This rank's rows, wrong where the script says so."""
        latents = self.latents.split(split_sizes(64, self.mesh.size), dim=1)[self.mesh.rank].clone()
        wrong = {"wrong_latents": 1.0, "nan": float("nan")}.get(self.script.get("fault", ""), 0.0)
        return latents + wrong if self._mine() else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """A constant gradient."""
        del latents
        self._fail("vae")
        if self.point.vae == "parallel":
            self._exchange()
        image = torch.arange(PIXELS * PIXELS * 3).remainder(256).to(torch.uint8).reshape(PIXELS, PIXELS, 3)
        if self.script.get("fault") == "wrong_image" and self._mine():
            image = 255 - image
        return image if self.mesh.rank == 0 else None

    def gather(self, latents: torch.Tensor) -> torch.Tensor:
        """All rows on every rank."""
        self._fail("parity")
        if self.mesh.group is None:
            return latents
        sizes = split_sizes(64, self.mesh.size)
        parts = [torch.empty(1, size, 64) for size in sizes]
        padded = [torch.empty(1, max(sizes), 64) for _ in sizes]
        mine = torch.zeros(1, max(sizes), 64)
        mine[:, : latents.shape[1]] = latents
        dist.all_gather(padded, mine, group=self.mesh.group)
        return torch.cat([whole[:, : part.shape[1]] for whole, part in zip(padded, parts, strict=True)], dim=1)

    def close(self) -> None:
        """Nothing was changed."""

    def _exchange(self) -> None:
        if self.mesh.group is not None:
            dist.all_reduce(torch.ones(1), group=self.mesh.group)

    def _mine(self) -> bool:
        gpus = self.script.get("gpus", self.mesh.size)
        large = self.point.height > self.script.get("above", 0)
        return gpus == self.mesh.size and large and self.script.get("rank") in (None, self.mesh.rank)

    def _fail(self, stage: str) -> None:
        fault = self.script.get("fault")
        if fault is None or stage != self.script.get("stage", "denoise") or not self._mine():
            return
        if fault == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has little left")
        if fault == "raise":
            raise RuntimeError("planted fault: a kernel could not be found")
        if fault == "infeasible":
            raise Infeasible("planted rule: this engine refuses the point; use another")
        if fault == "exit":
            os._exit(3)
        if fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        if fault == "hang":
            time.sleep(3600)
        if fault == "slow":
            time.sleep(self.script["seconds"])
