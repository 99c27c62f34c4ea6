"""Seconds of the text stage: T5's layers one after the other, and CLIP. No split over ranks shortens it.

Owns the sum and what of a layer is counted; `calibrate` measures a layer and finds the share of that speed it reaches.

    seconds = text_s(point, model, topology, profile)
"""

from __future__ import annotations

from xdit_bench.config import ModelSpec, Point
from xdit_bench.predict.profiles import EngineProfile
from xdit_bench.predict.roofline import attention_s, gemm_s, rows_s, stream_s
from xdit_bench.predict.step import attention_kernel
from xdit_bench.predict.workload import Attention, text_encoders, text_gemms
from xdit_bench.topology.specs import Topology

OPS = 2850  # cheapest-launch units, eager: T5 1880, CLIP 970; timed on a CPU, narrow, beside a single block's 115


def text_s(point: Point, model: ModelSpec, topology: Topology, profile: EngineProfile) -> float:
    """Seconds of both encoders on whichever rank a layer is; inside a CUDA graph the device alone sets them. Ranks that
    share T5's layers out issue theirs one after the other; what they exchange, 4 MB a rank, is left out."""
    text, share = text_encoders(model), topology.efficiency.get(profile.text_share)
    layer = layer_s(topology, model, point.text_tokens, profile, attention_kernel(point, topology, profile))
    others = text.other_kernels * topology.host["kernel_gap_s"].value
    on_gpu = text.layers * layer / (share.value if share else 1.0) + others
    return on_gpu if profile.text_graph else max(on_gpu, OPS * topology.op_s(1 if profile.shards_text else point.gpus))


def layer_s(topology: Topology, model: ModelSpec, tokens: int, profile: EngineProfile, kernel: str) -> float:
    """What is counted of a T5 layer on the device: products, elementwise passes, scores that an attention which is not
    fused writes and reads, the attention's own products, gaps between kernels."""
    text = text_encoders(model)
    products = sum(gemm.count * gemm_s(topology, gemm) for gemm in text_gemms(model, tokens))
    elementwise = rows_s(topology, text.rows, tokens, text.row_bytes, fused=False)
    scores = stream_s(topology, profile.score_bytes * text.heads * tokens**2, "elementwise")
    attention = attention_s(topology, Attention(text.heads, tokens, tokens, 1), text.head_dim, kernel)
    gaps = text.kernels * topology.host["kernel_gap_s"].value
    weights = stream_s(topology, text.layers_bytes / text.layers)
    return max(products, weights) + elementwise + scores + attention + gaps
