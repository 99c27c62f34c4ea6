"""Telemetry's summary on made-up samples of two GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from xdit_bench.measure import load, nvml
from xdit_bench.measure.load import OtherWork
from xdit_bench.measure.nvml import HostTelemetry, summarise_samples


def samples(reasons: dict[float, int], watts: float = 500.0, *, instant: bool = False) -> list[dict[str, float]]:
    """One sample each 50 ms for two seconds; the energy counter of a steady draw."""
    times = [i * 0.05 for i in range(41)]
    return [
        {"time": t, "sm_mhz": 1500.0, "memory_mhz": 2600.0, "watts": watts, "celsius": 40 + t, "joules": watts * t,
         "instant": instant,
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


def test_energy_of_a_moment_needs_a_reading_of_the_moment() -> None:
    short = [(0.7, 0.9), (0.9, 1.1)]  # a second's mean would hold what the card drew before
    assert summarise_samples([samples({})], short)["energy_j_per_image"] is None
    assert summarise_samples([samples({}, instant=True), samples({})], short)["energy_j_per_image"] is None
    found = summarise_samples([samples({}, 500.0, instant=True), samples({}, 300.0, instant=True)], short)
    assert found["energy_j_per_image"] == pytest.approx(800 * 0.2, rel=1e-6)


@pytest.mark.parametrize("refused", [0, -1])
def test_a_counter_that_a_card_refused_to_read_once_is_no_energy(refused: int) -> None:
    taken = samples({}, 500.0)
    whole = summarise_samples([taken], SPANS)["energy_j_per_image"]
    taken[refused] = {**taken[refused], "joules": 0.0}
    assert summarise_samples([taken], SPANS)["energy_j_per_image"] == pytest.approx(whole, rel=1e-6)


def test_no_energy_is_told_of_a_point_whose_cards_are_not_all_here() -> None:
    telemetry = nvml.NvmlTelemetry()
    telemetry._samples, telemetry._others, telemetry._elsewhere = [samples({}), samples({})], [1, 1], {}
    assert "energy_j_per_image" in telemetry.report(SPANS, ranks=2)
    assert "energy_j_per_image" not in telemetry.report(SPANS, ranks=4)


class Driver:
    """pynvml on a card that draws 650 W now and 400 W in the last second's mean."""

    NVMLError, NVML_SUCCESS, NVML_FI_DEV_POWER_INSTANT = ValueError, 0, 186

    def __init__(self, code: int, milliwatts: int) -> None:
        self.code, self.milliwatts = code, milliwatts

    def nvmlDeviceGetFieldValues(self, handle: object, fields: list[int]) -> list[object]:  # noqa: N802 - the driver's name
        assert fields == [186]
        return [SimpleNamespace(nvmlReturn=self.code, value=SimpleNamespace(uiVal=self.milliwatts))]

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:  # noqa: N802
        return 400_000


def test_power_is_of_the_instant_where_the_driver_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver, expected in (((0, 650_000), (650.0, True)), ((3, 0), (400.0, False)), ((0, 0), (400.0, False))):
        monkeypatch.setitem(sys.modules, "pynvml", Driver(*driver))
        assert nvml._watts(object()) == expected


def test_image_between_two_samples_still_gets_numbers() -> None:
    assert summarise_samples([samples({})], [(5.0, 5.001)])["sm_mhz"] == [1500.0]


def test_what_others_keep_busy_is_what_the_machine_worked_less_what_we_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy, own = iter([10.0, 14.0]), iter([100.0, 130.0]), iter([{1: 5.0, 2: 2.0}, {1: 6.0, 2: 4.0, 3: 3.0}])
    monkeypatch.setattr(load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(load, "_own_s", lambda: next(own))
    # a process that came meanwhile is ours from its start
    assert OtherWork().cores() == pytest.approx((30.0 - 6.0) / 4.0)


def test_ours_is_all_below_us_and_nobody_else() -> None:
    wait = [sys.executable, "-c", "input()"]
    apart = "import subprocess as s; print(s.Popen(['sleep', '30'], stdout=s.DEVNULL, start_new_session=True).pid)"
    with subprocess.Popen(wait, stdin=subprocess.PIPE) as child:
        orphan = int(subprocess.run([sys.executable, "-c", apart], capture_output=True, check=True).stdout)
        try:
            found = load._own_s()
            assert {os.getpid(), child.pid} <= set(found)
            assert orphan not in found
        finally:
            os.kill(orphan, signal.SIGKILL)
            child.communicate(b"\n")


def test_a_process_of_ours_that_ended_unseen_leaves_the_others_unknown() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = OtherWork()
        assert watch.cores() is not None
        child.communicate(b"\n")
    assert watch.cores() is None


def test_a_cpu_run_says_how_many_cores_there_are_and_others_kept() -> None:
    with HostTelemetry() as telemetry:
        pass
    report = telemetry.report([], ranks=2)
    assert report["cores"] >= 1
    assert report["others_cores"] >= 0


def test_a_point_without_an_image_still_tells_who_else_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(nvmlInit=lambda: None)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(nvml, "visible_handles", lambda _: [1, 2])
    monkeypatch.setattr(nvml, "_sample", lambda _: samples({})[0])
    monkeypatch.setattr(nvml, "_processes", lambda handle: 10 * handle)
    with nvml.NvmlTelemetry() as telemetry:
        pass
    report = telemetry.report([], ranks=1)
    assert report["processes_per_gpu"] == [10]
    assert report["cores"] >= 1
    assert "watts" not in report


def test_clocks_and_heat_are_each_of_their_own_reading() -> None:
    found = summarise_samples([samples({0.9: 0x20})], [(0.0, 2.0)])
    assert (found["sm_mhz"], found["memory_mhz"], found["celsius"]) == ([1500.0], [2600.0], [42.0])
    assert found["throttle_reasons"] == ["software thermal slowdown"]


def test_a_reading_is_in_joules_and_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(
        NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, NVMLError=OSError,
        nvmlDeviceGetClockInfo=lambda _, kind: 1000 * kind, nvmlDeviceGetTemperature=lambda _, __: 55,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x4,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: 7_000,  # mJ, NVML's reference
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(nvml, "_watts", lambda _: (650.0, True))
    found = nvml._sample(object())
    assert {name: found[name] for name in ("sm_mhz", "memory_mhz", "celsius", "joules", "watts", "reasons")} == {
        "sm_mhz": 1000.0, "memory_mhz": 2000.0, "celsius": 55.0, "joules": 7.0, "watts": 650.0, "reasons": 4.0,
    }  # fmt: skip
