"""Every committed report is what the code makes of its committed records, to the last byte."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from xdit_bench.report import main

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted(path.name for path in (ROOT / "reports").iterdir() if path.is_dir())
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
WRITERS = ("matplotlib", "pillow", "pandas", "pyarrow")  # what they write differs from version to version
OTHER = [f"{name} {version(name)}, not {PINNED[name]}" for name in WRITERS if version(name) != PINNED[name]]


def test_every_study_with_records_has_its_report() -> None:
    kept = {path.parent.name for path in (ROOT / "results").glob("*/records.jsonl")}
    assert kept == set(STUDIES)


@pytest.mark.slow
@pytest.mark.skipif(bool(OTHER), reason=f"bytes are of the pinned versions; here is {', '.join(OTHER)}")
@pytest.mark.parametrize("study", STUDIES)
def test_a_committed_report_is_what_its_records_give(study: str, tmp_path: Path) -> None:
    assert main([f"study={study}", f"results_dir={ROOT / 'results'}", f"reports_dir={tmp_path}"]) == 0
    made, kept = (_files(folder / study) for folder in (tmp_path, ROOT / "reports"))
    assert sorted(made) == sorted(kept)
    changed = sorted(name for name in made if made[name] != kept[name])
    assert not changed, f"run python -m xdit_bench.report study={study} and look at {', '.join(changed)}"


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
