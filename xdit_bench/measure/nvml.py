"""What the machine did while a point ran: clocks, power, temperature, throttling and energy of its GPUs, and the cores
that other processes kept busy.

Sampled by a thread of the controller, so that the ranks are not disturbed; lined up with the images by the
machine's monotonic clock. Owns sampling and its summary; what a throttled point means is the runner's to say.

    with NvmlTelemetry() as telemetry:
        ...
    telemetry.report(spans, ranks=2)
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from xdit_bench.measure.load import OtherWork
from xdit_bench.topology.probe import visible_handles

PERIOD_S = 0.05
COUNTED_S = 1.0  # images together, from which the cards' energy counters are fine enough: they tick ten times a second
COOL_DOWN_S = 20.0
Span = tuple[float, float]

# nvml.h, nvmlClocksEventReasons; the software power cap (0x4) is a card's normal state under load and only reported
THROTTLES = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
             0x80: "power brake"}  # fmt: skip
POWER_CAP = 0x04


class Telemetry(Protocol):
    """Watches the machine from `__enter__` to `__exit__`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def report(self, spans: Sequence[Span], *, ranks: int) -> dict[str, Any]:
        """Facts about the images in `spans` (monotonic seconds). `throttled_images` counts those to take again."""

    def cool_down(self) -> None:
        """Waits until another try makes sense."""


class HostTelemetry:
    """A machine whose ranks run on its CPU: other work there shows."""

    def __enter__(self) -> Self:
        self._work = OtherWork()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._elsewhere = _elsewhere(self._work)

    def report(self, spans: Sequence[Span], *, ranks: int) -> dict[str, Any]:
        """Cores that others kept busy."""
        del spans, ranks
        return self._elsewhere

    def cool_down(self) -> None:
        """A CPU is not watched for throttling."""


class NvmlTelemetry:
    """GPUs through NVML, every `PERIOD_S` seconds."""

    def __init__(self) -> None:
        self._samples: list[list[dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        import pynvml

        pynvml.nvmlInit()  # never shut down: starting anew takes seconds on some hosts, once a point
        self._handles = visible_handles(pynvml)
        self._samples = [[] for _ in self._handles]
        self._work = OtherWork()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._elsewhere = _elsewhere(self._work)
        self._others = [_processes(handle) for handle in self._handles]

    def report(self, spans: Sequence[Span], *, ranks: int) -> dict[str, Any]:
        """Of the first `ranks` GPUs, over the images alone; who else was there, of a point without an image too."""
        gpus = self._samples[:ranks]
        found = summarise_samples(gpus, spans) if spans and all(gpus) else {}
        if len(gpus) < ranks:  # others are on another machine, whose cards nobody reads here
            found.pop("energy_j_per_image", None)
        return found | {"processes_per_gpu": self._others[:ranks]} | self._elsewhere

    def cool_down(self) -> None:
        """A fixed rest: a card sheds its heat in seconds."""
        time.sleep(COOL_DOWN_S)

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_S):
            for handle, samples in zip(self._handles, self._samples, strict=True):
                samples.append(_sample(handle))


def _elsewhere(watch: OtherWork) -> dict[str, Any]:
    """Cores that other processes kept busy, where that is known, of those that there are."""
    found, cores = watch.cores(), os.cpu_count() or 1
    return {"cores": cores} if found is None else {"cores": cores, "others_cores": found}


def summarise_samples(gpus: Sequence[Sequence[dict[str, float]]], spans: Sequence[Span]) -> dict[str, Any]:
    """Medians over the images' samples, and which images were throttled.

    An image without a sample of its own takes those next to it: a short one may fall between two.
    """
    begin, end = spans[0][0], spans[-1][1]
    inside = [
        [s for s in samples if begin - PERIOD_S <= s["time"] <= end + PERIOD_S] or list(samples) for samples in gpus
    ]
    throttled = [span for span in spans if any(_throttled(samples, span) for samples in inside)]
    bits = 0
    for samples in inside:
        for sample in samples:
            bits |= int(sample["reasons"])
    watts = [statistics.fmean(s["watts"] for s in samples) for samples in inside]
    duration = sum(stop - start for start, stop in spans)
    joules = _energy(inside, begin, end)
    return {
        "samples_per_s": min(_rate(samples) for samples in gpus),
        "sm_mhz": [statistics.median(s["sm_mhz"] for s in samples) for samples in inside],
        "memory_mhz": [statistics.median(s["memory_mhz"] for s in samples) for samples in inside],
        "watts": watts,
        "celsius": [max(s["celsius"] for s in samples) for samples in inside],
        "energy_j_per_image": joules and joules * duration / max(end - begin, 1e-9) / len(spans),
        "throttled_images": len(throttled),
        "throttled_samples": [i for i, span in enumerate(spans) if span in throttled],
        "throttle_reasons": [name for bit, name in THROTTLES.items() if bits & bit],
        "power_capped": bool(bits & POWER_CAP),
    }


def _rate(samples: Sequence[dict[str, float]]) -> float:
    """Readings a second: slow drivers make it less than was asked for."""
    return (len(samples) - 1) / max(samples[-1]["time"] - samples[0]["time"], 1e-9)


def _energy(gpus: Sequence[Sequence[dict[str, float]]], begin: float, end: float) -> float | None:
    """Joules of all GPUs from begin to end: by the cards' own counters where the window is long enough for them, else
    mean watts where these are of the instant. None where they are means of a second, most of it before the images."""
    total = 0.0
    for samples in gpus:
        counted = [sample for sample in samples if sample["joules"] > 0] or samples  # 0 where a card would not say
        first, last = counted[0], counted[-1]
        if last["time"] - first["time"] > COUNTED_S and last["joules"] > first["joules"]:
            watts = (last["joules"] - first["joules"]) / (last["time"] - first["time"])
        elif all(sample["instant"] for sample in samples):
            watts = statistics.fmean(sample["watts"] for sample in samples)
        else:
            return None
        total += watts * (end - begin)
    return total


def _throttled(samples: Iterable[dict[str, float]], span: Span) -> bool:
    mask = sum(THROTTLES)
    return any(int(s["reasons"]) & mask for s in samples if span[0] - PERIOD_S <= s["time"] <= span[1] + PERIOD_S)


def _sample(handle: Any) -> dict[str, float]:
    import pynvml

    readings: dict[str, Any] = {
        "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        "joules": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
    }
    sample = {"time": time.monotonic(), **dict.fromkeys(readings, 0.0)}
    for name, read in readings.items():
        with contextlib.suppress(pynvml.NVMLError):  # not every card and driver says everything: 0 is unknown
            sample[name] = float(read())
    sample["watts"], sample["instant"] = _watts(handle)
    return sample


def _watts(handle: Any) -> tuple[float, bool]:
    """What the card draws now, and whether that is of the instant: since Ampere the usual reading is the mean of a
    second (NVML's reference on nvmlDeviceGetPowerUsage). 0 where the driver does not say."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError, AttributeError):  # an old driver, an old pynvml
        (found,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if found.nvmlReturn == pynvml.NVML_SUCCESS and found.value.uiVal:
            return found.value.uiVal / 1000, True
    with contextlib.suppress(pynvml.NVMLError):
        return pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, False
    return 0.0, False


def _processes(handle: Any) -> int | None:
    """How many processes compute on the card, ours among them; None where the driver does not say."""
    import pynvml

    try:
        return len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        return None
