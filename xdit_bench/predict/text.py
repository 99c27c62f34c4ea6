"""Seconds of the text stage: T5's layers one after the other, each on one rank or shared out over all, and CLIP.

Owns the sum and what of a layer is counted; `calibrate` measures a layer and finds the share of that speed it reaches.

    seconds = text_s(point, model, topology, profile)
"""

from __future__ import annotations

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.network import Network, path
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.roofline import attention_s, gemm_s, rows_s, stream_s
from xdit_bench.predict.step import attention_kernel
from xdit_bench.predict.workload import Attention, text_encoders, text_gemms
from xdit_bench.topology.specs import SYMMETRIC, Topology

# cheapest-launch units, eager: T5's of 24 layers and CLIP's of 12, timed on a CPU, narrow, beside a single block's 115,
# and which share of each a layer is: 62 of 1521 operations that torch dispatches, 41 of 504
T5_OPS, T5_LAYER = 1880, 62 / 1521
CLIP_OPS, CLIP_LAYER = 970, 41 / 504

SUMS = 2  # over the ranks, a layer that is shared out by width


def text_s(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile) -> float:
    """Seconds of both encoders; inside a CUDA graph the device alone sets them. There T5 is shared out by width where
    exchanges go through symmetric memory. Else each layer is whole on some rank: devices compute theirs one after the
    other, hosts issue all at once, so that only the first rank's device waits for its own; what that exchanges, 4 MB a
    rank, is left out."""
    text, share = text_encoders(model), topology.efficiency.get(profile.text_share)
    symmetric = path(topology, point, profile.symmetric) == SYMMETRIC
    wide = profile.shards_text and profile.text_graph and symmetric and point.gpus <= text.heads
    ranks = point.gpus if wide else 1
    kernel = attention_kernel(point, topology, profile)
    layer = layer_s(topology, model, point.text_tokens, profile, kernel, ranks) / (share.value if share else 1.0)
    sums = 0.0
    if ranks > 1:  # a sum over the ranks: every rank's part to its owner, and back
        moved = text.row_bytes * point.text_tokens
        links = "p2p" if topology.levels("p2p") else SYMMETRIC
        sums = SUMS * 2 * Network(topology, links, ranks, 1).all_to_all_s(moved).seconds
    others = text.other_kernels * topology.host["kernel_gap_s"].value
    t5 = text.layers * (layer + sums)
    if profile.text_graph:
        return t5 + others
    stages = point.gpus if profile.shards_text else 1
    op_s, issued = topology.op_s(point.gpus), T5_OPS * (1 + (text.layers - 24) * T5_LAYER) / stages
    t5 += max(0.0, issued * op_s - t5 / stages)
    clip = CLIP_OPS * (1 + (int(model.text_encoder["num_hidden_layers"]) - 12) * CLIP_LAYER)
    return max(t5 + others, (issued + clip) * op_s)


def layer_s(
    topology: Topology, model: ModelSpec, tokens: int, profile: EngineProfile, kernel: str, ranks: int = 1
) -> float:
    """What is counted of a rank's share of a T5 layer on the device: products, elementwise passes, scores that an
    attention which is not fused writes and reads, the attention's own products, gaps between kernels."""
    text = text_encoders(model)
    products = sum(gemm.count * gemm_s(topology, gemm) for gemm in text_gemms(model, tokens, ranks))
    rows = text.rows + text.wide_rows / ranks
    elementwise = rows_s(topology, rows, tokens, text.row_bytes, fused=False)
    heads = -(-text.heads // ranks)
    scores = stream_s(topology, profile.score_bytes * heads * tokens**2, "elementwise")
    attention = attention_s(topology, Attention(heads, tokens, tokens, 1), text.head_dim, kernel)
    gaps = text.kernels * topology.host["kernel_gap_s"].value
    weights = stream_s(topology, text.layers_bytes / text.layers / ranks)
    return max(products, weights) + elementwise + scores + attention + gaps
