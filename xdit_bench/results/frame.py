"""A study as a pandas DataFrame: one row a record, documented columns.

Owns the columns' names; reads through `store`. pandas is imported on use, so that `results.schema` stays light.

    frame = load("results/h200x2")
    frame[frame.ok].pivot_table(values="total_s", index="gpus", columns="res")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xdit_bench.results.schema import METRICS, POINT_KEYS, STAGES, Record, dig, interval
from xdit_bench.results.store import newest, read_records

if TYPE_CHECKING:
    from pandas import DataFrame

POINT_COLUMNS: Final = (*POINT_KEYS, "prompt", "memory_cap_gb")
QUANTILES: Final = {"total_p10_s": "latency_s.total.p10", "total_p90_s": "latency_s.total.p90"}
ENDS: Final = ("total_low_s", "total_high_s")  # of the total's interval
OF_AN_IMAGE: Final = (
    *(f"{stage}_s" for stage in (*STAGES, "total", "step")), "energy_j", "utilisation", "comm_s_per_step",
)  # fmt: skip
DETAILS: Final = {
    "parameters_bytes": "memory.parameters_bytes",
    "cap_bytes": "memory.cap_bytes",
    "alloc_retries": "memory.alloc_retries",
    "watts": "telemetry.watts",
    "sm_mhz": "telemetry.sm_mhz",
    "throttled_images": "telemetry.throttled_images",
    "image_max_abs": "parity.image_max_abs",
    "fp32_l2": "parity.fp32_rel_l2",
    "comm_s_per_step": "comm.seconds_per_step",
    "comm_bytes_per_step": "comm.bytes_per_step",
    "utilisation": "attribution.utilisation",
    "capacity_bytes": "machine.capacity_bytes",
}
OVER_GPUS: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    "watts": sum,
    "sm_mhz": min,
}  # lists of a number a GPU, as one number
TEXTS: Final = {
    "memory_verdict": "memory.verdict",
    "gpu": "machine.gpu",
    "device": "machine.device",
    "driver": "machine.driver",
    "without": "point.without",
    "attention_chosen": "telemetry.choices.attention",
}


def load(study_dir: str | Path, *, all_records: bool = False) -> DataFrame:
    """The records of `results/<study>` (or of a records file) as a DataFrame, one row a record.

    Columns, in this order:

    - `run_id study source status ok reason time fingerprint`: text, `ok` is a bool;
    - the point: `model res height width steps text_tokens ulysses ring gpus engine execution attention vae dtype
      weights seed topology transport prompt memory_cap_gb` (`res` is empty for a picture that is not square);
    - every metric of `results.schema.METRICS`: `total_s text_s denoise_s vae_s step_s` (seconds, medians),
      `peak_bytes`, `energy_j`, `parity_l2`;
    - `total_p10_s total_p90_s total_low_s total_high_s` (seconds; low and high are the 95 % interval, empty of a single
      image, or the span of a prediction), `parameters_bytes cap_bytes alloc_retries watts sm_mhz throttled_images image_max_abs
      fp32_l2 comm_s_per_step comm_bytes_per_step utilisation capacity_bytes` (`watts` of all GPUs together, `sm_mhz` of
      the slowest, `utilisation` the share of the GPUs' bf16 peak that a step's model FLOPs reached);
    - `memory_verdict gpu device driver without attention_chosen`: text; `without` names what our engine left out: keep
      such rows apart; `attention_chosen` is the kernel that `attention=auto` came to;
    - `samples`: a list of raw seconds of the total, empty for a prediction or a failure.

    A failure is a row with NaN metrics, never a missing one. The newest record of each point on each machine is kept,
    as in a report; `all_records=True` keeps every line. Raises ResultsError when the folder holds no readable records.
    """
    records = read_records(Path(study_dir))
    return to_frame(records if all_records else newest(records), samples=True)


def to_frame(records: Iterable[Record], *, samples: bool = False) -> DataFrame:
    """Records as `load` describes; without `samples` every cell is a scalar, for CSV and Parquet."""
    import pandas

    rows = [_row(record, samples) for record in records]
    columns = list(_columns()) + (["samples"] if samples else [])
    return pandas.DataFrame(rows, columns=columns)


def _columns() -> tuple[str, ...]:
    heads = ("run_id", "study", "source", "status", "ok", "reason", "time", "fingerprint")
    return (*heads, *POINT_COLUMNS, *METRICS, *QUANTILES, *ENDS, *DETAILS, *TEXTS)


def _row(record: Record, samples: bool) -> dict[str, Any]:
    data = vars(record)  # read only: a deep copy of each record takes longer than all the rest
    row: dict[str, Any] = {key: data[key] for key in ("run_id", "study", "source", "status", "reason", "time")}
    row["ok"] = record.status == "ok" and record.parity.get("ok") is not False
    row["fingerprint"] = record.fingerprint
    row |= {key: record.point.get(key) for key in POINT_COLUMNS}
    paths = {name: metric.path for name, metric in METRICS.items()} | QUANTILES | DETAILS
    row |= {name: _number(_over_gpus(name, dig(data, path))) for name, path in paths.items()}
    row |= zip(ENDS, map(_number, interval(record.latency_s.get("total"))), strict=True)
    row |= {name: _text(dig(data, path)) for name, path in TEXTS.items()}
    if samples:
        found = dig(data, "latency_s.total.samples")
        row["samples"] = list(found) if isinstance(found, list) else []
    if not row["ok"]:  # a failed point may hold what it got to; that is no image's time
        row |= dict.fromkeys((*OF_AN_IMAGE, *QUANTILES, *ENDS), math.nan) | ({"samples": []} if samples else {})
    return row


def _over_gpus(name: str, value: Any) -> Any:
    fold = OVER_GPUS.get(name)
    if fold is None or not isinstance(value, list) or not value:
        return value
    return fold(_number(item) for item in value)


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else math.nan


def _text(value: Any) -> str:
    return "" if value is None else str(value)
