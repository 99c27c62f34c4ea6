"""The timing protocol on one CPU rank, with a pipeline whose times are chosen."""

from __future__ import annotations

import time
import weakref

import pytest
import torch

from xdit_bench.config import MeasureConfig
from xdit_bench.measure.stats import EXTRA_WARMUPS
from xdit_bench.measure.timers import ImageTimer

CPU = torch.device("cpu")


class Clock:
    """Stands still but for sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Sleeper:
    """Takes the next of the given seconds for each image's denoising."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds
        self.images = 0

    def encode(self) -> None:
        pass

    def denoise(self, embeddings: None) -> torch.Tensor:
        time.sleep(self.seconds[min(self.images, len(self.seconds) - 1)])
        self.images += 1
        return torch.full((1, 1, 1), float(self.images))

    def noise(self) -> torch.Tensor:
        return torch.zeros(1, 1, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.to(torch.uint8)


def measure(pipeline: Sleeper, *, decodes: bool = True, **knobs: float):  # type: ignore[no-untyped-def]
    stages: list[tuple[str, int]] = []
    timer = ImageTimer(pipeline, None, CPU, decodes, lambda stage, image: stages.append((stage, image)))
    return timer.measure(MeasureConfig(**knobs)), stages  # type: ignore[arg-type]


def test_warm_up_goes_on_until_two_times_agree_and_the_second_counts() -> None:
    pipeline = Sleeper([0.4, 0.2, 0.1])
    timing, stages = measure(pipeline, warmup=2, repeats=2, max_repeats=2)
    assert len(timing.warmup) >= 3
    assert max(timing.samples["total"]) < 0.15
    assert len(timing.spans) == len(timing.own_total) == len(timing.samples["total"]) == 2
    assert pipeline.images == len(timing.warmup) + 2
    assert [image for stage, image in stages if stage == "text"] == list(range(pipeline.images))


def test_warm_up_of_a_pipeline_that_never_settles_ends() -> None:
    timing, _ = measure(Sleeper([0.002 * (i % 2 + 1) for i in range(40)]), warmup=1, repeats=1, max_repeats=1)
    assert len(timing.warmup) == 1 + EXTRA_WARMUPS


def test_no_warm_up_when_none_is_asked_for() -> None:
    timing, stages = measure(Sleeper([0.001]), warmup=0, repeats=1, max_repeats=1)
    assert timing.warmup == []
    assert stages == [("text", 0), ("denoise", 0), ("vae", 0), ("agree", 0)]


def test_repeats_until_precise_and_no_more_than_the_most() -> None:
    precise, _ = measure(Sleeper([0.01]), warmup=1, repeats=6, max_repeats=20, precision=0.9)
    assert len(precise.samples["total"]) == 6
    few, _ = measure(Sleeper([0.01]), warmup=1, repeats=2, max_repeats=20, precision=0.9)
    assert len(few.samples["total"]) == 5, "fewer have no interval that could be precise"
    noisy, _ = measure(Sleeper([0.001, 0.001, 0.002, 0.004, 0.001, 0.003]), warmup=1, repeats=2, max_repeats=6,
                       precision=1e-6)  # fmt: skip
    assert len(noisy.samples["total"]) == 6


def test_time_cap_ends_the_repeats() -> None:
    timing, _ = measure(Sleeper([0.02]), warmup=0, repeats=5, max_repeats=50, precision=1e-9, time_cap_s=0.05)
    assert 1 <= len(timing.samples["total"]) <= 4


def test_the_time_cap_counts_no_warm_up_before_the_image_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("xdit_bench.measure.timers.time", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    timing, _ = measure(Sleeper([6.0, 2.0, 2.0]), warmup=1, repeats=3, max_repeats=3, precision=0.1, time_cap_s=9.0)
    assert timing.warmup == [6.0, 2.0]
    assert timing.samples["total"] == [2.0, 2.0, 2.0]
    timing, _ = measure(Sleeper([6.0, 2.0, 2.0, 4.0, 2.0]), warmup=1, repeats=3, max_repeats=9, precision=0.1,
                        time_cap_s=9.0)  # fmt: skip
    assert timing.samples["total"] == [2.0, 4.0, 2.0, 2.0], "until 10 s of images that count, of a cap of 9"
    timing, _ = measure(Sleeper([6.0, 3.0, 6.0, 3.0, 6.0]), warmup=1, repeats=1, max_repeats=1, time_cap_s=9.0)
    assert (timing.warmup, timing.samples["total"]) == ([6.0, 3.0], [6.0]), "nor does one that never settles go on"


def test_last_images_latents_are_kept_and_stages_add_up() -> None:
    pipeline = Sleeper([0.003])
    timing, _ = measure(pipeline, warmup=1, repeats=3, max_repeats=3)
    assert timing.latents is not None
    assert float(timing.latents) == pipeline.images
    assert len(timing.spans) == len(timing.own_total) == 3
    for text, denoise, vae, total in zip(
        *(timing.samples[s] for s in ("text", "denoise", "vae", "total")), strict=True
    ):
        assert total == pytest.approx(text + denoise + vae)


def test_no_image_is_kept_while_the_next_is_made() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(Sleeper):
        def encode(self) -> None:
            assert all(kept() is None for kept in made), "two at once would count as peak memory"

        def denoise(self, embeddings: None) -> torch.Tensor:
            latents = super().denoise(embeddings)
            made.append(weakref.ref(latents))
            return latents

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            image = super().decode(latents)
            made.append(weakref.ref(image))
            return image

    timing, _ = measure(Watched([0.0]), warmup=1, repeats=3, max_repeats=3)
    assert len(made) == 2 * (len(timing.warmup) + 3)
    assert [kept() for kept in made[-2:]] == [timing.latents, timing.image]


def test_without_a_vae_total_is_text_and_denoising() -> None:
    timing, stages = measure(Sleeper([0.003]), decodes=False, warmup=0, repeats=1, max_repeats=1)
    assert "vae" not in timing.samples
    assert timing.image is None
    assert "vae" not in {stage for stage, _ in stages}


def test_a_decode_alone_runs_no_text_and_no_denoising() -> None:
    pipeline, stages = Sleeper([1.0]), []
    timer = ImageTimer(pipeline, None, CPU, True, lambda stage, image: stages.append(stage), denoises=False)
    timing = timer.measure(MeasureConfig(warmup=0, repeats=1, max_repeats=1))
    assert set(timing.samples) == {"vae", "total"}
    assert stages == ["vae", "agree"]
    assert pipeline.images == 0


def test_the_host_is_asked_after_each_image_that_counts_and_outside_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("xdit_bench.measure.timers.time", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    asked = iter(range(100))

    def issue() -> float:
        clock.sleep(7.0)
        return float(next(asked))

    timer = ImageTimer(Sleeper([0.4, 0.2, 0.2]), None, CPU, True, lambda *_: None, issue=issue)
    timing = timer.measure(MeasureConfig(warmup=2, repeats=3, max_repeats=3))
    assert timing.samples["total"] == pytest.approx([0.2] * 3)
    assert [end - start for start, end in timing.spans] == pytest.approx([0.2] * 3)
    assert timing.issued == [2.0, 3.0, 4.0], "those of the warm-up are left out"
