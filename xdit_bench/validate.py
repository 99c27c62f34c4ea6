"""`python -m xdit_bench.validate`: the model against published figures and against our own measurements, kept apart.

Owns the printed report; `predict.validation` compares.

    python -m xdit_bench.validate [results_dir=results]
"""

from __future__ import annotations

import sys
from pathlib import Path

from xdit_bench import data_dir
from xdit_bench.errors import UserError
from xdit_bench.keys import command, helped, parse
from xdit_bench.predict.compared import Set, mean, worst
from xdit_bench.predict.validation import Report, validate

DEFAULTS = {"results_dir": "results"}


def main(arguments: list[str] | None = None) -> int:
    """Prints the report. Returns 0, or 2 on bad input."""
    typed = sys.argv[1:] if arguments is None else arguments
    if helped(typed, __doc__, DEFAULTS):
        return 0
    try:
        options = parse(typed, DEFAULTS, "validate")
        report = validate(data_dir("published"), Path(options["results_dir"]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render(report))
    return 0


def render(report: Report) -> str:
    """The report as text: published, then measured, then facts."""
    lines: list[str] = []
    for kind in ("published", "measured"):
        lines += ["", f"Model against {kind} figures", ""]
        sets = [s for s in report.latencies if s.kind == kind]
        lines += [line for one in sets for line in _set(one, "s", 1.0)]
        lines += [line for one in report.peaks if one.kind == kind for line in _set(one, "GB of peak memory", 1e9)]
        left_out = [error for one in sets for error in one.left_out]
        if left_out:
            lines.append(f"leave-one-out over all {kind}: mean {mean(left_out):.1%}, worst {worst(left_out):.1%}")
        if not sets:
            lines.append(f"no {kind} figures")
        lines += _over_all(kind, sets, [one for one in report.peaks if one.kind == kind])
    lines += ["", "Facts of the study", ""]
    lines += [f"  {fact.verdict:14s} {fact.text}: {fact.detail}" for fact in report.facts]
    return "\n".join(lines[1:])


def _over_all(kind: str, latencies: list[Set], peaks: list[Set]) -> list[str]:
    """Errors of all measured studies together, by transport, and how often out of memory was foretold rightly."""
    if kind != "measured":
        return []
    lines = []
    rows = [row for one in latencies for row in one.rows]
    for transport in dict.fromkeys(row.point.transport for row in rows):
        mine = [row for row in rows if row.point.transport == transport]
        lines.append(f"all over {transport}: {_errors([row.error for row in mine])} ({len(mine)} points)")
        unknown, others = ([row.error for row in mine if row.host_unknown is which] for which in (True, False))
        if unknown and others:
            which = "bound by a host whose launch cost was not taken then, or timed once"
            lines.append(f"  {which}: {_errors(unknown)} ({len(unknown)})")
            lines.append(f"  the others: {_errors(others)} ({len(others)})")
    if held := [row.error for one in peaks for row in one.rows]:
        lines.append(f"all peaks of memory: {_errors(held)} ({len(held)} points)")
    if pressed := [row for one in (*latencies, *peaks) for row in one.pressed]:
        inside = sum(row.inside for row in pressed)
        lines.append(f"under memory pressure, foretold as a range: {inside} of {len(pressed)} times and peaks inside")
    verdicts = [said for one in peaks for _, said in one.verdicts]
    if verdicts:
        counts = ", ".join(f"{verdicts.count(said)} {said}" for said in ("right", "wrong", "near"))
        lines.append(f"out of memory or not: {counts} (near: within 5 % of the capacity)")
    return lines


def _errors(errors: list[float]) -> str:
    return f"mean error {mean(errors):.1%}, worst {worst(errors):.1%}"


def _set(one: Set, unit: str, scale: float) -> list[str]:
    errors = [row.error for row in one.rows]
    lines = [f"{one.name} ({unit}, {len(errors)} points)"]
    if errors:
        lines[0] += f": {_errors(errors)}"
    if one.left_out:
        lines[0] += f"; leave-one-out mean {mean(one.left_out):.1%}, worst {worst(one.left_out):.1%}"
    if one.regrets:
        label, regret = max(one.regrets, key=lambda pair: pair[1])
        lines.append(
            f"  regret of the model's pick: mean {mean(r for _, r in one.regrets):.1%}, worst {regret:.1%} ({label})"
        )
    for key, ours, again, prior in one.fitted:
        lines.append(f"  {key}: {ours:.4g} in the file, {again:.4g} by a fit to these points, {prior:.4g} beforehand")
    for number, row in enumerate(one.rows):
        left_out = f"  left out {one.left_out[number]:+6.1%}" if one.left_out else ""
        seen, predicted = row.seen / scale, row.predicted / scale
        lines.append(f"  {row.point.label:62s} {seen:8.2f} {predicted:8.2f} {row.error:+6.1%}{left_out}")
    for row in one.pressed:
        held = f"{row.predicted / scale:8.2f} to {row.at_most / scale:.2f}, {'inside' if row.inside else 'OUTSIDE'}"
        lines.append(f"  {row.point.label:62s} {row.seen / scale:8.2f} {held}, under memory pressure")
    lines += [f"  out of memory or not, foretold wrongly: {label}" for label, said in one.verdicts if said == "wrong"]
    return [*lines, *(f"  note: {note}" for note in one.notes), ""]


if __name__ == "__main__":
    sys.exit(command(main))
