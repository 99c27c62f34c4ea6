"""Reference figures from `results/published/*.csv`, as points with the seconds or gigabytes that were published.

Owns what a column means. A `vae` of `cold` is a plain decode that was not warmed up, `no` none; columns left out
have the published engine's values (FLUX.1-schnell, xdit_2024, eager, 256 text tokens).

    for row in read_latencies(data_dir("published") / "flux_schnell_seed.csv"): row.point, row.seconds
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xdit_bench.config import ModelSpec, Point
from xdit_bench.errors import ResultsError, XditBenchError
from xdit_bench.predict.points import load_model, make_point

MODEL = "flux_schnell"  # of a file that names none
VAE = {"cold": "single", "no": "none", "yes": "parallel", "single": "single", "parallel": "parallel", "none": "none"}


@dataclass(frozen=True)
class Latency:
    """A published time of one image."""

    point: Point
    model: ModelSpec
    seconds: float


@dataclass(frozen=True)
class Peak:
    """A published peak of the fullest GPU, in bytes."""

    point: Point
    model: ModelSpec
    bytes: float


def is_memory(path: Path) -> bool:
    """Whether a file holds peaks of memory instead of latencies."""
    return "peak_gb" in next((list(row) for _, row in rows(path)), [])


def read_latencies(path: Path) -> list[Latency]:
    """Raises ResultsError naming file, line and column."""
    found = []
    for line, row in rows(path):
        try:
            model = load_model(row.get("model") or MODEL)
            point = make_point(
                model,
                topology=row["topology"],
                height=int(row["res"]),
                width=int(row["res"]),
                ulysses=int(row["ulysses"]),
                ring=int(row["ring"]),
                vae=VAE[row["vae"]],
                engine=row.get("engine") or "xdit_2024",
                execution=row.get("execution") or "eager",
                text_tokens=int(row.get("text_tokens") or 256),
                steps=int(row.get("steps") or model.steps),
            )
            found.append(Latency(point, model, _positive(row["latency_s"])))
        except (KeyError, ValueError, XditBenchError) as error:
            raise _bad(path, line, error) from error
    return found


def read_peaks(path: Path) -> list[Peak]:
    """Peaks of the study's A100s: one GPU where the note says so, else all eight. Raises ResultsError."""
    found, model = [], load_model(MODEL)
    for line, row in rows(path):
        try:
            side, note = int(row["res"]), row["note"]
            vae = "none" if "without the VAE" in note else VAE[row["parallel_vae"]].replace("none", "single")
            point = make_point(
                model, topology="a100_nvlink", height=side, width=side, ulysses=1 if note.startswith("1 GPU") else 8,
                vae=vae, engine="xdit_2024", text_tokens=256,
            )  # fmt: skip
            found.append(Peak(point, model, 1e9 * _positive(row["peak_gb"])))
        except (KeyError, ValueError) as error:
            raise _bad(path, line, error) from error
    return found


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows; lines that begin with # are comments."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"published figures {path} can not be read ({error})") from error
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(line for _, line in kept)
    for (number, _), row in zip(kept[1:], reader, strict=False):
        yield number, {str(key): (value or "").strip() for key, value in row.items()}


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(f"{text} is not above 0")
    return number


def _bad(path: Path, line: int, error: Exception) -> ResultsError:
    what = f"column {error} is missing or unknown" if isinstance(error, KeyError) else str(error)
    return ResultsError(f"{path}, line {line}: {what}; see results/published/flux_schnell_seed.csv for the form")
