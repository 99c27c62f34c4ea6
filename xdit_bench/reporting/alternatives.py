"""Every figure in words, with its numbers: what a screen reader says, and the alternative text in Markdown.

Owns the sentences; takes its numbers from where the figures take theirs.

    headline(group)  # '1024px: 1 GPU (u1r1) 0.730 s, ...'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdit_bench.reporting import draw_ladder, draw_parts, draw_peers, words
from xdit_bench.reporting.entry import Entry, Size
from xdit_bench.reporting.frontier import limits
from xdit_bench.reporting.marks import shown_sizes
from xdit_bench.reporting.published import Match
from xdit_bench.reporting.study import Group


def headline(group: Group) -> str:
    """The headline figure in words: every bar, the baseline and the speedup of each panel."""
    parts = []
    for size in shown_sizes(group):
        bars = []
        for gpus in group.gpu_counts:
            entry = group.cell(size, gpus)
            if entry:
                bars.append(f"{group.count(gpus)} ({entry.factors}) {_time(entry)}")
        baseline, ratio = group.baseline(size), group.over_baseline(size)
        line = f"; baseline ({baseline[1]}) {words.seconds(baseline[0].total_s)}" if baseline else "; no baseline"
        gain = f"; best is {words.times(ratio.value)} the baseline's speed" if ratio else ""
        parts.append(f"{words.panel(group, size)}: {', '.join(bars) or group.absent(size)}{line}{gain}")
    return ". ".join(parts) + "."


def _time(entry: Entry) -> str:
    """Seconds of an image, or why there are none."""
    pressed = ", under memory pressure" if entry.verdict == "pressure" else ""
    return f"{words.seconds(entry.total_s)}{pressed}" if entry.ok else entry.outcome


def _each(group: Group, say: Callable[[Size], str], sizes: Sequence[Size] | None = None) -> str:
    named = shown_sizes(group) if sizes is None else sizes
    return ". ".join(f"{words.px(size)}: {said}" for size in named if (said := say(size))) or "No data"


def cells(group: Group) -> str:
    """Every factorization's seconds or outcome."""

    def say(size: Size) -> str:
        return ", ".join(f"{entry.factors} {_time(entry)}" for entry in group.splits(size))

    return _each(group, say)


def speedup(group: Group) -> str:
    """Both ratios of the best of each GPU count."""

    def say(size: Size) -> str:
        said = []
        for gpus in group.gpu_counts:
            entry = group.best(size, gpus)
            if entry:
                ratios = [r for r in (group.scaling(entry), group.gain(entry)) if r and r.base is not entry]
                said += (
                    [f"{gpus}: " + ", ".join(f"{words.times(r.value)} over {r.over}" for r in ratios)] if ratios else []
                )
        return "; ".join(said)

    return _each(group, say)


def _bars(group: Group, fact: Callable[[Entry], str], *, failures: bool = True) -> str:
    """Plain diffusers where there is a bar of it, then each GPU count: a fact of each success, a failure's outcome."""

    def say(size: Size) -> str:
        said = []
        for _, entry in draw_parts.bars_over_gpus(group, size):
            told = "" if entry is None else fact(entry) if entry.ok else entry.outcome * failures
            if entry and told:
                stock = "stock on " * (entry.engine == "stock" != group.engine)
                said.append(f"{stock}{group.count(entry.gpus)} {told}")
        return ", ".join(said)

    return _each(group, say)


def stage(group: Group) -> str:
    """Seconds of each stage of the best."""
    return _bars(group, lambda e: " + ".join(f"{stage} {words.seconds(s)}" for stage, s in e.stages.items()))


def memory(group: Group) -> str:
    """Peak memory of the best."""

    def held(entry: Entry) -> str:
        pressed = ", pressure" * (entry.verdict == "pressure")
        return f"{words.gigabytes(entry.peak_bytes)}{pressed}" if entry.peak_bytes else ""

    return _bars(group, held)


def energy(group: Group) -> str:
    """Joules of the best."""
    return _bars(group, lambda e: f"{words.digits(e.energy_j)} J" if e.energy_j else "")


def attribution(group: Group) -> str:
    """Milliseconds of a step by term."""

    def terms(entry: Entry) -> str:
        return " + ".join(f"{name} {words.digits(1e3 * taken)} ms" for name, taken in entry.terms.items())

    return _bars(group, terms, failures=False)


def vae(group: Group) -> str:
    """Seconds and peak memory of each VAE mode."""
    modes, counts = draw_parts.vae_modes(group)

    def say(size: Size) -> str:
        said = []
        for gpus in counts:
            for mode in modes:
                entry = draw_parts.vae_entry(group, size, mode, gpus)
                if entry:
                    pressure = ", pressure" if entry.verdict == "pressure" else ""
                    decode = entry.stages.get("vae")
                    held = f" of which the decode {words.seconds(decode)}" if decode and entry.decode != "none" else ""
                    facts = f"{words.seconds(entry.total_s)}{held}, peak {words.gigabytes(entry.peak_bytes)}{pressure}"
                    where = f" on {group.count(gpus)}" if len(counts) > 1 else ""
                    said.append(f"vae={mode}{where} ({entry.execution}) {facts if entry.ok else entry.outcome}")
        return ", ".join(said)

    return _each(group, say, draw_parts.vae_sizes(group))


def engine(group: Group) -> str:
    """Milliseconds of a step by engine and GPU count."""

    def say(size: Size) -> str:
        said = []
        for gpus, name in draw_peers.engine_rows(group):
            step, told = draw_peers.engine_step(group, size, gpus, name)
            said.append(f"{name} on {group.count(gpus)} {told}{' ms a step' if step else ''}")
        return ", ".join(said)

    return _each(group, say)


def ladder(group: Group) -> str:
    """Milliseconds of a step from the plain engine up, split by split."""

    def say(size: Size) -> str:
        climbs: dict[str, list[str]] = {}
        for rung in draw_ladder.drawn(group):
            if rung.size == size and (entry := rung.entry):
                step = f"{1e3 * entry.step_s:.1f}" if entry.ok and entry.step_s else entry.outcome
                climbs.setdefault(rung.factors, []).append(f"{rung.name} {step}")
        return "; ".join(f"{factors} {', '.join(climb)} ms a step" for factors, climb in climbs.items())

    return _each(group, say)


def parity(group: Group) -> str:
    """How many points were checked, and the largest distance."""
    checked = [e for e in group.entries if e.parity_l2 is not None]
    wrong = sum(e.status == "incorrect" for e in checked)
    worst = max((e.parity_l2 or 0.0 for e in checked), default=0.0)
    return f"{words.plural(len(checked), 'point')} checked, {wrong} incorrect, the largest distance {worst:.1e}."


def published(matches: Sequence[Match]) -> str:
    """Published, ours and the ratio, point by point."""
    return ". ".join(
        f"{words.px(m.entry.size)} {m.entry.factors}: published {words.seconds(m.published.latency_s)}, ours "
        f"{words.seconds(m.ours_s)}, ratio {m.ratio:.2f}"
        for m in matches
    )


def frontier(kin: Sequence[Group]) -> str:
    """What fits and what runs out, by cap, VAE mode and GPU count."""
    return ". ".join(
        f"{limit.label}: {limit.said}{' fits' if limit.fits and not limit.open else ''}{limit.cost}"
        + (f", {limit.fails}px runs out" if limit.fails else "")
        for limit in limits(kin)
    )
