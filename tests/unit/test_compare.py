"""The verb: exit codes, what it prints, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from synthetic import CPU, history, record

from xdit_bench.compare import main, parse_threshold
from xdit_bench.errors import ConfigError
from xdit_bench.reporting.comparison import compare
from xdit_bench.results.schema import Record
from xdit_bench.results.store import Store


def keep(folder: Path, records: Sequence[Record]) -> str:
    with Store.open(folder.parent, folder.name) as store:
        for item in records:
            store.append(item)
    return str(folder)


def test_exits_0_without_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = keep(tmp_path / "a", [record(samples=history(1))]), keep(tmp_path / "b", [record(samples=history(2))])
    assert main([base, new, "--fail-on", "regression", "--threshold", "2%"]) == 0
    assert "No regression" in capsys.readouterr().out


def test_exits_3_for_a_regression_and_0_where_it_may_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = keep(tmp_path / "a", [record(samples=history(1))])
    new = keep(tmp_path / "b", [record(samples=history(2, median=1.1))])
    assert main([base, new]) == 3
    out = capsys.readouterr().out
    assert "**1 regression** in 1 point (" in out
    assert "**slower**" in out
    assert main([base, new, "--fail-on", "never"]) == 0


def test_exits_4_when_nothing_is_comparable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = keep(tmp_path / "a", [record()])
    assert main([base, keep(tmp_path / "b", [record(machine=CPU)])]) == 4
    assert main([base, keep(tmp_path / "c", [record(res=4096)])]) == 4
    assert main([keep(tmp_path / "d", [record(status="oom")]), keep(tmp_path / "e", [record(status="oom")])]) == 4
    assert "device cuda" in capsys.readouterr().out


def test_a_gate_does_not_pass_on_a_point_of_unlike_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = keep(tmp_path / "a", [record(), record(res=2048)])
    new = keep(tmp_path / "b", [record(), record(res=2048, machine=CPU)])
    assert main([base, new]) == 4
    assert "**No regression, and 1 point of unlike machines** in 2 points" in capsys.readouterr().out
    assert main([base, new, "--fail-on", "never"]) == 0
    slow = keep(tmp_path / "c", [record(samples=history(2, median=1.3)), record(res=2048, machine=CPU)])
    assert main([keep(tmp_path / "d", [record(samples=history(1)), record(res=2048)]), slow]) == 3


def test_an_ok_record_without_a_time_fails_its_point_and_hides_no_other(tmp_path: Path) -> None:
    base = keep(tmp_path / "a", [record(res=1024), record(res=2048)])
    new = tmp_path / "b" / "records.jsonl"
    new.parent.mkdir()
    bad = record(res=2048).to_dict()
    bad["latency_s"]["total"]["median"] = float("nan")
    new.write_text(json.dumps(record(res=1024).to_dict()) + "\n" + json.dumps(bad) + "\n")
    assert main([base, str(new)]) == 3


@pytest.mark.parametrize("content", ["", "not json\n{}\n", '{"schema": 99}\n', "[1]\n"])
def test_unreadable_records_exit_2_with_one_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    assert main([keep(tmp_path / "a", [record()]), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(bad) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["only-one"], ["a", "b", "--threshold", "two"], ["a", "b", "--metric", "x"]])
def test_bad_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = keep(tmp_path / "a", [record(samples=history(1))])
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes((tmp_path / "a" / "records.jsonl").read_bytes() + b'{"schema":1,"run_')
    assert main([base, str(torn)]) == 0
    assert "torn" in capsys.readouterr().err


def test_memory_that_moved_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        keep(tmp_path / name, [record(samples=history(1), extra={"memory": {"peak_bytes": peak}})])
        for name, peak in (("a", 40e9), ("b", 50e9))
    ]
    assert main(folders) == 0
    assert "- larger: " in capsys.readouterr().out
    assert main([*folders, "--metric", "peak_bytes"]) == 3
    assert "- larger: " not in capsys.readouterr().out, "the table has it"
    assert main(folders[::-1]) == 0
    assert "- smaller: " in capsys.readouterr().out


def test_parity_has_a_bound_of_its_own_and_is_no_metric_to_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = [record(extra={"parity": {"ok": True, "latents_rel_l2": 0.0}})]  # as good as can be, and no ratio
    assert main([keep(tmp_path / "a", exact), keep(tmp_path / "b", exact), "--metric", "parity_l2"]) == 2
    assert "'parity_l2'" in capsys.readouterr().err


def test_a_name_from_a_record_is_text_in_the_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [record(engine="<script>alert(1)</script>|x")]
    assert main([keep(tmp_path / "a", new), keep(tmp_path / "b", new)]) == 0
    out = capsys.readouterr().out
    assert "<script>" not in out
    assert "\\|x" in out
    assert "| 1.0 | 10, 10 |" in out, "p in as many digits as it is worth"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([keep(tmp_path / "a", new), keep(tmp_path / "b", new)]) == 0
    assert "<script>alert(1)</script>|x" in capsys.readouterr().out, "a terminal shows what it is given"


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.02", 0.02), ("0", 0.0), (" 5 % ", 0.05)])
def test_reads_a_threshold(text: str, share: float) -> None:
    assert parse_threshold(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["2", "-1%", "nan", "many", "150%"])
def test_refuses_a_threshold_that_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match=r"2% or 0\.02"):
        parse_threshold(text)


def test_writes_markdown_and_a_figure(tmp_path: Path) -> None:
    base = keep(tmp_path / "a", [record(samples=history(1)), record(res=2048), record(res=4096)])
    new = keep(
        tmp_path / "b", [record(samples=history(2, median=1.2)), record(res=2048), record(status="oom", res=4096)]
    )
    assert main([base, new, "--out", str(tmp_path / "out")]) == 3
    assert "newly failing" in (tmp_path / "out/comparison.md").read_text()
    assert (tmp_path / "out/ratios.png").stat().st_size > 1000
    assert "slower" in (tmp_path / "out/ratios.svg").read_text()


def test_a_folder_that_can_not_be_written_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = keep(tmp_path / "a", [record()])
    (tmp_path / "file").write_text("")
    assert main([base, base, "--out", str(tmp_path / "file")]) == 2
    assert "can not be written" in capsys.readouterr().err


def test_a_field_that_no_fingerprint_has_is_not_allowed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [keep(tmp_path / name, [record(samples=history(1))]) for name in ("base", "new")]
    assert main([*both, "--allow", "drivr"]) == 2
    assert "'drivr' is none; did you mean driver?" in capsys.readouterr().err


def test_a_measurement_that_vanished_fails_though_its_prediction_stays() -> None:
    measured, predicted = record(1.0, samples=history(1)), record(0.9, source="predicted", machine={"fingerprint": "m"})
    rows = compare([measured, predicted], [predicted])
    assert [(row.source, row.verdict) for row in rows] == [("measured", "newly failing"), ("predicted", "same")]


def test_a_few_samples_make_no_interval_and_say_so() -> None:
    (row,) = compare([record(1.0, samples=[1.0])], [record(1.01, samples=[1.01])])
    assert (row.verdict, row.low, row.high) == ("same", None, None)
    assert row.note == "1 and 1 samples make no interval; measure.repeats=5 would"


def test_a_row_reads_from_base_to_new_in_the_metrics_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fat = {"memory": {"peak_bytes": 30e9}}
    base = keep(tmp_path / "a", [record(samples=history(1), extra=fat)])
    new = keep(tmp_path / "b", [record(samples=history(2, median=1.5), extra={"memory": {"peak_bytes": 45e9}})])
    assert main([base, new]) == 3
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| **slower**"))
    _, _, _, was, now, ratio, interval, *_ = (cell.strip() for cell in row.split("|"))
    assert 0.9 < float(was) < 1.1 < 1.4 < float(now) < 1.6
    low, high = map(float, interval.split(" to "))
    assert 1.4 < low < float(ratio) < high < 1.6
    assert "threshold 2 %." in out
    assert "larger: flux_schnell 1024px" in out
    assert "30.0 GB -> 45.0 GB" in out
    assert main([base, new, "--metric", "peak_bytes"]) == 3
    assert "| 30.0 GB | 45.0 GB | 1.500 |" in capsys.readouterr().out
