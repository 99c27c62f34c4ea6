"""Reference figures are read with their meaning, and refused by file, line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdit_bench import data_dir
from xdit_bench.errors import ResultsError
from xdit_bench.predict.published import is_memory, read_latencies, read_peaks

HEADER = "# a comment\ntopology,res,gpus,ulysses,ring,latency_s,vae,note\n"


def test_the_studys_figures_are_points_of_its_engine() -> None:
    rows = read_latencies(data_dir("published") / "flux_schnell_seed.csv")
    assert len(rows) == 20
    first, last = rows[0], rows[-1]
    assert (first.point.topology, first.point.res, first.point.vae, first.seconds) == (
        "a100_nvlink",
        1024,
        "single",
        2.18,
    )
    assert (last.point.ulysses, last.point.ring, last.point.vae, last.seconds) == (2, 4, "none", 3.67)
    assert {(r.point.engine, r.point.execution, r.point.text_tokens, r.point.steps) for r in rows} == {
        ("xdit_2024", "eager", 256, 4)
    }


def test_the_studys_peaks_tell_gpus_and_decode_from_their_notes() -> None:
    peaks = read_peaks(data_dir("published") / "memory_seed.csv")
    assert [(p.point.res, p.point.gpus, p.point.vae) for p in peaks[:4]] == [
        (2048, 8, "single"), (3072, 8, "parallel"), (4096, 8, "parallel"), (1024, 1, "none")
    ]  # fmt: skip
    assert is_memory(data_dir("published") / "memory_seed.csv")
    assert not is_memory(data_dir("published") / "flux_schnell_seed.csv")


def test_columns_beyond_the_studys_describe_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    path.write_text(
        "topology,res,gpus,ulysses,ring,latency_s,vae,model,engine,execution\n"
        "h100_nvlink,1024,2,2,1,2.5,no,flux_dev,stock,compile\n"
    )
    (row,) = read_latencies(path)
    assert (row.model.name, row.point.steps, row.point.engine, row.point.execution) == (
        "flux_dev",
        28,
        "stock",
        "compile",
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a100_nvlink,1024,1,1,1,-2,cold,", "-2 is not above 0"),
        ("a100_nvlink,1024,1,1,1,fast,cold,", "could not convert"),
        ("a100_nvlink,1024,1,1,1,2.0,warm,", "column 'warm' is missing or unknown"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + "a100_nvlink,1024,1,1,1,2.18,cold,\n" + line + "\n")
    with pytest.raises(ResultsError, match=rf"bad\.csv, line 4: .*{said}"):
        read_latencies(path)
