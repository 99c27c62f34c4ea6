"""Every command in a ```bash block of README and docs runs as typed, on a machine without a GPU."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for fence, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            if fence == language:
                found.append((page.name, block))
    return found


COMPOSED = sorted(
    {line for _, block in blocks("") for line in block.splitlines() if line.startswith("python -m xdit_bench ")}
)
COMMANDS = sorted({line for _, block in blocks("bash") for line in block.splitlines() if line.startswith("python -m ")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "results" / "quickstart", tmp_path / "results" / "quickstart")
    shutil.copy(ROOT / "conf" / "topology" / "a100_nvlink.yaml", tmp_path / "box.yaml")  # what `calibrate` would leave
    return tmp_path


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_runs_as_typed(command: str, folder: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, *shlex.split(command, comments=True)[1:]]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMPOSED)
def test_what_needs_a_cluster_composes_as_typed(command: str, folder: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    words = [word for word in shlex.split(command, comments=True)[1:] if word not in ("-m", "--multirun")]
    argv = [sys.executable, "-m", *[word.split(",")[0] for word in words], "--cfg", "job"]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_of_the_docs_is_run_or_composed() -> None:
    """`make` is what CI itself calls, `bash .ci/...` has its own tests, `pip install` needs a network."""
    typed = {line.strip() for page in PAGES for line in page.read_text().splitlines() if line.startswith("python -m ")}
    left = typed - set(COMMANDS) - set(COMPOSED)
    assert left == {"python -m xdit_bench.calibrate out=box.yaml"}  # minutes; tests/unit/test_calibrate.py runs it


def test_the_example_notebook_runs(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(ROOT / "docs" / "notebook.py")]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gain" in done.stdout


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_example_code_runs(page: str, code: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}"
