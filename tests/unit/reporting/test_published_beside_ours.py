"""Published points beside ours: only what is of the same machine, model, size, split and content."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import record

from xdit_bench.reporting.published import PublishedPoint, load_published, match
from xdit_bench.reporting.study import group_records


def point(vae: str = "cold", **changes: object) -> PublishedPoint:
    facts = {"model": "flux_schnell", "topology": "a100_nvlink", "res": 1024, "ulysses": 2, "ring": 1, "latency_s": 2.0,
             "vae": vae, "note": ""}  # fmt: skip
    return PublishedPoint(**{**facts, **changes})  # type: ignore[arg-type]


def ours(total: float = 1.0, **changes: object) -> list[object]:
    return [record(total, **{"topology": "a100_nvlink", "ulysses": 2, **changes})]


def test_the_shipped_points_are_read() -> None:
    points = load_published()
    assert {p.topology for p in points} == {"a100_nvlink", "l40_pcie"}
    assert len(points) == 20
    assert next(p for p in points if (p.topology, p.res, p.ulysses) == ("a100_nvlink", 2048, 8)).latency_s == 2.63


def test_a_matching_point_gives_ours_over_published() -> None:
    found = match(group_records(ours())[0], [point()])  # type: ignore[arg-type]
    assert [m.ratio for m in found] == [pytest.approx(0.5)]
    assert "cold" in found[0].compared


@pytest.mark.parametrize(
    "change", [{"topology": "l40_pcie"}, {"model": "flux_dev"}, {"res": 2048}, {"ulysses": 1}, {"ring": 2},
               {"memory_cap_gb": 80.0}, {"transport": "host"}]
)  # fmt: skip
def test_anything_else_matches_nothing(change: dict[str, object]) -> None:
    assert match(group_records(ours(**change))[0], [point()]) == []  # type: ignore[arg-type]


def test_a_published_time_without_vae_stands_beside_ours_without_it() -> None:
    found = match(group_records(ours(1.0))[0], [point(vae="no")])  # type: ignore[arg-type]
    assert found[0].ours_s == pytest.approx(0.85)
    both = [*ours(1.0), *ours(0.8, vae="none")]
    assert match(group_records(both)[0], [point(vae="no")])[0].ours_s == pytest.approx(0.8)  # type: ignore[arg-type]


def test_our_time_without_vae_stands_beside_no_time_with_it() -> None:
    assert match(group_records(ours(vae="none"))[0], [point(vae="cold")]) == []  # type: ignore[arg-type]


def test_a_failure_matches_nothing() -> None:
    assert match(group_records(ours(status="oom"))[0], [point()]) == []  # type: ignore[arg-type]


def test_files_of_another_shape_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "memory.csv").write_text("# comment\nres,peak_gb\n1024,3\n")
    (tmp_path / "named.csv").write_text("model,topology,res,ulysses,ring,latency_s\nflux_dev,x,512,1,1,2.5\n")
    (tmp_path / "times.csv").write_text(
        "topology,res,ulysses,ring,latency_s,vae,note\nx,512,1,1,3.5,no,\nx,1024,1,1,,no,\n"
    )
    points = load_published(tmp_path)
    assert [(p.model, p.latency_s) for p in points] == [("flux_dev", 2.5), ("flux_schnell", 3.5)]
