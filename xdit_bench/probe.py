"""What this machine is and how fast its ranks exchange tensors, printed and stored.

    python -m xdit_bench.probe
    python -m xdit_bench.probe --ranks 2 --transport host

Stores `<results-dir>/machines/<fingerprint>.json`. Exit code 1 when the exchange failed, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xdit_bench.errors import RankCrashed
from xdit_bench.keys import command
from xdit_bench.runner.launcher import environment_warnings
from xdit_bench.runner.pool import Pool
from xdit_bench.topology.match import auto_topology
from xdit_bench.topology.probe import fingerprint, probe, software
from xdit_bench.topology.specs import TRANSPORTS

PROBE_S = 120.0
COMMUNICATION = ("NCCL_", "GLOO_", "TORCH_NCCL_", "OMP_")  # CUDA_VISIBLE_DEVICES may hold serial numbers


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns its exit code."""
    options = _parse(argv)
    console = Console(highlight=False, soft_wrap=True)
    machine, packages = probe(), software()
    machine["fingerprint"] = fingerprint(machine, packages)
    ranks = options.ranks or (machine["gpus"] if machine["device"] == "cuda" else 2)
    found: dict[str, Any] = {
        "machine": machine,
        "software": packages,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(COMMUNICATION)},
        "warnings": environment_warnings(transport=options.transport),
        "transport": options.transport,
        "ranks": ranks,
        "exchanges": [],
    }
    describe(found, console)
    failed = ""
    if not options.quiet and ranks > 1:
        try:
            found["exchanges"] = exchanges(ranks, machine["device"], options.transport)
            console.print(table(found["exchanges"], ranks, options.transport))
        except RankCrashed as error:
            failed = str(error)
    try:
        path = store(found, Path(options.results_dir))
    except OSError as error:
        console.print(f"error: results go to {options.results_dir}, which can not be written ({error.strerror})")
        return 2
    console.print(f"stored in {path}")
    if failed:
        console.print(f"the exchange failed: {failed}")
    return 1 if failed else 0


def exchanges(ranks: int, device: str, transport: str) -> list[dict[str, Any]]:
    """All-to-all, ring and all-gather over all ranks at a few sizes. Raises RankCrashed."""
    with Pool(ranks, device, transport=transport) as pool:
        answers = pool.run({"op": "exchanges"}, PROBE_S)
    wrong = [answer for answer in answers if answer.kind != "result"]
    if wrong:
        raise RankCrashed(f"rank {wrong[0].rank}: {wrong[0].body.get('message', wrong[0].kind)}")
    rows: list[dict[str, Any]] = answers[0].body["rows"]
    return rows


def describe(found: dict[str, Any], console: Console) -> None:
    """The machine on a few lines; what cripples it first."""
    machine = found["machine"]
    for warning in found["warnings"]:
        console.print(f"WARNING {warning}", style="bold red")
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB")
    if machine["device"] == "cuda":
        console.print(
            f"{machine['gpus']} x {machine['gpu']}, {machine['capacity_bytes'] / 2**30:.0f} GiB each, "
            f"driver {machine['driver']}, PCIe {', '.join(dict.fromkeys(machine['pcie']))}, NUMA {machine['numa']}"
        )
        for row in machine["links"]:
            console.print("  " + "  ".join(f"{link:>5}" for link in row))
    else:
        console.print("no GPU: points are measured with topology=cpu, predicted otherwise")
    console.print("topology=auto is " + auto_topology(machine).name)
    console.print(", ".join(f"{name} {version}" for name, version in found["software"].items()))
    console.print(f"fingerprint {machine['fingerprint']}")


def table(rows: Sequence[dict[str, Any]], ranks: int, transport: str) -> Table:
    """One line an exchange and size."""
    made = Table(title=f"{ranks} ranks, transport={transport}", title_justify="left")
    for name in ("exchange", "MiB sent by a rank", "µs", "GB/s"):
        made.add_column(name, justify="left" if name == "exchange" else "right")
    for row in sorted(rows, key=lambda r: (r["collective"], r["bytes"])):
        size, seconds, rate = row["bytes"] / 2**20, row["seconds"] * 1e6, row["bytes_per_s"] / 1e9
        made.add_row(row["collective"], f"{size:.3g}", f"{seconds:.0f}", f"{rate:.1f}")
    return made


def store(found: dict[str, Any], results_dir: Path) -> Path:
    """Writes the file named by the machine's fingerprint. Raises OSError."""
    folder = results_dir / "machines"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['machine']['fingerprint']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m xdit_bench.probe", description="What this machine is.")
    parser.add_argument("--ranks", type=int, help="ranks that exchange tensors; default: all GPUs, or 2 CPU ranks")
    parser.add_argument("--transport", choices=sorted(TRANSPORTS), default="p2p", help="how ranks reach each other")
    parser.add_argument("--quiet", action="store_true", help="describe alone; exchange nothing")
    parser.add_argument("--results-dir", default="results", help="where machines/<fingerprint>.json goes")
    options = parser.parse_args(argv)
    if options.ranks is not None and options.ranks < 1:
        parser.error(f"--ranks is a whole number above 0; got {options.ranks}")
    return options


if __name__ == "__main__":
    sys.exit(command(main))
