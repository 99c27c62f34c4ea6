"""`python -m xdit_bench.calibrate`: measures this machine's operators and links, and writes them as a topology file.

Owns the arguments; `calibration` measures. Takes under three minutes on a host with GPUs.

    python -m xdit_bench.calibrate [out=mine.yaml] [base=h200_nvlink] [gpus=2] [transport=p2p,host,socket]

Without `out` a machine that a shipped topology names is written to `results/calibrated/<its name>.yaml`, where
`validate` looks for what measured studies of that topology are predicted from. `measured=mine.json` takes the raw
measurements that a run left beside its file instead of measuring: the same machine, read by the formulas of today.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from xdit_bench.calibration import HEADER, MODELS
from xdit_bench.errors import ConfigError, TopologyError, UserError
from xdit_bench.keys import command, helped, parse, whole
from xdit_bench.predict.measured import CALIBRATED
from xdit_bench.topology.match import differences
from xdit_bench.topology.probe import probe
from xdit_bench.topology.specs import TRANSPORTS, Topology, load, names

UNNAMED = "calibrated.yaml"  # a machine that no shipped topology is
DEFAULTS = {"out": "", "base": "", "gpus": "", "transport": "", "device": "", "measured": ""}


def main(arguments: list[str] | None = None) -> int:
    """Writes the topology file. Returns 0, or 2 on bad input."""
    begun = time.monotonic()
    typed = sys.argv[1:] if arguments is None else arguments
    if helped(typed, __doc__, DEFAULTS):
        return 0
    try:
        options = parse(typed, DEFAULTS, "calibrate")
        machine = probe()
        kind = _device(options["device"], machine["device"])
        gpus = whole(options, "gpus") if options["gpus"] else max(1, machine["gpus"]) if kind == "cuda" else 2
        most = machine["gpus"] if kind == "cuda" else load("cpu").gpus
        if gpus > most:
            what = "GPUs of this machine" if kind == "cuda" else "ranks that a CPU is given"
            raise ConfigError(f"gpus={gpus} is more than the {most} {what}; use at most that")
        transports = _transports(options["transport"], kind)
        if options["out"] and Path(options["out"]).suffix not in (".yaml", ".yml"):
            raise ConfigError(f"out must be a .yaml file; got out={options['out']}")
        base = _base(options["base"], machine) if kind == "cuda" or options["base"] else None
        out = Path(options["out"] or (Path("results", CALIBRATED, f"{base.name}.yaml") if base else UNNAMED))
        kept = _kept(options["measured"])
        _writable(out)
        _ours(out, measures=not kept)
        import torch  # only now: bad input is refused at once

        from xdit_bench.calibration.machine import calibrate, write

        device = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
        path = write(out, base, kept) if kept else calibrate(out, base, gpus, transports, device, print)
        load(str(path))  # what was written is what a point will read
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options['out']} can not be written ({error.strerror})", file=sys.stderr)
        return 2
    use = f"use it as topology={path}"
    if kept.get("model") == MODELS["cpu"] if kept else kind == "cpu":
        use = "a CPU's numbers are for trying calibrate alone, and nothing can be predicted from them"
    print(f"wrote {path} in {time.monotonic() - begun:.0f} s; {use}")
    return 0


def _device(wanted: str, here: str) -> str:
    if wanted not in ("", "cuda", "cpu"):
        raise ConfigError(f"device is cuda or cpu; got device={wanted}")
    if wanted == "cuda" and here != "cuda":
        raise ConfigError("device=cuda needs a GPU, and this machine has none; use device=cpu")
    return wanted or here


def _writable(out: Path) -> None:
    """Refuses before minutes of measuring what could not be kept after them. Raises ConfigError."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)) or out.is_dir():
        raise ConfigError(f"out={out} can not be written; name a file in a folder that can")


def _ours(out: Path, *, measures: bool) -> None:
    """Refuses to write over a file that a person wrote; `measures` says that raw measurements go beside it. Raises
    ConfigError."""
    remedy = "name another file, or move that one away"
    if out.exists() and not out.read_bytes().startswith(HEADER.encode()):
        raise ConfigError(f"calibrate replaces files of its own alone, and out={out} is none; {remedy}")
    raw = out.with_suffix(".json")
    if measures and raw.exists():
        try:
            _kept(str(raw))
        except ConfigError:
            said = f"the raw measurements of out={out} go to {raw}, which holds something else"
            raise ConfigError(f"{said}; {remedy}") from None


def _kept(path: str) -> dict[str, Any]:
    """Raw measurements of an earlier run, or none."""
    if not path:
        return {}
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"measured={path} can not be read as JSON ({error})") from error
    if not isinstance(raw, dict) or "compute" not in raw:
        raise ConfigError(f"measured={path} holds no raw measurements; calibrate leaves them beside its .yaml")
    return raw


def _transports(typed: str, kind: str) -> tuple[str, ...]:
    wanted = tuple(typed.split(",") if typed else TRANSPORTS if kind == "cuda" else ("p2p",))
    for transport in wanted:
        if transport not in TRANSPORTS:
            raise ConfigError(f"transport is a list of {', '.join(TRANSPORTS)}; got {transport!r}")
    return wanted


def _base(name: str, machine: dict[str, object]) -> Topology | None:
    """The topology named, else the shipped one that this machine is, else none."""
    if name:
        base = load(name)
        if not base.predictable:
            raise TopologyError(f"base={name} has no numbers to build on; name a topology of GPUs")
        return base
    here = [topology for topology in map(load, names()) if topology.predictable and not differences(topology, machine)]
    return here[0] if here else None


if __name__ == "__main__":
    sys.exit(command(main))
