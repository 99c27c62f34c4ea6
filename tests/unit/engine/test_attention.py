"""The kernels' table: the exact kernel, what is available, and refusals that name a remedy."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from xdit_bench.engine import attention
from xdit_bench.engine.attention import KERNELS, available, choose, exact
from xdit_bench.engine.ring import merge
from xdit_bench.errors import ConfigError, Infeasible

CPU = torch.device("cpu")


def tensors(queries: int = 37, keys: int = 53) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    q = torch.randn(2, queries, 3, 16)
    return q, torch.randn(2, keys, 3, 16), torch.randn(2, keys, 3, 16)


def shapes() -> tuple[torch.Size, torch.Size, torch.dtype, torch.device]:
    q, k, _ = tensors()
    return q.shape, k.shape, q.dtype, q.device


def test_exact_kernel_equals_torch_and_yields_the_log_sum_exp() -> None:
    q, k, v = tensors()
    out, lse = exact(q, k, v)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    scores = torch.einsum("bshd,bkhd->bhsk", q, k) / 4
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_exact_kernel_in_small_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exact(*tensors())
    monkeypatch.setattr(attention, "SCORE_BYTES", 4 * 2 * 3 * 53 * 5)  # five queries a chunk
    for part, expected in zip(exact(*tensors()), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_merging_two_blocks_of_keys_is_attention_to_both() -> None:
    q, k, v = tensors()
    merged, lse = merge(*exact(q, k[:, :11], v[:, :11]), *exact(q, k[:, 11:], v[:, 11:]))
    whole, whole_lse = exact(q, k, v)
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(lse, whole_lse)


def test_cpu_has_the_exact_kernel_alone() -> None:
    assert available(CPU, torch.float32) == ["sdpa"]
    assert choose("auto", *shapes()) == (KERNELS["sdpa"], {})


def test_named_gpu_kernel_on_a_cpu_is_infeasible_and_names_one_that_runs() -> None:
    with pytest.raises(Infeasible, match="use sdpa"):
        choose("cudnn", *shapes())


def test_unknown_kernel_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="cudnn, flash"):
        choose("warp", *shapes())


def test_auto_leaves_out_a_kernel_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("no engine")

    monkeypatch.setattr(attention, "KERNELS", {"cudnn": broken, "flash": exact, "sdpa": exact})
    monkeypatch.setattr(attention, "_obstacle", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(attention, "_seconds", cache(attention._seconds.__wrapped__))  # none of other tests'
    assert choose("auto", *shapes())[0] is exact
    assert "cudnn does not run here (no engine)" in caplog.text

    monkeypatch.setattr(attention, "KERNELS", {"cudnn": broken, "flash": broken, "sdpa": exact})
    monkeypatch.setattr(attention, "_seconds", cache(attention._seconds.__wrapped__))
    assert choose("auto", *shapes())[0] is exact, "where no fast kernel runs the exact one does"
    monkeypatch.setattr(attention, "available", lambda *_: ["cudnn", "sdpa"])
    monkeypatch.setattr(attention, "_seconds", cache(attention._seconds.__wrapped__))
    assert choose("auto", *shapes())[0] is exact, "a kernel without a rival is tried too"


def test_auto_times_a_shape_once_and_remembers_no_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(q.shape)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return exact(q, k, v)

    monkeypatch.setattr(attention, "KERNELS", {"cudnn": full, "flash": full, "sdpa": exact})
    monkeypatch.setattr(attention, "_obstacle", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(attention, "_seconds", cache(attention._seconds.__wrapped__))
    monkeypatch.setattr(attention, "SUSTAINED_S", 1e-9)
    with pytest.raises(torch.OutOfMemoryError):
        choose("auto", *shapes())
    assert choose("auto", *shapes())[0] is full
    timed = len(calls)
    assert choose("auto", *shapes())[0] is full
    assert len(calls) == timed


def test_near_kernels_are_told_apart_by_long_runs_and_ranks_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"cudnn": (1.0, 1.2), "flash": (3.0, 0.1), "fa3": (1.1, 1.1)}  # a run of a burst, and of many
    turns: list[str] = []

    def run(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: int = 1) -> float:
        if runs > 1:
            turns.append(name)
        stall = 5.0 if turns.count(name) == 4 else 1.0  # of the host, in one turn
        return stall * runs * taken[name][runs > 1]

    monkeypatch.setattr(attention, "available", lambda *_: [*taken, "sdpa"])
    monkeypatch.setattr(attention, "SUSTAINED_S", 7.0)
    monkeypatch.setattr(attention, "_run", run)
    monkeypatch.setattr(attention, "_seconds", cache(attention._seconds.__wrapped__))
    kernel, seconds = choose("auto", *shapes())
    assert attention.name_of(kernel) == "fa3"
    assert seconds == pytest.approx({"cudnn": 1.2, "flash": 3.0, "fa3": 1.1})
    assert turns[:6] == ["cudnn", "cudnn", "fa3", "fa3", "cudnn", "cudnn"]  # flash was too far off
    assert attention.name_of(choose("auto", *shapes(), lambda own: [own[0], own[1], 1.3])[0]) == "cudnn"
