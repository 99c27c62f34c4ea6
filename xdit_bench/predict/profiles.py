"""What each engine does differently, as counts: how it shards text, exchanges, launches and decodes.

Owns the table of engine profiles. Counts come from reading the engine's code (kernels, copies, collectives a block), never
from fitting a latency; a machine's speeds stand in its topology file. A new engine is one entry.

    profile = find("xdit_2024", "eager")
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdit_bench.errors import Infeasible


@dataclass(frozen=True)
class VaeProfile:
    """How an engine decodes. Bytes a pixel are peaks beyond the weights, for 256 channels at full resolution."""

    bytes_per_pixel: float = 2436.0  # plain diffusers, cuDNN 9.19: 38.1 GiB at 4096px
    parallel_extra_bytes: float = 512.0  # the band's padded copy, 256 channels of bf16, divided over the ranks
    mid_sharded: bool = False  # the mid block's attention is shared out, else every rank computes all of it
    cold: bool = False  # the published times hold a decode that was not warmed up
    to_host_s_per_pixel: float = 0.3e-9  # uint8 over PCIe
    index_limit: bool = False  # cuDNN before 9.3 refused convolutions of more than 2**31 - 1 elements
    fallback_bytes_per_pixel: float = 5760.0  # what PyTorch then used instead
    exchanges: int = 40  # collectives of a parallel decode: one a convolution or norm


@dataclass(frozen=True)
class EngineProfile:
    """Counts a block (`double`, `single`) unless said otherwise. A row is one token's bf16 hidden state.

    `text_sharded` says whether text tokens are shared out like image tokens or repeated on every rank.
    `exchanges` are the all-to-alls around one attention, each by how many rows a token it moves.
    `overlap` is the share of a ring step's attention behind which its transfer hides.
    """

    name: str
    execution: str
    text_sharded: bool
    rows: tuple[float, float]
    kernels: tuple[float, float]
    host_ops: tuple[float, float]
    exchanges: tuple[int, ...] = (1, 1, 1, 1)
    ops_per_collective: float = 15.0
    ops_per_ring_step: float = 45.0
    pack_rows: float = 4.0  # copies before and after an exchange, rows read and written a row moved
    merge_rows: float = 12.0  # merging a partial attention output in fp32
    overlap: float = 0.5
    modulation_once: bool = False  # for all steps at once, before the loop
    fused_projections: bool = False  # one GEMM for q, k and v (and the MLP of a single block)
    fused_elementwise: bool = False  # elementwise kernels run at streaming speed
    attention: tuple[str, ...] = ("cudnn", "flash")  # kernels `auto` picks from, best first
    max_gpus: int | None = None
    vae: VaeProfile = VaeProfile()


# kernels and rows of eager diffusers blocks: counted in a profile of a double and of a single block; host_ops adds
# views, dispatch and Python to the launches, in units of the cheapest launch (topology host.op_s)
_EAGER = EngineProfile(
    "eager", "eager", text_sharded=True, rows=(110, 103), kernels=(92, 44), host_ops=(240, 115)
)  # fmt: skip
_COMPILED = replace(
    _EAGER, execution="compile", rows=(27, 20), kernels=(24, 11), host_ops=(45, 25), merge_rows=6.0,
    fused_elementwise=True,
)  # fmt: skip
_GRAPH = replace(_COMPILED, execution="graph", host_ops=(0, 0), ops_per_collective=0.0, ops_per_ring_step=0.0)
_VAE_2024 = VaeProfile(
    bytes_per_pixel=2948.0, cold=True, to_host_s_per_pixel=25e-9, index_limit=True
)  # fmt: skip
_2024 = {"name": "xdit_2024", "text_sharded": False, "attention": ("flash",), "vae": _VAE_2024}

PROFILES: dict[tuple[str, str], EngineProfile] = {
    (profile.name, profile.execution): profile
    for profile in (
        replace(_EAGER, **_2024),  # type: ignore[arg-type]
        replace(_COMPILED, **_2024),  # type: ignore[arg-type]
        replace(_EAGER, name="stock", max_gpus=1),
        replace(_COMPILED, name="stock", max_gpus=1),
        replace(_EAGER, name="diffusers"),
        replace(_COMPILED, name="diffusers"),
        replace(_EAGER, name="usp", modulation_once=True, vae=VaeProfile(mid_sharded=True)),
        replace(_COMPILED, name="usp", modulation_once=True, vae=VaeProfile(mid_sharded=True)),
        replace(_GRAPH, name="usp", modulation_once=True, vae=VaeProfile(mid_sharded=True)),
    )
}


def find(engine: str, execution: str) -> EngineProfile:
    """The profile of an engine's execution. Raises Infeasible naming what can be predicted instead."""
    profile = PROFILES.get((engine, execution))
    if profile is None:
        known = sorted({f"{name}/{run}" for name, run in PROFILES})
        raise Infeasible(
            f"the model has no profile of engine={engine} execution={execution}; it knows {', '.join(known)}"
        )
    return profile
