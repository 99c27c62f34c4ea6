"""One sweep with a rank killed in the middle of a point, then the same points with new ranks for each; both are timed.

Both run as a person types them; the rank is killed from outside. The records of both studies stay, with the seconds
each point cost (`telemetry.spent_s`) that their reports add up. Exit code 1 when something did not come out as planned.

    python tests/gpu/live_through_faults.py                    # two GPUs: sweeps/faults.yaml into results/, reports/
    python tests/gpu/live_through_faults.py topology=cpu model=flux_tiny memory_cap_gb=null   # the same on CPU ranks
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from xdit_bench.reporting.spent import Spent, spent
from xdit_bench.results.schema import Record
from xdit_bench.results.store import RECORDS, latest, read_records
from xdit_bench.runner.board import Board

STUDY = "faults"
RELAUNCHED = f"{STUDY}_relaunched"
VICTIM = 1  # a rank that works in points of two ranks alone
KILL_AFTER = 3  # measured points
LIMIT_S = 580.0
MOST = 1 / 3  # of the relaunched points' time


def main(overrides: list[str]) -> int:
    """Runs both sweeps and says what came of them."""
    given = dict(override.partition("=")[::2] for override in overrides)
    results = Path(given.get("results_dir", "results"))
    if any((results / study / RECORDS).exists() for study in (STUDY, RELAUNCHED)):
        print(f"{results} holds these studies already, and a sweep leaves out what it has: move them away first")
        return 2
    survived = sweep(overrides, results / STUDY, kill=True)
    relaunched = sweep([*overrides, f"study={RELAUNCHED}", "run.isolation=point"], results / RELAUNCHED, kill=False)
    one, each = account(survived, STUDY), account(relaunched, RELAUNCHED)
    print(f"one pool took {one.whole_s / each.whole_s:.3f} of the wall time of new ranks for each point")
    wrong = complaints(survived, relaunched)
    if one.whole_s > MOST * each.whole_s:
        wrong.append(f"that is more than {MOST:.3f}")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def sweep(overrides: list[str], study: Path, *, kill: bool) -> list[Record]:
    """The records of one command, during which a rank is killed or not."""
    command = [sys.executable, "-m", "xdit_bench", "-m", f"+sweeps={STUDY}", *overrides]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    begun = time.monotonic()
    with subprocess.Popen(command) as run:
        try:
            if kill:
                print(kill_in_denoising(run, study), flush=True)
            code = run.wait(LIMIT_S)
        except BaseException:
            run.send_signal(signal.SIGINT)
            raise
    print(f"exit code {code} after {time.monotonic() - begun:.1f} s", flush=True)
    return latest(read_records(study))


def kill_in_denoising(run: subprocess.Popen[bytes], study: Path) -> str:
    """Waits until some points are measured and the victim denoises, and kills it."""
    while run.poll() is None:
        records = read_records(study) if (study / RECORDS).exists() else []
        victim = _descendant(run.pid, f"xdit_rank_{VICTIM}")
        if victim is None or sum(bool(r.latency_s) for r in records) < KILL_AFTER:
            time.sleep(0.2)
            continue
        board = Board(Path(victim.environ()["XDIT_BENCH_BOARD"]))
        until = time.monotonic() + 60.0  # then look again: there may be other ranks by now
        while run.poll() is None and time.monotonic() < until:
            stage, image = board.read(VICTIM)
            if stage == "denoise":
                os.kill(victim.pid, signal.SIGKILL)
                return f"killed rank {VICTIM} in denoising of image {image + 1}"
            time.sleep(0.0005)
    return "the sweep ended before a rank could be killed"


def account(records: list[Record], study: str) -> Spent:
    """Prints what a study's points came to and what they cost."""
    time_spent = spent(records)
    assert time_spent is not None, f"{study} measured nothing"
    outcomes = collections.Counter(record.status for record in records)
    print(f"{study}: {', '.join(f'{count} {status}' for status, count in sorted(outcomes.items()))}")
    print(f"{study}: {time_spent.sentence()}")
    for record in records:
        if record.status not in ("ok", "infeasible"):
            print(f"{study}: {record.status}: {record.reason}")
    return time_spent


def complaints(survived: list[Record], relaunched: list[Record]) -> list[str]:
    """What is not as it should be, in words."""
    wrong = []
    capped = any(record.point["memory_cap_gb"] for record in survived)
    if {r.run_id for r in survived} != {r.run_id for r in relaunched}:
        wrong.append("the two studies do not hold the same points")
    for study, records in ((STUDY, survived), (RELAUNCHED, relaunched)):
        outcomes = collections.Counter(record.status for record in records)
        tried = [record for record in records if record.status != "infeasible"]
        expected = {"oom": int(capped), "crashed": int(study == STUDY)}
        expected["ok"] = len(tried) - sum(expected.values())
        if len(tried) < 12:
            wrong.append(f"{study} tried {len(tried)} points; 12 are wanted")
        wrong += [
            f"{study} has {outcomes[status]} points that are {status}, not {count}"
            for status, count in expected.items()
            if outcomes[status] != count
        ]
    if not any(f"rank {VICTIM} was killed by SIGKILL in stage" in record.reason for record in survived):
        wrong.append("no record says which rank was killed")
    return wrong


def _descendant(pid: int, name: str) -> psutil.Process | None:
    try:
        return next((p for p in psutil.Process(pid).children(recursive=True) if p.name() == name), None)
    except psutil.Error:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
