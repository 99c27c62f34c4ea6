"""Takes an image's time by the design's protocol: steady first, then barrier, device events, slowest rank.

Owns when an iteration starts, what its stages took and when there are enough; leaves what the stages do to the
backend, and statistics to `stats`.

    timing = ImageTimer(backend, group, device, decodes=True, note=board_note).measure(config)
    timing.samples["total"]  # seconds, one an iteration, the slowest rank's
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from xdit_bench.config import MeasureConfig
from xdit_bench.measure.stats import EXTRA_WARMUPS, precise, steady

STAGES = ("text", "denoise", "vae", "total")
COLUMNS = (*STAGES, "elapsed")

Note = Callable[[str, int], None]


class Pipeline(Protocol):
    """The timed part of a backend."""

    def encode(self) -> Any:
        """Ids to embeddings."""

    def denoise(self, embeddings: Any) -> torch.Tensor:
        """Noise to final latents, or this rank's share of them."""

    def noise(self) -> torch.Tensor:
        """What `denoise` starts from, as it leaves its result."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Latents to pixels on rank 0."""


@dataclass
class Timing:
    """What the timed iterations took and left behind.

    `samples` seconds by stage, the slowest rank's; `own_total` this rank's; `spans` start and end of each
    iteration on the machine's monotonic clock; `issued` what `ImageTimer.issue` said after each; `latents` and `image`
    of the last iteration.
    """

    samples: dict[str, list[float]] = field(default_factory=dict)
    own_total: list[float] = field(default_factory=list)
    warmup: list[float] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    issued: list[float] = field(default_factory=list)
    latents: torch.Tensor | None = None
    image: torch.Tensor | None = None


class Marks:
    """Points in time of one iteration: device events on a GPU, the host's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Now, as the device's stream sees it."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between neighbouring marks, then from first to last. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        between = [self._between(a, b) for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return [*between, self._between(self._marks[0], self._marks[-1])]

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000.0 if self._cuda else end - start)


@dataclass(frozen=True)
class ImageTimer:
    """Runs and times images of one prepared pipeline. Every method is collective over `group`.

    `denoises=False` times the decode alone, of the noise. `together=False` says that rank 0 decodes by itself. `issue`
    is called after each image, by all ranks at once.
    """

    pipeline: Pipeline
    group: ProcessGroup | None
    device: torch.device
    decodes: bool
    note: Note
    denoises: bool = True
    together: bool = True
    issue: Callable[[], float] | None = None

    def measure(self, config: MeasureConfig) -> Timing:
        """Warm-up until steady, then iterations until the median is precise or a cap is met."""
        timing = Timing()
        first = self._warm_up(config, timing)
        ran = {"text": self.denoises, "denoise": self.denoises, "vae": self.decodes, "total": True}
        stages = [stage for stage in STAGES if ran[stage]]
        timing.samples = {stage: [] for stage in stages}
        begun = time.monotonic() - (first["total"] if first else 0.0)
        row = first or self.image(timing, begun)
        while True:
            for stage in stages:
                timing.samples[stage].append(row[stage])
            totals = timing.samples["total"]
            if len(totals) >= config.repeats and precise(totals, config.precision):
                return timing
            # every rank sees the same gathered numbers, so all leave the loop together
            if len(totals) >= config.max_repeats or row["elapsed"] >= config.time_cap_s:
                return timing
            row = self.image(timing, begun)

    def _warm_up(self, config: MeasureConfig, timing: Timing) -> dict[str, float] | None:
        """The image that took as long as the one before it: the first of those that count. None where none did."""
        begun = time.monotonic()
        times = timing.warmup
        while config.warmup and len(times) < config.warmup + EXTRA_WARMUPS:
            row = self.image(timing, begun)
            if len(times) >= config.warmup and steady([*times, row["total"]]):
                return {**row, "elapsed": row["total"]}
            times.append(row["total"])
            timing.spans.clear()
            timing.own_total.clear()
            timing.issued.clear()
            if row["elapsed"] >= config.time_cap_s:
                break
        return None

    def image(self, timing: Timing, begun: float) -> dict[str, float]:
        """One image; keeps its latents and pixels in `timing`. The slowest rank's seconds by column."""
        timing.latents = timing.image = None  # the last image's; two at once would count as peak memory
        number = len(timing.warmup) + len(timing.spans)
        synchronize(self.device)
        agree(self.group, [0.0])  # barrier: otherwise a late rank's lateness counts as communication
        start = time.monotonic()
        marks = Marks(self.device)
        marks.mark()
        timing.latents = self._latents(number, marks)
        if self.decodes:
            self.note("vae", number)
            timing.image = self._pixels(timing.latents)
        marks.mark()
        seconds = marks.seconds()
        self.note("agree", number)
        end = time.monotonic()
        timing.spans.append((start, end))
        timing.own_total.append(seconds[-1])
        row = dict(zip(COLUMNS, agree(self.group, [*seconds, end - begun]), strict=True))
        if math.isinf(row["total"]):
            raise RuntimeError("a peer failed in its decode, so there is no image")
        if self.issue:
            timing.issued.append(self.issue())
        return row

    def _latents(self, number: int, marks: Marks) -> torch.Tensor:
        if not self.denoises:
            marks.mark()
            noise = self.pipeline.noise()
            marks.mark()
            return noise
        self.note("text", number)
        embeddings = self.pipeline.encode()
        marks.mark()
        self.note("denoise", number)
        latents = self.pipeline.denoise(embeddings)
        marks.mark()
        return latents

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor | None:
        try:
            return self.pipeline.decode(latents)
        except Exception:
            if not self.together:  # the other ranks wait in `agree`: let them go, so that they live for the next point
                agree(self.group, [math.inf] * len(COLUMNS))
            raise


def synchronize(device: torch.device) -> None:
    """Waits until a GPU is done; a CPU always is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def agree(group: ProcessGroup | None, values: list[float]) -> list[float]:
    """The largest of each value over the ranks, through the host's group, so that no device work is added."""
    if group is None:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return [float(value) for value in tensor]
