"""Slow images are shown."""

from __future__ import annotations

from synthetic import record

from xdit_bench.reporting.outliers import outliers


def test_slow_images_are_counted_and_the_furthest_named() -> None:
    calm = record(1.0, samples=[1.0, 1.0, 1.05], res=512)
    wild = record(1.0, samples=[1.0, 1.0, 1.0, 1.2, 2.5], ulysses=2)
    said = outliers([calm, wild])
    assert said is not None
    assert said.startswith("2 of 8 images took over 10 % longer")
    assert "2.50 times as long (1024x1024px u2r1" in said
    assert outliers([calm]) == "none of 3 images took over 10 % longer than its point's median"
    one = outliers([record(1.0, samples=[1.0])])
    assert one == "none of 1 image took over 10 % longer than its point's median"


def test_predictions_have_no_images() -> None:
    assert outliers([record(source="predicted")]) is None
