"""The knobs a person types, the point they resolve to, and the point's identity.

Owns the Hydra schema, every check of a knob's value, and `Point`. Runs nothing and imports no torch; a config
class holds no logic (checks stand in `resolve`).

    point, model = resolve(cfg)                # raises ConfigError
    reason = infeasible(point, model, gpus=8)  # None, or why this cell of the grid can not run
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from xdit_bench import data_dir, rungs
from xdit_bench.errors import ConfigError, MissingExtraError, WeightsError, either
from xdit_bench.topology.specs import NAME

VAE_SCALE = 8  # pixels a latent, each way; FLUX.1's AutoencoderKL
PATCH = 2  # latents a token, each way
TOKEN_PIXELS = VAE_SCALE * PATCH
USUAL_TEXT_TOKENS = (77, 512)  # of the models in `conf/model/`
FRONTIER_STEP = 64  # pixels between the sizes that a search for the largest one tries
PIPELINE_PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
SHARED_VAES = ("parallel", "distvae")  # decodes that all ranks take part in
ATTENTION_MODULES = {"flash_attn": "flash_attn", "fa3": "fa3_fwd_interface"}  # kernels of the extra `flash`


class Execution(Enum):
    """How the denoising loop runs: op by op, compiled blocks, or one CUDA graph; see `execution_of` for `auto`."""

    auto = "auto"
    eager = "eager"
    compile = "compile"
    graph = "graph"


class Attention(Enum):
    """Attention kernel; `auto` times the ones this machine has, once a shape."""

    auto = "auto"
    cudnn = "cudnn"
    flash = "flash"
    flash_attn = "flash_attn"
    fa3 = "fa3"
    sdpa = "sdpa"


class Source(Enum):
    """Where a number may come from."""

    auto = "auto"
    measured = "measured"
    predicted = "predicted"


class Transport(Enum):
    """How ranks reach each other: NVLink/PCIe peers, staged through host memory, or sockets."""

    p2p = "p2p"
    host = "host"
    socket = "socket"


class Dtype(Enum):
    """Number format of weights and activations; `auto` is bf16 on GPUs and fp32 on CPUs."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


@dataclass
class MeasureConfig:
    """How a point is timed; `conf/measure/default.yaml` says what each knob does."""

    warmup: int = 2
    repeats: int = 5
    max_repeats: int = 30
    precision: float = 0.01
    time_cap_s: float = 120.0
    parity: bool = True
    profile: bool = False


@dataclass
class RunConfig:
    """What happens around the points of a plan; `conf/config.yaml` says what each knob does."""

    frontier: bool = False
    deadline_s: float | None = None
    resume: bool = True
    retry_failed: bool = False
    isolation: str = "pool"
    recheck: float = 0.1
    probe_all: bool = False
    shuffle: bool = True
    report: bool = True


@dataclass
class LaunchConfig:
    """Where ranks run; `conf/launch/local.yaml` says what each knob does. One node needs nothing here."""

    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str | None = None
    gpus: int | None = None


@dataclass
class Config:
    """Every knob of `python -m xdit_bench`, in the order a person meets them."""

    ulysses: int = 1
    ring: int = 1
    res: int = 1024
    height: int | None = None
    width: int | None = None
    model: Any = None
    engine: Any = None
    execution: Execution = Execution.auto
    attention: Attention = Attention.auto
    without: str = rungs.NONE
    vae: Any = None
    topology: Any = None
    transport: Transport = Transport.p2p
    source: Source = Source.auto
    weights: str = "random"
    dtype: Dtype = Dtype.auto
    steps: int = 4
    text_tokens: int = 512
    prompt: str = ""
    seed: int = 0
    memory_cap_gb: float | None = None
    save_outputs: bool = False
    study: str = "study"
    results_dir: str = "results"
    reports_dir: str = "reports"
    bounds: Any = None
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass(frozen=True)
class ModelSpec:
    """A model's shape and defaults, read from `conf/model/<name>.yaml`; the component dicts are diffusers' and
    transformers' own config keys."""

    name: str
    steps: int
    guidance: float | None
    text_tokens: int
    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    text_encoder_2: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]

    @property
    def heads(self) -> int:
        """Attention heads of the transformer."""
        return int(self.transformer["num_attention_heads"])

    @property
    def hidden(self) -> int:
        """Width of the transformer: heads times head size."""
        return self.heads * int(self.transformer["attention_head_dim"])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Raises ConfigError naming the missing key."""
        names = [f.name for f in dataclasses.fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise ConfigError(f"a model file must hold {', '.join(missing)}; {data.get('name', 'this one')!r} does not")
        return cls(**{name: data[name] for name in names})


@dataclass(frozen=True)
class Point:
    """One cell of the grid, fully resolved. Its dict is a record's `point`.

    `steps` 0 is the decode alone: the seed's noise to pixels beside all weights, no text and no denoising. `without`
    names the rungs of the engine's ladder that are left out; empty, as in older records, is the whole engine.
    """

    model: str
    height: int
    width: int
    steps: int
    text_tokens: int
    ulysses: int
    ring: int
    engine: str
    execution: str
    attention: str
    vae: str
    dtype: str
    weights: str
    seed: int
    topology: str
    transport: str
    prompt: str = ""
    memory_cap_gb: float | None = None
    without: str = ""

    @property
    def gpus(self) -> int:
        """Ranks of the point."""
        return self.ulysses * self.ring

    @property
    def res(self) -> int | None:
        """Side of a square image in pixels, else None."""
        return self.height if self.height == self.width else None

    @property
    def image_tokens(self) -> int:
        """Tokens of the image: one for 16 by 16 pixels."""
        return (self.height // TOKEN_PIXELS) * (self.width // TOKEN_PIXELS)

    @property
    def label(self) -> str:
        """Short name for a progress line, with what is not as usual:
        `flux_schnell 1024px u2r1 usp/eager vae=parallel 4 steps attention=cudnn`."""
        size = f"{self.res}px" if self.res else f"{self.width}x{self.height}px"
        what = f"{self.steps} step{'s' * (self.steps > 1)}" if self.steps else "decode alone"
        unusual = {
            f"without={self.without}": self.without,
            f"attention={self.attention}": self.attention != "auto",
            self.dtype: self.dtype not in ("auto", "fp32" if self.topology == "cpu" else "bf16"),
            f"{self.text_tokens} text tokens": self.text_tokens not in USUAL_TEXT_TOKENS,
            self.transport: self.transport != "p2p",
            f"cap={self.memory_cap_gb or 0:g}GB": self.memory_cap_gb,
        }
        name = f"{self.model} {size} u{self.ulysses}r{self.ring} {self.engine}/{self.execution} vae={self.vae} {what}"
        return " ".join([name, *(said for said, shown in unusual.items() if shown)])

    def to_dict(self) -> dict[str, Any]:
        """JSON types with the derived `res` and `gpus`; the whole engine's points stay equal to older records'."""
        data = dataclasses.asdict(self)
        if not self.without:
            del data["without"]
        return {**data, "res": self.res, "gpus": self.gpus}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        """Inverse of `to_dict`; keys of other versions are ignored."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names})


def run_id(point: Point, fingerprint: str, code: str) -> str:
    """Identity of a measurement: the point, the machine's kind and the code that made it. 16 hex digits."""
    payload = json.dumps([point.to_dict(), fingerprint, code], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


@cache
def _definition(shipped: Path) -> Any:
    return yaml.safe_load(shipped.read_text(encoding="utf-8"))


MOST = 10**6  # of what is counted: nothing of the size is built, and tables hold it
MOST_SEED = 2**63 - 1  # as torch and tables hold it


def _check_definition(model: ModelSpec) -> None:
    """A name stands for one model: records, references and weights are told apart by it. Raises ConfigError."""
    shipped = data_dir("conf") / "model" / f"{model.name}.yaml"
    if Path(model.name).name != model.name or not shipped.is_file():
        return
    said = _definition(shipped)
    parts = [name for name, config in dataclasses.asdict(model).items() if isinstance(config, dict)]
    wrong = [
        f"{part}.{key}"
        for part in parts
        for key in {**said[part], **getattr(model, part)}
        if said[part].get(key) != getattr(model, part).get(key)
    ]
    if wrong:
        raise ConfigError(
            f"model.name={model.name} stands for what its file says, and {either(wrong)} differs; give the changed "
            "model a name of its own, model.name=<name>"
        )


def resolve(cfg: Config, *, size_typed: bool = False) -> tuple[Point, ModelSpec]:
    """The point a composed config stands for. Raises ConfigError with rule, value and remedy.

    `size_typed` says that the person typed `res`, so that it may not be combined with height and width.
    `dtype=auto` stays "auto" until the device is known.
    """
    model = ModelSpec.from_dict(cfg.model)
    _check_definition(model)
    height, width = _size(cfg, size_typed)
    for name, least in (("ulysses", 1), ("ring", 1), ("steps", 0)):
        _at_least(name, getattr(cfg, name), least)
        _at_most(name, getattr(cfg, name), MOST)
    _at_least("seed", cfg.seed, 0)
    _at_most("seed", cfg.seed, MOST_SEED)
    if cfg.steps == 0 and vae_of(cfg) == "none":
        raise ConfigError("steps=0 is the decode alone, and vae=none leaves that out too; give steps=1 or another vae")
    if not 1 <= cfg.text_tokens <= 512:
        raise ConfigError(f"FLUX.1 takes 1 to 512 text tokens; text_tokens={cfg.text_tokens} is outside")
    if cfg.memory_cap_gb is not None and not 0 < cfg.memory_cap_gb <= MOST:
        raise ConfigError(f"memory_cap_gb must be above 0, at most {MOST}, or null for no cap; got {cfg.memory_cap_gb}")
    _check_measure(cfg.measure)
    _check_run(cfg.run)
    if cfg.run.frontier:
        _check_frontier(height, width)
    _at_least("launch.nnodes", cfg.launch.nnodes, 1)
    if not 0 <= cfg.launch.node_rank < cfg.launch.nnodes:
        raise ConfigError(
            f"launch.node_rank is 0 to launch.nnodes - 1, here {cfg.launch.nnodes - 1}; got {cfg.launch.node_rank}"
        )
    if cfg.launch.gpus is not None:
        _at_least("launch.gpus", cfg.launch.gpus, 1)
    if cfg.launch.nnodes > 1 and not cfg.launch.rdzv_endpoint:
        raise ConfigError(f"launch.nnodes={cfg.launch.nnodes} machines need launch.rdzv_endpoint=<host:port> to meet")
    check_study(cfg.study)
    point = Point(
        model=model.name,
        height=height,
        width=width,
        steps=cfg.steps,
        text_tokens=cfg.text_tokens,
        ulysses=cfg.ulysses,
        ring=cfg.ring,
        engine=cfg.engine["name"],
        execution=execution_of(cfg),
        attention=cfg.attention.value,
        vae=vae_of(cfg),
        dtype=cfg.dtype.value,
        weights=cfg.weights,
        seed=cfg.seed,
        topology=cfg.topology["name"],
        transport=cfg.transport.value,
        prompt=" ".join(cfg.prompt.split()),
        memory_cap_gb=cfg.memory_cap_gb,
        without=rungs.checked(cfg.without),
    )
    return settle(point) if point.engine == rungs.ENGINE else point, model


def execution_of(cfg: Config) -> str:
    """The execution asked for; `auto` is a CUDA graph, for which no host is too slow, where the engine has it and the
    GPUs of one host reach each other, else eager."""
    if cfg.execution is not Execution.auto:
        return str(cfg.execution.value)
    gpus = cfg.topology["name"] != "cpu" and cfg.dtype is not Dtype.fp32
    direct = cfg.transport is Transport.p2p and cfg.launch.nnodes == 1
    return "graph" if gpus and direct and "graph" in cfg.engine["executions"] else "eager"


def vae_of(cfg: Config) -> str:
    """The decode asked for; `auto` is the engine's first, its best exact one."""
    asked = str(cfg.vae["name"])
    return str(cfg.engine["vaes"][0]) if asked == "auto" else asked


def settle(point: Point) -> Point:
    """The point of our engine under its one name, see `rungs.settled`."""
    left = rungs.settled(
        point.execution, point.attention, point.without,
        ulysses=point.ulysses, ring=point.ring, transport=point.transport, cpu=point.topology == "cpu",
    )  # fmt: skip
    return dataclasses.replace(point, **left)  # type: ignore[arg-type]


def check_side(name: str, side: int) -> None:
    """Raises ConfigError, with the nearest sides, for one that whole tokens do not fill."""
    _at_most(name, side, MOST)
    if side < TOKEN_PIXELS or side % TOKEN_PIXELS:
        below = max(TOKEN_PIXELS, side - side % TOKEN_PIXELS)
        raise ConfigError(
            f"an image side must be a positive multiple of {TOKEN_PIXELS} pixels; {name}={side} is not, "
            f"use {below} or {below + TOKEN_PIXELS}"
        )


def check_together(height: object, width: object) -> None:
    """Raises ConfigError where one side of an image is given alone; None is not given."""
    if (height is None) != (width is None):
        given = f"height={height}" if width is None else f"width={width}"
        raise ConfigError(f"height and width go together; only {given} was given (or use res=)")


def check_study(name: str) -> None:
    """Raises ConfigError for a name that would lead out of the folder of results, or of reports."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"a study is named in letters, digits, '.', '_' and '-'; study={name!r} is not")


def infeasible(point: Point, model: ModelSpec, *, gpus: int) -> str | None:
    """Why this cell of the grid can not run on `gpus` GPUs, or None. A sweep may hold such cells."""
    if point.gpus > gpus:
        what = "CPU ranks" if point.topology == "cpu" else "GPUs"
        needed = f"ulysses={point.ulysses} x ring={point.ring} needs {point.gpus} {what}"
        return f"{needed}, and there are {gpus}; use at most that many"
    if model.heads % point.ulysses:
        divisors = [str(u) for u in range(1, model.heads + 1) if model.heads % u == 0]
        return f"{model.heads} heads cannot be split over ulysses={point.ulysses}; use {either(divisors)}"
    if point.engine == "stock" and point.gpus > 1:
        return "engine=stock is plain diffusers on one GPU; use engine=usp for several"
    rows = point.height // VAE_SCALE
    if point.vae in SHARED_VAES and point.gpus > rows:
        return f"a parallel VAE needs a row of latents a GPU: {point.height}px has {rows}, for {point.gpus} GPUs"
    texts = point.text_tokens if point.engine != "usp" else point.gpus  # its ranks may hold image tokens alone
    tokens = min(point.image_tokens, texts)
    if point.gpus > tokens:
        return f"every GPU needs a token of text and of image: {tokens} of them can not be split over {point.gpus} GPUs"
    return None


def lacking(cfg: Config) -> str | None:
    """What the engine lacks for this execution or VAE, as its file in `conf/engine/` says, or rungs to leave out, and
    what CPU ranks lack; None when nothing.

    A cell of a grid may ask for it: it becomes an infeasible record.
    """
    engine = cfg.engine
    for knob, asked in (("execution", execution_of(cfg)), ("vae", vae_of(cfg))):
        offered = [str(option) for option in engine[f"{knob}s"]]
        if asked not in offered:
            return f"engine={engine['name']} has no {knob}={asked}; use {', '.join(offered)}, or engine=usp"
    if cfg.memory_cap_gb is not None and cfg.topology["name"] == "cpu":
        return f"memory_cap_gb={cfg.memory_cap_gb:g} caps a GPU's allocator, and topology=cpu has none; use null"
    if rungs.checked(cfg.without) and engine["name"] != rungs.ENGINE:
        return f"engine={engine['name']} runs whole, without={cfg.without} is for engine=usp alone; use without=none"
    return None


def check_available(cfg: Config, point: Point) -> None:
    """What a measured point needs from outside: its packages and its weights. Raises UserError; imports neither."""
    chosen = ((f"engine={point.engine}", cfg.engine), (f"vae={point.vae}", cfg.vae))
    needed = [(what, module, group.get("extra")) for what, group in chosen for module in group.get("modules") or []]
    if point.attention in ATTENTION_MODULES:
        needed.append((f"attention={point.attention}", ATTENTION_MODULES[point.attention], "flash"))
    for what, module, extra in needed:
        if find_spec(module) is None:
            raise MissingExtraError(
                f"{what} needs the package {module}, which is not installed; pip install 'xdit_bench[{extra}]'"
            )
    check_weights(point.weights)


def check_weights(weights: str) -> None:
    """`random`, a hub id `owner/name`, or a folder with a diffusers pipeline in safetensors. Raises WeightsError."""
    if weights == "random":
        return
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        if weights.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
            raise WeightsError(
                f"weights is `random`, a hub id such as black-forest-labs/FLUX.1-schnell, or a folder; "
                f"{weights!r} is none of them"
            )
        return
    missing = [part for part in PIPELINE_PARTS if not list((folder / part).glob("*.safetensors"))]
    if missing:
        raise WeightsError(
            f"a weights folder holds {', '.join(PIPELINE_PARTS)} with safetensors files; {weights} lacks "
            f"{', '.join(missing)}; download the whole pipeline or use weights=random"
        )


def _size(cfg: Config, size_typed: bool) -> tuple[int, int]:
    check_together(cfg.height, cfg.width)
    if cfg.height is None or cfg.width is None:
        sides = {"res": cfg.res}
    elif size_typed:
        raise ConfigError(
            f"an image has one size: give res={cfg.res}, or height={cfg.height} width={cfg.width}, not both"
        )
    else:
        sides = {"height": cfg.height, "width": cfg.width}
    for name, side in sides.items():
        check_side(name, side)
    values = list(sides.values())
    return values[0], values[-1]


def _at_least(name: str, value: float, low: float) -> None:
    if value < low:
        raise ConfigError(f"{name} must be at least {low}; got {value}")


def _at_most(name: str, value: float, high: float) -> None:
    if value > high:
        raise ConfigError(f"{name} must be at most {high}; got {value}")


def _check_frontier(height: int, width: int) -> None:
    if height != width:
        raise ConfigError(f"run.frontier searches square sizes; height={height} width={width} is none, give res= alone")
    if height % FRONTIER_STEP:
        below = max(FRONTIER_STEP, height - height % FRONTIER_STEP)
        raise ConfigError(
            f"run.frontier searches sizes in steps of {FRONTIER_STEP} pixels up to res; res={height} is no multiple of "
            f"{FRONTIER_STEP}, use {below} or {below + FRONTIER_STEP}"
        )


def _check_measure(measure: MeasureConfig) -> None:
    _at_least("measure.warmup", measure.warmup, 0)
    _at_least("measure.repeats", measure.repeats, 1)
    _at_least("measure.max_repeats", measure.max_repeats, measure.repeats)
    if not 0 < measure.precision < 1:
        raise ConfigError(f"measure.precision is a share between 0 and 1, such as 0.01; got {measure.precision}")
    if measure.time_cap_s <= 0:
        raise ConfigError(f"measure.time_cap_s must be above 0 seconds; got {measure.time_cap_s}")


def _check_run(run: RunConfig) -> None:
    if run.deadline_s is not None and run.deadline_s <= 0:
        raise ConfigError(f"run.deadline_s must be above 0 seconds, or null; got {run.deadline_s}")
    if run.isolation not in ("pool", "point"):
        raise ConfigError(f"run.isolation is pool or point; got {run.isolation!r}")
    if not 0 <= run.recheck <= 1:
        raise ConfigError(f"run.recheck is a share between 0 and 1; got {run.recheck}")
