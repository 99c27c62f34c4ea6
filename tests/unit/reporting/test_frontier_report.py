"""The report of a search for the largest image that fits."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from synthetic import frontier, oom, record, study

from xdit_bench.reporting import draw_frontier
from xdit_bench.reporting.alternatives import frontier as alternative
from xdit_bench.reporting.answer import answer
from xdit_bench.reporting.draw_frontier import frontier as draw
from xdit_bench.reporting.frontier import families, limits
from xdit_bench.reporting.page import write_report
from xdit_bench.reporting.study import group_records
from xdit_bench.reporting.style import COLUMN, PAGE, VAE_COLOURS, drawing
from xdit_bench.reporting.tables import best_table, failures_table, frontier_table, points_table
from xdit_bench.results.schema import Record

TOPS = {(None, 1, "single"): 4096, (None, 2, "parallel"): 8192, (48.0, 1, "single"): 2048, (48.0, 2, "parallel"): 4544}


@pytest.fixture
def search() -> list[Record]:
    return frontier(TOPS)


def test_a_limit_a_cap_mode_and_gpu_count(search: list[Record]) -> None:
    (family,) = families(group_records(search))
    found = {(x.group.setting.memory_cap_gb, x.gpus, x.vae): (x.fits, x.fails) for x in limits(family)}
    assert found == {key: (top, top + 64 if top < 8192 else 0) for key, top in TOPS.items()}


def test_what_ran_out_of_the_whole_card_counts_below_a_cap_and_says_so(search: list[Record]) -> None:
    kept = [r for r in search if r.point["memory_cap_gb"] is None or r.status == "ok"]
    rows = {(row[0].text, row[1].text): row for row in frontier_table(group_records(kept)).rows}
    capped = rows["flux_schnell h200_nvlink decode alone cap 48 GB", "single"]
    assert (capped[4].text, capped[7].text) == ("2048px at least (search cut off)", "4160px")
    assert capped[8].text.endswith("(with more memory than here)")
    assert rows["flux_schnell h200_nvlink decode alone", "parallel"][4].text == "8192px or more"


def test_a_search_cut_off_before_its_end_claims_no_limit(search: list[Record]) -> None:
    tried = [r for r in search if (r.point["memory_cap_gb"], r.status) == (48.0, "oom") and r.point["vae"] == "single"]
    first = max(tried, key=lambda r: r.point["height"])
    groups = group_records([first])
    assert frontier_table(groups).rows[0][4].text == "no size yet (search cut off)"
    (sentence,) = [s.text for s in answer(groups, [first]).sentences if s.lead == "Fits below a cap of 48 GB"]
    assert sentence == "1 GPU, no size yet (search cut off) with vae=single."


def test_of_two_machines_each_limit_says_whose_it_is(search: list[Record]) -> None:
    other = [dataclasses.replace(r, machine={**r.machine, "fingerprint": "other", "gpu": "NVIDIA L40"}) for r in search]
    whole = "Fits on the whole card"
    (alone,) = [s.text for s in answer(group_records(search), search).sentences if s.lead == whole]
    assert alone.startswith("1 GPU, ")
    both = [s.text for s in answer(group_records([*search, *other]), search).sentences if s.lead == whole]
    assert len(both) == 2
    assert sum("NVIDIA L40" in text for text in both) == 1
    assert all(text.startswith("On ") and text.endswith(alone) for text in both)


def test_a_crash_is_no_limit_of_memory(search: list[Record]) -> None:
    crash = record(status="crashed", res=6144, steps=0, vae="tiled")
    (row,) = [r for r in frontier_table(group_records([*search, crash])).rows if r[1].text == "tiled"]
    assert row[4].text == "not known (crashed at 6144px)"
    assert "crashed at 6144px: crashed: made up" in row[8].text


def test_where_nothing_tried_fits_the_smallest_that_was_tried_is_named() -> None:
    point = {"vae": "single", "memory_cap_gb": 48.0}
    tried = [oom(res=res, **point) for res in (4096, 3072)]
    groups = group_records([*tried, record(status="skipped", res=2048, **point)])
    said = "nothing tried fits (3072px the smallest)"
    assert frontier_table(groups).rows[0][4].text == said
    assert alternative(groups) == f"48 GB cap, usp, vae=single, 1 GPU: {said}, 3072px runs out"
    with drawing():
        figure = draw(groups, COLUMN)
        figure.canvas.draw()
    texts = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    assert max(box.x1 for box in texts) <= figure.bbox.x1, "the words stay on a column's paper"


def test_a_decode_alone_stands_in_no_ratio_and_no_ranking(search: list[Record]) -> None:
    groups = group_records([*study(), *search])
    assert not groups[0].decode_alone
    decodes = [group for group in groups if group.decode_alone]
    for group in decodes:
        assert all(group.scaling(e) is None and group.gain(e) is None for e in group.entries)
    assert not best_table(decodes).rows
    assert not failures_table(decodes).rows
    assert len(points_table(decodes).rows) == len(search)
    leads = [sentence.lead for sentence in answer(groups, search).sentences]
    assert leads[:3] == ["Best configuration", "Speedup", "Memory"]
    assert {"Fits on the whole card", "Fits below a cap of 48 GB"} <= set(leads)


def test_pressure_is_told_with_its_retries_and_its_slowdown() -> None:
    tight = {"memory": {"verdict": "pressure", "peak_bytes": 47e9, "alloc_retries": 3}}
    groups = group_records([record(1.0), record(1.4, memory_cap_gb=48.0, extra=tight)])
    cells = [row[-3].text for row in points_table(groups).rows]
    assert "47.0 GB capped pressure (3 retries, 1.40x the whole card's time)" in cells


def test_the_page_opens_with_the_frontier_at_both_widths(search: list[Record], tmp_path: Path) -> None:
    write_report(search, "f", tmp_path)
    names = {path.name for path in (tmp_path / "f" / "figures").glob("*.png")}
    assert names == {"frontier.png", "frontier-column.png"}
    text = (tmp_path / "f" / "report.md").read_text()
    assert text.index("](figures/frontier.png)") < text.index("## Largest image that fits")
    assert "8192px or more" in text
    headings = [line for line in text.splitlines() if line]
    assert not [a for a, b in itertools.pairwise(headings) if a.startswith("## ") and b.startswith("## ")]
    page = (tmp_path / "f" / "index.html").read_text()
    assert 'id="group-1"' not in page, "its one figure stands above everything"
    assert 'href="#group-1"' not in page


def test_nothing_that_fits_is_no_bar_and_a_mode_keeps_its_colour() -> None:
    (family,) = families(group_records(frontier({(48.0, 1, "single"): 0, (48.0, 1, "distvae"): 2048})))
    (axis,) = draw_frontier.frontier(family, PAGE).axes
    (bar,) = axis.patches
    assert to_hex(bar.get_facecolor()) == VAE_COLOURS["distvae"]


def test_beside_a_bar_stands_what_the_decode_took_and_whether_it_was_pressed(search: list[Record]) -> None:
    pressed = {"memory": {"verdict": "pressure", "peak_bytes": 137e9, "alloc_retries": 39}}
    slow = record(274.3, res=8192, vae="single", ulysses=1, steps=0, extra=pressed)
    (family,) = families(group_records([*search, slow]))
    words = [t.get_text() for axis in draw_frontier.frontier(family, PAGE).axes for t in axis.texts]
    assert "8192px or more, 274 s, pressure" in words
    assert "8192px or more, 1.28 s" in words
    assert "vae=single, 1 GPU: 8192px or more fits, 274 s, pressure" in alternative(family)


def test_in_a_column_what_is_said_of_nothing_that_fits_has_room() -> None:
    failures = [oom(res=size, vae="single") for size in (1024, 4096)]
    (family,) = families(group_records(failures))
    words = [t.get_text() for axis in draw_frontier.frontier(family, COLUMN).axes for t in axis.texts]
    assert words == ["OOM", "nothing from 1024px on"]
