"""What one device does with matrix products, attention, memory traffic, launches, T5 and the VAE's operators.

Owns the micro-benchmarks; `numbers` turns their seconds into a topology's shares of peak. One entry a measurement:
what it was, its counts, its seconds.

    measurements = measure(Shapes.of(device, model), model, device)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xdit_bench.calibration.clock import seconds_of
from xdit_bench.calibration.shapes import Shapes
from xdit_bench.config import ModelSpec
from xdit_bench.engine.attention import KERNELS, available
from xdit_bench.engine.collectives import DistributedCarrier
from xdit_bench.engine.graphs import LoopGraphs
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.text import ShardedT5
from xdit_bench.engine.vae_memory import CHUNK_BYTES
from xdit_bench.errors import first_line
from xdit_bench.measure.launch import BlockLaunch, single_block
from xdit_bench.measure.timers import synchronize
from xdit_bench.predict.workload import Conv, decoder_convs

Measurement = dict[str, Any]
MANY = 9  # layers of T5: of fewer a busy host's noise would outweigh one
SCRATCH = 128 << 20  # scores the blocked attention holds at a time


def measure(shapes: Shapes, model: ModelSpec, device: torch.device) -> list[Measurement]:
    """All measurements of one device, in seconds."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.no_grad():
        return [
            *_gemms(shapes, device, dtype),
            *_attentions(shapes, model, device, dtype),
            *_copy(shapes, device),
            *_block(shapes, model, device, dtype),
            *_text_layer(shapes, model, device, dtype),
            *_kernel_gap(device),
            *_convolutions(shapes, model, device, dtype),
            *_decode_passes(shapes, model, device, dtype),
            *_mid_attention(shapes, model, device, dtype),
        ]


def _failed(what: str, error: Exception) -> Measurement:
    """What could not be measured here, and why: it costs its number, not the calibration."""
    return {"kind": "failed", "what": what, "error": first_line(error)}


def _gemms(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    found: list[Measurement] = []
    for gemm in shapes.gemms:
        x = torch.randn(gemm.m, gemm.k, device=device, dtype=dtype)
        weight = torch.randn(gemm.n, gemm.k, device=device, dtype=dtype)
        bias = torch.randn(gemm.n, device=device, dtype=dtype)
        seconds = seconds_of(partial(F.linear, x, weight, bias), device, shapes.for_s)
        found.append({"kind": "gemm", "m": gemm.m, "k": gemm.k, "n": gemm.n, "seconds": seconds})
    return found


def _attentions(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    found: list[Measurement] = []
    head_dim = int(model.transformer["attention_head_dim"])
    names = available(device, dtype)
    for name in [n for n in names if n != "sdpa"] or ["sdpa"]:
        for call in shapes.attentions:
            shape = (1, call.queries, round(call.heads), head_dim)
            q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
            try:
                seconds = seconds_of(partial(KERNELS[name], q, k, v), device, shapes.for_s)
            except (RuntimeError, ImportError) as error:
                found.append(_failed(f"attention {name}", error))
                break
            found.append({
                "kind": "attention", "kernel": name, "heads": round(call.heads), "queries": call.queries,
                "keys": call.keys, "head_dim": head_dim, "seconds": seconds,
            })  # fmt: skip
    return found


def _copy(shapes: Shapes, device: torch.device) -> list[Measurement]:
    source = torch.randn(shapes.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device, shapes.for_s)
    return [{"kind": "copy", "bytes": 2 * shapes.copy_bytes, "seconds": seconds}]


def _block(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    """diffusers' eager single-stream block: whole, and its products and attention apart, so that its elementwise work
    is the difference; and the host's time to issue a narrow one, which the device never delays."""
    h, heads, tokens = model.hidden, model.heads, shapes.tokens
    call = single_block(h, heads, tokens, device, dtype)
    weights = {(k, n): torch.randn(n, k, device=device, dtype=dtype) for k, n in ((h, h), (h, 4 * h), (5 * h, h))}
    inputs = {k: torch.randn(tokens, k, device=device, dtype=dtype) for k in (h, 5 * h)}
    products = sum(
        count * seconds_of(partial(F.linear, inputs[k], weights[k, n]), device, shapes.for_s)
        for k, n, count in ((h, h, 3), (h, 4 * h, 1), (5 * h, h, 1))
    )
    q, k, v = (torch.randn(1, heads, tokens, h // heads, device=device, dtype=dtype) for _ in range(3))
    attention = seconds_of(lambda: F.scaled_dot_product_attention(q, k, v), device, shapes.for_s)
    whole: Measurement = {
        "kind": "block", "tokens": tokens, "row_bytes": q.element_size() * h, "products_seconds": products,
        "attention_seconds": attention, "seconds": seconds_of(call, device, 3 * shapes.for_s),
    }  # fmt: skip
    return [whole, {"kind": "launch", "seconds": BlockLaunch(device, dtype)()}]


def _text_layer(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    """A layer of T5 as transformers runs it, and with its position bias in order as `engine.text` does: many layers
    less one, on a GPU inside a CUDA graph, so that launches are not waited for."""
    from transformers import T5Config, T5EncoderModel

    ids = torch.zeros(1, shapes.text_tokens, dtype=torch.int64, device=device)
    mesh = Mesh(1, 1, 0, device)
    taken: dict[str, list[float]] = {"plain": [], "in_order": []}
    for layers in (1, MANY):
        with device:
            encoder: Any = T5EncoderModel(T5Config(**{**model.text_encoder_2, "num_layers": layers}))
        encoder = encoder.to(dtype).eval().requires_grad_(False)
        sharded = ShardedT5(encoder, mesh, DistributedCarrier(mesh))
        for way, call in (("plain", lambda x, t5=encoder: t5(x)[0]), ("in_order", sharded)):
            graphs = LoopGraphs(call) if device.type == "cuda" else None
            try:
                taken[way].append(seconds_of(partial(graphs or call, ids), device, shapes.for_s))
            except RuntimeError as error:
                return [_failed(f"a layer of T5, {way}", error)]
            if graphs:
                graphs.clear()
    return [
        {"kind": "text_layer", "way": way, "tokens": shapes.text_tokens, "seconds": (many - one) / (MANY - 1)}
        for way, (one, many) in taken.items()
    ]


def _kernel_gap(device: torch.device, kernels: int = 500) -> list[Measurement]:
    """Seconds from one tiny kernel to the next, all queued behind a long one so that no launch is waited for."""
    if device.type != "cuda":
        return []
    x = torch.zeros(8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    x.mul_(1.0)
    synchronize(device)
    torch.cuda._sleep(60_000_000)  # type: ignore[no-untyped-call]  # clock ticks: some 30 ms, longer than launching all
    start.record()
    for _ in range(kernels):
        x.mul_(1.0)
    end.record()
    synchronize(device)
    return [{"kind": "kernel_gap", "seconds": start.elapsed_time(end) / 1e3 / kernels}]


def _convolutions(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    """The decoder's different convolutions: behind norm and SiLU as diffusers has them, and alone in NHWC."""
    found: list[Measurement] = []
    side, groups = shapes.latent_sides[0], int(model.vae["norm_num_groups"])
    convs = list(decoder_convs(model))
    for conv in dict.fromkeys(convs):
        x = torch.randn(1, conv.cin, side * conv.scale, side * conv.scale, device=device, dtype=dtype)
        weight = torch.randn(conv.cout, conv.cin, conv.kernel, conv.kernel, device=device, dtype=dtype)
        nhwc = x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last)
        normed = conv.kernel == 3 and conv.cin % groups == 0

        def plain(x: Tensor = x, w: Tensor = weight, conv: Conv = conv, normed: bool = normed) -> Tensor:
            return F.conv2d(F.silu(F.group_norm(x, groups)) if normed else x, w, padding=conv.kernel // 2)

        def alone(x: Tensor = nhwc[0], w: Tensor = nhwc[1], conv: Conv = conv) -> Tensor:
            return F.conv2d(x, w, padding=conv.kernel // 2)

        for layout, call in (("nchw", plain), ("nhwc", alone)):
            found.append({
                "kind": "conv", "layout": layout, "cin": conv.cin, "cout": conv.cout, "kernel": conv.kernel,
                "scale": conv.scale, "side": side, "count": convs.count(conv), "normed": normed and layout == "nchw",
                "seconds": seconds_of(call, device, shapes.for_s / 2),
            })  # fmt: skip
    return found


def _decode_passes(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    """What a ResNet block of the banded decode runs between its convolutions, on one chunk of rows: two norms with SiLU
    (read and write), the moments of one convolution (read), and the sum with the other's (read both, write)."""
    from xdit_bench.engine.vae_operations import operations

    channels, groups = int(model.vae["block_out_channels"][0]), int(model.vae["norm_num_groups"])
    width = 8 * shapes.latent_sides[-1]
    size = min(shapes.copy_bytes, CHUNK_BYTES)
    rows = max(1, size // (width * channels * dtype.itemsize))
    x, y = (torch.randn(rows, width, channels, device=device, dtype=dtype) for _ in range(2))
    scale, shift, bias = (torch.zeros(channels, device=device) for _ in range(3))  # x stays bounded
    try:
        ops = operations(device)
        calls = (
            ("normalize", 2, 2, lambda: ops.normalize(x, scale, shift, silu=True, top=False, bottom=False)),
            ("moments", 1, 1, lambda: ops.moments(x, bias, groups)),
            ("add", 1, 3, lambda: ops.add_(y, x, bias, groups)),
        )
        return [
            {"kind": "decode_pass", "what": what, "count": count, "bytes": passes * x.nbytes,
             "seconds": seconds_of(call, device, shapes.for_s)}
            for what, count, passes, call in calls
        ]  # fmt: skip
    except Exception as error:  # a kernel that does not build here
        return [_failed("passes of the banded decode", error)]


def _mid_attention(shapes: Shapes, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[Measurement]:
    found: list[Measurement] = []
    width = int(model.vae["block_out_channels"][-1])
    for side in shapes.latent_sides:
        q, k, v = (torch.randn(1, 1, side * side, width, device=device, dtype=dtype) for _ in range(3))
        for way, call in (("plain", F.scaled_dot_product_attention), ("blocked", _blocked)):
            try:
                seconds = seconds_of(partial(call, q, k, v), device, shapes.for_s)
            except Exception as error:  # a kernel that does not build here
                found.append(_failed(f"mid attention {way}", error))
                continue
            found.append({
                "kind": "mid_attention", "way": way, "tokens": side * side, "width": width, "seconds": seconds,
            })  # fmt: skip
    return found


def _blocked(q: Tensor, k: Tensor, v: Tensor) -> None:
    """The parallel VAE's attention, `1 1 M D`."""
    from xdit_bench.engine.vae_attention import attention_dtype, blocked_attention_
    from xdit_bench.engine.vae_operations import operations

    narrow = attention_dtype(q.dtype)
    rows, keys, values = (x[0, 0].to(narrow) for x in (q, k, v))  # copies: the result overwrites the queries
    scratch = torch.empty(min(SCRATCH, 64 * len(rows) ** 2), device=q.device, dtype=narrow)
    blocked_attention_(rows, [(keys, values)], operations(q.device), scratch)
