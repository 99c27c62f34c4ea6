"""How numbers and points read: seconds, bytes, sizes, machines. Owns wording alone.

seconds(0.9312)  # '0.931 s'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xdit_bench.reporting.entry import Size
from xdit_bench.reporting.study import Group

MISSING = "–"


def digits(value: float | None) -> str:
    """Three significant digits: 0.00123, 0.0900, 0.931, 12.3; whole numbers from 100 on: 1234; 0 below 1e-9."""
    if value is None:
        return MISSING
    size = abs(value)
    if size < 1e-9:
        return "0"
    if size < 0.09995:
        return f"{value:#.3g}"
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{places}f}"


def seconds(value: float | None) -> str:
    """`0.931 s`."""
    return MISSING if value is None else f"{digits(value)} s"


def gigabytes(value: float | None) -> str:
    """`46.1 GB` of 1e9 bytes, as the published figures count; megabytes below one."""
    if value is None:
        return MISSING
    return f"{digits(value / 1e9)} GB" if value >= 1e9 else f"{digits(value / 1e6)} MB"


def times(value: float | None) -> str:
    """`4.21x`: on two GPUs the second decimal tells 1.96 from 2."""
    return MISSING if value is None else f"{digits(value)}x"


def px(size: Size) -> str:
    """`1024px`, or `1280x720px` as width by height."""
    height, width = size
    return f"{height}px" if height == width else f"{width}x{height}px"


def panel(group: Group, size: Size) -> str:
    """A panel's title: the size, and what its times leave out."""
    return px(size) + {"none": ", no VAE", "approximate": ", tiled VAE"}.get(group.decode(size), "")


def unit(group: Group) -> str:
    """What is counted along an axis."""
    return "CPU ranks" if group.on_cpu else "GPUs"


def machine(group: Group) -> str:
    """What a group was measured on or predicted for, in one phrase."""
    facts = group.entries[0].record.machine
    if group.setting.source == "predicted":
        return f"{group.setting.topology} by the performance model"
    count, kind = facts.get("gpus"), facts.get("gpu") or facts.get("cpu") or group.setting.topology
    if group.on_cpu:
        return f"CPU ranks over gloo ({kind})" if kind != "cpu" else "CPU ranks over gloo"
    head = f"{count}×{kind}" if count else str(kind)
    links = _links(facts.get("links"))
    return f"{head} ({links})" if links else head


def _links(links: Any) -> str:
    """`NV18` of a matrix of links, or of the word itself."""
    if isinstance(links, str):
        return links
    rows = links if isinstance(links, list) else []
    return "/".join(sorted({str(link) for row in rows if isinstance(row, list) for link in row} - {"X", "None"}))


def title(group: Group) -> str:
    """A group's heading: model, source, machine and what sets it apart."""
    setting = group.setting
    link = "for" if setting.source == "predicted" else "on"
    parts = [setting.model, f"{setting.source} {link} {machine(group)}"]
    parts += [
        plural(setting.steps, "step") if setting.steps else "decode alone",
        plural(setting.text_tokens, "text token"),
        setting.dtype,
    ]
    if setting.transport != "p2p":
        parts.append(f"transport {setting.transport}")
    if setting.memory_cap_gb is not None:
        parts.append(f"capped at {setting.memory_cap_gb:g} GB")
    if setting.weights != "random":
        parts.append(f"weights {setting.weights}")
    return ", ".join(parts)


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 point`, `2 points`."""
    return f"{count} {noun}" if count == 1 else f"{count} {many or f'{noun}s'}"


def listing(words: Iterable[str]) -> str:
    """`a, b and c`."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def short(group: Group) -> str:
    """A group in few words, for a sentence."""
    return " ".join([group.setting.model, group.setting.topology, *_beyond(group)])


def shortest(group: Group, among: Sequence[Group]) -> str:
    """A group in a table's cell: without model and machine where all of a report share them."""
    settings = [other.setting for other in among]
    model = [group.setting.model] if len({setting.model for setting in settings}) > 1 else []
    place = [group.setting.topology] if len({setting.topology for setting in settings}) > 1 else []
    if said := [*model, *place, *_beyond(group)]:
        return " ".join(said)
    return "no cap" if any(setting.memory_cap_gb is not None for setting in settings) else group.setting.topology


def _beyond(group: Group) -> list[str]:
    """What is said of a group where it is not as most are."""
    setting = group.setting
    parts = []
    if setting.source != "measured":
        parts.append(setting.source)
    if group.decode_alone:
        parts.append("decode alone")
    if setting.transport != "p2p":
        parts.append(setting.transport)
    if setting.memory_cap_gb is not None:
        parts.append(f"cap {setting.memory_cap_gb:g} GB")
    if group.apart:
        parts.append(group.apart)
    return parts
