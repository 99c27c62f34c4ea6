"""Attention kernels behind one signature, and the choice among them.

Every kernel takes q `B S H D`, k and v `B K H D` (any strides, the last dim dense) and returns the output `B S H D`
and the log-sum-exp of the scaled scores, `B H S` float32, which merges partial results. Nothing here knows of ranks.

    kernel, seconds = choose("auto", q.shape, k.shape, q.dtype, q.device)  # times what there is, once a shape
    out, lse = kernel(q, k, v)
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from xdit_bench.errors import ConfigError, Infeasible, MissingExtraError, first_line

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

SCORE_BYTES = 64 << 20  # float32 scores the exact kernel holds at a time

NEAR = 1.25  # kernels whose bursts are so close to the fastest run on: under its power limit a card slows one down more
SUSTAINED_S = 0.05  # than another, by 14 % at 4096px on an H100, and a burst does not show it
TURNS = 5  # each, so that neither a card that warms up nor a host that stalls decides
EXCHANGE_PROCESSORS = 16  # left to an exchange that runs beside an attention kernel

log = logging.getLogger(__name__)


def exact(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plain matrix products with a float32 softmax, by chunks of queries so that memory stays bounded."""
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))  # B H S D
    batch, heads, length, size = queries.shape
    out = torch.empty(batch, length, heads, size, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    chunk = max(1, SCORE_BYTES // (4 * batch * heads * max(1, keys.shape[2])))
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        scores = (queries[:, :, part] * size**-0.5 @ keys.mT).float()
        lse[:, :, part] = scores.logsumexp(-1)
        weights = (scores - lse[:, :, part, None]).exp_().to(v.dtype)
        out[:, part] = (weights @ values).transpose(1, 2)
    return out, lse


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cuDNN's fused attention through torch."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, True
    )
    return out.transpose(1, 2), lse.reshape(out.shape[:3])


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 as torch holds it."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )
    return out.transpose(1, 2), lse[..., : q.shape[1]]


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 of the package flash-attn."""
    from flash_attn.flash_attn_interface import _flash_attn_forward

    out, lse, *_ = _flash_attn_forward(
        q, k, v, 0.0, q.shape[-1] ** -0.5, False, window_size_left=-1, window_size_right=-1, softcap=0.0,
        alibi_slopes=None, return_softmax=False,
    )  # fmt: skip
    return out, lse[..., : q.shape[1]]


def fa3(q: Tensor, k: Tensor, v: Tensor, margin: int = 0) -> tuple[Tensor, Tensor]:
    """FlashAttention-3 (Hopper, bf16) of the package fa3-fwd, on all multiprocessors but `margin`.

    The operator is called directly: the package's Python face imports a module it does not ship.
    """
    import fa3_fwd._C  # noqa: F401  # registers the operator

    nothing = [None] * 20  # paged and appended keys, variable lengths, rotary, descaling
    out, lse, *_ = torch.ops.fa3_fwd.fwd(
        q, k, v, *nothing, q.shape[-1] ** -0.5, False, -1, -1, 0, 0.0, True, None, 1, None, margin
    )
    return out, lse


KERNELS: dict[str, Kernel] = {"cudnn": cudnn, "flash": flash, "flash_attn": flash_attn, "fa3": fa3, "sdpa": exact}
PACKAGES = {"flash_attn": "flash_attn", "fa3": "fa3_fwd"}


def beside_exchange(kernel: Kernel) -> Kernel:
    """The kernel as it should run while NCCL's kernels hold multiprocessors.

    FlashAttention-3 deals its tiles out beforehand, to as many blocks as there are processors: those of occupied
    ones would start when the exchange ends.
    """
    return partial(fa3, margin=EXCHANGE_PROCESSORS) if kernel is fa3 else kernel


def available(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Names of the kernels that can run on a device in a number format; `sdpa` always can."""
    return [name for name in KERNELS if _obstacle(name, device, dtype) is None]


def named(name: str, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The kernel of that name. Raises MissingExtraError when its package is not installed, Infeasible when the device
    or number format rules it out, ConfigError for an unknown name."""
    if name not in KERNELS:
        raise ConfigError(f"attention is auto, {', '.join(KERNELS)}; got {name!r}")
    obstacle = _obstacle(name, device, dtype)
    if obstacle is not None:
        raise obstacle
    return KERNELS[name]


def choose(
    name: str,
    queries: torch.Size,
    keys: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    slowest: Callable[[Sequence[float]], list[float]] = list,
) -> tuple[Kernel, dict[str, float]]:
    """The named kernel, or for `auto` the fastest for q `B S H D` and k and v `B K H D` of these shapes, and seconds
    of those it was timed beside.

    `slowest` makes of a rank's seconds those of the slowest rank, so that all take the same kernel; with it every rank
    calls in step. Raises as `named` does.
    """
    if name != "auto":
        return named(name, dtype, device), {}
    own = _seconds(queries, keys, dtype, device)
    seconds = dict(zip(own, slowest(list(own.values())), strict=True))
    best = min(seconds, key=lambda kernel: seconds[kernel])
    if math.isinf(seconds[best]):  # on some rank
        best = "sdpa"
    log.info("attention=auto took %s of %s", best, {kernel: f"{s * 1e3:.2f} ms" for kernel, s in seconds.items()})
    return KERNELS[best], seconds if len(seconds) > 1 else {}


def name_of(kernel: Kernel) -> str:
    """The name that `choose` knows a kernel by."""
    return next(name for name, known in KERNELS.items() if known is kernel)


@cache
def _seconds(queries: torch.Size, keys: torch.Size, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Seconds of every fast kernel for these shapes, on random tensors, the first time a process asks."""
    fast = [kernel for kernel in available(device, dtype) if kernel != "sdpa"]
    if not fast:
        return {"sdpa": 0.0}
    q, k, v = (torch.randn(shape, dtype=dtype, device=device) for shape in (queries, keys, keys))
    seconds = {kernel: _time(kernel, q, k, v) for kernel in fast}
    near = [kernel for kernel in fast if seconds[kernel] <= NEAR * min(seconds.values()) < math.inf]
    if len(near) > 1:
        seconds |= _sustained({kernel: seconds[kernel] for kernel in near}, q, k, v)
    return seconds


def _obstacle(name: str, device: torch.device, dtype: torch.dtype) -> Exception | None:
    """Why a kernel can not run here, ready to raise, or None."""
    if name == "sdpa":
        return None
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return Infeasible(f"attention={name} needs a CUDA GPU and bf16; got {device.type} and {dtype}; use sdpa")
    major = torch.cuda.get_device_capability(device)[0]
    if name == "fa3" and (major != 9 or dtype != torch.bfloat16):
        return Infeasible(f"attention=fa3 needs a Hopper GPU and bf16; this one has capability {major}; use cudnn")
    if major < 8:
        return Infeasible(f"attention={name} needs compute capability 8.0; this GPU has {major}; use sdpa")
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        return MissingExtraError(
            f"attention={name} needs the package {PACKAGES[name]}, which is not installed; "
            "pip install 'xdit_bench[flash]'"
        )
    return None


def _time(name: str, q: Tensor, k: Tensor, v: Tensor, repeats: int = 5) -> float:
    """Median seconds of a kernel on these tensors; infinite, with one log line, when it fails for want of anything but
    memory, which another point may have."""
    try:
        taken = [_run(name, q, k, v) for _ in range(repeats + 2)]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError) as error:
        log.warning("attention=%s does not run here (%s); taking the next best", name, first_line(error))
        return math.inf
    return statistics.median(taken[2:])


def _sustained(bursts: dict[str, float], q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    """Median seconds of a run among many, the kernels taking turns. The first half of a turn is not timed: by then the
    card's clock has settled."""
    taken: dict[str, list[float]] = {kernel: [] for kernel in bursts}
    for _ in range(TURNS):
        for kernel, burst in bursts.items():
            runs = max(1, math.ceil(SUSTAINED_S / burst))
            _run(kernel, q, k, v, runs)
            taken[kernel].append(_run(kernel, q, k, v, runs) / runs)
    return {kernel: statistics.median(turns) for kernel, turns in taken.items()}


def _run(name: str, q: Tensor, k: Tensor, v: Tensor, runs: int = 1) -> float:
    """Seconds of so many runs in a row."""
    torch.cuda.synchronize(q.device)
    start = time.perf_counter()
    for _ in range(runs):
        KERNELS[name](q, k, v)
    torch.cuda.synchronize(q.device)
    return time.perf_counter() - start
