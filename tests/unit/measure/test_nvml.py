"""Telemetry's summary on made-up samples of two GPUs."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from xdit_bench.measure.load import OtherWork
from xdit_bench.measure.nvml import HostTelemetry, summarise_samples


def samples(reasons: dict[float, int], watts: float = 500.0) -> list[dict[str, float]]:
    """One sample each 50 ms for two seconds; the energy counter of a steady draw."""
    times = [i * 0.05 for i in range(41)]
    return [
        {"time": t, "sm_mhz": 1500.0, "memory_mhz": 2600.0, "watts": watts, "celsius": 40 + t, "joules": watts * t,
         "reasons": float(next((bits for at, bits in reasons.items() if abs(at - t) < 0.01), 0))}
        for t in times
    ]  # fmt: skip


SPANS = [(0.2, 0.6), (0.7, 1.1), (1.2, 1.6)]


def test_image_is_throttled_when_any_of_its_gpus_was() -> None:
    found = summarise_samples([samples({}), samples({0.9: 0x40})], SPANS)
    assert found["throttled_images"] == 1
    assert found["throttled_samples"] == [1]
    assert found["samples_per_s"] == pytest.approx(20.0)
    assert found["throttle_reasons"] == ["hardware thermal slowdown"]


def test_software_power_cap_is_told_and_not_called_throttling() -> None:
    found = summarise_samples([samples({0.9: 0x04})], SPANS)
    assert found["throttled_images"] == 0
    assert found["power_capped"] is True


def test_throttling_between_and_before_images_does_not_count() -> None:
    assert summarise_samples([samples({0.05: 0x08, 1.9: 0x80})], SPANS)["throttled_images"] == 0


def test_energy_is_of_all_gpus_and_of_one_image() -> None:
    found = summarise_samples([samples({}, 500.0), samples({}, 300.0)], SPANS)
    assert found["energy_j_per_image"] == pytest.approx(800 * 0.4, rel=1e-6)
    assert found["watts"] == [500.0, 300.0]


def test_image_between_two_samples_still_gets_numbers() -> None:
    assert summarise_samples([samples({})], [(5.0, 5.001)])["sm_mhz"] == [1500.0]


def busy(seconds: float, *, apart: bool) -> subprocess.Popen[bytes]:
    """A core kept busy by a child, or by a process that is none of ours: its parent has ended."""
    code = f"import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    argv = [sys.executable, "-c", code]
    if apart:
        argv = [sys.executable, "-c", f"import subprocess; subprocess.Popen({argv!r}, start_new_session=True)"]
    return subprocess.Popen(argv)


def test_work_of_others_is_told_from_ours() -> None:
    def seen(seconds: float, *, apart: bool) -> float:
        process = busy(seconds, apart=apart)
        if apart:
            process.wait()
        with HostTelemetry() as telemetry:
            time.sleep(1.0)
        report = telemetry.report([], ranks=2)
        assert report["cores"] >= 1
        process.kill()
        process.wait()
        time.sleep(0.5)
        return float(report["others_cores"])

    ours = min(seen(1.5, apart=False) for _ in range(3))  # others of this machine may work as well
    theirs = max(seen(1.5, apart=True) for _ in range(3))
    assert theirs > ours + 0.3


def test_a_process_of_ours_that_ended_unseen_leaves_the_others_unknown() -> None:
    process = busy(30, apart=False)
    watch = OtherWork()
    assert watch.cores() is not None
    process.kill()
    process.wait()
    assert watch.cores() is None
