"""Made-up records for tests of reports and comparisons. Nothing here was measured.

record(res=1024, ulysses=2) is one; study() is a whole one whose times follow a simple law.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from typing import Any

from xdit_bench.results.schema import Record
from xdit_bench.rungs import RUNGS, settled

H200 = {
    "fingerprint": "h200-aaaa", "device": "cuda", "gpu": "NVIDIA H200", "gpus": 8, "capacity_bytes": 150_754_820_096,
    "driver": "570.1", "links": "NV18",
}  # fmt: skip
CPU = {"fingerprint": "cpu-bbbb", "device": "cpu", "gpus": 8}
POINT: dict[str, Any] = {
    "model": "flux_schnell", "res": 1024, "height": 1024, "width": 1024, "steps": 4, "text_tokens": 512, "ulysses": 1,
    "ring": 1, "gpus": 1, "engine": "usp", "execution": "eager", "attention": "auto", "vae": "parallel",
    "dtype": "bf16", "weights": "random", "seed": 0, "topology": "h200_nvlink", "transport": "p2p",
    "prompt": "a harbor", "memory_cap_gb": None,
}  # fmt: skip

SPLITS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (8, 1), (4, 2), (2, 4), (1, 8))


def record(
    total: float | None = 1.0,
    *,
    status: str = "ok",
    source: str = "measured",
    machine: dict[str, Any] | None = None,
    samples: list[float] | None = None,
    extra: dict[str, Any] | None = None,
    **point: Any,
) -> Record:
    """One record; keywords beyond these are the point's."""
    merged = {**POINT, **point}
    if "res" in point and "height" not in point:
        merged["height"] = merged["width"] = point["res"]
    merged["res"] = merged["height"] if merged["height"] == merged["width"] else None
    merged["gpus"] = merged["ulysses"] * merged["ring"]
    fields: dict[str, Any] = {
        "run_id": hashlib.sha256(repr(sorted(merged.items())).encode()).hexdigest()[:16],
        "study": "synthetic",
        "time": "2026-11-01T12:00:00.000+00:00",
        "machine": dict(H200 if machine is None else machine),
        "software": {"torch": "2.13.0", "code": "c0de"},
    }
    if status == "ok" and total is not None and not merged["steps"]:  # a decode alone
        fields["latency_s"] = {stage: {"median": total, "samples": [total]} for stage in ("vae", "total")}
    elif status == "ok" and total is not None:
        fields["latency_s"] = latencies(total, source, samples, merged["vae"])
        denoise = fields["latency_s"]["denoise"]["median"]
        fields["step_s"] = {"median": denoise / merged["steps"]}
    else:
        fields["reason"] = f"{status}: made up for a test"
    fields |= extra or {}
    return Record(status=status, source=source, point=merged, **fields)


def latencies(total: float, source: str, samples: list[float] | None, vae: str) -> dict[str, Any]:
    """Statistics of a total and its stages."""
    if source == "predicted":
        whole: dict[str, Any] = {"low": 0.95 * total, "high": 1.05 * total}
    else:
        samples = samples or [total * (1 + 0.002 * (i % 5 - 2)) for i in range(10)]
        total = statistics.median(samples)
        whole = {"p10": min(samples), "p90": max(samples), "ci95": [0.997 * total, 1.003 * total], "samples": samples}
    shares = {"text": 0.04, "denoise": 0.81, "vae": 0.15} if vae != "none" else {"text": 0.05, "denoise": 0.95}
    return {"total": {"median": total, **whole}} | {stage: {"median": total * share} for stage, share in shares.items()}


def study(
    *,
    sizes: tuple[int, ...] = (1024, 2048, 4096),
    splits: tuple[tuple[int, int], ...] = (
        (1, 1),
        (2, 1),
        (1, 2),
        (4, 1),
        (2, 2),
        (1, 4),
        (8, 1),
        (4, 2),
        (2, 4),
        (1, 8),
    ),
    oom_at: int = 4096,
    source: str = "measured",
    machine: dict[str, Any] | None = None,
    scale: float = 1.0,
    **point: Any,
) -> list[Record]:
    """Every split at every size beside the stock baseline; one GPU runs out of memory at `oom_at`."""
    made: list[Record] = []
    for res in sizes:
        work = scale * (0.15 * (res / 1024) ** 2 + 0.58 * (res / 1024) ** 2.6)
        for engine, (u, r) in [("stock", (1, 1)), *(("usp", split) for split in splits)]:
            vae = "single" if engine == "stock" else "parallel"
            total = work * (1.12 if engine == "stock" else 1) / (u * r) + 0.05 * (u * r - 1) ** 0.5 + 0.015 * (r - 1)
            if res >= oom_at and u * r == 1:
                made.append(oom(res=res, engine=engine, source=source, machine=machine, **{"vae": vae, **point}))
                continue
            extra = {
                "memory": {
                    "verdict": "fits", "parameters_bytes": 33.75e9,
                    "peak_bytes": 33.75e9 + 3.2e9 * (res / 1024) ** 2 / (u * r), "alloc_retries": 0,
                },
                "telemetry": {"energy_j_per_image": 600 * total * (u * r) ** 0.9},
                "parity": {"latents_rel_l2": 0.004 * (u * r - 1), "ok": True, "reference": "stock",
                           "latents_bound": 5e-2},
            }  # fmt: skip
            made.append(
                record(
                    total,
                    source=source,
                    machine=machine,
                    extra=extra,
                    res=res,
                    engine=engine,
                    ulysses=u,
                    ring=r,
                    **{"vae": vae, **point},
                )
            )
    return made


SAVED = {
    "graph": 0.20, "fused": 0.22, "gelu_epilogue": 0.03, "modulation_once": 0.02, "shard_modulation": 0.002,
    "shard_text": 0.0, "overlap": 0.05, "keys_first": 0.01, "symmetric": 0.04, "gathered": 0.05,
    "kernel": -0.01,
}  # fmt: skip


def ladder(
    sizes: tuple[int, ...] = (1024, 2048), splits: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (1, 2)), **more: Any
) -> list[Record]:
    """Our engine from plain to whole, a rung more a record, beside stock: each saves its share of the plain step."""
    made = {}
    for res in sizes:
        stock = record(0.9 * (res / 1024) ** 2.2, engine="stock", res=res, vae="none", **more)
        made[stock.run_id] = stock
        for u, r in splits:
            work = 0.8 * (res / 1024) ** 2.2 / (u * r) ** 0.9
            for k in range(len(RUNGS) + 1):
                place = {"ulysses": u, "ring": r, "transport": "p2p"}
                point = settled("graph", "auto", "+".join(tuple(RUNGS)[k:]), cpu=False, **place)  # type: ignore[arg-type]
                if not point["without"]:
                    del point["without"]
                work -= 0.8 * (res / 1024) ** 2.2 / (u * r) ** 0.9 * (SAVED[tuple(RUNGS)[k - 1]] if k else 0.0)
                peak = 40e9 - (3.2e9 if k > 4 else 0.0) - (4.6e9 if k > 5 else 0.0)
                extra = {"memory": {"verdict": "fits", "peak_bytes": peak, "alloc_retries": 0}}
                one = record(work, res=res, vae="none", extra=extra, **place, **point, **more)
                step = one.step_s["median"]
                one.step_s["ci95"] = [0.996 * step, 1.004 * step]
                made[one.run_id] = one  # what changes nothing in a split is one point, saved or not
    return list(made.values())


def frontier(tops: dict[tuple[float | None, int, str], int], top: int = 8192) -> list[Record]:
    """Searches for the largest square that fits, by cap, GPU count and VAE mode: `tops` says what they find."""
    made = []
    for (cap, gpus, vae), largest in tops.items():
        point = {"steps": 0, "vae": vae, "ulysses": gpus, "memory_cap_gb": cap}
        fits, fails = 0, top + 64
        size = top
        while True:
            if size <= largest:
                fits = size
                peak = 34e9 + 3e9 * (size / 1024) ** 2 / gpus
                made.append(
                    record(
                        0.04 * (size / 1024) ** 2 / gpus,
                        res=size,
                        **point,
                        extra={"memory": {"verdict": "fits", "peak_bytes": peak, "alloc_retries": 0}},
                    )
                )
            else:
                fails = size
                made.append(oom(res=size, **point))
            if fits == top or fails - fits <= 64:
                break
            size = fits + (fails - fits) // 128 * 64
    return made


def oom(**point: Any) -> Record:
    """A point that ran out of memory, with the facts behind it."""
    failure = {"stage": "vae", "rank": 0, "bytes_asked": 17_179_869_184, "bytes_free": 9_000_000_000}
    reason = "vae on rank 0 asked for 17.2 GB and 9.0 GB were free; use vae=parallel or more GPUs"
    return record(status="oom", extra={"failure": failure, "reason": reason}, **point)


def history(seed: int, *, median: float = 1.0, cv: float = 0.01, repeats: int = 10) -> list[float]:
    """Raw samples of one point with normal noise."""
    noise = random.Random(seed)
    return [median * (1 + noise.gauss(0, cv)) for _ in range(repeats)]
