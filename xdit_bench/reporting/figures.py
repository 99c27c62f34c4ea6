"""Which figures a report has: name, caption, text alternative, and why one is empty.

Owns the list and its words; `draw_scaling` and `draw_parts` do the drawing.

    for figure in group_figures(group, matches):
        save(figure.draw(PAGE), folder / figure.name)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure as Canvas

from xdit_bench.reporting import alternatives as say
from xdit_bench.reporting import draw_frontier, draw_headline, draw_ladder, draw_parts, draw_peers, draw_scaling, words
from xdit_bench.reporting.frontier import limits
from xdit_bench.reporting.marks import mark_group, shown_sizes
from xdit_bench.reporting.peers import tried_compiled
from xdit_bench.reporting.published import Match
from xdit_bench.reporting.study import Group
from xdit_bench.reporting.style import Layout


@dataclass(frozen=True)
class Figure:
    """One figure of a report. `why_empty` stands in its place where there is nothing to draw."""

    name: str
    title: str
    caption: str
    alternative: str
    draw: Callable[[Layout], Canvas]
    why_empty: str = ""


def group_figures(group: Group, matches: Sequence[Match], kin: Sequence[Group] = ()) -> list[Figure]:
    """Every figure of a group, the headline first; but the engines where steps alone were timed, beside peers at their
    best. `kin` are the groups that differ in the memory cap alone."""
    some = "" if group.decode_alone else _some(group)
    cpu = group.on_cpu
    several = len(group.gpu_counts) > 1
    stock = any(found and found.ok for found in map(group.stock, group.sizes))
    one_count = f"needs more than one count of {words.unit(group)} for engine {group.engine}"
    ok = any(entry.ok for entry in group.entries)
    nothing = "" if ok else "no point of this group succeeded"

    def figure(
        name: str, title: str, caption: str, alternative: str, draw: Callable[..., Canvas], why: str,
        beside: Sequence[Group] = (),
    ) -> Figure:  # fmt: skip
        return Figure(name, title, caption + some, alternative, partial(_marked, draw, beside, group), why)

    modes, _ = draw_parts.vae_modes(group)
    runners = {runner for _, runner in draw_peers.engine_rows(group)}
    empty = {
        "memory": _unless(any(e.peak_bytes for e in group.entries), "no record holds a peak"),
        "frontier": _unless(bool(limits(kin)), "no point ran out of memory"),
        "vae": _unless(
            bool(draw_parts.vae_sizes(group)),
            "needs two VAE modes at one size, GPU count and execution; this group has "
            + (words.listing(modes) or "none"),
        ),
        "engines": _unless(
            len(runners) > 1,
            "needs two engines or executions with a step time",
        ),
        "attribution": _unless(
            bool(draw_parts.attribution_terms(group)), "no point was profiled; set measure.profile=true"
        ),
        "energy": _unless(
            any(e.energy_j for e in group.entries), f"no record holds energy{': a CPU has no NVML' * cpu}"
        ),
        "parity": _unless(any(e.parity_l2 is not None for e in group.entries), "no record holds a parity check"),
        "published": _unless(bool(matches), "no published point has this machine, model, size and split"),
    }
    largest = figure(
        "frontier", "Largest image that fits",
        "A panel a memory, a bar a VAE mode and GPU count: it ends at the largest square image that succeeded (≥ where "
        "the search was cut off); a cross marks the smallest that ran out of memory, where that is not the next size. "
        f"{'Seconds are of that one cold decode. ' if group.decode_alone else ''}"
        "Sizes that were run, nothing between them.", say.frontier(kin), partial(_frontier, kin), empty["frontier"],
        beside=kin,
    )  # fmt: skip
    if group.decode_alone:
        return [largest]
    ladder = figure(
        "ladder", "The engine, rung by rung",
        "Milliseconds of a denoising step, one gain more a row, from the plain engine to the whole one; in parentheses "
        "what the rung changed. A split has no bar where a rung changes nothing in it; its bars are of one sitting.",
        say.ladder(group), draw_ladder.climb, "",
    )  # fmt: skip
    figures = [
        figure("headline", "Latency of one image", _headline_caption(group), say.headline(group),
               draw_headline.headline, ""),
        *([ladder] if draw_ladder.drawn(group) else []),  # no other study lacks it
        figure("strategies", "Latency by strategy",
               f"Engine {group.engine}: Ulysses alone, ring alone, and both; logarithmic. Dotted: linear scaling.",
               say.cells(group), draw_scaling.strategies, nothing or ("" if several else one_count)),
        figure("heatmap", "Latency over (ulysses, ring)",
               "Seconds an image; dark is slow, the frame marks the best. Hatched cells failed, a dash was not run, "
               "n/a can not run here.",
               say.cells(group), draw_scaling.heat_map, nothing or ("" if several else one_count)),
        figure("speedups", "Speedups and efficiency",
               f"Scaling: over {group.engine} itself on one. "
               + ("Gain: over plain diffusers on one, what a user gains. " if stock else "")
               + f"Efficiency: scaling divided by the {words.unit(group)}. Dotted: linear.",
               say.speedup(group), draw_scaling.speedups, nothing or ("" if several else one_count)),
        figure("stages", "Where an image's time goes",
               "Text encoders, denoising and VAE decode of the best factorization, timed apart.",
               say.stage(group), draw_parts.stages, nothing),
        figure("memory", f"Peak memory of the fullest {'rank' if group.on_cpu else 'GPU'}",
               "Weights, and activations with all the rest"
               + ("." if group.on_cpu else "; the dashed line is the memory there was."),
               say.memory(group), draw_parts.memory, nothing or empty["memory"]),
        largest,
        figure("vae", "VAE effect",
               "The whole image by VAE mode, its decode in full colour, and the peak memory; of the largest sizes. "
               "Bars of a panel share the execution in its title. Tiled decode is approximate.",
               say.vae(group), draw_parts.vae_effect, nothing or empty["vae"]),
        figure("engines", "One step, engine by engine",
               "The best factorization of each engine and execution.", say.engine(group), draw_peers.engines,
               nothing or empty["engines"]),
        figure("attribution", "Where a step's time goes", "From one profiled step, or by term of the model.",
               say.attribution(group), draw_parts.attribution, empty["attribution"]),
        figure("energy", "Energy of one image", "All GPUs of the point together, from NVML.", say.energy(group),
               draw_parts.energy, empty["energy"]),
        figure("parity", "Distance to the one-GPU result",
               "Relative L2 of the latents on the same seed. Right of the bound a point is incorrect, and no success.",
               say.parity(group), draw_peers.parity, empty["parity"]),
        figure("published", "Published beside ours", "Outlined: published. The number is ours over published.",
               say.published(matches), partial(_published, matches), empty["published"]),
    ]  # fmt: skip
    steps_alone = all(e.decode == "none" for e in group.entries)
    return sorted(figures, key=lambda f: f.name != "engines") if steps_alone and tried_compiled(group) else figures


def _marked(draw: Callable[[Group, Layout], Canvas], kin: Sequence[Group], group: Group, layout: Layout) -> Canvas:
    return mark_group(draw(group, layout), group, kin)


def _unless(there: bool, why: str) -> str:
    return "" if there else why


def _frontier(kin: Sequence[Group], group: Group, layout: Layout) -> Canvas:
    return draw_frontier.frontier(kin, layout)


def _published(matches: Sequence[Match], group: Group, layout: Layout) -> Canvas:
    return draw_peers.published(group, matches, layout)


def _some(group: Group) -> str:
    shown = shown_sizes(group)
    left = len(group.sizes) - len(shown)
    return f" {len(shown)} of {len(group.sizes)} sizes are drawn; the tables hold all." if left else ""


def _headline_caption(group: Group) -> str:
    kinds = {size: group.decode(size) for size in group.sizes}
    held = "Times hold text encoders, denoising and VAE decode."
    for kind, what in (("none", "leave out the VAE decode"), ("approximate", "hold a tiled, approximate decode")):
        sizes = [words.px(size) for size in group.sizes if kinds[size] == kind]
        if sizes and len(sizes) == len(kinds):
            held = f"Times {what}."
        elif sizes:
            tried = {words.px(e.size) for e in group.entries if e.engine == group.engine and e.decode == "exact"}
            why = "every exact decode failed" if tried & set(sizes) else "no exact decode was run"
            held += f" At {words.listing(sizes)} {why}: times there {what}."
    others = any(e.engine == group.engine and e.decode != kinds[e.size] for e in group.entries)
    apart = " Points that leave out or tile the decode do not compete with it; see the VAE figure." if others else ""
    kind = "the median's 95 % interval" if group.setting.source == "measured" else "the prediction's interval"
    whiskers = f"; whiskers: {kind}" if any(entry.high_s for entry in group.entries) else ""
    ratios = {size: group.over_baseline(size) for size in group.sizes}
    mixed = [words.px(size) for size, ratio in ratios.items() if ratio and ratio.two_sittings]
    sittings = f" At {words.listing(mixed)} the best and the baseline were measured in two sittings." if mixed else ""
    return (
        f"Engine {group.engine}, the best factorization of each count of {words.unit(group)} below its bar, seconds "
        f"above; the dashed line is the baseline{whiskers}. {held}{apart}{sittings}{_pressed(group)}"
    )


def _pressed(group: Group) -> str:
    """Which bars of the headline are of points under memory pressure."""
    said = []
    for size in group.sizes:
        bars = {gpus: cell for gpus in group.gpu_counts if (cell := group.cell(size, gpus)) and cell.ok}
        pressed = [gpus for gpus, cell in bars.items() if cell.verdict == "pressure"]
        if pressed:
            counts = words.listing([*map(str, pressed[:-1]), group.count(pressed[-1])])
            said.append(f"{words.px(size)} on {counts}")
    return f" Under memory pressure: {'; '.join(said)}." if said else ""
