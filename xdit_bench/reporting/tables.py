"""The tables of a report as data, for HTML, Markdown and JUnit alike.

Owns columns, rows and their wording. A cell holds what a person reads and what a sort compares.

    for table in report_tables(groups, matches):
        print(markdown(table))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xdit_bench.predict.advice import SITTING_ERROR
from xdit_bench.reporting import words
from xdit_bench.reporting.cells import (
    TWO_SITTINGS,
    Cell,
    Table,
    count,
    milliseconds,
    of_two_sittings,
    seconds,
    text,
)
from xdit_bench.reporting.decode_table import decode_table
from xdit_bench.reporting.entry import Entry
from xdit_bench.reporting.frontier import families, limits
from xdit_bench.reporting.ladder_tables import ladder_table, rungs_table
from xdit_bench.reporting.peers import TIMED, Compared, compared
from xdit_bench.reporting.published import Match
from xdit_bench.reporting.study import Group, Speedup, whole_card

CLASSES = ("gemm", "attention", "elementwise", "communication", "launch")  # of measure.profile
SEARCHED = "What a search ran out of memory at stands with the largest image that fits."


def report_tables(groups: Sequence[Group], matches: Sequence[Match]) -> list[Table]:
    """The frontier, best configurations, peers, decodes, where steps go, ladder, published beside ours, failures; the
    last has all points."""
    tables = [
        frontier_table(groups),
        best_table(groups),
        peers_table(groups),
        decode_table(groups),
        attribution_table(groups),
        ladder_table(groups),
        rungs_table(groups),
        published_table(matches),
        failures_table(groups),
        points_table(groups),
    ]
    names = {words.short(group): words.shortest(group, groups) for group in groups}
    tables = [_grouped(table, names) for table in tables]
    if not all(group.on_cpu for group in groups):
        return tables
    return [replace(t, columns=tuple(">Ranks" if c == ">GPUs" else c for c in t.columns)) for t in tables]


def _grouped(table: Table, names: Mapping[str, str]) -> Table:
    """With the groups in as few words as tell them apart; without their column where every row is of one, which the
    note says then, where there are others."""
    if table.columns[0] != "Group":
        return table
    here = {row[0].text for row in table.rows}
    if len(here) > 1:
        return replace(table, rows=tuple((text(names[row[0].text]), *row[1:]) for row in table.rows))
    note = f"All of {names[here.pop()]}. {table.note}".strip() if here and len(names) > 1 else table.note
    return replace(table, columns=table.columns[1:], rows=tuple(row[1:] for row in table.rows), note=note)


def frontier_table(groups: Sequence[Group]) -> Table:
    """The largest square that fits, and the first that does not, for every cap, VAE mode and GPU count."""
    rows = []
    for limit in (limit for family in families(groups) for limit in limits(family)):
        best, failure = limit.best, limit.failure
        why = failure.reason if failure else ""
        if failure and failure not in limit.group.entries:
            why += " (with more memory than here)"
        if limit.ended:
            ended = f"{limit.ended.outcome} at {words.px(limit.ended.size)}: {limit.ended.reason}"
            why = "; ".join(filter(None, (why, ended)))
        rows.append((
            text(words.short(limit.group)), text(limit.vae), count(limit.gpus), text(limit.engine),
            Cell(limit.said, limit.fits), seconds(best.total_s if best else None),
            _bytes(groups, limit.group, best) if best else Cell(words.MISSING),
            Cell(words.px(failure.size), failure.size[0]) if failure else Cell(words.MISSING),
            text(why or "nothing larger was tried"),
        ))  # fmt: skip
    columns = ("Group", "VAE", ">GPUs", "Engine", ">Largest that fits", ">Seconds", ">Peak memory",
               ">First that fails", "Why")  # fmt: skip
    alone = any(group.decode_alone for group in groups)
    note = "Squares that were run, nothing between them. A cap limits what the process allocates, weights included."
    cold = " Where the decode stands alone, seconds are one cold decode." if alone else ""
    return Table("frontier-table", "Largest image that fits", columns, tuple(rows), note + cold)


def best_table(groups: Sequence[Group]) -> Table:
    """The best factorization for every group, size and GPU count, with both speedups."""
    rows = []
    for group in (group for group in groups if not group.decode_alone):
        for size in group.sizes:
            for gpus in group.gpu_counts:
                entry = group.best(size, gpus)
                if entry is None:
                    continue
                tie = group.tie(entry)
                rows.append((
                    *_where(group, entry), text(entry.runner), text(entry.vae), text(entry.factors),
                    seconds(entry.total_s), _interval(entry), seconds(entry.step_s), _ratio(group.scaling(entry)),
                    _ratio(group.gain(entry)), _bytes(groups, group, entry),
                    text(_remarks(entry, tie)),
                ))  # fmt: skip
    columns = ("Group", "Size", ">GPUs", "Engine", "VAE", "Split", ">Seconds", ">Interval", ">Step",
               ">Scaling", ">Gain", ">Peak memory", "Note")  # fmt: skip
    one = "rank" if all(group.on_cpu for group in groups) else "GPU"
    note = (
        f"Scaling: over the same engine and execution on one {one}. Gain: over plain diffusers on one {one}. "
        f"A tie: {_tied({group.setting.source for group in groups})}."
    )
    return Table("best", "Best configurations", columns, tuple(rows), note + of_two_sittings(rows))


def _tied(sources: set[str]) -> str:
    """The rule of `Group.tie` in words: predictions have errors in common, which their intervals hold."""
    said = ["the intervals overlap (of fewer than five images: their ranges and 1 %)"] if "measured" in sources else []
    if "predicted" in sources:
        said.append(f"the difference {'of predictions ' if said else ''}is within the model's error")
    return "; ".join(said)


def _remarks(entry: Entry, tie: Entry | None) -> str:
    bottleneck = entry.record.attribution.get("bottleneck")
    said = [f"tie with {tie.factors}"] if tie else []
    return "; ".join([*said, str(bottleneck)] if bottleneck else said)


def peers_table(groups: Sequence[Group]) -> Table:
    """Our best step over the best peer's, ring over Ulysses, scaling and memory, each with the bound it is held to."""
    rows = tuple(_compared_row(groups, group, row) for group in groups for row in compared(group))
    columns = ("Group", "Size", ">GPUs", "Compared", "Ours", "With", ">Ours is", ">The other", ">Images", ">Result",
               ">Bound", "Met")  # fmt: skip
    note = (
        "Step: ours over the best of the peers' executions and splits, below 1 is faster. Peers as installed: xfuser "
        "finds no FlashAttention-3, which ours takes where it is; the kernel that auto took is named. Images: timed of "
        "each. Distances are relative L2; ours is that of the farthest point. Bounds are goals from the study's sweep "
        "file; what is met is as measured, narrowly where it is nearer to the bound than sittings differ, "
        f"{100 * SITTING_ERROR:.0f} %."
    )
    return Table("peers", "Beside the peers", columns, rows, note + of_two_sittings(rows))


def _compared_row(groups: Sequence[Group], group: Group, row: Compared) -> tuple[Cell, ...]:
    memory = row.key == "memory_gb"

    def side(entry: Entry | None) -> Cell:
        if entry and memory:
            return _bytes(groups, group, entry)
        if entry and entry.fp32_l2 and row.key == "accuracy":
            return Cell(words.digits(entry.fp32_l2), entry.fp32_l2)
        return milliseconds(entry.step_s if entry else None)

    sides = [side(entry) for entry in (row.ours, row.theirs)]
    met = {True: "yes", False: "no", None: ""}[row.met] + ", narrowly" * row.near
    timed = [str(len(entry.record.step_s.get("samples", []))) for entry in (row.ours, row.theirs) if entry]
    images = ", ".join(timed) if row.key in TIMED and row.ours.record.source == "measured" else ""
    result = words.MISSING if row.value is None else _measure(row.value, memory)
    bound = "" if row.bound is None else f"{'≥' if row.at_least else '≤'} {_measure(row.bound, memory)}"
    return (
        *_where(group, row.ours), text(row.what), text(_run(row.ours)),
        text(_run(row.theirs) if row.theirs else "every peer failed"), *sides,
        text(images), Cell(result + TWO_SITTINGS * row.two_sittings, row.value),
        Cell(bound, row.bound), text(met),
    )  # fmt: skip


def attribution_table(groups: Sequence[Group]) -> Table:
    """What a profiled step went to, and the share of the GPUs' peak that it reached."""
    rows = tuple(
        (
            *_where(group, entry), text(entry.runner), text(entry.factors), milliseconds(entry.step_s),
            *(milliseconds(found.get(name, 0.0)) for name in CLASSES), _share(entry.utilisation),
        )
        for group in groups
        for entry in sorted(group.entries, key=_order)
        if entry.ok and entry.record.source == "measured" and (found := entry.terms)
    )  # fmt: skip
    columns = ("Group", "Size", ">GPUs", "Engine", "Split", ">Step", ">Products", ">Attention", ">Elementwise",
               ">Communication", ">Nothing ran", ">MFU")  # fmt: skip
    note = (
        "From one profiled step beside the timed ones, on the first GPU: each moment is given once, to communication "
        "only where nothing else ran. MFU: the model's FLOPs over what the GPUs could do in bf16 in the timed step."
    )
    return Table("attribution-table", "Where a step's time goes", columns, rows, note)


def _share(value: float | None) -> Cell:
    return Cell(words.MISSING) if value is None else Cell(f"{100 * value:.0f} %", value)


def _distance(value: float | None) -> Cell:
    return Cell(words.MISSING) if value is None else Cell(f"{value:.1e}" if value else "0", value)


def _measure(value: float, memory: bool) -> str:
    return f"{round(value, 2) + 0.0:.2f} GB" if memory else f"{value:.3f}"


def _run(entry: Entry) -> str:
    kernel = "" if entry.kernel == "auto" else f", {entry.kernel.removeprefix('auto: ')}"
    return f"{entry.runner} {entry.factors}{kernel}"


def published_table(matches: Sequence[Match]) -> Table:
    """Ours, published, ratio."""
    rows = tuple(
        (
            text(m.published.topology), Cell(words.px(m.entry.size), m.published.res), count(m.entry.gpus),
            text(m.entry.factors), text(f"{m.entry.runner} ({m.entry.record.source})"), seconds(m.ours_s),
            seconds(m.published.latency_s), Cell(f"{m.ratio:.2f}", m.ratio), text(m.compared),
            text(m.published.note),
        )
        for m in matches
    )  # fmt: skip
    columns = ("Machine", "Size", ">GPUs", "Split", "Ours is", ">Ours", ">Published", ">Ratio", "Compared", "Note")
    return Table("published", "Published beside ours", columns, rows, "Ratio: ours over published, below 1 is faster.")


def failures_table(groups: Sequence[Group]) -> Table:
    """Every point that is no success, with its reason; but what a search had to run out of to find the frontier."""
    rows = tuple(
        (
            *_where(group, entry), text(entry.runner), text(entry.vae), text(entry.factors),
            text(entry.outcome), text(str(entry.record.failure.get("stage") or "")), text(entry.reason),
        )
        for group in groups
        for entry in (*group.entries, *group.rungs)
        if not entry.ok
        and not (group.decode_alone and entry.status == "oom")  # a search's finding, above
        and not (entry.without and entry.status == "infeasible")  # as the whole engine is, for the same reason
    )  # fmt: skip
    columns = ("Group", "Size", ">GPUs", "Engine", "VAE", "Split", "Outcome", "Stage", "Reason")
    searched = any(group.decode_alone for group in groups)
    return Table("failures", "Failures", columns, rows, SEARCHED if searched else "")


def points_table(groups: Sequence[Group]) -> Table:
    """Every point, successes and failures."""
    rows = tuple(
        _point_row(groups, group, entry)
        for group in groups
        for entry in sorted((*group.entries, *group.rungs), key=_order)
    )
    columns = ("Group", "Size", ">GPUs", "Engine", "VAE", "Split", "Attention", "Outcome", ">Seconds", ">Interval",
               ">Text", ">Denoise", ">VAE s", ">Step", ">MFU", ">Scaling", ">Gain", ">Peak memory",
               ">Energy", ">Parity")  # fmt: skip
    return Table("points", "All points", columns, rows, of_two_sittings(rows).strip())


def _point_row(groups: Sequence[Group], group: Group, entry: Entry) -> tuple[Cell, ...]:
    parity = _distance(entry.parity_l2)
    # a failed point may hold what it got to; that is no image's time
    joules = entry.energy_j if entry.ok else None
    energy = Cell(f"{words.digits(joules)} J", joules) if joules else Cell(words.MISSING)
    stages = [seconds(entry.stages.get(stage) if entry.ok else None) for stage in ("text", "denoise", "vae")]
    stands = entry.ok and not entry.without  # a ratio of part of an engine would pass for one of the engine
    step = seconds(entry.step_s if entry.ok else None)
    return (
        *_where(group, entry), text(entry.runner), text(entry.vae), text(entry.factors), text(entry.kernel),
        text(entry.outcome), seconds(entry.total_s), _interval(entry), *stages, step,
        _share(entry.utilisation), _ratio(group.scaling(entry) if stands else None),
        _ratio(group.gain(entry) if stands else None), _bytes(groups, group, entry), energy, parity,
    )  # fmt: skip


def _where(group: Group, entry: Entry) -> tuple[Cell, ...]:
    size = Cell(words.px(entry.size), entry.size[0] * entry.size[1])
    return text(words.short(group)), size, count(entry.gpus)


def _order(entry: Entry) -> tuple[object, ...]:
    return (
        entry.size[0] * entry.size[1], entry.size, entry.engine, entry.execution, entry.gpus, entry.ring, entry.vae,
        entry.without,
    )  # fmt: skip


def _interval(entry: Entry) -> Cell:
    if entry.total_s is None or entry.low_s is None or entry.high_s is None:
        if not entry.ok or entry.record.source != "measured":
            return Cell(words.MISSING)
        images = len(entry.record.latency_s["total"].get("samples") or [None])
        cold = "cold " if entry.cold else ""
        return Cell(f"one {cold}image" if images == 1 else f"{images} {cold}images")
    half = (entry.high_s - entry.low_s) / 2 / entry.total_s
    if entry.record.source == "predicted":  # its two sides differ
        return Cell(f"{words.digits(entry.low_s)} to {words.seconds(entry.high_s)}", half)
    return Cell(f"±{100 * half:.1f} %", half)


def _ratio(speedup: Speedup | None) -> Cell:
    if speedup is None:
        return Cell(words.MISSING)
    mark = f" over {speedup.base.gpus}" if speedup.rebased else ""
    return Cell(words.times(speedup.value) + mark + TWO_SITTINGS * speedup.two_sittings, speedup.value)


def _bytes(groups: Sequence[Group], group: Group, entry: Entry) -> Cell:
    """The peak with its verdict: allocator retries, and what they cost where the whole card shows it."""
    mark = " capped" if entry.capped else ""
    if entry.verdict == "pressure":
        free = whole_card(groups, group, entry)
        free = None if free is None or entry.cold or free.cold else free
        slower = entry.total_s / free.total_s if entry.total_s and free and free.total_s else None
        apart = ", in two sittings" if slower and free and group.in_two_sittings(free, entry) else ""
        said = [f"{words.times(slower)} the whole card's time{apart}"] if slower else []
        if entry.record.source == "measured":
            retries = int(entry.record.memory.get("alloc_retries") or 0)
            said.insert(0, words.plural(retries, "retry", "retries"))
        mark += " pressure" + (f" ({', '.join(said)})" if said else "")
    return Cell(words.gigabytes(entry.peak_bytes) + mark, entry.peak_bytes)
