"""The command as typed: what it refuses in one clear line (exit code 2, nothing run), and what it leaves behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.__main__ import main
from xdit_bench.results.store import Store, read_records
from xdit_bench.results.store import newest as newest_records
from xdit_bench.runner.process import running
from xdit_bench.topology import probe as probing

KNOBS = (
    "+sweeps=documents",
    "calibrate",
    "ulysses: 1",
    "res: 1024",
    "execution: auto",
    "run.resume: true",
    "measure.precision: 0.01",
    "prompt",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def error_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["res=1000"], ("multiple of 16", "res=1000", "992 or 1008")),
        (["ulysses=0"], ("ulysses must be at least 1", "0")),
        (["ulysses=x"], ("ulysses must be a whole number", "ulysses=x")),
        (["-m", "res=512", "--cfg", "job"], ("--cfg", "leave -m out")),
        (["-m", "ulysses=1,x"], ("ulysses must be a whole number", "ulysses=x")),
        (["res=null"], ("res must be a value, not null", "res=null")),
        (["-m", "res=1024,,2048"], ("res=1024,,2048 can not be read", "single commas")),
        (["prompt=a (b"], ("a (b can not be read", "quoted whole")),
        (["prompt=hello, world"], ("a comma separates the values of a sweep", "'prompt=\"hello, world\"'")),
        (["gpus=8"], ("no knob 'gpus'; their number is ulysses x ring",)),
        (["resolution=1024"], ("no knob 'resolution'; a square image is res=2048",)),
        (["repeats=3"], ("no knob 'repeats'; did you mean measure.repeats?",)),
        (["measure.repeat=3"], ("no knob 'measure.repeat'; did you mean measure.repeats?",)),
        (["topology=./mine"], ("topology=./mine is a path", "end in .yaml")),
        (["ulyses=2"], ("no knob 'ulyses'", "did you mean ulysses?")),
        (["-m", "sweeps=quickstart"], ("+sweeps=<name>",)),
        (["-m", "hydra/launcher=submitit_slurm", "ulysses=1,2"], ("launcher can not submit here", "docs/clusters.md")),
        (["ulysses=1,2"], ("ulysses=1,2", "add -m")),
        (["ulysses=x", "-m"], ("ulysses must be a whole number", "ulysses=x")),
        (["memory_cap_gb=nan"], ("memory_cap_gb must be above 0", "nan")),
        (["memory_cap_gb=much"], ("memory_cap_gb must be a number", "memory_cap_gb=much")),
        (["run.resume=maybe"], ("run.resume must be true or false", "run.resume=maybe")),
        (["ulysses"], ("name=value", "'ulysses'")),
        (["topology=a100_nvlnk"], ("unknown topology 'a100_nvlnk'", "did you mean a100_nvlink?")),
        (["engine=upsp"], ("unknown engine 'upsp'", "did you mean usp?")),
        (["model=flux_schnel"], ("unknown model", "did you mean flux_schnell?")),
        (["execution=egaer"], ("execution must be one of auto, eager, compile, graph", "execution=egaer")),
        (["no_such_knob=1"], ("no_such_knob", "--help")),
        (["+ulyses=2"], ("no knob 'ulyses'", "did you mean ulysses?")),
        (["++measure.repeat=3"], ("no knob 'measure.repeat'", "--help")),
        (["vae=null"], ("vae", "take a name each, not null")),
        (["launch.node_rank=3"], ("launch.node_rank is 0 to", "got 3")),
        (["launch.nnodes=0"], ("launch.nnodes must be at least 1",)),
        (["launch.gpus=0"], ("launch.gpus must be at least 1",)),
        (["seed=18446744073709551615"], ("seed must be at most 9223372036854775807",)),
        (["memory_cap_gb=1e300"], ("memory_cap_gb must be above 0, at most 1000000",)),
        (["res=16000000000000000000"], ("res must be at most 1000000",)),
        (["steps=99999999999999999999"], ("steps must be at most 1000000",)),
        (["height=720"], ("height and width go together",)),
        (["res=512", "height=720", "width=1280"], ("not both",)),
        (["topology=cpu", "weights=./no/such/folder"], ("weights", "./no/such/folder")),
        (["topology=a100_nvlink", "source=measured"], ("source=measured", "a100_nvlink", "source=predicted")),
        (["engine=xdit_2024", "source=measured"], ("predictions alone", "source=predicted")),
        (["topology=cpu", "attention=fa3"], ("fa3_fwd_interface", "pip install 'xdit_bench[flash]'")),
        (["source=measured"], ("source=measured needs a GPU", "topology=cpu model=flux_tiny")),
        (["+sweeps=documents"], ("+sweeps=documents is a grid", "add -m")),
        (
            ["launch=torchrun", "launch.nnodes=2", "launch.node_rank=0", "launch.rdzv_endpoint=h:1", "ulysses=8"],
            ("launch.nnodes=2 is measured alone", "leave launch.nnodes out"),
        ),
        (["topology=missing.yaml"], ("missing.yaml",)),
        (["study=../x"], ("study", "letters")),
        (["steps=0", "vae=none"], ("steps=0", "vae=none", "give steps=1")),
        (["-m", "+sweeps=oom_frontier", "topology=cpu", "res=1008"], ("steps of 64", "res=1008", "960 or 1024")),
        (["run.frontier=true", "topology=cpu", "height=640", "width=320"], ("square", "height=640 width=320")),
        (["run.frontier=true", "topology=a100_nvlink"], ("run.frontier", "predicted for a100_nvlink", "topology=cpu")),
    ],
)
def test_bad_input_ends_in_one_line_and_runs_nothing(
    argv: list[str], words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(argv, capsys)
    for word in words:
        assert word in line
    assert not list(here.rglob("records.jsonl"))


def test_one_bad_point_of_a_sweep_stops_all_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error_line(["-m", "res=1024,1000"], capsys)
    assert not list(here.rglob("records.jsonl"))


def test_a_results_folder_that_can_not_be_written_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "taken").write_text("a file, not a folder")
    assert "taken" in error_line(["results_dir=taken"], capsys)


def test_a_reports_folder_that_can_not_be_written_stops_the_sweep_before_it_starts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "taken").write_text("a file, not a folder")
    for arguments in (["reports_dir=taken"], ["reports_dir=.", "study=taken"]):
        line = error_line(arguments, capsys)
        assert "taken" in line
        assert "run.report=false" in line
    assert not list(here.rglob("records.jsonl"))


@pytest.mark.parametrize("lacking", ["text_encoder_2", "vae"])
def test_a_weights_folder_that_lacks_a_part_names_it(
    lacking: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        (here / "half" / part).mkdir(parents=True)
        if part != lacking:
            (here / "half" / part / "model.safetensors").write_bytes(b"x")
    line = error_line(["topology=cpu", "model=flux_tiny", "weights=half"], capsys)
    assert f"half lacks {lacking};" in line
    assert "weights=random" in line
    assert not list(here.rglob("records.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_is_done_and_leave_no_process_and_no_folder(
    number: int, code: int, here: Path
) -> None:
    private = here / "private"
    private.mkdir()
    argv = ["-m", "model=flux_tiny", "topology=cpu", "ulysses=1,2", "res=256,384", "study=s"]
    slow = ["measure.max_repeats=3000", "measure.precision=0.0001", "measure.time_cap_s=4"]  # four seconds a point
    command = [sys.executable, "-m", "xdit_bench", *argv, *slow]
    child = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(private)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    records = here / "results" / "s" / "records.jsonl"
    end = time.monotonic() + 200
    while not (records.exists() and records.read_bytes().count(b"\n")):
        assert time.monotonic() < end, "no record came"
        assert child.poll() is None, "the sweep ended by itself"
        time.sleep(0.1)
    ranks = psutil.Process(child.pid).children(recursive=True)
    assert ranks
    assert list(private.glob("xdit_bench_*"))
    os.killpg(child.pid, number)  # as a terminal and a cluster do: the whole group at once
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code, out.decode()
    assert not list(private.glob("xdit_bench_*"))
    assert "the same command goes on from there" in out.decode()
    assert not [rank for rank in ranks if running(rank.pid)]  # a zombie, which init has yet to collect, runs no more
    assert {record.status for record in read_records(here / "results" / "s")} == {"ok"}
    assert (here / "reports" / "s" / "index.html").is_file()


def test_the_cards_command_leaves_a_record_for_each_of_its_24_cells(here: Path) -> None:
    argv = ["-m", "ulysses=1,2,4,8", "ring=1,2", "res=1024,2048,4096", "run.report=false"]
    assert main(argv) == 0
    records = read_records(here / "results" / "a100_nvlink-flux_schnell")
    cells = {(r.point["ulysses"], r.point["ring"], r.point["res"]) for r in records}
    assert cells == {(u, r, px) for u in (1, 2, 4, 8) for r in (1, 2) for px in (1024, 2048, 4096)}
    assert {r.source for r in records} == {"predicted"}
    assert all(r.status == "infeasible" and "16 GPUs" in r.reason for r in records if r.point["gpus"] == 16)


def test_a_value_that_was_typed_twice_is_one_point(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "source=predicted", "topology=a100_nvlink", "res=1024,1024", "measure.repeats=1,2"]) == 0
    assert "\n1 point predicted" in "\n" + capsys.readouterr().out


def test_a_prediction_gets_the_baselines_that_a_measured_plan_gets(here: Path) -> None:
    assert main(["ulysses=4", "run.report=false", "study=s"]) == 0
    records = {(r.point["engine"], r.point["ulysses"], r.point["vae"]) for r in read_records(here / "results" / "s")}
    assert records == {("usp", 4, "parallel"), ("usp", 1, "parallel"), ("stock", 1, "single")}
    assert main(["engine=xdit_2024", "ulysses=4", "vae=none", "run.report=false", "study=t"]) == 0
    engines = [r.point["engine"] for r in read_records(here / "results" / "t")]
    assert engines == ["xdit_2024", "xdit_2024"]


def test_a_sweep_without_an_ok_point_exits_1(here: Path) -> None:
    assert main(["ulysses=5", "run.report=false"]) == 1
    (record,) = read_records(here / "results" / "a100_nvlink-flux_schnell")
    assert record.status == "infeasible"
    assert "24 heads cannot be split over ulysses=5" in record.reason


def test_a_prediction_imports_no_torch(here: Path) -> None:
    code = "import sys; from xdit_bench.__main__ import main; main(['res=1024']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("PREDICTED", "Best configuration: ", "is predicted to take", "Memory: ", "index.html"):
        assert words in done.stdout


def test_shows_its_knobs_without_running(here: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    for flag, words in ((["--cfg", "job"], ("ulysses: 1", "topology:")), (["--help"], KNOBS)):
        done = subprocess.run(
            [sys.executable, "-m", "xdit_bench", *flag], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        for word in words:
            assert word in done.stdout
    assert not list(here.iterdir())


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (data_dir("conf") / "sweeps").glob("*.yaml")))
def test_how_often_to_measure_is_the_persons_choice_in_every_sweep(
    sweep: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"+sweeps={sweep}", "measure=quick", "--cfg", "job", "--package", "measure"]) == 0
    shown = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert (shown["repeats"], shown["max_repeats"]) == ("5", "5")


@pytest.mark.slow
def test_a_cell_its_engine_can_not_run_is_a_record(here: Path) -> None:
    argv = [
        "-m",
        "engine=stock,usp",
        "vae=parallel,none",
        "model=flux_tiny",
        "topology=cpu",
        "measure=quick",
        "res=128",
    ]
    assert main([*argv, "study=grid", "run.report=false", "run.recheck=0"]) == 0
    records = {(r.point["engine"], r.point["vae"]): r for r in read_records(here / "results" / "grid")}
    assert records["stock", "parallel"].status == "infeasible"
    assert "engine=stock has no vae=parallel; use single" in records["stock", "parallel"].reason
    assert {key for key, r in records.items() if r.status == "ok"} == {
        ("stock", "single"), ("stock", "none"), ("usp", "parallel"), ("usp", "none")
    }  # fmt: skip


def latest_totals(here: Path, study: str) -> dict[int, float]:
    """Seconds of the newest record of each split, by Ulysses degree."""
    newest = [r for r in newest_records(read_records(here / "results" / study)) if r.point["engine"] == "usp"]
    return {r.point["ulysses"]: r.latency_s["total"]["median"] for r in newest}


def test_a_topology_file_is_what_it_says_whatever_its_name(here: Path) -> None:
    shipped = (data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text()
    for folder, flops in (("one", "1.0e+14"), ("two", "2.0e+14")):
        (here / folder).mkdir()
        slow = re.sub(r"peak_flops: \S+", f"peak_flops: {flops}", shipped).replace(
            "name: h100_nvlink", f"name: {folder}", 1
        )
        (here / folder / "h100_nvlink.yaml").write_text(slow)
    files = "topology=h100_nvlink,one/h100_nvlink.yaml,two/h100_nvlink.yaml"
    assert main(["-m", files, "source=predicted", "vae=none", "run.report=false"]) == 0
    studies = ("h100_nvlink-flux_schnell", "two-flux_schnell", "one-flux_schnell")
    shipped_s, two_s, one_s = (latest_totals(here, study)[1] for study in studies)
    assert shipped_s < 0.3 * two_s < 0.2 * one_s


def test_a_command_without_a_success_is_not_answered_by_an_earlier_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["topology=a100_nvlink", "source=predicted", "study=s"]
    assert main([*command, "engine=stock"]) == 0, "with a decode that the engine has"
    assert "stock/eager" in capsys.readouterr().out
    assert main([*command, "res=32768"]) == 1
    said = capsys.readouterr().out
    assert "No point of this command succeeded." in said
    assert "Best configuration" not in said


def test_a_topology_file_goes_with_config_groups_of_ones_own(here: Path) -> None:
    conf = data_dir("conf")
    shipped = (conf / "topology" / "h100_nvlink.yaml").read_text()
    (here / "box.yaml").write_text(shipped.replace("name: h100_nvlink", "name: box", 1))
    (here / "mine" / "model").mkdir(parents=True)
    own = (conf / "model" / "flux_schnell.yaml").read_text().replace("flux_schnell", "flux_own")
    (here / "mine" / "model" / "flux_own.yaml").write_text(own)
    (here / "more").mkdir()
    mine = [f"hydra.searchpath=[file://{here}/mine,file://{here}/more]", "model=flux_own"]
    assert main(["-m", "topology=box.yaml", *mine, "source=predicted", "vae=none", "run.report=false"]) == 0
    assert latest_totals(here, "box-flux_own").keys() == {1}


def test_a_file_that_calls_its_machine_auto_or_nothing_a_folder_can_bear_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = (data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text()
    for name, words in (("auto", "none of auto, cpu"), ("my box", "letters, digits")):
        (here / "box.yaml").write_text(shipped.replace("name: h100_nvlink", f"name: {name}", 1))
        line = error_line(["topology=box.yaml", "source=predicted"], capsys)
        assert "box.yaml" in line
        assert "name" in line
        assert words in line


def test_numbers_that_changed_replace_what_was_predicted_before(here: Path) -> None:
    shipped = (
        (data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text().replace("name: h100_nvlink", "name: box", 1)
    )
    slow = re.sub(r"peak_flops: \S+", "peak_flops: 1.0e+14", shipped)

    def predicted(text: str, ulysses: str) -> dict[int, float]:
        (here / "box.yaml").write_text(text)
        command = ["-m", "topology=box.yaml", "source=predicted", "vae=none", f"ulysses={ulysses}", "run.report=false"]
        assert main(command) == 0
        return latest_totals(here, "box-flux_schnell")

    fast_s = predicted(shipped, "1,2")
    slow_s = predicted(slow, "1")
    assert set(slow_s) == {1}, "of the machine of before nothing is left"
    assert slow_s[1] > 5 * fast_s[1]
    assert predicted(shipped, "1,2") == fast_s
    lines = (here / "results" / "box-flux_schnell" / "records.jsonl").read_text().splitlines()
    assert predicted(shipped, "1,2") == fast_s
    assert (here / "results" / "box-flux_schnell" / "records.jsonl").read_text().splitlines() == lines


def test_every_topology_and_model_of_a_sweep_has_its_own_study(here: Path) -> None:
    swept = ["-m", "topology=h100_nvlink,l40_pcie", "model=flux_schnell,flux_dev"]
    assert main([*swept, "source=predicted", "run.report=false"]) == 0
    found = {path.parent.name for path in (here / "results").glob("*/records.jsonl")}
    assert found == {f"{t}-{m}" for t in ("h100_nvlink", "l40_pcie") for m in ("flux_schnell", "flux_dev")}


def test_flags_may_stand_anywhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["res=2048", "--cfg", "job", "study=x"]) == 0
    assert "res: 2048" in capsys.readouterr().out


def test_two_topologies_of_one_name_do_not_stand_for_each_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = yaml.safe_load((data_dir("conf") / "topology" / "a100_nvlink.yaml").read_text())
    box["gpu"]["peak_flops"] *= 3
    Path("fast.yaml").write_text(yaml.safe_dump(box))
    sweep = ["-m", "topology=a100_nvlink,fast.yaml", "res=512", "run.report=false"]
    assert "two topologies of this sweep are named a100_nvlink; give one a name of its own" in error_line(sweep, capsys)
    Path("fast.yaml").write_text(yaml.safe_dump({**box, "name": "fast"}))
    assert main(sweep) == 0


def test_a_predicted_cell_its_engine_lacks_is_infeasible_too(here: Path) -> None:
    assert main(["-m", "engine=stock", "vae=parallel,single", "study=s", "run.report=false"]) == 0
    by_vae = {r.point["vae"]: r for r in read_records(here / "results" / "s")}
    assert by_vae["parallel"].status == "infeasible"
    assert by_vae["single"].status == "ok"


@pytest.mark.slow
def test_jobs_of_another_launcher_run_their_own_points_into_one_study(here: Path) -> None:
    argv = ["-m", "hydra/launcher=submitit_local", "ulysses=1,2", "engine=xdit_2024", "vae=none", "study=s"]
    command = [sys.executable, "-m", "xdit_bench", *argv, "run.report=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    points = {(r.point["ulysses"], r.status) for r in read_records(here / "results" / "s")}
    assert points == {(1, "ok"), (2, "ok")}


def test_srun_says_how_many_machines_there_are_and_which_this_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_NNODES", "4")
    monkeypatch.setenv("SLURM_NODEID", "3")
    assert main(["launch=torchrun", "--cfg", "job", "--package", "launch", "--resolve"]) == 0
    said = capsys.readouterr().out
    assert "nnodes: 4" in said
    assert "node_rank: 3" in said


def test_a_point_that_fails_now_is_no_success_because_it_once_was(here: Path) -> None:
    argv = ["ulysses=2", "run.report=false", "study=s"]
    assert main(argv) == 0
    (good,) = [r for r in read_records(here / "results" / "s") if r.point["ulysses"] == 2]
    with Store.open(here / "results", "s") as store:
        store.append(dataclasses.replace(good, status="crashed", reason="rank 1 died", latency_s={}))
    assert main(argv) == 1


def test_what_was_measured_does_not_judge_what_is_predicted_nor_drops_it(here: Path) -> None:
    argv = ["ulysses=2", "run.report=false", "study=s"]
    assert main(argv) == 0
    (good,) = [r for r in read_records(here / "results" / "s") if r.point["ulysses"] == 2]
    with Store.open(here / "results", "s") as store:
        store.append(dataclasses.replace(good, source="measured", status="crashed", reason="rank 1 died", latency_s={}))
    assert main(argv) == 0


def test_predicted_points_that_fail_say_why_on_the_console(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["topology=a100_nvlink", "study=s", "run.report=false", "ulysses=1,2", "transport=host", "-m"]
    assert main(grid) == 0, "one GPU needs no link"
    out = capsys.readouterr().out
    assert "infeasible  flux_schnell 1024px u2r1 usp/graph" in out.replace("usp/eager", "usp/graph")
    assert "no link numbers for transport=host" in out


def test_says_which_version_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xdit_bench 0.")


def test_a_study_that_would_lead_out_of_the_results_leaves_no_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a study is named in letters" in error_line(["study=../out", "topology=a100_nvlink"], capsys)
    assert list(here.iterdir()) == []
    assert not (here.parent / "out").exists()
    assert "a study is named in letters" in error_line(["-m", "study=ok,../out", "topology=a100_nvlink"], capsys)
    assert list(here.iterdir()) == []
    assert not (here.parent / "out").exists()


def test_cpu_ranks_have_no_memory_to_cap(here: Path) -> None:
    assert main(["topology=cpu", "model=flux_tiny", "memory_cap_gb=1", "study=s", "run.report=false"]) == 1
    (record,) = read_records(here / "results/s")
    assert (record.status, "caps a GPU's allocator" in record.reason) == ("infeasible", True)


def test_weights_that_the_host_can_not_hold_are_a_record_and_load_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_memory_bytes", lambda: 100_000_000_000)
    small = ["topology=cpu", "run.report=false", "study=big"]
    assert main([*small, "ulysses=2"]) == 1  # of 12 billion weights
    (record,) = read_records(here / "results" / "big")
    assert record.status == "infeasible"
    for word in ("2 CPU ranks", "135 GB of weights in fp32", "this host has 100 GB", "model=flux_tiny"):
        assert word in record.reason


def test_weights_that_every_rank_of_the_pool_would_load_count_as_often(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_memory_bytes", lambda: 100_000_000_000)
    quick = ["measure=quick", "res=64", "steps=1", "vae=none", "run.recheck=0"]
    assert main(["-m", "topology=cpu", "run.report=false", "study=two", "model=flux_schnell,flux_tiny", "ulysses=1,2",
                 *quick]) == 0  # fmt: skip
    found = {(r.point["model"], r.point["ulysses"]): r for r in read_records(here / "results" / "two")
             if r.point["engine"] == "usp"}  # fmt: skip
    assert {key: r.status for key, r in found.items()} == {
        ("flux_schnell", 1): "infeasible", ("flux_schnell", 2): "infeasible", ("flux_tiny", 1): "ok",
        ("flux_tiny", 2): "ok",
    }  # fmt: skip
    assert "a sweep of their own" in found["flux_schnell", 1].reason


def test_a_predicted_point_says_its_own_seconds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology=a100_nvlink", "ulysses=8", "study=s"]) == 0
    assert main(["topology=a100_nvlink", "ulysses=2", "study=s"]) == 0
    said = capsys.readouterr().out
    told = next(line for line in said.splitlines() if "u2r1" in line)
    assert told.split()[0] == "predicted"
    two = [r for r in read_records(here / "results" / "s") if r.point["ulysses"] == 2]
    total = two[0].latency_s["total"]
    assert f"{two[0].total_s:.4g} s an image ({total['low']:.3g} to {total['high']:.3g})" in told


def test_a_prediction_that_has_a_caution_says_it_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "topology=l40_pcie", "ulysses=1,2", "res=4096", "study=s"]) == 0
    said = capsys.readouterr().out
    assert said.count("outside the 4096 to 16384 that l40_pcie was calibrated for") == 1
    assert "near to what the card allows it may run out of memory" in said


def test_a_reader_that_stops_ends_a_sweep_as_sigpipe_does(here: Path) -> None:
    command = [sys.executable, "-m", "xdit_bench", "-m", "topology=a100_nvlink", "ulysses=1,2,4,8", "study=s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 141
    assert "the same command goes on from there" in " ".join(said.split())
    assert "Traceback" not in said
