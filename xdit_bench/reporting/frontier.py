"""The largest image that fits, by memory cap, VAE mode and GPU count, as the records say.

Owns the frontier's rule: only points that were run count, nothing is interpolated. What runs out of a larger memory
runs out below a cap too. Leaves drawing to `draw_frontier`.

    for limit in limits(groups):
        print(limit.label, limit.fits, limit.fails)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdit_bench.config import FRONTIER_STEP
from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Entry, seconds_or_inf
from xdit_bench.reporting.study import Group

MODES = ("single", "tiled", "parallel")
Row = tuple[str, str, int]  # engine, VAE mode, GPUs


@dataclass(frozen=True)
class Limit:
    """The largest square that fits and the smallest above it that ran out, with the records that say so.

    `ended` is a failure of another kind above what fits: whether that size fits is not known. `smallest` is the
    smallest side that was tried.
    """

    group: Group
    engine: str
    vae: str
    gpus: int
    best: Entry | None
    failure: Entry | None
    ended: Entry | None
    smallest: int

    @property
    def fits(self) -> int:
        """Side in pixels, 0 where nothing fits."""
        return self.best.size[0] if self.best else 0

    @property
    def fails(self) -> int:
        """Side in pixels, 0 where nothing ran out."""
        return self.failure.size[0] if self.failure else 0

    @property
    def row(self) -> Row:
        """What it is the limit of, below any cap."""
        return self.engine, self.vae, self.gpus

    @property
    def open(self) -> bool:
        """Whether sizes between the two were left untried, as by a search that was cut off."""
        return self.group.decode_alone and self.fails - self.fits > FRONTIER_STEP

    @property
    def said(self) -> str:
        """`5120px`, `8192px or more`, `nothing tried fits (3072px the smallest)`: what fits, and how sure that is."""
        if self.open:
            return f"{self.fits}px at least (search cut off)" if self.fits else "no size yet (search cut off)"
        if not self.fits and self.ended and not self.failure:
            return f"not known ({self.ended.outcome} at {words.px(self.ended.size)})"
        if not self.fits:
            return f"nothing tried fits ({self.smallest}px the smallest)"  # a smaller one may fit
        beyond = "" if self.fails else f" ({self.ended.outcome} above)" if self.ended else " or more"
        return f"{self.fits}px{beyond}"

    @property
    def cost(self) -> str:
        """`, 274 s, pressure`: how long the largest decode that stands alone took, and whether it was pressed."""
        if self.best is None:
            return ""
        taken = f", {words.seconds(self.best.total_s)}" if self.group.decode_alone else ""
        return taken + ", pressure" * (self.best.verdict == "pressure")

    @property
    def label(self) -> str:
        """`48 GB cap, usp, vae=single, 2 GPUs`."""
        cap = self.group.setting.memory_cap_gb
        head = [f"{cap:g} GB cap"] if cap is not None else []
        return ", ".join([*head, self.engine, f"vae={self.vae}", self.group.count(self.gpus)])


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in the memory cap alone, together."""
    found: dict[object, list[Group]] = {}
    for group in groups:
        found.setdefault(group.setting._replace(memory_cap_gb=None), []).append(group)
    return list(found.values())


def limits(family: Sequence[Group]) -> list[Limit]:
    """A limit for each cap (the smallest first), VAE mode, GPU count and engine of one family of groups.

    Empty where nothing ran out of memory, but for a search: that everything fits is an answer too.
    """
    found: list[Limit] = []
    for group in sorted(family, key=_memory):
        larger = [entry for other in family if _memory(other) > _memory(group) for entry in other.entries]
        for wanted in sorted({row(entry) for entry in group.entries if _square(entry)}, key=order):
            found.append(_limit(group, wanted, larger))
    return found if any(limit.fails or limit.group.decode_alone for limit in found) else []


def row(entry: Entry) -> Row:
    """What an entry is a trial of."""
    return entry.engine, entry.vae, entry.gpus


def order(row: Row) -> tuple[object, ...]:
    """Sorts rows: plain diffusers first, then the VAE modes as a person meets them."""
    engine, vae, gpus = row
    return engine != "stock", engine, MODES.index(vae) if vae in MODES else len(MODES), vae, gpus


def _limit(group: Group, wanted: Row, larger: Sequence[Entry]) -> Limit:
    own = [e for e in group.entries if row(e) == wanted and _square(e)]
    best = max((e for e in own if _fits(e)), key=lambda e: (e.size, -seconds_or_inf(e)), default=None)
    fits = best.size[0] if best else 0
    # where some split of these GPUs fits and another fails, the failure is the split's, not the size's
    above = [e for e in (*own, *larger) if row(e) == wanted and _square(e) and e.size[0] > fits]
    failure = min((e for e in above if e.status == "oom"), key=lambda e: e.size, default=None)
    ends = [e for e in own if e in above and e.status not in ("oom", "skipped")]
    smallest = min(e.size[0] for e in [e for e in own if e.status != "skipped"] or own)
    return Limit(group, *wanted, best, failure, min(ends, key=lambda e: e.size, default=None), smallest)


def _fits(entry: Entry) -> bool:
    return entry.status != "incorrect" and entry.record.fits is True


def _square(entry: Entry) -> bool:
    return entry.size[0] == entry.size[1] and entry.status != "infeasible"


def _memory(group: Group) -> float:
    return group.setting.memory_cap_gb or float("inf")
