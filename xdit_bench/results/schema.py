"""What a record is: its keys, statuses, metrics and units. Owns nothing on disk (see `store`).

record = Record(run_id="…", study="quickstart", source="measured", status="ok", point=point.to_dict())
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from xdit_bench.errors import ResultsError

SCHEMA_VERSION: Final = 1
# samples that an interval needs: the range of four holds the median in 87 of 100 cases, that of five in 94
FEWEST_SAMPLES: Final = 5

STATUSES: Final = ("ok", "oom", "infeasible", "timeout", "crashed", "unstable", "incorrect", "skipped")
SOURCES: Final = ("measured", "predicted", "published")
STAGES: Final = ("text", "denoise", "vae")
POINT_KEYS: Final = (
    "model", "res", "height", "width", "steps", "text_tokens", "ulysses", "ring", "gpus", "engine", "execution",
    "attention", "vae", "dtype", "weights", "seed", "topology", "transport",
)  # fmt: skip

_COUNTS: Final = ("height", "width", "text_tokens", "ulysses", "ring", "gpus")
_OBJECTS: Final = (
    "latency_s", "step_s", "memory", "comm", "telemetry", "parity", "attribution", "failure", "machine", "software",
)  # fmt: skip
_NEEDED: Final = ("run_id", "study")
_TEXTS: Final = ("run_id", "study", "reason", "time", "command")


@dataclass(frozen=True)
class Metric:
    """A number a reader compares, of which less is better: where it stands in a record, and its unit."""

    path: str
    unit: str
    label: str


METRICS: Final = {
    "total_s": Metric("latency_s.total.median", "s", "Latency of one image"),
    "text_s": Metric("latency_s.text.median", "s", "Text encoders"),
    "denoise_s": Metric("latency_s.denoise.median", "s", "Denoising, all steps"),
    "vae_s": Metric("latency_s.vae.median", "s", "VAE decode"),
    "step_s": Metric("step_s.median", "s", "One denoising step"),
    "peak_bytes": Metric("memory.peak_bytes", "bytes", "Peak memory of the fullest GPU"),
    "energy_j": Metric("telemetry.energy_j_per_image", "J", "Energy of one image"),
    "parity_l2": Metric("parity.latents_rel_l2", "1", "Relative L2 distance of the latents"),
}


@dataclass
class Record:
    """One point's outcome: one line of `records.jsonl`.

    A statistics entry (`latency_s.total`, `step_s`, …) is
    `{median, p10, p90, ci95: [low, high], samples: [...]}`, seconds; a predicted one has `median`,
    `low` and `high` and no samples. `step_s` is denoise over steps. Memory is in bytes. A point of 0 steps is a
    decode alone: its latencies are `vae` and `total`, it has no step, and it is compared with no whole image.

    `failure` holds the facts behind `reason`: stage, rank, bytes_asked, bytes_free, last_collective, log_tail.
    `attribution` splits a step by what the device did (measured) or by term of the model (predicted).
    `command` is the line that was typed. `warnings` are sentences for the report's first lines.
    """

    run_id: str
    study: str
    source: str
    status: str
    point: dict[str, Any]
    reason: str = ""
    time: str = ""
    latency_s: dict[str, dict[str, Any]] = field(default_factory=dict)
    step_s: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    comm: dict[str, Any] = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    attribution: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    software: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.time:
            self.time = datetime.now(UTC).isoformat(timespec="milliseconds")
        validate(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, `schema` first."""
        as_dict = dataclasses.asdict(self)
        return {"schema": as_dict.pop("schema"), **as_dict}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """Reads a line's object; unknown keys of the same schema are dropped. Raises ResultsError."""
        validate(data)
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    @property
    def total_s(self) -> float | None:
        """Median latency of one image in seconds, or None where the point has none."""
        median = self.latency_s.get("total", {}).get("median")
        return float(median) if isinstance(median, int | float) else None

    @property
    def took(self) -> str:
        """`0.3427 s an image`, for a line of progress, a prediction with its span; empty where the point has no time."""
        if not self.total_s:
            return ""
        low, high = interval(self.latency_s["total"]) if self.source == "predicted" else (None, None)
        span = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
        return f"{self.total_s:.4g} s {'an image' if self.point['steps'] else 'a decode'}{span}"

    @property
    def fits(self) -> bool | None:
        """Whether the point's size fits in memory, slowed by allocator retries or not; None where it did not show.

        A point that throttled (unstable) ran to its end all the same.
        """
        return {"ok": True, "unstable": True, "oom": False}.get(self.status)

    @property
    def fingerprint(self) -> str:
        """Hash of the machine's kind; records of unequal fingerprints never share a curve."""
        return str(self.machine.get("fingerprint", ""))


def validate(data: dict[str, Any]) -> None:
    """Raises ResultsError with rule, value and remedy when `data` is not a record of this schema."""
    version = data.get("schema")
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"a record must have schema {SCHEMA_VERSION}, this one has {version!r}; read it with the version of "
            f"xdit_bench that wrote it, or move the file away and measure again"
        )
    for key, allowed in (("status", STATUSES), ("source", SOURCES)):
        if data.get(key) not in allowed:
            raise ResultsError(f"a record's {key} must be one of {', '.join(allowed)}; this one has {data.get(key)!r}")
    point = data.get("point")
    if not isinstance(point, dict) or any(key not in point for key in POINT_KEYS):
        missing = [key for key in POINT_KEYS if key not in (point if isinstance(point, dict) else {})]
        raise ResultsError(f"a record's point must hold {', '.join(missing)}; this one does not")
    _check_types(data, point)
    if data["status"] == "ok":
        total = (data.get("latency_s") or {}).get("total", {}).get("median")
        if not isinstance(total, int | float) or not math.isfinite(total) or total <= 0:
            raise ResultsError(
                f"an ok record's latency_s.total.median must be a positive number of seconds; this one has {total!r}"
            )
    elif not data.get("reason"):
        raise ResultsError(f"a record that is {data['status']} must say why in `reason`")


def _check_types(data: dict[str, Any], point: dict[str, Any]) -> None:
    """A key of another kind is refused here, by name, and not where it is read."""
    for key, least in (*((key, 1) for key in _COUNTS), ("steps", 0)):
        if isinstance(point[key], bool) or not isinstance(point[key], int) or point[key] < least:
            raise ResultsError(
                f"a record's point.{key} must be a whole number above {least - 1}; this one has {point[key]!r}"
            )
    wrong = [key for key in _OBJECTS if not isinstance(data.get(key, {}), dict)]
    if not wrong:
        wrong = [f"latency_s.{key}" for key, value in data.get("latency_s", {}).items() if not isinstance(value, dict)]
    if wrong:
        raise ResultsError(f"a record's {wrong[0]} must be an object; this one has {dig(data, wrong[0])!r}")
    for key in _TEXTS:
        if not isinstance(data.get(key, None if key in _NEEDED else ""), str):
            raise ResultsError(f"a record's {key} must be text; this one has {data.get(key)!r}")
    try:
        datetime.fromisoformat(data.get("time") or "1970-01-01")
    except ValueError as error:
        raise ResultsError(
            f"a record's time must be a date and time in ISO 8601; this one has {data['time']!r}"
        ) from error
    if not isinstance(data.get("warnings", []), list | tuple):
        raise ResultsError(f"a record's warnings must be a list; this one has {data['warnings']!r}")


def interval(statistics: Any) -> tuple[Any, Any]:
    """Low and high end of a measured median's 95 % interval, or of a prediction's span. None of both where there is
    neither: of fewer than five samples even the whole range holds the median less surely (`measure.stats`)."""
    if not isinstance(statistics, dict):
        return None, None
    pair, samples = statistics.get("ci95"), statistics.get("samples")
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return statistics.get("low"), statistics.get("high")
    few = isinstance(samples, list | tuple) and len(samples) < FEWEST_SAMPLES
    return (None, None) if few else (pair[0], pair[1])


def dig(data: Any, path: str) -> Any:
    """What stands at a dotted path of keys and of numbers in lists, or None."""
    for key in path.split("."):
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list | tuple) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        else:
            return None
    return data
