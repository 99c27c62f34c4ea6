"""Records for other tools: CSV and Parquet for notebooks, JUnit XML for CI viewers.

Owns the files' formats. A point that failed is a failure in JUnit; one that a rule forbids, or that was left out on
purpose, is skipped.

    export(records, Path("reports/h200x2"))
"""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from xdit_bench.reporting.entry import Entry
from xdit_bench.results.frame import to_frame
from xdit_bench.results.schema import Record
from xdit_bench.results.store import newest

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def export(records: Sequence[Record], folder: Path) -> tuple[list[Path], list[str]]:
    """Writes records.csv and junit.xml, the newest record of each point, and records.parquet where pyarrow is there;
    returns files and remarks."""
    frame = to_frame(newest(records))
    paths = [folder / "records.csv", folder / "junit.xml"]
    frame.to_csv(paths[0], index=False, lineterminator="\n")
    paths[1].write_bytes(junit(records))
    if importlib.util.find_spec("pyarrow") is None:
        return paths, ["records.parquet was left out: pyarrow is not installed (pip install pyarrow)"]
    frame.to_parquet(folder / "records.parquet", index=False)
    return [*paths, folder / "records.parquet"], []


def junit(records: Sequence[Record]) -> bytes:
    """One test case a point, the newest record of each."""
    entries = [Entry.of(record) for record in newest(records)]
    skipped = [e for e in entries if e.status in ("infeasible", "skipped")]
    failed = [e for e in entries if not e.ok and e not in skipped]
    suite = ET.Element(
        "testsuite",
        name=_xml(records[0].study if records else "empty"),
        tests=str(len(entries)),
        failures=str(len(failed)),
        skipped=str(len(skipped)),
        errors="0",
    )
    for entry in entries:
        case = ET.SubElement(suite, "testcase", classname=_xml(_class(entry)), name=_xml(_name(entry)))
        case.set("time", f"{entry.total_s or 0.0:.6f}")
        if entry.ok:
            continue
        kind = "skipped" if entry.status in ("infeasible", "skipped") else "failure"
        outcome = ET.SubElement(case, kind, message=_xml(f"{entry.status}: {entry.reason}"))
        if kind == "failure":
            outcome.set("type", entry.status)
    ET.indent(suite)
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True)) + b"\n"


def _class(entry: Entry) -> str:
    point = entry.record.point
    return f"{entry.record.source}.{point['topology']}.{point['model']}.{entry.engine}"


def _name(entry: Entry) -> str:
    height, width = entry.size
    point = entry.record.point
    parts = [f"{width}x{height}", entry.factors, entry.execution, f"vae={entry.vae}", f"attention={entry.attention}"]
    parts += [f"{key}={point[key]}" for key in ("steps", "text_tokens", "dtype", "seed", "transport")]
    parts += [f"{key}={point[key]}" for key in ("without", "memory_cap_gb") if point.get(key)]
    return " ".join(parts)


def _xml(text: str) -> str:
    """XML 1.0 forbids control characters, escaped or not."""
    return NOT_XML.sub("\ufffd", text)
