"""The folder of a report: complete, self-contained, escaped, byte-stable, quick."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import CPU, H200, oom, record, study

from xdit_bench.errors import ResultsError
from xdit_bench.reporting import pictures
from xdit_bench.reporting.exports import export
from xdit_bench.reporting.page import write_report
from xdit_bench.results.schema import Record

SPLITS = ((1, 1), (2, 1), (1, 2))


class Page(HTMLParser):
    """Tags, ids and table cells of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    write_report(study(sizes=(1024, 4096), splits=SPLITS), "demo", folder)
    return folder / "demo"


def test_holds_page_markdown_figures_and_exports(report: Path) -> None:
    figures = (
        "headline",
        "headline-column",
        "strategies",
        "heatmap",
        "speedups",
        "stages",
        "memory",
        "frontier",
        "energy",
    )
    names = [f"figures/{name}.{suffix}" for name in (*figures, "parity") for suffix in ("png", "svg")]
    for name in ("index.html", "report.md", "records.csv", "junit.xml", *names):
        assert (report / name).stat().st_size > 0, name


def test_the_page_fetches_nothing(report: Path) -> None:
    text = (report / "index.html").read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_has_its_target(report: Path) -> None:
    text = (report / "index.html").read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert references <= set(page.ids), references - set(page.ids)


def test_every_figure_has_a_text_alternative_with_its_numbers(report: Path) -> None:
    page = Page((report / "index.html").read_text())
    labels = [attributes.get("aria-label") or "" for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(labels) >= 8
    assert all(re.search(r"\d", label) for label in labels)
    assert "1 GPU (u1r1) OOM, 2 GPUs (u2r1) 11.9 s" in labels[0]


def test_the_first_screen_holds_answer_headline_and_machine(report: Path) -> None:
    text = (report / "index.html").read_text()
    order = [text.index(mark) for mark in ("flux_schnell, measured on 8×", 'id="answer"', 'id="fig-headline"', "<nav")]
    assert order == sorted(order)


def test_the_markdown_holds_the_same_answer_headline_and_failures(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert "](figures/headline.png)" in text
    assert "runs out on 1 GPU" in text
    assert "asked for 17.2 GB and 9.0 GB were free" in text
    assert "python -m xdit_bench.report study=synthetic" in text
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert linked
    assert all((report / link).is_file() for link in linked)


def test_the_same_records_give_the_same_bytes_by_one_process_and_by_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for cores in (1, 3, 3):
        monkeypatch.setattr(pictures, "_cores", lambda cores=cores: cores)
        folder = tmp_path / str(len(hashes))
        written = write_report(study(sizes=(1024,), splits=SPLITS), "demo", folder, formats=("png", "svg", "pdf"))
        hashes.append({
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in written
        })  # fmt: skip
    assert hashes[0] == hashes[1] == hashes[2]


def test_a_figure_that_fails_in_a_process_of_its_own_ends_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(figure: object, stem: Path, formats: object) -> list[Path]:
        raise OSError(f"no space left for {stem.name}, process {os.getpid()}")

    monkeypatch.setattr(pictures, "_cores", lambda: 2)
    monkeypatch.setattr(pictures, "save", full)
    with pytest.raises(ResultsError, match=r"no space left for .*set reports_dir") as refused:
        write_report(study(sizes=(1024,), splits=SPLITS), "demo", tmp_path)
    assert f"process {os.getpid()}" not in str(refused.value)


def test_a_killed_process_that_drew_is_told_in_a_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_cores", lambda: 2)
    monkeypatch.setattr(pictures, "save", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ResultsError, match=r"killed.*records are kept.*xdit_bench\.report study=demo"):
        write_report(study(sizes=(1024,), splits=SPLITS), "demo", tmp_path)


def test_figures_of_an_earlier_report_are_taken_away(tmp_path: Path) -> None:
    write_report(study(sizes=(1024,), splits=SPLITS), "demo", tmp_path)
    assert (tmp_path / "demo/figures/energy.png").exists()
    write_report([record(), record(engine="stock", vae="single")], "demo", tmp_path)
    assert not (tmp_path / "demo/figures/energy.png").exists()


def test_every_string_of_a_record_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    records = [
        record(engine=evil, attention=evil, vae=evil, machine=H200 | {"gpu": evil}, extra={"warnings": [evil]}),
        record(status="crashed", ulysses=2, engine=evil, extra={"reason": evil, "failure": {"stage": evil}}),
    ]
    records[0].software["torch"] = evil
    write_report(records, "demo", tmp_path)
    text = (tmp_path / "demo/index.html").read_text()
    assert text.count("<script>") == 1  # the page's own
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in (tmp_path / "demo/report.md").read_text()
    ET.parse(tmp_path / "demo/junit.xml")


def test_capped_predicted_and_cpu_points_say_so_on_the_page(tmp_path: Path) -> None:
    mixed = [record(), record(memory_cap_gb=80.0), record(source="predicted", machine={"fingerprint": "p"})]
    mixed += [record(machine=CPU, topology="cpu")]
    write_report(mixed, "demo", tmp_path)
    text = (tmp_path / "demo/index.html").read_text()
    for said in ("capped at 80 GB", "PREDICTED", "say nothing about a GPU", "unequal machines"):
        assert said in text, said


def test_a_report_of_failures_alone_is_still_a_report(tmp_path: Path) -> None:
    write_report([oom(), oom(res=2048)], "demo", tmp_path)
    text = (tmp_path / "demo/index.html").read_text()
    assert "No point succeeded: 2 oom" in text
    assert "17.2 GB" in text


def test_a_command_of_the_records_stands_on_the_page(tmp_path: Path) -> None:
    command = "python -m xdit_bench -m ulysses=1,2 res=1024"
    write_report([record(extra={"command": command})], "demo", tmp_path)
    assert command in (tmp_path / "demo/index.html").read_text()


def test_one_of_a_kind_is_written_as_one(tmp_path: Path) -> None:
    groups = [record(steps=1, text_tokens=1), record(text_tokens=2)]
    groups[0].warnings += ["a", "b", "c"]
    groups[1].parity = {"ok": True, "latents_rel_l2": 0.01}
    write_report([*groups, oom(res=2048)], "demo", tmp_path)
    text, plain = ((tmp_path / "demo" / name).read_text() for name in ("index.html", "report.md"))
    assert "1 step, 1 text token, bf16" in plain
    assert "1 point checked" in text
    assert not re.search(r"\b1 (steps|text tokens|GPUs|points|rows|more warnings|figures|images)\b", text + plain)


def test_an_image_that_is_not_square_has_its_own_panel(tmp_path: Path) -> None:
    write_report([record(height=720, width=1280, res=None), record(res=1024)], "demo", tmp_path)
    assert "1280x720px" in (tmp_path / "demo/index.html").read_text()


def test_no_records_and_a_folder_that_can_not_be_written_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no records"):
        write_report([], "demo", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="can not be written"):
        write_report([record()], "demo", tmp_path / "file")


def test_junit_tells_failures_from_what_a_rule_forbids(tmp_path: Path) -> None:
    records = [record(), oom(res=2048), record(status="infeasible", ulysses=5), record(status="crashed", ring=2)]
    records[3].reason = "rank 1 died\x00\x1b"
    write_report(records, "demo", tmp_path)
    suite = ET.parse(tmp_path / "demo/junit.xml").getroot()
    assert suite.attrib["tests"] == "4"
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("2", "1")


def test_parquet_is_written_where_pyarrow_is_there(report: Path) -> None:
    there = importlib.util.find_spec("pyarrow") is not None
    assert (report / "records.parquet").exists() == there
    assert ("pyarrow is not installed" in (report / "index.html").read_text()) != there


def test_a_missing_pyarrow_is_said_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    written, remarks = export([record()], tmp_path)
    assert [path.name for path in written] == ["records.csv", "junit.xml"]
    assert "pyarrow is not installed" in remarks[0]


@pytest.mark.slow
def test_a_report_of_5000_records_is_written(tmp_path: Path) -> None:
    records: list[Record] = []
    for model in ("flux_schnell", "flux_dev"):
        for cap in (None, 80.0, 48.0):
            for execution in ("eager", "compile", "graph"):
                for vae in ("single", "parallel"):
                    for attention in ("cudnn", "fa3"):
                        sizes = (512, 768, 1024, 1536, 2048, 3072, 4096)
                        records += study(sizes=sizes, execution=execution, vae=vae, memory_cap_gb=cap, model=model, attention=attention)  # fmt: skip  # noqa: E501
    records = records[:5000]
    write_report(records, "big", tmp_path)
    page = (tmp_path / "big/index.html").read_text()
    assert f"{len(records)}" in page
    assert page.count("<tr>") > len(records)
