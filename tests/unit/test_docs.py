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
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found.append((page.name, block))
    return found


COMMANDS = sorted({line for _, block in blocks("bash") for line in block.splitlines() if line.startswith("python -m ")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "results" / "quickstart", tmp_path / "results" / "quickstart")
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


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_example_code_runs(page: str, code: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}"
