"""Which rank's word counts, and what the record says."""

from __future__ import annotations

import sys

import pytest

from xdit_bench.config import Point
from xdit_bench.runner.launcher import environment_warnings
from xdit_bench.runner.outcome import judge, own_s, to_record, without_folders
from xdit_bench.runner.pool import Answer

POINT = Point(
    model="flux_tiny", height=64, width=64, steps=2, text_tokens=77, ulysses=2, ring=1, engine="usp",
    execution="eager", attention="auto", vae="parallel", dtype="fp32", weights="random", seed=0, topology="cpu",
    transport="p2p", memory_cap_gb=2.0,
)  # fmt: skip


def result(rank: int, **body: object) -> Answer:
    memory = {"peak_bytes": 100 + rank, "reserved_bytes": 200, "alloc_retries": rank, "parameters_bytes": 7,
              "verdict": "pressure" if rank else "fits"}  # fmt: skip
    samples = {"text": [0.1, 0.1], "denoise": [0.4, 0.6], "vae": [0.2, 0.2], "total": [0.7, 0.9]}
    return Answer(rank, "result", {"member": True, "memory": memory, "own_total": [0.7, 0.9], "parity": {"ok": True},
                                   "samples": samples, "warmup": [0.7], "spans": [], **body})  # fmt: skip


def error(rank: int, after_s: float, kind: str = "exception", message: str = "boom", **body: object) -> Answer:
    said = {"kind": kind, "type": "RuntimeError", "message": message, "stage": "denoise", "iteration": 2, **body}
    return Answer(rank, "error", said, after_s)


def test_record_of_a_success_holds_the_ranks_memory_and_step_times() -> None:
    idle = Answer(2, "result", {"member": False})
    record = to_record(judge([result(0), result(1), idle], 60), POINT, "id", "s")
    assert record.status == "ok"
    assert record.reason == ""
    assert record.latency_s["total"]["median"] == 0.8
    assert record.step_s["samples"] == [0.2, 0.3]
    assert record.memory["peak_bytes_per_rank"] == [100, 101]
    assert record.memory["symmetric_bytes_per_rank"] == [0, 0]
    assert record.memory["peak_bytes"] == 101
    assert record.memory["verdict"] == "pressure"
    assert record.memory["cap_bytes"] == 2_000_000_000


def test_slowest_host_of_the_moment_is_the_records() -> None:
    takes = [[0.009, 0.001, 0.004, 0.001, 0.001], [0.001, 0.002, 0.001, 0.002, 0.009]]
    issued = [result(rank, block_launches_s=of_rank) for rank, of_rank in enumerate(takes)]
    telemetry = to_record(judge(issued, 60), POINT, "id", "s").telemetry
    assert telemetry["block_launch_s"] == 0.002
    assert telemetry["block_launches_s"] == takes
    outside = [result(0, block_launches_s=[0.001, 0.003])]
    assert to_record(judge(outside, 60), POINT, "id", "s").telemetry["block_launch_s"] == 0.002
    untaken = to_record(judge([result(0, block_launches_s=[])], 60), POINT, "id", "s").telemetry
    assert not {"block_launch_s", "block_launches_s"} & set(untaken)


@pytest.mark.parametrize(
    ("warmup", "said"), [([], False), ([0.72], False), ([1.0, 0.67], False), ([0.7, 0.9], True), ([1.0], True)]
)
def test_a_point_that_never_became_steady_says_so(warmup: list[float], said: bool) -> None:
    record = to_record(judge([result(0, warmup=warmup)], 60), POINT, "id", "s")
    assert [("had taken as long, within 5 %" in warning) for warning in record.warnings] == [True] * said


def test_out_of_memory_is_the_cause_whatever_came_before_it() -> None:
    outcome = judge([error(0, 0.1), error(1, 0.9, kind="oom", bytes_asked=2**31, bytes_free=2**30)], 60)
    assert outcome.status == "oom"
    assert outcome.reason == (
        "rank 1 ran out of memory in stage denoise of image 3: asked for 2.00 GiB with 1.00 GiB free"
    )
    record = to_record(outcome, POINT, "id", "s")
    assert record.memory["verdict"] == "oom"
    assert record.latency_s == {}


def test_little_memory_is_told_in_mebibytes() -> None:
    outcome = judge([error(0, 0.1, kind="oom", bytes_asked=2 * 2**20, bytes_free=0)], 60)
    assert outcome.reason.endswith("asked for 2.00 MiB with 0.00 MiB free")


@pytest.mark.parametrize("echo", ["Connection closed by peer [127.0.0.1]:1", "NCCL error: remote process exited"])
def test_peers_that_lost_a_dead_rank_are_not_the_cause(echo: str) -> None:
    died = Answer(1, "died", {"stage": "vae", "iteration": 0, "exit": -9}, 0.5)
    outcome = judge([error(0, 0.1, message=echo), died], 60)
    assert outcome.reason == "rank 1 was killed by SIGKILL in stage vae of image 1; see failure.log_tail"


def test_rank_that_failed_is_the_cause_and_not_those_waiting_for_it() -> None:
    waiting = Answer(
        0, "silent", {"answered": True, "waiting": True, "last_collective": "nccl:all_to_all number 7"}, 9.0
    )
    outcome = judge([waiting, error(1, 8.0)], 60)
    assert (outcome.status, outcome.failure["rank"]) == ("crashed", 1)
    assert outcome.failure["last_collective"] == {"0": "nccl:all_to_all number 7"}


def test_a_silence_that_an_error_cut_short_is_not_the_cause_though_the_error_may_echo() -> None:
    waiting = Answer(0, "silent", {"answered": True, "waiting": True, "stage": "denoise"}, 6.1)
    outcome = judge([waiting, error(1, 2.0, message="NCCL error in: ProcessGroupNCCL.cpp")], 960.0)
    assert (outcome.status, outcome.failure["rank"]) == ("crashed", 1)
    assert "deadline" not in outcome.reason
    hung = Answer(0, "silent", {"answered": False, "stage": "denoise"}, 960.0)
    assert judge([hung, error(1, 959.0, message="timed out waiting")], 960.0).status == "timeout"


def test_points_own_time_ends_with_its_slowest_answer_or_its_first_failure() -> None:
    assert own_s([Answer(0, "result", after_s=2.0), Answer(1, "result", after_s=3.0)]) == 3.0
    died, waited = Answer(1, "died", after_s=0.5), Answer(0, "silent", after_s=4.5)
    assert own_s([Answer(2, "result", after_s=0.1), died, waited]) == 0.5
    assert own_s([Answer(0, "result", after_s=0.1), Answer(1, "silent", after_s=60.0)]) == 60.0, "a hang's deadline"


def test_first_of_several_failures_is_the_cause() -> None:
    assert judge([error(0, 0.5, message="later"), error(1, 0.2, message="first")], 60).reason.endswith("first")


def test_engine_that_refuses_a_point_gives_status_and_reason() -> None:
    outcome = judge([error(0, 0.1, kind="infeasible", message="24 heads; use 8"), error(1, 0.1, kind="infeasible")], 60)
    assert (outcome.status, outcome.reason) == ("infeasible", "24 heads; use 8")


def test_wrong_image_keeps_its_times_and_is_no_success() -> None:
    wrong = result(0, parity={"ok": False, "reason": "the latents' relative L2 is 1"})
    record = to_record(judge([wrong, result(1)], 60), POINT, "id", "s")
    assert (record.status, record.reason) == ("incorrect", "the latents' relative L2 is 1")
    assert record.latency_s["total"]["median"] == 0.8


def test_other_processes_on_a_gpu_are_called_out() -> None:
    outcome = judge([result(0), result(1)], 60)
    outcome.telemetry = {"processes_per_gpu": [1, None]}
    assert to_record(outcome, POINT, "id", "s").warnings == []
    outcome.telemetry = {"processes_per_gpu": [1, 2]}
    assert "another process" in to_record(outcome, POINT, "id", "s").warnings[0]


@pytest.mark.parametrize(
    ("cores", "others", "warned"), [(64, 6.0, False), (64, 7.0, True), (4, 0.9, False), (4, 1.1, True)]
)
def test_a_host_that_others_keep_busy_is_called_out(cores: int, others: float, warned: bool) -> None:
    outcome = judge([result(0), result(1)], 60)
    outcome.telemetry = {"cores": cores, "others_cores": others}
    found = to_record(outcome, POINT, "id", "s").warnings
    assert any("cores busy" in warning for warning in found) is warned


def test_crippling_variables_are_called_out_unless_the_transport_sets_them() -> None:
    shell = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "0", "HOME": "/"}
    assert [w.split(" ")[0] for w in environment_warnings(shell, "p2p")] == ["NCCL_P2P_DISABLE=1"]
    assert environment_warnings(shell, "host") == []
    (said,) = environment_warnings({"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": ""})
    assert "expandable_segments:True" in said
    assert "run out of memory" in said


def test_traces_name_files_as_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/srv/someone/bench", "/srv/someone"])
    files = (
        "/opt/env/lib/python3.12/site-packages/torch/nn/conv.py",
        "/srv/someone/bench/xdit_bench/a.py",
        "/home/b.py",
    )
    trace = "".join(f'  File "{file}", line 3, in f\n    return g()\n' for file in files)
    report = error(1, 0.1, trace=trace)
    shown = judge([result(0), report], 60).failure["trace"]
    assert shown == without_folders(trace)
    assert [line.split('"')[1] for line in shown.splitlines() if '"' in line] == [
        "torch/nn/conv.py", "xdit_bench/a.py", "b.py",
    ]  # fmt: skip


def test_memory_and_times_are_of_each_rank_and_sums_of_the_fullest() -> None:
    def answer(rank: int, retries: int, weights: int, reserved: int, own: list[float]) -> Answer:
        found = result(rank, own_total=own, attribution={"communication_s": 0.25})
        found.body["memory"] |= {"alloc_retries": retries, "parameters_bytes": weights, "reserved_bytes": reserved}
        return found

    ranks = [answer(0, 3, 9, 210, [0.7, 0.8, 0.9]), answer(1, 1, 7, 205, [0.5, 0.6, 0.7])]
    record = to_record(judge(ranks, 60), POINT, "id", "s")
    assert (record.memory["alloc_retries"], record.memory["parameters_bytes"]) == (3, 9)
    assert record.memory["reserved_bytes_per_rank"] == [210, 205]
    assert record.telemetry["rank_total_s"] == [0.8, 0.6]
    assert record.comm["seconds_per_step"] == 0.25, "a profile is of a step already"
