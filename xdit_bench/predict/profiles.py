"""What each engine does differently, as counts: how it shards text, exchanges, launches and decodes.

Owns the table of engine profiles. Counts come from reading the engine's code (kernels, copies, collectives a block),
never from fitting a latency; a machine's speeds stand in its topology file. A new engine is one entry.

    profile = find("xdit_2024", "eager")
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdit_bench.config import Point
from xdit_bench.errors import Infeasible


@dataclass(frozen=True)
class VaeProfile:
    """How an engine decodes, by default in DistVAE's bands. Bytes a pixel are peaks beyond the weights, for 256
    channels at full resolution.

    `plain_*` is diffusers' own decode on one GPU (vae=single, and a tile of vae=tiled), `band_*` a rank's share of
    vae=parallel, divided over the ranks.
    """

    plain_bytes_per_pixel: float = 2436.0  # cuDNN 9.19: 38.1 GiB at 4096px
    least_bytes_per_pixel: float = 3 * 512.0  # with no workspace: a residual block's input, its norm, its activation
    band_bytes_per_pixel: float = 2436.0 + 512.0  # DistVAE adds the band's padded copy: 256 channels of bf16
    band_least_bytes_per_pixel: float = 5 * 512.0  # with no workspace, padded copies too (2576 measured)
    band_bytes: float = 0.0  # and what does not grow with the image: weights laid out anew, tables, pixels' buffers
    chunks_bytes: float = 0.0  # and of the rows in work on one GPU; on several, chunks are half as large
    band_reserved: float = 1.75  # bytes the allocator reserves over those in use at a band's peak
    band_least_reserved: float = 1.09  # and at the least, as of a plain decode (memory.LEAST_RESERVED)
    banded_alone: bool = False  # vae=parallel on one GPU runs the band code, else the plain decode
    channels_last: bool = False  # bands run as NHWC with fused norms (topology conv_nhwc, vae_attention_blocked)
    mid_sharded: bool = False  # the mid block's attention is shared out, else every rank computes all of it
    cold: bool = False  # the published times hold a decode that was not warmed up
    to_host_s_per_pixel: float = 0.3e-9  # uint8 over PCIe
    index_limit: bool = False  # cuDNN before 9.3 refused convolutions of more than 2**31 - 1 elements
    fallback_bytes_per_pixel: float = 5760.0  # what PyTorch then used instead
    exchanges: int = 40  # collectives of a parallel decode: one a convolution or norm
    ops_per_exchange: float = 25.0
    host_ops: float = 700.0  # launches of a decode, in units of the cheapest


@dataclass(frozen=True)
class EngineProfile:
    """Counts a block, double and single, unless said otherwise. A row is one token's bf16 hidden state.

    `text_sharded` says whether text tokens are shared out like image tokens or repeated on every rank.
    `exchanges` are the all-to-alls around one attention, each by how many rows a token it moves, the last one back.
    `overlap` is the share of a ring step's attention behind which NCCL's transfer hides. What copy engines move hides
    behind all that runs beside it (`hides_exchanges`: the halves of a single block's MLP, and the queries' projection
    of a double block, whose keys left first). NCCL's kernels do not: they find no free multiprocessor until the product
    beside them ends (traces of two H100s: 353 us of every single block at 2048px, a whole exchange).
    """

    name: str
    execution: str
    text_sharded: bool
    rows: tuple[float, float]
    kernels: tuple[float, float]
    host_ops: tuple[float, float]
    step_ops: float = 190.0  # and of a step outside its blocks: embeddings, RoPE's angles, the scheduler
    once_ops: float = 350.0  # and of what comes once an image, before its steps
    shared_ops: float = 0.0  # more a block on several ranks: parts that travel are computed and laid out apart
    exchanges: tuple[int, ...] = (1, 1, 1, 1)
    ops_per_collective: float = 25.0
    ops_per_put: float = 2.0  # one copy into a peer's symmetric memory
    ops_per_meeting: float = 12.0  # and what an exchange by such copies takes besides: two streams that wait, a barrier
    ops_per_ring: float = 100.0  # once a ring attention
    ops_per_ring_step: float = 25.0  # and a step of it
    ops_per_batch: float = 0.0  # and sends and receives of keys by NCCL, where the step does not count them
    pack_rows: float = 4.0  # copies before and after an exchange, rows read and written a row moved
    send_rows: float = 0.0  # and a token: what passes into the send buffer on top of `rows`
    join_rows: float = 0.0  # and of the permuting copy that joins the heads that came back
    merge_rows: float = 22.0  # merging a partial attention output in fp32, op by op
    overlap: float = 0.5
    spared: int = 0  # multiprocessors that FlashAttention-3 leaves to NCCL beside a ring step, to hide all of its hop
    hides_exchanges: bool = False
    symmetric: bool = False  # exchanges through symmetric memory between GPUs that reach each other, else NCCL
    ring_gathers: bool = False  # its ring gets all keys and values in one collective, and attends block by block
    gathered_bytes: float = 0.0  # of keys and values on a rank up to which it may gather all and attend once
    even_shares: bool = False  # computes another image where the GPUs do not divide image and text tokens
    even_hybrids: bool = False  # refuses Ulysses with a ring where they do not, and a kernel that is not in `attention`
    modulation_once: bool = False  # for all steps at once, before the loop
    shards_modulation: bool = False  # a rank holds its share of the modulation's weights alone
    shards_text: bool = False  # and its share of T5's layers, which run one rank after the other
    fused_projections: bool = False  # one product for q, k and v
    keys_first: bool = False  # on several ranks a double block's keys and values are projected, and leave, before q
    split_out: bool = False  # a single block's output projection of MLP and attention apart
    fused_elementwise: bool = False  # elementwise kernels run at streaming speed
    attention: tuple[str, ...] = ("cudnn", "flash")  # kernels `auto` picks from, best first
    text_graph: bool = False  # text encoders in CUDA graphs
    # moved a score of T5's attention: torch's plain one, in fp32 (52), since transformers' position bias is permuted,
    # which rules out a fused one and costs a sector of 32 bytes where it is read
    score_bytes: float = 84.0
    text_share: str = "text"  # the topology's share of what is counted of a T5 layer
    live_rows: float = 16.3  # hidden states a token alive at once; within 0.06 GB of four published A100 peaks
    max_gpus: int | None = None
    vae: VaeProfile = VaeProfile()


# Eager diffusers blocks: rows and kernels counted in a profile of each kind of block; host_ops adds views, dispatch
# and Python to the launches, in units of the cheapest launch (topology host.op_s): a single block is 115 by definition.
# Issued by both ranks of two H200s and two H100s at once, without waiting for the device, a block's launch cost taken
# before and after, models of FLUX.1's 57 blocks and a width of 512: a double block 204 units, a forward 8450, of which
# 190 outside the blocks (the scheduler's with it; what a pipeline does once an image was timed on a CPU). A functional
# collective of NCCL and its wait, two H200s issuing 150 of them at a unit of 5.6 to 6.2 us: all-to-all 131 and 174 us
# (26 units in the mean; torch.distributed's own 24 and 30 us), gathering 120 and 123 us (20 units). On torch's fake
# process group, where nothing is sent, they are 9 and 11 units, and all that diffusers does for one of its four
# exchanges is 17.
_EAGER = EngineProfile("", "eager", text_sharded=True, rows=(110, 103), kernels=(92, 44), host_ops=(204, 115))
# Compiled blocks: pointwise chains fused; a collective inside the graph costs its wrapper alone.
_COMPILED = replace(
    _EAGER, execution="compile", rows=(27, 20), kernels=(24, 11), host_ops=(45, 25), merge_rows=6.0,
    ops_per_collective=10.0, ops_per_ring=20.0, ops_per_ring_step=10.0, fused_elementwise=True,
    live_rows=11.7,  # peaks of 4096px on one H100 and two
)  # fmt: skip
_VAE_2024 = VaeProfile(
    plain_bytes_per_pixel=2948.0, band_bytes_per_pixel=2948.0 + 512.0, cold=True, to_host_s_per_pixel=25e-9,
    index_limit=True,
)  # fmt: skip
# transformers of 2024 made bf16 scores by a product of their own, added the bias, and went through fp32 for the softmax
_THEN = {"score_bytes": 60.0, "vae": _VAE_2024}
# usp: fused kernels (norm with modulation and gate 4 rows a site, QK-norm with RoPE in place 4 rows, GELU in the
# product's epilogue; where heads are exchanged, values too pass into the send buffer: 2 rows more), keys with values in
# one exchange and queries in another, exchanges of single blocks beside their MLP. Its decode holds three slabs of a
# band, 640 bytes a pixel together, the pixels, and five chunks of 128 MiB, of 64 MiB on several GPUs. Slabs stay, so
# that little is wasted: below caps 4416 and 8000px on one GPU fitted in 1.013 times what was in use, 7808px on two in
# 1.034, and 7872px ran out of 1.017.
# Its launches were taken as diffusers' were: a step on one GPU 3200 to 3300 units, and 400 once an image; on two, keys
# gathered through symmetric memory 5300, heads exchanged 7250 (NCCL 7400), keys hop by hop 6100 (NCCL 7150), gathered
# by NCCL 6700. A copy into a peer's memory takes 15 us of a host at 7 us a unit.
_USP = EngineProfile(
    "usp", "eager", text_sharded=True, rows=(12, 8), kernels=(16, 9), host_ops=(71, 45), step_ops=140.0, once_ops=400.0,
    shared_ops=22.0, exchanges=(2, 1, 1), ops_per_collective=17.0, ops_per_ring=0.0, ops_per_ring_step=13.0,
    ops_per_batch=36.0, pack_rows=0.0, send_rows=2.0, join_rows=2.0, merge_rows=6.0, spared=16, hides_exchanges=True,
    symmetric=True, gathered_bytes=2**30, modulation_once=True, shards_modulation=True, shards_text=True,
    fused_projections=True, keys_first=True, split_out=True, fused_elementwise=True,
    live_rows=13.6,  # peaks of 4096px on one H100 and two
    attention=("fa3", "cudnn", "flash"), score_bytes=2.0,  # of T5's attention the position bias alone
    text_share="text_fused",
    vae=VaeProfile(
        band_bytes_per_pixel=643.0, band_least_bytes_per_pixel=643.0, band_bytes=0.25e9, chunks_bytes=5 * 2**27,
        band_reserved=1.1, band_least_reserved=1.01, banded_alone=True, channels_last=True, mid_sharded=True,
        host_ops=1500.0,
    ),
)  # fmt: skip
_CAPTURED = {  # inside a CUDA graph nothing is launched
    "host_ops": (0.0, 0.0), "step_ops": 0.0, "once_ops": 0.0, "shared_ops": 0.0, "ops_per_collective": 0.0,
    "ops_per_put": 0.0, "ops_per_meeting": 0.0, "ops_per_ring": 0.0, "ops_per_ring_step": 0.0, "ops_per_batch": 0.0,
}  # fmt: skip
_CAPTURED_VAE = replace(_USP.vae, host_ops=0.0, ops_per_exchange=0.0)


def _named(profile: EngineProfile, name: str, **changes: object) -> EngineProfile:
    return replace(profile, name=name, **changes)  # type: ignore[arg-type]


PROFILES: dict[tuple[str, str], EngineProfile] = {
    (profile.name, profile.execution): profile
    for profile in (
        _named(_EAGER, "xdit_2024", text_sharded=False, attention=("flash",), **_THEN),
        _named(_COMPILED, "xdit_2024", text_sharded=False, attention=("flash",), **_THEN),
        _named(_EAGER, "stock", max_gpus=1),
        _named(_COMPILED, "stock", max_gpus=1),
        # functional collectives, waited for one by one: 26 units and the 8 around it; its ring gathers all keys before
        # the first attention, 9 units more than nothing gathered takes, and NCCL's 15 over a fake group's
        _named(
            _EAGER,
            "diffusers",
            ops_per_collective=34.0,
            ops_per_ring=124.0,
            overlap=0.0,
            ring_gathers=True,
            even_hybrids=True,
        ),
        _named(_COMPILED, "diffusers", overlap=0.0, ring_gathers=True, even_hybrids=True),
        # q, k and v stacked, permuted and sent in one functional collective, permuted again on arrival (18 rows for 3),
        # the output permuted before and after (4 rows): 26 units and about 19 around it; torch's ring template gathers
        # keys beside the first attention
        _named(
            _EAGER,
            "xfuser",
            exchanges=(3, 1),
            pack_rows=5.5,
            ops_per_collective=45.0,
            even_shares=True,
            ring_gathers=True,
        ),
        # the whole transformer in CUDA graphs (reduce-overhead), stacking and permuting fused into one copy
        _named(_COMPILED, "xfuser", exchanges=(3, 1), pack_rows=4.0, even_shares=True, ring_gathers=True, **_CAPTURED),
        _USP,
        replace(_USP, execution="compile", rows=(20, 16)),  # torch's GELU is a pass of its own over 4 h: 8 rows
        replace(_USP, execution="graph", text_graph=True, vae=_CAPTURED_VAE, **_CAPTURED),  # type: ignore[arg-type]
    )
}


PLAIN_VAE = VaeProfile()  # diffusers' own decoder, and DistVAE's, which wraps it


def vae_profile(point: Point, profile: EngineProfile) -> VaeProfile:
    """How a point decodes: DistVAE's way beside any engine, else the engine's own."""
    return PLAIN_VAE if point.vae == "distvae" else profile.vae


def find(engine: str, execution: str) -> EngineProfile:
    """The profile of an engine's execution. Raises Infeasible naming what can be predicted instead."""
    profile = PROFILES.get((engine, execution))
    if profile is None:
        known = ", ".join(sorted(f"{name}/{run}" for name, run in PROFILES))
        raise Infeasible(f"the model has no profile of engine={engine} execution={execution}; it knows {known}")
    return profile


def op_s(block_launch_s: float) -> float:
    """Seconds an operation (topology host.op_s), from those of issuing an eager single-stream block: over its count."""
    return block_launch_s / _EAGER.host_ops[1]


def executions(engine: str) -> list[str]:
    """The executions that an engine has a profile of; `eager` where it has none, for `find` to say so."""
    return [execution for name, execution in PROFILES if name == engine] or ["eager"]
