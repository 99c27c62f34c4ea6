"""The verb: rebuilds a report from records alone, without torch; refuses bad input with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import record

from xdit_bench.report import main
from xdit_bench.results.store import Store


@pytest.fixture
def results(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "results", "demo") as store:
        store.append(record())
        store.append(record(engine="stock", vae="single", total=1.3))
    return tmp_path / "results"


def test_rebuilds_a_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=demo", f"results_dir={results}", f"reports_dir={tmp_path / 'reports'}"]) == 0
    assert "index.html" in capsys.readouterr().out
    assert (tmp_path / "reports/demo/figures/headline.pdf").exists()


def test_draws_every_figure_for_a_column_when_asked(results: Path, tmp_path: Path) -> None:
    words = ["study=demo", f"results_dir={results}", f"reports_dir={tmp_path}", "formats=png", "widths=page,column"]
    assert main(words) == 0
    names = {path.stem for path in (tmp_path / "demo/figures").iterdir()}
    pages = {name for name in names if not name.endswith("-column")}
    assert len(pages) > 2
    assert names == pages | {f"{name}-column" for name in pages}


def test_needs_no_torch(results: Path, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'diffusers', 'transformers']))\n"
    code = f"{blocked}from xdit_bench.report import main\nsys.exit(main(sys.argv[1:]))"
    words = ["study=demo", f"results_dir={results}", f"reports_dir={tmp_path / 'reports'}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reports/demo/index.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "study=<name>"), (["study"], "key=value"), (["what=1"], "report has no 'what'"),
     (["study=demo", "study=gone"], "study is given once; got study=demo and study=gone, leave one of them out"),
     (["study="], "study must have a value; got 'study=', leave study out for its default"),
     (["study=gone"], "no records at"), (["study=demo", "formats=png,gif"], "formats are any of"),
     (["study=demo", "widths=column"], "widths is one of"), (["study=../demo"], "a study is named in letters")],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(
    results: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"results_dir={results}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_unknown_schema_is_named_with_its_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (results / "demo/records.jsonl").open("a") as file:
        file.write('{"schema": 7, "status": "ok"}\n')
    assert main(["study=demo", f"results_dir={results}"]) == 2
    assert "line 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["report", "study=demo", "results_dir=.", "reports_dir=."],
        ["validate", "results_dir=."],
        ["compare", "demo", "demo"],
        ["recommend", "topology=demo/box.yaml"],
        ["calibrate", "measured=demo/raw.json", "out=x.yaml"],
    ],
    ids=lambda words: words[0],
)
def test_a_verb_that_is_interrupted_says_so_in_one_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    for file in ("records.jsonl", "box.yaml", "raw.json"):
        os.mkfifo(tmp_path / "demo" / file)
    command = [sys.executable, "-m", f"xdit_bench.{words[0]}", *words[1:]]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        named = {"recommend": "box.yaml", "calibrate": "raw.json"}.get(words[0], "records.jsonl")
        with (tmp_path / "demo" / named).open("w"):  # opens once the verb reads it, which then waits for what comes
            run.send_signal(signal.SIGINT)
            said = run.communicate(timeout=60)[1]
    assert (run.returncode, said) == (130, "interrupted\n")
