"""Images that took much longer than the others of their point: counted and shown, and never dropped.

outliers(records)  # "2 of 60 images took over 10 % longer …", or None
"""

from __future__ import annotations

from collections.abc import Iterable

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import number
from xdit_bench.results.schema import Record

SHARE = 0.10  # beyond the median


def outliers(records: Iterable[Record]) -> str | None:
    """What a report says about them; None where no samples are."""
    images = slow = 0
    furthest, where = 1.0, ""
    for record in records:
        total = record.latency_s.get("total", {})
        samples, median = total.get("samples"), number(total.get("median"))
        if not isinstance(samples, list) or not median:
            continue
        ratios = [value / median for sample in samples if (value := number(sample)) is not None]
        images += len(ratios)
        slow += sum(ratio > 1 + SHARE for ratio in ratios)
        if ratios and max(ratios) > furthest:
            furthest, where = max(ratios), _name(record)
    if not images:
        return None
    taken = words.plural(images, "image")
    if not slow:
        return f"none of {taken} took over {100 * SHARE:.0f} % longer than its point's median"
    return (
        f"{slow} of {taken} took over {100 * SHARE:.0f} % longer than their point's median, the furthest "
        f"{furthest:.2f} times as long ({where}); all stay in the statistics"
    )


def _name(record: Record) -> str:
    point = record.point
    split = f"u{point['ulysses']}r{point['ring']}"
    return f"{point['width']}x{point['height']}px {split} {point['engine']}/{point['execution']}"
