"""The wheel works from any folder, alone: its knobs, sweeps and published figures travel inside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(argv: list[str], cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    folder = out / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_runs_from_any_folder_without_the_checkout(site: Path, tmp_path: Path) -> None:
    where = _run(["-c", "import xdit_bench; print(xdit_bench.__file__)"], tmp_path, site)
    assert where.stdout.startswith(str(site))
    shown = _run(["-m", "xdit_bench", "--cfg", "job"], tmp_path, site)
    assert "ulysses: 1" in shown.stdout, shown.stderr
    swept = _run(["-m", "xdit_bench", "-m", "+sweeps=documents", "res=1024", "run.report=false"], tmp_path, site)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert (tmp_path / "results" / "documents" / "records.jsonl").is_file()
    published = _run(["-c", "import xdit_bench; print(*xdit_bench.data_dir('published').iterdir())"], tmp_path, site)
    assert "flux_schnell_seed.csv" in published.stdout
