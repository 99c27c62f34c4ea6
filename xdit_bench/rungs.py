"""The rungs of our engine's ladder: what makes it faster, one gain a rung, each of which can be left out of a point.

Owns their names, their order from the plain engine up, and where one changes nothing. `backends/usp.py` switches them
off; an engine that is the same under several names is one point.

    without = checked("overlap+fused")  # 'fused+overlap'; raises ConfigError for a name that is none
"""

from __future__ import annotations

from xdit_bench.errors import ConfigError, did_you_mean

ENGINE = "usp"  # the only one that can be taken apart
NONE = "none"
RUNGS = {
    "graph": "the whole loop as one CUDA graph",
    "fused": "Triton kernels for norm, RoPE and gates",
    "gelu_epilogue": "GELU in the epilogue of its product",
    "modulation_once": "modulation of all steps in one pass",
    "shard_modulation": "modulation weights shared out over the ranks",
    "shard_text": "T5's layers shared out over the ranks",
    "overlap": "exchanges run beside half of a block's MLP",
    "keys_first": "keys and values leave before queries are projected",
    "symmetric": "symmetric memory and copy engines in NCCL's place",
    "gathered": "a ring's keys gathered, where that is faster",
    "kernel": "attention kernel by shape; below it cuDNN's",
}
SEVERAL = ("shard_modulation", "shard_text", "overlap", "keys_first", "symmetric", "gathered")
GPU = ("fused", "gelu_epilogue", "symmetric", "gathered", "kernel")


def checked(without: str) -> str:
    """Rungs joined by '+' in the ladder's order, each once; empty for `none`. Raises ConfigError with the nearest."""
    named = [] if without in ("", NONE) else without.split("+")
    for name in named:
        if name not in RUNGS:
            rule = f"without names {', '.join(RUNGS)}, joined by '+', or none"
            raise ConfigError(f"{rule}; got {name!r}{did_you_mean(name, RUNGS)}")
    return "+".join(rung for rung in RUNGS if rung in named)


def settled(
    execution: str, attention: str, without: str, *, ulysses: int, ring: int, transport: str, cpu: bool
) -> dict[str, str]:
    """`execution`, `attention` and `without` of the engine that is left, under its one name.

    A graph left out is eager execution, and a kernel that is not chosen is cuDNN's. What makes no difference to the
    point is not left out: a ring's rungs without a ring, a GPU's on CPU ranks.
    """
    out = set(without.split("+")) if without else set()
    if "graph" in out and execution == "graph":
        execution = "eager"
    if "kernel" in out and attention == "auto" and not cpu:
        attention = "cudnn"
    idle = {"graph", "kernel"}
    if ulysses * ring == 1:
        idle |= set(SEVERAL)
    if cpu:
        idle |= set(GPU)
    if execution == "compile":
        idle |= {"fused", "gelu_epilogue"}
    if transport != "p2p":
        idle.add("symmetric")
    if ring == 1:
        idle.add("gathered")
    if "fused" in out:
        idle.add("gelu_epilogue")  # which is its own
    left = "+".join(rung for rung in RUNGS if rung in out - idle)
    return {"execution": execution, "attention": attention, "without": left}
