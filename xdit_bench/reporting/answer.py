"""The head of a report: banners, the answer in three sentences (four beside peers), warnings.

Owns what a reader acts on first: best configuration, speedup, limit of memory, rank among engines. Numbers come from
`study`.

    head = answer(groups, records)
    print(*head.sentences)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xdit_bench.reporting import words
from xdit_bench.reporting.entry import Entry, Size, number, seconds_or_inf
from xdit_bench.reporting.frontier import families, limits
from xdit_bench.reporting.peers import OURS, compared, tried_compiled
from xdit_bench.reporting.study import Group, Speedup, spread
from xdit_bench.results.schema import Record

SHOWN, OTHERS = 4, 3  # sizes that a sentence names, and other sections
DRIFT = 0.05  # between a point and its repetition in fresh processes, beyond which a reader is warned


class Sentence(NamedTuple):
    """What a sentence answers (empty where nothing succeeded), and the answer."""

    lead: str
    text: str


@dataclass(frozen=True)
class Head:
    """What stands above everything else. `banners` change how every number is read; `sentences` are the answer of
    the first group, `elsewhere` the best of the others (empty where there are none)."""

    banners: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    elsewhere: str
    measured_on: str
    warnings: tuple[str, ...]


def answer(groups: Sequence[Group], records: Iterable[Record]) -> Head:
    """The head of a report over all groups; the sentences speak of the first."""
    main = groups[0]
    images = [group for group in groups if not group.decode_alone]
    capped = families(images)[0][1:] if images else []
    # a step takes as long whatever their number, and large images are timed with one
    alike = [g for g in images if g.setting._replace(steps=images[0].setting.steps) == images[0].setting]
    steps = {group.setting.steps for group in images}
    sentences = _sentences(alike, capped, said_steps=len(steps) > 1) if images else ()
    searched = [family for family in families(groups) if family[0].decode_alone]
    for family in searched:
        place = f"On {words.machine(family[0])}: " if len(searched) > 1 else ""
        sentences += tuple(_largest(family, place))
    return Head(_banners(groups), sentences, _others(images), words.title(main), _warnings(records))


def _largest(family: Sequence[Group], place: str) -> list[Sentence]:
    """What a search found: a sentence a memory, for each GPU count the largest size of every VAE mode."""
    said: dict[str, dict[str, list[str]]] = {}
    for limit in limits(family):
        cap = limit.group.setting.memory_cap_gb
        memory = "Fits on the whole card" if cap is None else f"Fits below a cap of {cap:g} GB"
        gpus = said.setdefault(memory, {}).setdefault(limit.group.count(limit.gpus), [])
        gpus.append(f"{limit.said} with vae={limit.vae}")
    clauses = {memory: [f"{gpus}, {words.listing(found)}" for gpus, found in by.items()] for memory, by in said.items()}
    return [Sentence(memory, f"{place}{'; '.join(found)}.") for memory, found in clauses.items()]


def _others(groups: Sequence[Group]) -> str:
    """The best of the largest size of up to `OTHERS` other groups, one clause each."""
    said = []
    for group in groups[1:]:
        size = next((size for size in reversed(group.sizes) if group.best(size)), None)
        entry = group.best(size) if size else None
        if size is None or entry is None:
            continue
        base = group.scaling(entry)
        apart = " (in two sittings)" if base and base.two_sittings else ""
        gain = f", {words.times(base.value)} over {base.over}{apart}" if base and base.base is not entry else ""
        where = f"{words.short(group)}, {words.panel(group, size)}"
        said.append(f"{where}: {words.seconds(entry.total_s)} on {group.count(entry.gpus)} ({entry.factors}{gain})")
    more = f"; {words.plural(len(said) - OTHERS, 'more section')}" if len(said) > OTHERS else ""
    return f"{'; '.join(said[:OTHERS])}{more}." if said else ""


def _banners(groups: Sequence[Group]) -> tuple[str, ...]:
    found = []
    sources = {group.setting.source for group in groups}
    if sources == {"predicted"}:
        found.append(
            "PREDICTED: every number here comes from the performance model; nothing was measured. "
            "Calibrate or measure before you buy."
        )
    elif "predicted" in sources:
        found.append(
            "Some sections are PREDICTED by the performance model; they say so and share no curve with measurements."
        )
    if any(group.on_cpu for group in groups):
        found.append("Measured on CPU ranks: these times show that everything works and say nothing about a GPU.")
    machines = {(g.setting.topology, g.setting.fingerprint) for g in groups if g.setting.source == "measured"}
    if len(machines) > 1:
        found.append(
            f"Records of {len(machines)} unequal machines: each has its own sections, no curve or speedup is shared."
        )
    caps = sorted({g.setting.memory_cap_gb for g in groups if g.setting.memory_cap_gb is not None})
    if caps:
        said = words.listing(f"{cap:g}" for cap in caps)
        how = "predicted for" if sources == {"predicted"} else "measured below"
        found.append(f"Sections marked capped were {how} a memory cap of {said} GB.")
    return tuple(found)


def _sentences(
    alike: Sequence[Group], capped: Sequence[Group] = (), *, said_steps: bool = False
) -> tuple[Sentence, ...]:
    """Of the first group; memory and peers also of those that differ in the number of steps alone."""
    group = alike[0]
    if not any(entry.ok for entry in group.entries):
        counts = Counter(entry.status for entry in group.entries)
        said = words.listing(f"{count} {status}" for status, count in sorted(counts.items()))
        return (Sentence("", f"No point succeeded: {said}. The table of failures says why and what to do."),)
    sizes = [size for size in group.sizes if group.best(size)]
    return (
        Sentence("Best configuration", _best(group, sizes, said_steps=said_steps)),
        Sentence("Speedup", _speedup(group, sizes)),
        Sentence("Memory", " ".join(filter(None, [_memory(alike), *map(_capped, capped)]))),
        *(Sentence("Beside the peers", said) for said in _peers(alike)),
    )


def _more(left: int, noun: str) -> str:
    """What a sentence ends with that names some alone."""
    return f"; the report's tables hold {words.plural(left, f'more {noun}')}" if left > 0 else ""


def _best(group: Group, sizes: Sequence[Size], *, said_steps: bool) -> str:
    said = []
    for size in spread(sizes, SHOWN):
        entry = group.best(size)
        if entry:
            tie = group.tie(entry)
            note = f", a tie with {tie.factors}" if tie else ""
            if peer := group.faster(entry):
                note += f"; {peer.runner} is faster, {words.seconds(peer.total_s)} on {group.count(peer.gpus)}"
            said.append(f"{words.seconds(entry.total_s)} at {words.panel(group, size)} on {group.count(entry.gpus)} "
                        f"({entry.factors}, {entry.runner}{note})")  # fmt: skip
    verb = "is predicted to take" if group.setting.source == "predicted" else "took"
    more = _more(len(sizes) - SHOWN, "size")
    place = f"on {words.machine(group)}".replace(" by the performance model", "")
    image = f"{group.setting.model} image" + f" of {words.plural(group.setting.steps, 'step')}" * said_steps
    return f"{place[:1].upper()}{place[1:]} one {image} {verb} {words.listing(said)}{more}."


def _speedup(group: Group, sizes: Sequence[Size]) -> str:
    gains: list[tuple[str, Speedup]] = []
    scalings: dict[str, list[tuple[str, Speedup]]] = {}  # by what they stand on: a report may hold several executions
    left = 0
    shown = spread(sizes, SHOWN)
    for size in sizes:
        entry = group.best(size)
        if not entry:
            continue
        gain, scaling = group.gain(entry), group.scaling(entry)
        if size not in shown:
            left += bool(gain or (scaling and scaling.base is not entry))
            continue
        if gain:
            pressed = " (that one under memory pressure)" if gain.base.verdict == "pressure" else ""
            gains.append((f"{words.times(gain.value)} at {words.px(size)}{pressed}", gain))
        if scaling and scaling.base is not entry:
            said = scalings.setdefault(scaling.over, [])
            said.append((f"{words.times(scaling.value)} at {words.px(size)}", scaling))
    parts = []
    if gains:
        parts.append(_over(gains, f"plain diffusers on one {_one(group)}"))
    parts += [_over(said, over) for over, said in scalings.items()]
    alone = [e for e in group.entries if e.gpus == 1 and group.best(e.size) is e and not e.cold]
    if not parts and alone:
        more = any(e.ok and e.gpus > 1 and e.size == one.size for one in alone for e in group.entries)
        best = f"one {_one(group)} is the fastest" if more else f"no more than one {_one(group)} has a time"
        return f"None: {best}, and plain diffusers has no time beside it."
    if not parts:
        beside = "one-GPU point of this group succeeded beside another"
        cold = any(entry.cold for entry in group.entries)
        return f"None can be stated, because no {beside}{', both timed with a warm-up' * cold}."
    return f"{'; '.join(parts)}{_more(left, 'size')}."


def _peers(alike: Sequence[Group]) -> list[str]:
    """Our step over the fastest peer's, where peers were tried compiled: over eager ones alone it would flatter us."""
    by_gpus: dict[int, list[tuple[Size, str]]] = {}
    for group in alike:
        compiled = tried_compiled(group)
        for row in compared(group) if compiled else []:
            if row.key == "peers" and row.value is not None and row.theirs and (row.size, row.gpus) in compiled:
                said = f"{row.value:.2f} ({row.theirs.runner}, {words.px(row.size)})"
                by_gpus.setdefault(row.gpus, []).append((row.size, said))
    parts, left = [], 0
    for gpus, clauses in sorted(by_gpus.items()):
        clauses.sort()
        shown = spread([size for size, _ in clauses], SHOWN)
        listed = words.listing(clause for size, clause in clauses if size in shown)
        parts.append(f"{listed} on {alike[0].count(gpus)}")
        left += len(clauses) - len(shown)
    return [f"One step of {OURS} over the fastest peer's: {'; '.join(parts)}{_more(left, 'ratio')}."] if parts else []


def _over(ratios: Sequence[tuple[str, Speedup]], base: str) -> str:
    """Ratios over one base, and which were measured in another sitting than it."""
    everywhere = all(speedup.two_sittings for _, speedup in ratios)
    clauses = [said + " (in two sittings)" * (speedup.two_sittings and not everywhere) for said, speedup in ratios]
    return f"{words.listing(clauses)} over {base}{', measured in another sitting' * everywhere}"


def _one(group: Group) -> str:
    return "rank" if group.on_cpu else "GPU"


def _memory(alike: Sequence[Group]) -> str:
    entries = [e for group in alike for e in group.entries if e.ok]
    if out := next(filter(None, (_runs_out(group, entries) for group in alike)), ""):
        return f"At {out}."
    fullest = max((e for e in entries if e.peak_bytes), key=lambda e: e.peak_bytes or 0.0, default=None)
    cap = alike[0].setting.memory_cap_gb
    nothing = "Nothing ran out of it" if cap is None else f"Nothing ran out of it below the cap of {cap:g} GB"
    if fullest is None:
        return f"{nothing}; no peak was recorded."
    limit = f" of {words.gigabytes(fullest.limit_bytes)}" if fullest.limit_bytes else ""
    return (
        f"{nothing}; the fullest device held {words.gigabytes(fullest.peak_bytes)}{limit}, at "
        f"{words.px(fullest.size)} on {alike[0].count(fullest.gpus)}.{_pressed(alike[0], entries)}"
    )


def _pressed(group: Group, entries: Iterable[Entry]) -> str:
    pressed = [e for e in entries if e.verdict == "pressure"]
    if not pressed:
        return ""
    first = min(pressed, key=lambda e: (e.size[0] * e.size[1], e.gpus))
    foretold = group.setting.source == "predicted"
    slowed = "" if first.vae == "none" else ", and may slow the decode," if foretold else ", and slowed the decode,"
    said = f"It {'is predicted to be' if foretold else 'was'} scarce{slowed}"
    return f" {said} from {words.px(first.size)} on: {first.runner} with vae={first.vae} on {group.count(first.gpus)}."


def _capped(group: Group) -> str:
    out = _runs_out(group, [e for e in group.entries if e.ok])
    return f"Capped at {group.setting.memory_cap_gb:g} GB, {out}." if out else ""


def _runs_out(group: Group, fits: Sequence[Entry]) -> str:
    """Where memory ends first, and the largest image of those that fit; empty where nothing ran out."""
    out = [e for e in group.entries if e.status == "oom"]
    if not out:
        return ""
    first = min(out, key=lambda e: (e.size[0] * e.size[1], e.gpus))
    said = f"{words.px(first.size)} {first.runner} with vae={first.vae} runs out on {group.count(first.gpus)}"
    images = [e for e in fits if e.decode != "none"] or fits  # latents that nobody decoded are no image
    if not images:
        return said

    def reach(entry: Entry) -> tuple[int, int]:
        return entry.size[0] * entry.size[1], -entry.gpus

    def most(entries: Iterable[Entry]) -> Entry:
        return max(entries, key=lambda e: (*reach(e), -seconds_or_inf(e)))

    tiled = [e for e in images if e.decode == "approximate"]
    best = most([e for e in images if e.decode == "exact"] or images)
    where = f"{words.px(best.size)}, on {group.count(best.gpus)} with vae={best.vae}"
    if best.decode != "exact" or not tiled or reach(further := most(tiled)) <= reach(best):
        return f"{said}; the largest image run that fits is {where}"
    approximate = f"{words.px(further.size)} on {group.count(further.gpus)} with vae={further.vae}"
    return f"{said}; the largest image run that fits with an exact decode is {where} (approximate: {approximate})"


def rechecks(records: Iterable[Record]) -> list[float]:
    """Drift of each point that was measured again in fresh processes, as a share of its first time."""
    again = [record.telemetry.get("recheck") for record in records]
    found = [number(repeat.get("drift")) for repeat in again if isinstance(repeat, dict)]
    return [drift for drift in found if drift is not None]


def _warnings(records: Iterable[Record]) -> tuple[str, ...]:
    listed = list(records)
    counts: Counter[str] = Counter()
    for record in listed:
        counts.update(dict.fromkeys((str(warning) for warning in record.warnings), 1))
    said = [f"{text} ({count} points)" if count > 1 else text for text, count in counts.most_common()]
    drifted = [drift for drift in rechecks(listed) if abs(drift) > DRIFT]
    if drifted:
        said.append(
            f"{words.plural(len(drifted), 'point')} measured again in fresh processes differed by more than "
            f"{100 * DRIFT:.0f} %, the furthest by {100 * max(drifted, key=abs):+.0f} %: this machine was not quiet"
        )
    return tuple(said)
