"""The calibrated topology of this machine: measured numbers over a base's, written as YAML with a source for each.

Owns what is measured and what is taken over. The base is the topology file that names this GPU, for its datasheet
and its hierarchy of links; without one, the peaks are what was reached here.

    calibrate(Path("mine.yaml"), None, gpus=2, transports=("p2p",), device=torch.device("cuda"), say=print)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from xdit_bench import __version__
from xdit_bench.calibration import HEADER, MODELS
from xdit_bench.calibration.compute import measure
from xdit_bench.calibration.numbers import efficiencies, links
from xdit_bench.calibration.ranks import measure_exchanges
from xdit_bench.calibration.shapes import Shapes
from xdit_bench.errors import RankCrashed, TopologyError
from xdit_bench.predict.points import load_model
from xdit_bench.topology.specs import LINKS, SYMMETRIC, TRANSPORTS, GpuSpec, LinkSpec, Number, Topology

Say = Callable[[str], None]
TAKEN_OVER = {  # where there is neither a measurement nor a base
    "efficiency": {"conv": 0.25, "conv_nhwc": 0.4, "vae_attention": 0.1, "vae_attention_blocked": 0.4},
    "host": {"kernel_gap_s": 3.5e-6, "vae_cold_start_s": 0.2},
    "uncertainty": {"compute": 0.05, "network": 0.15, "host": 0.2, "vae": 0.2},
}
OF_RANKS = ("launch", "beside_links")  # what ranks measure together beside exchanges
REACHED = 0.8  # share of an unknown GPU's peak that its best product or copy is taken for


def calibrate(
    out: Path, base: Topology | None, gpus: int, transports: Sequence[str], device: torch.device, say: Say
) -> Path:
    """Measures, writes `out` and, beside it, the raw measurements as JSON. Returns `out`."""
    name = MODELS[device.type]
    model = load_model(name)
    shapes = Shapes.of(device, model)
    say(f"measuring one {'GPU' if device.type == 'cuda' else 'CPU core'}: {len(shapes.gemms)} products, "
        f"{len(shapes.attentions)} attention shapes, memory, launches, T5, the VAE's operators")  # fmt: skip
    measured = measure(shapes, model, device)
    spec = base.gpu if base else _reached(measured, device)
    raw: dict[str, Any] = {
        "torch": torch.__version__, "model": name, "gpus": gpus, "gpu": asdict(spec), "notes": [], "compute": measured,
    }  # fmt: skip
    for transport in transports if gpus > 1 else ():
        say(f"measuring exchanges between {gpus} ranks, transport={transport}")
        try:
            raw[transport] = measure_exchanges(gpus, device.type, transport, shapes.messages)
        except RankCrashed as error:
            say(f"warning: {error}")
            raw["notes"].append(f"transport={transport} could not be measured")
    if gpus == 1:
        raw["notes"].append("one GPU: no link was measured" + (", they are the base's" if base else ""))
    for part in ("compute", *TRANSPORTS):
        _warn(raw.get(part, []), say)
    out.parent.mkdir(parents=True, exist_ok=True)
    # first: minutes of measuring outlive a file that can not be made of them, and `measured=` tries again
    out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    return write(out, base, raw)


def write(out: Path, base: Topology | None, raw: dict[str, Any]) -> Path:
    """The topology file of raw measurements, just made or kept from a run: the model's formulas, solved for them.

    Raises TopologyError for measurements without the GPU's datasheet numbers where no base has them.
    """
    if not base and "gpu" not in raw:
        raise TopologyError("these measurements do not say of which GPU; name its topology as base=<name>")
    spec = base.gpu if base else GpuSpec(**raw["gpu"])
    exchanged = {transport: raw[transport] for transport in TRANSPORTS if transport in raw}
    of_ranks = [m for part in exchanged.values() for m in part if m["kind"] in OF_RANKS]
    rows = [m for part in exchanged.values() for m in part if m["kind"] not in ("failed", *OF_RANKS)]
    gpus = raw.get("gpus") or max((m["ulysses"] * m["ring"] for m in rows), default=1)
    found = efficiencies([*raw["compute"], *of_ranks], spec, load_model(raw.get("model", "flux_schnell")))
    levels = {path: base.levels(path) if base else () for path in LINKS}
    for transport in exchanged:
        for path in (transport, SYMMETRIC) if transport == "p2p" else (transport,):
            mine = [m for m in rows if m["path"] == path]
            known = levels[path] or (_one_level(path, base.gpus if base else gpus),)  # a path joins all the file's GPUs
            levels[path] = links(mine, known, gpus, _speed(spec, found)) if mine else ()
    kept = {path: level for path, level in levels.items() if level}
    data = _topology(out.stem, base, spec, gpus, found, kept, raw.get("notes", []))
    out.parent.mkdir(parents=True, exist_ok=True)
    of = f"xdit_bench {__version__}, torch {raw.get('torch', 'of its day')}"
    out.write_text(f"{HEADER} of {of}.\n" + yaml.safe_dump(data, sort_keys=False, width=110))
    return out


def _warn(measured: list[dict[str, Any]], say: Say) -> None:
    failed = {f"{m['what']} does not run here: {m['error']}" for m in measured if m["kind"] == "failed"}
    for warning in sorted(failed):
        say(f"warning: {warning}")


def _speed(gpu: GpuSpec, found: dict[str, dict[str, Number]]) -> Topology:
    """What an exchange through symmetric memory needs of the GPU itself: its memory, and the gap between two copies."""
    gap = found["host"].get("kernel_gap_s", Number(TAKEN_OVER["host"]["kernel_gap_s"], "usual value"))
    return Topology("", 1, gpu, efficiency=found["efficiency"], host={"kernel_gap_s": gap})


def _topology(
    name: str, base: Topology | None, gpu: GpuSpec, gpus: int, found: dict[str, dict[str, Number]],
    levels: dict[str, tuple[LinkSpec, ...]], notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Plain data of the topology file; base and defaults fill what was not measured."""
    sections = {}
    for section in ("efficiency", "attention", "host", "uncertainty"):
        numbers = {k: Number(v, "usual value, not measured") for k, v in TAKEN_OVER.get(section, {}).items()}
        if base:
            numbers |= {k: replace(n, source=f"{base.name}: {n.source}") for k, n in getattr(base, section).items()}
        numbers |= found.get(section, {})
        sections[section] = {k: {"value": float(f"{n.value:.4g}"), "source": n.source} for k, n in numbers.items()}
    low, high = base.calibrated_tokens if base else (4096, 65536)
    return {
        "name": name,
        "gpus": base.gpus if base else gpus if levels else 1,
        "gpu": {key: getattr(gpu, key) for key in GpuSpec.__dataclass_fields__},
        **({"links": {key: [_level(level) for level in value] for key, value in levels.items()}} if levels else {}),
        **sections,
        "calibrated_tokens": {"low": low, "high": high},
        **({"note": "; ".join(notes)} if notes else {}),
    }


def _level(level: LinkSpec) -> dict[str, Any]:
    data = {key: getattr(level, key) for key in LinkSpec.__dataclass_fields__}
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in data.items()}


def _reached(measured: list[dict[str, Any]], device: torch.device) -> GpuSpec:
    """Datasheet numbers of a GPU that no file names, from what it reached."""
    flops = max(2.0 * m["m"] * m["k"] * m["n"] / m["seconds"] for m in measured if m["kind"] == "gemm")
    rate = next(m["bytes"] / m["seconds"] for m in measured if m["kind"] == "copy")
    source = "no datasheet: peaks are what was reached here, over 0.8"
    if device.type != "cuda":
        return GpuSpec("CPU", 10**9, flops / REACHED, rate / REACHED, 1e6, 1, source)
    props = torch.cuda.get_device_properties(device)
    return GpuSpec(
        props.name, int(props.total_memory), flops / REACHED, rate / REACHED, float(props.L2_cache_size),
        int(props.multi_processor_count), source,
    )  # fmt: skip


def _one_level(transport: str, gpus: int) -> LinkSpec:
    name = {"p2p": "peer links", "host": "host memory", "socket": "sockets", SYMMETRIC: "peer links"}[transport]
    return LinkSpec(name, gpus, 1e10, 1e10, 1e-4, 1e-4)
