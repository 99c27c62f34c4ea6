"""A machine as data: GPUs of one kind, the hierarchy of links between them, calibrated efficiencies.

Owns reading and checking `conf/topology/*.yaml` (or a person's own file); knows nothing of this machine (`probe`)
nor of how a time is predicted (`xdit_bench.predict`).

    topology = load("l40_pcie")
    topology.gpu.memory_bytes, topology.levels("p2p")[0].bytes_per_s
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xdit_bench import data_dir
from xdit_bench.errors import TopologyError, did_you_mean

TRANSPORTS: dict[str, dict[str, str]] = {  # how ranks of one machine reach each other, by the variables that make it so
    "p2p": {},
    "host": {"NCCL_P2P_DISABLE": "1"},
    "socket": {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
}
NO_MULTICAST = {  # over NVLink: hangs under some virtual machines, and nothing of ours needs it
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
SYMMETRIC = "symmetric"  # peers' copies through symmetric memory: what the engine usp does under transport=p2p
LINKS = (*TRANSPORTS, SYMMETRIC)
EFFICIENCIES = ("gemm", "memory", "elementwise", "conv", "conv_nhwc", "vae_attention", "vae_attention_blocked")
TEXT = ("text", "text_fused")  # of what is counted of a T5 layer, attention plain or fused; optional
PASSES = "vae_passes"  # of memory speed: the kernels between a banded decode's convolutions; optional
TAIL = "gemm_tail"  # waves of thread blocks that a matrix product loses to filling and emptying the GPU; optional
AWAKE = "beside_links"  # of their speed that products and attention keep beside traffic on links; optional
OPTIONAL = (*TEXT, PASSES, TAIL, AWAKE)
KERNELS = ("flash", "cudnn", "fa3", "sdpa", "flash_attn")
COLD = "vae_cold_start_s"
HOST = ("op_s", "kernel_gap_s", COLD)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a topology or a study: either names a folder
BESIDE = "op_beside_s"  # op_s while other ranks of the host issue too; optional
ROOT = ("name", "gpus", "gpu", "predict", "note", "links", "efficiency", "attention", "host", "uncertainty",
        "calibrated_tokens", "free")  # fmt: skip
GPU = ("name", "memory_bytes", "peak_flops", "memory_bytes_per_s", "l2_bytes", "sms", "source")
LEVEL = ("name", "gpus", "bytes_per_s", "all_to_all_bytes_per_s", "latency_s", "all_to_all_latency_s", "source")
UNCERTAINTIES = ("compute", "network", "host", "vae")


@dataclass(frozen=True)
class Number:
    """A calibrated number and where it came from."""

    value: float
    source: str


@dataclass(frozen=True)
class Free:
    """A number that published latencies correct: where it stands, what is known of it beforehand, and how well.

    `key` is dotted (`efficiency.gemm`, `links.p2p.1.bytes_per_s`), `spread` the relative standard error of `prior`.
    """

    key: str
    prior: float
    spread: float


@dataclass(frozen=True)
class GpuSpec:
    """Datasheet numbers of one GPU: dense bf16 FLOP/s, bytes of memory and of L2, bytes/s of memory, SMs."""

    name: str
    memory_bytes: int
    peak_flops: float
    memory_bytes_per_s: float
    l2_bytes: float
    sms: int
    source: str = ""


@dataclass(frozen=True)
class LinkSpec:
    """One level of the hierarchy: what joins `gpus` GPUs, innermost level first.

    Each child domain (a GPU on the innermost level, else a domain of the level below) sends and receives at most
    `bytes_per_s` in each direction, shared by all its GPUs; `all_to_all_bytes_per_s` is the capacity where many
    pairs talk at once, which on PCIe host bridges is far smaller. Latencies are those of one collective.
    """

    name: str
    gpus: int
    bytes_per_s: float
    all_to_all_bytes_per_s: float
    latency_s: float
    all_to_all_latency_s: float
    source: str = ""


@dataclass(frozen=True)
class Topology:
    """Everything the predictor and the planner know of a machine. `gpus` is how many GPUs it has.

    `efficiency` holds shares of a peak (0 to 1), `attention` one share a kernel, `host` seconds,
    `uncertainty` relative standard errors by class of term, `free` the numbers a fit to published latencies may move.
    `predictable` is False for `cpu`.
    """

    name: str
    gpus: int
    gpu: GpuSpec
    links: Mapping[str, tuple[LinkSpec, ...]] = field(default_factory=dict)
    efficiency: Mapping[str, Number] = field(default_factory=dict)
    attention: Mapping[str, Number] = field(default_factory=dict)
    host: Mapping[str, Number] = field(default_factory=dict)
    uncertainty: Mapping[str, Number] = field(default_factory=dict)
    calibrated_tokens: tuple[int, int] = (1, 1)
    free: tuple[Free, ...] = ()
    predictable: bool = True
    note: str = ""

    def op_s(self, ranks: int) -> float:
        """Seconds a rank's host takes to issue one operation, while so many ranks do."""
        return self.host[BESIDE if ranks > 1 and BESIDE in self.host else "op_s"].value

    def levels(self, transport: str) -> tuple[LinkSpec, ...]:
        """Links of a transport (or `symmetric`), innermost first; empty where this machine has no numbers for it."""
        return self.links.get(transport, ())


def names() -> list[str]:
    """Topologies that ship with the package, by the name a person types (`auto` is none of them)."""
    return sorted(path.stem for path in (data_dir("conf") / "topology").glob("*.yaml") if path.stem != "auto")


def load(name_or_path: str) -> Topology:
    """Reads a shipped topology by name, or a YAML file by path.

    Raises TopologyError for an unknown name (with the nearest), an unreadable file, and a missing or impossible
    number (naming file, key and rule).
    """
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in names():
            hint = did_you_mean(name_or_path, names()) or "."
            raise TopologyError(
                f"topology={name_or_path!r} is none of {', '.join(names())}{hint} "
                f"Your own machine is a path to a .yaml file"
            )
        path = data_dir("conf") / "topology" / f"{name_or_path}.yaml"
    try:
        loader = yaml.SafeLoader(path.read_text())
        node = loader.get_single_node()
        _keys_once(node)
        data = loader.construct_document(node) if node else None
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"topology file {path} can not be read ({error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; a section within itself
        raise TopologyError(f"topology file {path} is not YAML: {' '.join(str(error).split())}") from error
    return from_dict(data, str(path))


def _keys_once(node: Any) -> None:
    """Raises YAMLError, with the line, for a key that stands twice in a section: the last would count, where a person
    may have read the first."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _keys_once(item)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"key {name!r} stands twice, again in line {line}; leave one of them out")
            seen.add(name)
            _keys_once(value)


def from_dict(data: Any, origin: str) -> Topology:
    """A topology from plain data; `origin` names the file in errors. Raises TopologyError."""
    root = _Reader(data, origin)
    root.only(ROOT)
    name, gpus = root.text("name"), root.count("gpus")
    if not NAME.fullmatch(name):
        raise root.error("name", f"must be of letters, digits, '.', '_' and '-'; got {name!r}")
    gpu = root.section("gpu")
    if not isinstance(predict := data.get("predict", True), bool):
        raise root.error("predict", f"must be true or false; got {predict!r}")
    if not predict:  # a machine to measure on, with no numbers to predict from
        unknown = GpuSpec(gpu.text("name"), 0, 0.0, 0.0, 0.0, 0, gpu.text("source", ""))
        return Topology(name, gpus, unknown, predictable=False, note=root.text("note", ""))
    spec = GpuSpec(
        name=gpu.text("name"),
        memory_bytes=gpu.count("memory_bytes", low=10**9, high=10**13),
        peak_flops=gpu.number("peak_flops", low=1e9, high=1e17),
        memory_bytes_per_s=gpu.number("memory_bytes_per_s", low=1e8, high=1e15),
        l2_bytes=gpu.number("l2_bytes", low=1e5, high=1e10),
        sms=gpu.count("sms", high=10_000),
        source=gpu.text("source", ""),
    )
    links = root.section("links", optional=gpus == 1)
    efficiency, host = root.section("efficiency"), root.section("host")
    attention, uncertainty = root.section("attention"), root.section("uncertainty")
    kernels = [kernel for kernel in KERNELS if kernel in attention.data]
    if not kernels:
        raise attention.error("", f"must name the share of peak of at least one kernel of {', '.join(KERNELS)}")
    for section, known in ((efficiency, (*EFFICIENCIES, *OPTIONAL)), (attention, KERNELS), (host, (*HOST, BESIDE)),
                           (links, LINKS), (uncertainty, UNCERTAINTIES), (gpu, GPU)):  # fmt: skip
        section.only(known)
    return Topology(
        name=name,
        gpus=gpus,
        gpu=spec,
        links={key: _levels(links, key, gpus) for key in LINKS if key in links.data},
        efficiency={
            key: efficiency.sourced(key, high=1.0)
            for key in (*EFFICIENCIES, *OPTIONAL)
            if key in EFFICIENCIES or key in efficiency.data
        },
        attention={key: attention.sourced(key, high=1.0) for key in kernels},
        host={
            key: host.sourced(key, high=10.0 if key == COLD else 0.01)
            for key in (*HOST, BESIDE)
            if key != BESIDE or BESIDE in host.data
        },
        uncertainty={key: uncertainty.sourced(key, high=1.0) for key in UNCERTAINTIES},
        calibrated_tokens=_range(root),
        free=_free(root),
        note=root.text("note", ""),
    )


def _range(root: _Reader) -> tuple[int, int]:
    section = root.section("calibrated_tokens")
    section.only(("low", "high"))
    low = section.count("low")
    return low, section.count("high", low=low)


def _free(root: _Reader) -> tuple[Free, ...]:
    entries = root.data.get("free", [])
    if not isinstance(entries, list):
        raise root.error("free", f"must be a list of {{key, prior, spread}}; got {type(entries).__name__}")
    readers = [_Reader(entry, root.origin, f"free[{number}].") for number, entry in enumerate(entries)]
    return tuple(Free(r.text("key"), r.number("prior"), r.number("spread", high=2.0)) for r in readers)


def _levels(links: _Reader, transport: str, gpus: int) -> tuple[LinkSpec, ...]:
    entries = links.data[transport]
    if not isinstance(entries, list) or not entries:
        raise links.error(transport, "must be a list of levels, innermost first")
    levels: list[LinkSpec] = []
    for number, entry in enumerate(entries):
        level = _Reader(entry, links.origin, f"{links.prefix}{transport}[{number}].")
        level.only(LEVEL)
        rate, latency = level.number("bytes_per_s", low=1e6, high=1e14), level.number("latency_s", high=1.0)
        below = levels[-1].gpus if levels else 1
        joined = level.count("gpus", low=2, high=100_000)
        if joined <= below or joined % below:
            raise level.error("gpus", f"must be a multiple of, and above, the {below} of the level below; got {joined}")
        levels.append(LinkSpec(
            name=level.text("name"),
            gpus=joined,
            bytes_per_s=rate,
            all_to_all_bytes_per_s=level.number("all_to_all_bytes_per_s", low=1e6, high=1e14, default=rate),
            latency_s=latency,
            all_to_all_latency_s=level.number("all_to_all_latency_s", high=1.0, default=latency),
            source=level.text("source", ""),
        ))  # fmt: skip
    # symmetric memory ends at the host, and beyond it NCCL takes over: the other paths have to reach everywhere
    if levels[-1].gpus < gpus and transport != SYMMETRIC:
        raise links.error(transport, f"must join all {gpus} GPUs on its last level; it joins {levels[-1].gpus}")
    return tuple(levels)


class _Reader:
    """A mapping with checks whose errors name file, key and rule."""

    def __init__(self, data: Any, origin: str, prefix: str = "") -> None:
        self.data, self.origin, self.prefix = data, origin, prefix
        if not isinstance(data, Mapping):
            where = f"{prefix.rstrip('.')} " if prefix else ""
            raise TopologyError(f"{origin}: {where}must be a mapping of keys to values; got {type(data).__name__}")

    def error(self, key: str, rule: str) -> TopologyError:
        """An error that names file and key."""
        return TopologyError(f"{self.origin}: {(self.prefix + key).rstrip('.')} {rule}")

    def section(self, key: str, optional: bool = False) -> _Reader:
        """A mapping inside this one."""
        if key not in self.data:
            if optional:
                return _Reader({}, self.origin, f"{self.prefix}{key}.")
            raise self.error(key, "is missing; every predictable topology has it")
        return _Reader(self.data[key], self.origin, f"{self.prefix}{key}.")

    def only(self, known: tuple[str, ...]) -> None:
        """Refuses keys that nothing reads: a misspelt number would silently not count."""
        for key in self.data:
            if key not in known:
                raise self.error(str(key), f"is none of {', '.join(known)}{did_you_mean(str(key), known)}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string that is not empty, unless there is a default."""
        value = self.data.get(key, default)
        if not isinstance(value, str) or not (value or default is not None):
            raise self.error(key, f"must be a text; got {value!r}")
        return " ".join(value.split())

    def number(self, key: str, low: float = 0.0, high: float = math.inf, default: float | None = None) -> float:
        """A finite number above 0, from `low` to `high`."""
        value = self.data.get(key, default)
        if value is None:
            raise self.error(key, "is missing; it must be a number")
        try:
            number = float("nan") if isinstance(value, bool) else float(value)  # YAML reads 312e12 as a text
        except (TypeError, ValueError):
            raise self.error(key, f"must be a number; got {value!r}") from None
        if not math.isfinite(number) or number <= 0 or not low <= number <= high:
            bounds = f"above 0 and at most {high:g}" if low == 0 else f"from {low:g} to {high:g}"
            raise self.error(key, f"must be a number {bounds}; got {value!r}")
        return number

    def count(self, key: str, low: int = 1, high: int = 100_000_000) -> int:
        """A whole number from `low` to `high`."""
        number = self.number(key, float(low), float(high))
        if number != int(number):
            raise self.error(key, f"must be a whole number; got {self.data[key]!r}")
        return int(number)

    def sourced(self, key: str, high: float) -> Number:
        """A number with its source: `{value: 0.66, source: …}`."""
        section = self.section(key)
        return Number(section.number("value", high=high), section.text("source"))
