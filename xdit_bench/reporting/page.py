"""The folder of a report: report.md, index.html, figures and exports, from records alone.

Owns what is written where. The same records give the same bytes: dates come from the records, none from now.

    write_report(read_records(Path("results/h200x2")), "h200x2", Path("reports"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from xdit_bench.errors import ResultsError
from xdit_bench.reporting import words
from xdit_bench.reporting.answer import Head, answer, rechecks
from xdit_bench.reporting.cells import Table, escape, markdown
from xdit_bench.reporting.entry import number
from xdit_bench.reporting.exports import export
from xdit_bench.reporting.figures import group_figures
from xdit_bench.reporting.frontier import families
from xdit_bench.reporting.images import Shot, side_by_side
from xdit_bench.reporting.inline import palette
from xdit_bench.reporting.outliers import outliers
from xdit_bench.reporting.pictures import Picture, Sheet, draw
from xdit_bench.reporting.published import load_published, match
from xdit_bench.reporting.spent import spent
from xdit_bench.reporting.study import Group, group_records
from xdit_bench.reporting.style import FORMATS
from xdit_bench.reporting.tables import report_tables
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest

DRAWN_GROUPS = 4  # groups with figures of their own; the tables hold all
BRIEF = ("headline", "ladder", "memory", "vae", "published")  # figures of a group after the first
IN_PAPERS = ("headline", "frontier")  # figures of the first group that are drawn at a column's width too
MARKDOWN_ROWS = 60
ELSEWHERE = "Elsewhere in this study"


@dataclass(frozen=True)
class Section:
    """One group's part of a report."""

    title: str
    slug: str
    pictures: tuple[Picture, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Report:
    """Everything that page and Markdown say, in the order they say it."""

    study: str
    head: Head
    sections: tuple[Section, ...]
    undrawn: tuple[str, ...]
    tables: tuple[Table, ...]
    commands: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    shots: tuple[Shot, ...] = ()
    shots_note: str = ""
    remarks: tuple[str, ...] = field(default=())

    @property
    def bodies(self) -> tuple[Section, ...]:
        """Sections that hold a figure, or say why it is not drawn, besides the one that stands above everything."""
        headline = self.sections[0].pictures[0]
        return tuple(section for section in self.sections if any(p is not headline for p in section.pictures))


def write_report(
    records: list[Record],
    study: str,
    out_dir: Path,
    *,
    outputs: Path | None = None,
    formats: Sequence[str] = FORMATS,
    columns: bool = False,
) -> list[Path]:
    """Writes `out_dir/<study>/`; returns the files, index.html and report.md first.

    `outputs` is the study's folder of saved images (`results/<study>/outputs`), where there is one.

    `columns` draws every figure at the width of a paper's column too, as the headline always is. Raises ResultsError
    for no records, or a folder that can not be written.
    """
    if not records:
        raise ResultsError(f"study {study!r} has no records, so there is nothing to report; run a sweep first")
    folder = out_dir / study
    try:
        return _write(records, study, folder, outputs, formats, columns)
    except OSError as error:
        raise ResultsError(
            f"the report goes to {folder}, which can not be written ({error}); set reports_dir to a folder that can"
        ) from error


def summary(records: list[Record]) -> list[str]:
    """The report's answer for a console: best configuration, speedup and memory, a line each."""
    head = answer(group_records(records), newest(records))
    lines = [f"{sentence.lead}: {sentence.text}" if sentence.lead else sentence.text for sentence in head.sentences]
    return [*lines, f"{ELSEWHERE}: {head.elsewhere}"] if head.elsewhere else lines


def _write(
    records: list[Record],
    study: str,
    folder: Path,
    outputs: Path | None,
    formats: Sequence[str],
    columns: bool,
) -> list[Path]:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    groups = group_records(records)
    shelf = load_published()
    matches = [match(group, shelf) for group in groups]
    kins = {id(group): family for family in families(groups) for group in family}
    # of a search below several caps one figure holds all
    apart = [group for group in groups if not group.decode_alone or kins[id(group)][0] is group]
    drawn = [group for group in apart if any(entry.ok for entry in group.entries)][:DRAWN_GROUPS] or apart[:1]
    sheets: list[list[Sheet]] = []
    for index, group in enumerate(drawn):
        prefix = "" if index == 0 else f"g{index + 1}-"
        # all caps beside each other in the section of the whole card, and where a search is all there is
        whole = group.setting.memory_cap_gb is None or group.decode_alone
        figures = group_figures(group, matches[groups.index(group)], kins[id(group)] if whole else [group])
        brief = index > 0 and not group.decode_alone
        figures = [f for f in figures if not brief or f.name in BRIEF or f is figures[0]]
        # embedding fonts takes a PDF as long as the rest of its figure: papers get those of the first group
        chosen = [name for name in formats if index == 0 or name != "pdf"] or formats
        sheets.append([
            Sheet(f, f"figures/{prefix}{f.name}", chosen, columns or (index == 0 and f.name in IN_PAPERS))
            for f in figures
        ])  # fmt: skip
    pictures = iter(draw([sheet for group_sheets in sheets for sheet in group_sheets], folder))
    sections = tuple(
        Section(words.title(group), f"group-{index + 1}", tuple(islice(pictures, len(here))), _machine_facts(group))
        for index, (group, here) in enumerate(zip(drawn, sheets, strict=True))
    )
    files = [file for section in sections for picture in section.pictures for file in picture.files]
    exported, remarks = export(records, folder)
    shots, shots_note = side_by_side(groups, outputs, folder)
    report = Report(
        study=study,
        head=answer(groups, newest(records)),
        sections=sections,
        undrawn=tuple(words.title(group) for group in apart if group not in drawn),
        tables=tuple(report_tables(groups, [m for found in matches for m in found])),
        commands=_commands(records),
        facts=_study_facts(records),
        shots=shots,
        shots_note=shots_note,
        remarks=tuple(remarks),
    )
    texts = [(folder / "index.html", html(report)), (folder / "report.md", markdown_report(report))]
    for path, text in texts:
        path.write_text(text, encoding="utf-8", newline="\n")
    _sweep_out(folder / "figures", files)
    return [path for path, _ in texts] + files + exported + [folder / shot.file for shot in shots]


def _sweep_out(figures: Path, kept: Sequence[Path]) -> None:
    """Takes away figures of an earlier report that this one no longer has; they would pass for its own."""
    for path in figures.iterdir():
        if path.suffix in (".png", ".svg", ".pdf") and path not in kept:
            path.unlink()


def html(report: Report) -> str:
    """The page as one self-contained document; every text of a record is escaped."""
    environment = Environment(
        loader=PackageLoader("xdit_bench.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["brief"] = lambda key: f"{key:.6g}" if isinstance(key, int | float) else key
    environment.filters["plural"] = words.plural
    return environment.get_template("page.html.j2").render(report=report, palette=palette, elsewhere=ELSEWHERE)


def markdown_report(report: Report) -> str:
    """The same for a pull request."""
    lines = [f"# {escape(report.study)}", "", f"{escape(report.head.measured_on)}.", ""]
    lines += [f"> **{escape(banner)}**\n" for banner in report.head.banners]
    for sentence in report.head.sentences:
        lines += [f"**{sentence.lead}.** {escape(sentence.text)}" if sentence.lead else escape(sentence.text), ""]
    lines += [f"> Warning: {escape(warning)}\n" for warning in report.head.warnings]
    first = report.sections[0].pictures[0]
    if not first.figure.why_empty:
        lines += [f"![{escape(first.figure.alternative)}]({first.stem}.png)", "", escape(first.figure.caption), ""]
    lines += [f"**{ELSEWHERE}.** {escape(report.head.elsewhere)}", ""] if report.head.elsewhere else []
    for section in report.bodies:
        lines += _section_lines(section, skip=first)
    if report.shots:
        lines += ["## Images", "", *(f"![{escape(s.caption)}]({s.file}) {escape(s.caption)}\n" for s in report.shots)]
    lines += [escape(report.shots_note), ""] if report.shots_note else []
    for table in report.tables:
        if table.rows:
            lines += [f"## {table.title}", "", markdown(table, limit=MARKDOWN_ROWS), ""]
            lines += [escape(table.note), ""] if table.note else []
        elif table.name == "failures":
            lines += ["## Failures", "", " ".join(filter(None, ("None.", escape(table.note)))), ""]
    lines += ["## Reproduce", "", "```", *(" ".join(command.split()) for command in report.commands), "```", ""]
    lines += ["## Provenance", "", *(f"- {escape(name)}: {escape(value)}" for name, value in report.facts)]
    lines += [f"- {escape(name)}: {escape(value)}" for name, value in report.sections[0].facts]
    return "\n".join([*lines, *(f"- {escape(remark)}" for remark in report.remarks)]) + "\n"


def _section_lines(section: Section, skip: Picture) -> list[str]:
    lines = [f"## {escape(section.title)}", ""]
    for picture in section.pictures:
        if picture is skip:
            continue
        if picture.figure.why_empty:
            lines += [f"{picture.figure.title}: not drawn, {escape(picture.figure.why_empty)}.", ""]
            continue
        lines += [f"<details><summary>{picture.figure.title}</summary>", ""]
        lines += [f"![{escape(picture.figure.alternative)}]({picture.stem}.png)", "", escape(picture.figure.caption)]
        lines += ["", "</details>", ""]
    return lines


def _commands(records: Sequence[Record]) -> tuple[str, ...]:
    typed = dict.fromkeys(record.command for record in records if record.command)
    return (*typed, f"python -m xdit_bench.report study={records[0].study}")


def _study_facts(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    records = list({(r.run_id, r.time): r for r in records}.values())  # a recheck appends its point once more
    times = sorted(record.time for record in records)
    replaced = len(records) - len(newest(records))
    facts = [
        (
            "Records",
            f"{len(records)}"
            + (f", {replaced} of them replaced by a newer record of the same point" if replaced else ""),
        ),
        ("Taken", f"{times[0]} to {times[-1]}"),
        ("Schema", str(records[0].schema)),
        ("Sources", words.listing(sorted({record.source for record in records}))),
    ]
    drifts = rechecks(records)
    if drifts:
        worst = f"{words.plural(len(drifts), 'point')}, the largest drift {100 * max(drifts, key=abs):+.1f} %"
        facts.append(("Measured again in fresh processes", worst))
    slow = outliers(records)
    if slow:
        facts.append(("Outliers", slow))
    issued = [s for r in records if (s := number(r.telemetry.get("block_launch_s")))]
    if issued:
        said = f"{1e3 * min(issued):.2f} to {1e3 * max(issued):.2f} ms, point by point"
        facts.append(("Host, to issue one eager single-stream block", said))
    time = spent(records)
    if time:
        facts.append(("Wall time of the measured points", time.sentence()))
    codes = sorted({str(record.software["code"]) for record in records if record.software.get("code")})
    return (*facts, ("Code", ", ".join(codes))) if codes else tuple(facts)


def _machine_facts(group: Group) -> tuple[tuple[str, str], ...]:
    """Machine and software of a group's last record, one line a key."""
    record = max((entry.record for entry in group.entries), key=lambda r: r.time)
    facts = {
        **{f"machine {k}": v for k, v in record.machine.items()},
        **{f"software {k}": v for k, v in record.software.items()},
    }
    return tuple((name, _plain(value)) for name, value in facts.items() if value not in ("", None, []))


def _plain(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    return re.sub(r"[{}\"\[\]]", "", json.dumps(value, sort_keys=True, default=str))
