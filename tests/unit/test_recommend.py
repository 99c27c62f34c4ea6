"""The verb names the best split, ties, the bottleneck and the fewest GPUs; bad input is one line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.keys import UNREAD
from xdit_bench.predict.points import load_model, make_point
from xdit_bench.predict.records import predicted_record
from xdit_bench.recommend import main
from xdit_bench.results.store import Store, read_records
from xdit_bench.topology.specs import load


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, f"results_dir={tmp_path}"])
        out, err = capsys.readouterr()
        return code, out, err

    return run


STUDY = ("engine=xdit_2024", "execution=eager", "text_tokens=256", "vae=none")


def test_four_l40s_beat_eight_at_1024px(say) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = say("topology=l40_pcie", "res=1024", *STUDY)
    assert code == 0
    assert "best:      u2r2 on 4 GPUs" in out
    assert "GPU-seconds an image" in out


def test_the_engine_runs_as_it_is_fastest_unless_told_otherwise(say) -> None:  # type: ignore[no-untyped-def]
    _, fastest, _ = say("topology=h100_nvlink", "res=1024")
    assert "engine usp/graph" in fastest
    assert "best:      u4r2 on 8 GPUs" in fastest or "best:      u8r1 on 8 GPUs" in fastest
    _, eager, _ = say("topology=h100_nvlink", "res=1024", "execution=eager")
    assert "engine usp/eager" in eager  # bound by launches, where more GPUs do not help
    assert "engine diffusers/compile" in say("topology=h100_nvlink", "engine=diffusers", "vae=single")[1]


def test_of_a_tie_with_a_faster_split_the_reason_is_said(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=h100_nvlink", "res=1024", "execution=eager")
    best, second = (float(line.split(" s an image")[0].rsplit(" ", 1)[1]) for line in out.splitlines()
                    if line.startswith(("best:", "runner-up:")))  # fmt: skip
    assert second < best
    assert "within the model's error, and the best takes fewer GPUs" in out


def measured(results: Path) -> None:
    """A decode that memory slowed, as one was seen."""
    model, topology = load_model("flux_schnell"), load("h100_nvlink")
    point = make_point(model, topology="h100_nvlink", height=4096, width=4096, engine="stock", vae="single", steps=1)
    record = predicted_record(point, model, topology, "s")
    record.source, record.run_id, record.latency_s["total"] = "measured", "seen", {"median": 32.2}
    card = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85520809984}
    record.machine = {**record.machine, "device": "cuda", "gpu": card["name"], "gpu_kinds": [card]}
    with Store.open(results, "s") as store:
        store.append(record)


def test_pressure_that_was_measured_is_said_and_compared_by_what_it_cost(say, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    measured(tmp_path)
    of = ("topology=h100_nvlink", "res=4096", "engine=stock", "vae=single", "steps=1", "gpus=1", "latency_s=20")
    _, out, _ = say(*of)
    assert "32.2 s an image (30.9 to 33.5, measured)" in out, "the compiled one may take longer, for all that is known"
    assert "warning: memory pressure, as measured" in out
    assert "vae=tiled" in out
    _, guess, _ = say(*of, "execution=compile")
    assert "no split meets it; the fastest is u1r1 at 8." in guess
    assert "under memory pressure" in guess


def test_neither_older_code_nor_another_format_is_a_sitting_of_the_point(say, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    measured(tmp_path)
    study = tmp_path / "s"
    last = read_records(study)[0]
    with Store.open(tmp_path, "s") as store:
        for run_id, seconds, dtype in (("older", 60.0, "bf16"), ("fp32", 200.0, "fp32"), ("seen", 32.2, "bf16")):
            point = {**last.point, "dtype": dtype}
            store.append(dataclasses.replace(
                last, run_id=run_id, point=point, latency_s={"total": {"median": seconds}}
            ))  # fmt: skip
    of = ("topology=h100_nvlink", "res=4096", "engine=stock", "vae=single", "steps=1", "gpus=1")
    assert "32.2 s an image (30.9 to 33.5, measured)" in say(*of)[1]


def test_what_ran_out_of_memory_when_it_was_measured_is_no_advice(say, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    measured(tmp_path)
    seen = read_records(tmp_path / "s")[0]
    of = ("topology=h100_nvlink", "res=4096", "engine=stock", "vae=single", "steps=1", "gpus=1", "execution=eager")
    for status, code in (("oom", 1), ("ok", 0)):  # the last word counts
        with Store.open(tmp_path, "s") as store:
            reason = "rank 0 ran out of memory in stage vae" * (status == "oom")
            store.append(dataclasses.replace(seen, status=status, reason=reason))
        found, out, err = say(*of)
        assert found == code
        assert ("measured: rank 0 ran out of memory in stage vae" in out + err) == (status == "oom")


def test_an_image_has_one_size(say) -> None:  # type: ignore[no-untyped-def]
    code, _, err = say("res=1024", "height=512", "width=512")
    assert code == 2
    assert "not both" in err


def test_an_oblong_image_and_a_capped_card_may_be_asked_for(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=h200_nvlink", "height=720", "width=1280", "memory_cap_gb=40", "gpus=2")
    assert out.startswith("flux_schnell, 1280x720px, 4 steps on h200_nvlink capped at 40 GB, engine usp/")
    code, out, _ = say("topology=h200_nvlink", "res=4096", "memory_cap_gb=24")
    assert code == 1
    assert "no split can run: every rank loads all weights" in out.splitlines()[1]
    assert "more than a cap of 24 GB" in out


def test_records_of_another_card_than_the_files_are_not_its(say, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    measured(tmp_path)
    data = yaml.safe_load((data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text())
    data["gpu"]["memory_bytes"] = 141 * 10**9
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    of = ("res=4096", "engine=stock", "execution=eager", "vae=single", "steps=1", "gpus=1")
    assert "measured" in say("topology=h100_nvlink", *of)[1]
    assert "measured" not in say(f"topology={tmp_path / 'mine.yaml'}", *of)[1]


def test_an_engine_is_advised_with_a_decode_that_it_has(say) -> None:  # type: ignore[no-untyped-def]
    of = ("topology=h200_nvlink", "res=2048", "engine=diffusers")
    assert say(*of) == say(*of, "vae=single")
    code, out, err = say(*of, "vae=parallel")
    assert (code, out) == (2, "")
    assert "vae of engine=diffusers is one of single, tiled, none" in err


def test_ties_are_called_ties(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=a100_nvlink", "res=4096", *STUDY)
    assert "best:      u8r1 on 8 GPUs" in out
    assert "a tie" in out


def test_the_bottleneck_is_a_link_by_name(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=l40_pcie", "res=2048", *STUDY)
    assert "limited by exchanges across the socket link and the PCIe pair (" in out


def test_a_decode_that_takes_longer_than_denoising_is_the_bottleneck(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=a100_nvlink", "res=4096", "steps=1", "vae=single", "gpus=8")
    assert "limited by the VAE's decode (" in out


def test_a_cap_above_the_card_is_none(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=l40_pcie", "res=1024", "memory_cap_gb=80")
    assert "capped" not in out
    _, out, _ = say("topology=l40_pcie", "res=1024", "memory_cap_gb=40")
    assert "capped at 40 GB" in out


def test_no_graph_is_advised_beyond_the_gpus_that_symmetric_memory_joins(say, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = yaml.safe_load((data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text())
    data["links"]["symmetric"][-1]["gpus"] = 4
    box = tmp_path / "box.yaml"
    box.write_text(yaml.safe_dump(data))
    _, whole, _ = say("topology=h100_nvlink", "res=4096")
    assert "usp/graph" in whole
    _, out, _ = say(f"topology={box}", "res=4096")
    assert "on 8 GPUs" in out
    assert "usp/graph" not in out


def test_a_reader_that_has_seen_enough_ends_it_without_a_word() -> None:
    command = [sys.executable, "-m", "xdit_bench.recommend", "topology=l40_pcie"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as advice:
        assert advice.stdout is not None
        assert advice.stderr is not None
        advice.stdout.close()
        assert advice.stderr.read() == ""
    assert advice.returncode == UNREAD


def test_the_fewest_gpus_that_meet_a_latency(say) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = say("topology=l40_pcie", "res=2048", "latency_s=9", *STUDY)
    assert "within 9 s: u" in out
    assert "on 2 GPUs" in out
    _, out, _ = say("topology=l40_pcie", "res=2048", "latency_s=0.1", *STUDY)
    assert "no split meets it" in out


def test_the_ring_between_neighbours_sends_the_exchange_of_heads_across_the_bridge(say) -> None:  # type: ignore[no-untyped-def]
    times = []
    for axis in ("ulysses", "ring"):
        _, out, _ = say("topology=l40_pcie", "res=1024", "gpus=4", f"inner={axis}", *STUDY)
        assert ("foretold alone" in out) is (axis == "ring"), "no engine here places ranks so"
        times.append(float(out.split("best:")[1].split(" s an image")[0].split()[-1]))
    assert times[0] < times[1]


def test_a_machine_without_numbers_exits_1_and_says_why_once(say) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = say("topology=cpu")
    assert code == 1
    assert out.count("measured only") == 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("topo=l40_pcie", "did you mean topology?"),
        ("topology=l40", "did you mean l40_pcie?"),
        ("model=flux_snell", "did you mean flux_schnell?"),
        ("res=1000", "multiple of 16"),
        ("res=big", "res must be a whole number"),
        ("height=720", "height and width go together; only height=720 was given"),
        ("memory_cap_gb=0", "memory_cap_gb must be a number above 0"),
        ("gpus=16", "more than the 8 of a100_nvlink"),
        ("latency_s=0", "latency_s must be a number above 0"),
        ("vae=paralel", "vae of engine=usp is one of"),
        ("engine=uspp", "did you mean usp?"),
        ("execution=foo", "execution of engine=usp is one of eager"),
        ("inner=both", "inner is ulysses or ring"),
        ("res", "takes key=value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(say, argument: str, said: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = say(argument)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_over_host_memory_no_graph_is_advised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = ["topology=h200_nvlink", "res=2048", "gpus=2", f"results_dir={tmp_path}"]
    assert main(picture) == 0
    assert "engine usp/graph" in capsys.readouterr().out
    assert main([*picture, "transport=host"]) == 0
    assert "engine usp/graph" not in capsys.readouterr().out
