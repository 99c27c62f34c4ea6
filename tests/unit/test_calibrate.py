"""Calibration recovers the numbers of the machine it measures, and writes a topology that loads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from xdit_bench.calibrate import main
from xdit_bench.calibration.machine import write
from xdit_bench.calibration.numbers import efficiencies, links
from xdit_bench.config import ModelSpec
from xdit_bench.predict.model import predict
from xdit_bench.predict.network import Network
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.profiles import find
from xdit_bench.predict.roofline import attention_s, gemm_s, rows_s, stream_s
from xdit_bench.predict.text import layer_s
from xdit_bench.predict.workload import Attention, Gemm, decoder_convs, vae_decoder
from xdit_bench.runner.process import running
from xdit_bench.topology.specs import AWAKE, PASSES, Number, Topology, load

SHIPPED = load("h200_nvlink")
H200 = dataclasses.replace(
    SHIPPED,
    efficiency={**SHIPPED.efficiency, "text": Number(0.8, ""), "text_fused": Number(0.7, ""), PASSES: Number(0.6, "")},
)


def pretend(machine: Topology, model: ModelSpec) -> Iterator[dict[str, Any]]:
    """What a machine with these numbers would measure."""
    for gemm in (Gemm(1152, 3072, 9216), Gemm(4608, 12288, 3072), Gemm(16896, 3072, 3072)):
        yield {"kind": "gemm", "m": gemm.m, "k": gemm.k, "n": gemm.n, "seconds": gemm_s(machine, gemm)}
    for call in (Attention(24, 4608, 4608, 1), Attention(3, 16896, 8448, 1)):
        for kernel in ("cudnn", "flash"):
            seconds = attention_s(machine, call, 128, kernel)
            yield {
                "kind": "attention", "kernel": kernel, "heads": call.heads, "queries": call.queries,
                "keys": call.keys, "head_dim": 128, "seconds": seconds,
            }  # fmt: skip
    yield {"kind": "copy", "bytes": 1e9, "seconds": stream_s(machine, 1e9)}
    eager, tokens = find("stock", "eager"), 16896
    yield {
        "kind": "block", "tokens": tokens, "row_bytes": 6144, "products_seconds": 0.01, "attention_seconds": 0.02,
        "seconds": 0.03 + rows_s(machine, eager.rows[1], tokens, 6144, fused=False),
    }  # fmt: skip
    for way, engine in (("plain", "stock"), ("in_order", "usp")):
        profile = find(engine, "eager")
        seconds = layer_s(machine, model, 512, profile, "cudnn") / machine.efficiency[profile.text_share].value
        yield {"kind": "text_layer", "way": way, "tokens": 512, "seconds": seconds}
    yield {"kind": "launch", "seconds": machine.host["op_s"].value * eager.host_ops[1]}
    if AWAKE in machine.efficiency:
        seconds = {"seconds": 2e-3, "alone_seconds": 2e-3 * machine.efficiency[AWAKE].value}
        yield {"kind": "beside_links", "ranks": 2, "bytes": 4e8, "every_s": 0.05, **seconds}
    yield {"kind": "kernel_gap", "seconds": machine.host["kernel_gap_s"].value}
    convs, side = list(decoder_convs(model)), 128
    streamed = stream_s(machine, side**2 * vae_decoder(model).traffic_bytes)
    total = sum(conv.flops for conv in convs)
    for layout, key in (("nchw", "conv"), ("nhwc", "conv_nhwc")):
        for conv in dict.fromkeys(convs):
            seconds = side**2 * conv.flops / (machine.gpu.peak_flops * machine.efficiency[key].value)
            if layout == "nchw":
                seconds += streamed * conv.flops / total
            yield {
                "kind": "conv", "layout": layout, "cin": conv.cin, "cout": conv.cout, "kernel": conv.kernel,
                "scale": conv.scale, "side": side, "count": convs.count(conv), "seconds": seconds,
            }  # fmt: skip
    if PASSES in machine.efficiency:
        for count, passes, share in ((2, 2, 1.0), (1, 1, 0.5), (1, 3, 1.5)):  # 4, 2 and 2 eighths of their time
            seconds = passes * 1e9 / machine.gpu.memory_bytes_per_s / machine.efficiency[PASSES].value / share
            yield {"kind": "decode_pass", "what": "?", "count": count, "bytes": passes * 1e9, "seconds": seconds}
    for way, key in (("plain", "vae_attention"), ("blocked", "vae_attention_blocked")):
        flops = 4.0 * 65536**2 * 512
        seconds = flops / (machine.gpu.peak_flops * machine.efficiency[key].value)
        yield {"kind": "mid_attention", "way": way, "tokens": 65536, "width": 512, "seconds": seconds}


def test_a_machines_own_seconds_give_back_its_numbers() -> None:
    model = load_model("flux_schnell")
    found = efficiencies(list(pretend(H200, model)), H200.gpu, model)
    for section in ("efficiency", "attention", "host"):
        for key, number in found[section].items():
            assert number.value == pytest.approx(getattr(H200, section)[key].value, rel=1e-6), (section, key)
    assert set(found["efficiency"]) == set(H200.efficiency)
    assert set(found["attention"]) == {"cudnn", "flash"}
    assert set(found["host"]) == {"op_s", "kernel_gap_s"}


def test_what_launches_cost_while_all_ranks_issue_is_a_number_of_its_own(tmp_path: Path) -> None:
    ops = find("stock", "eager").host_ops[1]
    measured = {"kind": "launch", "path": "p2p", "ranks": 2, "seconds": 20e-6 * ops}
    exchanges = [
        {"kind": "all_to_all", "path": path, "ulysses": 2, "ring": 1, "bytes": size,
         "seconds": Network(H200, path, 2, 1).all_to_all_s(size).seconds}
        for path in ("p2p", "symmetric") for size in (2**20, 2**24, 2**28)
    ]  # fmt: skip
    raw = {"compute": list(pretend(H200, load_model("flux_schnell"))), "p2p": [measured, *exchanges]}
    made = load(str(write(tmp_path / "h200_nvlink.yaml", H200, raw)))
    assert made.op_s(1) == pytest.approx(H200.op_s(1), rel=1e-3)
    assert made.op_s(2) == made.op_s(8) == pytest.approx(20e-6)
    assert "2 ranks at once" in made.host["op_beside_s"].source
    silent = dataclasses.replace(H200, host={name: n for name, n in H200.host.items() if name != "op_beside_s"})
    assert silent.op_s(2) == silent.op_s(1), "a machine that does not say takes them for equal"
    eager = make_point(load_model("flux_schnell"), topology="h200_nvlink", ulysses=2, height=512, width=512)
    one, two = (
        predict(point, load_model("flux_schnell"), made).total_s
        / predict(point, load_model("flux_schnell"), silent).total_s
        for point in (dataclasses.replace(eager, ulysses=1), eager)
    )
    assert one == pytest.approx(1.0, rel=2e-3)
    assert two > 1.3


@pytest.mark.parametrize(("name", "path"), [("l40_pcie", "p2p"), ("h200_nvlink", "p2p"), ("h200_nvlink", "symmetric")])
def test_exchanges_give_back_every_level_they_reach(name: str, path: str) -> None:
    truth = load(name)
    measured: list[dict[str, Any]] = []
    for ulysses, ring in ((1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (4, 2), (8, 1), (1, 8), (2, 4)):
        net = Network(truth, path, ulysses, ring)
        for size in (2**18, 2**20, 2**22, 2**24, 2**26, 2**28):
            for kind, transfer in (("all_to_all", net.all_to_all_s(size)), ("shift", net.ring_step_s(size))):
                if transfer.seconds:
                    measured.append({
                        "kind": kind, "path": path, "ulysses": ulysses, "ring": ring, "bytes": size,
                        "seconds": transfer.seconds,
                    })  # fmt: skip
    found = links(measured, truth.levels(path), 8, truth)
    for level, expected in zip(found, truth.levels(path), strict=True):
        for key in ("bytes_per_s", "all_to_all_bytes_per_s", "latency_s", "all_to_all_latency_s"):
            assert getattr(level, key) == pytest.approx(getattr(expected, key), rel=0.05), (level.name, key)
        assert level.source.startswith("measured between")


def test_levels_out_of_reach_keep_their_numbers_and_say_so() -> None:
    levels = load("l40_pcie").levels("p2p")
    net = Network(load("l40_pcie"), "p2p", 2, 1)
    measured = [
        {"kind": "all_to_all", "ulysses": 2, "ring": 1, "bytes": size, "seconds": net.all_to_all_s(size).seconds}
        for size in (2**20, 2**24, 2**28)
    ]
    pair, bridge, socket = links(measured, levels, 2, load("l40_pcie"))
    assert pair.source == "measured between 2 ranks, all groups at once"
    assert pair.bytes_per_s == levels[0].bytes_per_s  # no ring was measured
    assert (bridge.bytes_per_s, socket.bytes_per_s) == (levels[1].bytes_per_s, levels[2].bytes_per_s)
    assert "not measured: 2 GPUs do not reach it" in socket.source


def test_an_exchange_inside_a_graph_counts_and_not_the_one_the_host_launched() -> None:
    net = Network(H200, "p2p", 2, 1)
    measured = [
        {"kind": "all_to_all", "path": "p2p", "ulysses": 2, "ring": 1, "bytes": size, "captured": captured,
         "seconds": net.all_to_all_s(size).seconds + (0.0 if captured else 1e-3)}
        for size in (2**20, 2**24, 2**28) for captured in (True, False)
    ]  # fmt: skip
    (level,) = links(measured, H200.levels("p2p"), 2, H200)
    assert level.all_to_all_latency_s == pytest.approx(H200.levels("p2p")[0].all_to_all_latency_s, rel=0.05)


def test_two_cpu_ranks_write_a_topology_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here.yaml"
    assert main([f"out={out}", "device=cpu", "gpus=2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "a CPU's numbers are for trying calibrate alone" in last
    assert "topology=" not in last, "nothing is predicted from it"
    topology = load(str(out))
    (level,) = topology.levels("p2p")
    assert (topology.name, topology.gpus, level.gpus) == ("here", 2, 2)
    assert level.source == "measured between 2 ranks, all groups at once"
    assert math.isfinite(level.bytes_per_s)
    assert topology.efficiency["gemm"].source.startswith("measured")
    assert out.with_suffix(".json").exists()


def test_kept_measurements_are_solved_again_without_measuring(tmp_path: Path) -> None:
    out, again = tmp_path / "here.yaml", tmp_path / "again" / "here.yaml"
    assert main([f"out={out}", "device=cpu", "gpus=2"]) == 0
    assert main([f"out={again}", f"measured={out.with_suffix('.json')}"]) == 0
    assert load(str(again)) == load(str(out))
    assert main([f"out={again}", f"measured={out.with_suffix('.json')}"]) == 0, "a file of its own is replaced"


def test_a_gpus_kept_measurements_are_offered_wherever_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw.json", tmp_path / "mine.yaml"
    raw.write_text(json.dumps({"compute": list(pretend(H200, load_model("flux_schnell")))}))
    assert main([f"out={out}", f"measured={raw}", "base=h200_nvlink", "device=cpu"]) == 0
    assert f"use it as topology={out}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "said"), [("box.yaml", "is none"), ("box.json", "holds something else")])
def test_a_file_that_a_person_wrote_is_kept(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text('{"name": "box"}')
    assert main([f"out={tmp_path / 'box.yaml'}", "device=cpu", "gpus=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "", "nothing was measured"
    assert said in captured.err
    assert "name another file, or move that one away" in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert (tmp_path / name).read_text() == '{"name": "box"}'


def test_a_machine_without_symmetric_memory_has_no_such_links(tmp_path: Path) -> None:
    model, net = load_model("flux_schnell"), Network(H200, "p2p", 2, 1)
    sizes = [2**20, 2**24, 2**28]
    p2p: list[dict[str, Any]] = [
        {
            "kind": "all_to_all",
            "path": "p2p",
            "ulysses": 2,
            "ring": 1,
            "bytes": n,
            "seconds": net.all_to_all_s(n).seconds,
        }
        for n in sizes
    ]
    p2p.append({"kind": "failed", "path": "symmetric", "what": "symmetric memory", "error": "NCCL instead"})
    raw = {"compute": list(pretend(H200, model)), "p2p": p2p}
    topology = load(str(write(tmp_path / "mine.yaml", H200, raw)))
    assert topology.levels("symmetric") == ()
    assert topology.levels("host") == H200.levels("host")
    assert "measured between 2 ranks" in topology.levels("p2p")[0].source


def test_one_device_needs_no_links(tmp_path: Path) -> None:
    out = tmp_path / "alone.yaml"
    assert main([f"out={out}", "device=cpu", "gpus=1"]) == 0
    topology = load(str(out))
    assert (topology.gpus, topology.levels("p2p")) == (1, ())
    assert "no link was measured" in topology.note


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("output=x.yaml", "did you mean out?"),
        ("out=x.txt", "out must be a .yaml file"),
        ("transport=ib", "transport is a list of p2p, host, socket"),
        ("device=tpu", "device is cuda or cpu"),
        ("gpus=0", "gpus must be a whole number above 0"),
        ("gpus=99", "gpus=99 is more than the "),
        ("gpus=", "gpus must have a value; got 'gpus=', leave gpus out for its default"),
        ("measured=gone.json", "measured=gone.json can not be read as JSON"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_every_operator_of_the_engine_can_still_be_measured(tmp_path: Path) -> None:
    out = tmp_path / "here.yaml"
    assert main([f"out={out}", "device=cpu", "gpus=1"]) == 0
    measured = json.loads(out.with_suffix(".json").read_text())["compute"]
    assert [m for m in measured if m["kind"] == "failed"] == []
    assert {m["kind"] for m in measured} == {
        "gemm", "attention", "copy", "block", "text_layer", "launch", "conv", "decode_pass", "mid_attention",
    }  # fmt: skip


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ranks_and_their_folder_do_not_outlive_the_command(name: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xdit_bench.calibrate", f"out={tmp_path / 'x.yaml'}", "device=cpu", "gpus=2"]
    private = tmp_path / "tmp"
    private.mkdir()
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(private)}, stderr=subprocess.PIPE, text=True
    ) as run:
        started: list[psutil.Process] = []
        end = time.monotonic() + 100
        while not (len(started) == 3 and all(_has_torch(process.pid) for process in started)):
            assert time.monotonic() < end, "a launcher and two ranks were not started"
            assert run.poll() is None, "they ended by themselves"
            time.sleep(0.02)
            started = psutil.Process(run.pid).children(recursive=True)
        for process in started:
            process.suspend()  # they do not end by themselves any more
        run.send_signal(name)
        said = run.communicate(timeout=60)[1]
    gone = time.monotonic() + (20 if name == signal.SIGKILL else 0)  # of the others it has waited for their end
    while (left := [p.pid for p in started if running(p.pid)]) and time.monotonic() < gone:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    if name != signal.SIGKILL:
        assert (run.returncode, said) == ((130, "interrupted\n") if name == signal.SIGINT else (143, ""))
        assert list(private.iterdir()) == []


def _has_torch(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False
