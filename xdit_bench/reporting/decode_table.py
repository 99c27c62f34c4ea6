"""The decode by VAE mode: seconds, memory beyond the weights and distance from plain diffusers' image, ours over each.

Owns which decodes stand beside each other and the bounds they are held to; shown, never asserted.

    for row in decodes(group):
        print(row.size, row.gpus, row.entry.vae, row.ours_over)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xdit_bench.reporting import words
from xdit_bench.reporting.cells import TWO_SITTINGS, Cell, Table, count, of_two_sittings, seconds, text
from xdit_bench.reporting.entry import Entry, Size, number
from xdit_bench.reporting.frontier import order, row
from xdit_bench.reporting.peers import bound_of, shipped_bounds
from xdit_bench.reporting.study import Group
from xdit_bench.results.schema import Record

OURS = "parallel"
COLUMNS = ("Group", "Size", ">GPUs", "VAE", "By", ">Decode", ">Ours over it", ">Goal", ">Beyond the weights", ">Goal",
           ">Image off by")  # fmt: skip
GOALS = (7, 9)  # of COLUMNS; left out where there is none
NOTE = (
    "The fastest decode of each VAE mode, else how it failed. Beyond the weights: that run's peak less the parameters "
    "of the fullest GPU, denoising included. Image off by: relative L2 to plain diffusers' image, "
    "and the largest difference of a value out of 255; the latents' difference is in it."
)


@dataclass(frozen=True)
class Decode:
    """One VAE mode at one size and number of GPUs, ours beside it; `goal` and `beyond_goal` (bytes) may be None."""

    size: Size
    gpus: int
    entry: Entry
    ours: Entry | None
    goal: float | None
    beyond_goal: float | None

    @property
    def ours_over(self) -> float | None:
        """Our decode's seconds over this one's; None of ours itself, and where either has none."""
        mine, other = _decode_s(self.ours) if self.ours else None, _decode_s(self.entry)
        return mine / other if mine and other and self.ours is not self.entry else None

    @property
    def beyond(self) -> float | None:
        """Bytes of the peak beyond the weights."""
        peak, weights = self.entry.peak_bytes, self.entry.parameters_bytes
        return peak - weights if self.entry.ok and peak and weights else None


def decodes(group: Group) -> list[Decode]:
    """A row a VAE mode, size and GPU count, where ours was tried, and another at that size; none of decodes that stand
    alone."""
    if group.decode_alone:
        return []
    held = _goals(group.entries[0].record) if group.setting.source == "measured" else {}
    found = []
    for size in group.sizes:
        tried = [e for e in group.entries if e.size == size and e.vae != "none" and e.status != "infeasible"]
        for gpus in sorted({e.gpus for e in tried}) if {e.vae for e in tried} - {OURS} else []:
            modes: dict[str, Entry] = {}
            for entry in sorted((e for e in tried if e.gpus == gpus and not e.cold), key=_speed):
                modes.setdefault(entry.vae, entry)
            ours = modes.get(OURS)
            for entry in sorted(modes.values(), key=lambda e: order(row(e))[2:]) if ours else []:
                beyond = bound_of(held, "beyond_gb", ours) if ours and entry is ours else None
                goal = bound_of(held.get("decode") or {}, entry.vae, entry)
                found.append(Decode(size, gpus, entry, ours, goal, None if beyond is None else 1e9 * beyond))
    return found


def decode_table(groups: Sequence[Group]) -> Table:
    """Every row of `decodes`, in the order of groups, sizes and GPUs."""
    rows = tuple(_row(group, decode) for group in groups for decode in decodes(group))
    note, goals = NOTE, any(row[place].text for row in rows for place in GOALS)
    columns = tuple(name for place, name in enumerate(COLUMNS) if goals or place not in GOALS)
    if not goals:
        rows = tuple(tuple(cell for place, cell in enumerate(row) if place not in GOALS) for row in rows)
    else:
        note += " Goals are the sweep file's, met or not as measured."
    return Table("decodes", "The decode by VAE mode", columns, rows, note + of_two_sittings(rows))


def _row(group: Group, decode: Decode) -> tuple[Cell, ...]:
    entry, ratio = decode.entry, decode.ours_over
    beyond = None if group.on_cpu else decode.beyond  # there a process's, with all that it has imported
    apart = ratio is not None and decode.ours is not None and group.in_two_sittings(decode.ours, entry)
    pressed = " pressure" if entry.verdict == "pressure" else ""
    taken = seconds(_decode_s(entry)) if entry.ok else Cell(entry.outcome)
    return (
        text(words.short(group)), Cell(words.px(decode.size), decode.size[0] * decode.size[1]), count(decode.gpus),
        text(entry.vae), text(f"{entry.runner} {entry.factors}"), Cell(taken.text + pressed, taken.key),
        Cell(words.MISSING if ratio is None else f"{ratio:.3f}{TWO_SITTINGS * apart}", ratio),
        _goal(ratio, decode.goal, "{:.3f}"),
        Cell(words.gigabytes(beyond), beyond),
        _goal(beyond, decode.beyond_goal, "{:.2f} GB", 1e9), _off(entry),
    )  # fmt: skip


def _goal(value: float | None, goal: float | None, form: str, unit: float = 1.0) -> Cell:
    if value is None or goal is None:
        return Cell("")
    return Cell(f"≤ {form.format(goal / unit)}, {'met' if value <= goal else 'missed'}", goal)


def _off(entry: Entry) -> Cell:
    parity = entry.record.parity
    off, most = (number(parity.get(key)) for key in ("image_rel_l2", "image_max_abs"))
    if not str(parity.get("image_reference", parity.get("reference"))).startswith("stock"):
        off = None  # plain diffusers did not run, or another engine's image was there before
    return (
        Cell(words.MISSING)
        if off is None
        else Cell((f"{off:.1e}" if off else "0") + (f", {most:.0f}" if most is not None else ""), off)
    )


def _decode_s(entry: Entry) -> float | None:
    return entry.stages.get("vae") if entry.ok else None


def _speed(entry: Entry) -> tuple[bool, float]:
    taken = _decode_s(entry)
    return taken is None, taken or 0.0


def _goals(record: Record) -> Mapping[str, Any]:
    """The bounds of the sweep file that made the record, whatever its study; none of other machines'."""
    named = re.search(r"\+sweeps=(\w+)", record.command or "")
    held = shipped_bounds(named[1]) if named else shipped_bounds(record.study)
    return held if held.get("topology") == record.point["topology"] else {}
