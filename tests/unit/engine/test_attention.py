"""The kernels' table: the exact kernel, what is available, and refusals that name a remedy."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from xdit_bench.engine import attention
from xdit_bench.engine.attention import KERNELS, available, choose, exact
from xdit_bench.engine.collectives import Pending
from xdit_bench.engine.mesh import Mesh
from xdit_bench.engine.ring import merge, ring_attention, start_keys
from xdit_bench.engine.shares import share_tokens
from xdit_bench.engine.usp import Gathered, UspAttention
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


def rounded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, margin: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """As a fused kernel: nothing in between is rounded to bf16, what comes out is."""
    del margin
    out, lse = exact(*(x.double() for x in (q, k, v)))
    return out.bfloat16(), lse


class Turning:
    """The ring's carrier of one rank, for whom all others' blocks lie ready."""

    def __init__(self, blocks: list[torch.Tensor], position: int, holds_processors: bool = False) -> None:
        self.blocks, self.position, self.holds_processors = blocks, position, holds_processors

    def shift(self, block: torch.Tensor, rows: list[int], hop: int) -> Pending:
        assert block is self.blocks[(self.position - hop) % len(rows)], "what came last is handed on"
        received = self.blocks[(self.position - hop - 1) % len(rows)]
        assert len(received) == rows[(self.position - hop - 1) % len(rows)]
        return Pending(received)


def attend_on_a_ring(kernel: attention.Kernel, **kind: bool) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """What rank 2 of eight finds in bf16 for its queries, these, and every rank's keys with values."""
    draw, ring = torch.Generator().manual_seed(0), 8
    q = torch.randn(1, 40, 2, 16, generator=draw).bfloat16()
    rows = [9 - (r % 3) for r in range(ring)]
    blocks = [torch.randn(n, 1, 2, 2, 16, generator=draw).bfloat16() for n in rows]
    mesh = Mesh(1, ring, 2, CPU)
    carrier: Any = Turning(blocks, mesh.ring_rank, **kind)
    first = start_keys(blocks[2], rows, carrier, gathered=False)
    return ring_attention(q, blocks[2], first, rows, kernel, mesh, carrier), q, blocks


def test_a_ring_in_bf16_rounds_what_it_merges_once_whatever_its_hops() -> None:
    out, q, blocks = attend_on_a_ring(rounded)
    k, v = torch.cat(blocks).transpose(0, 1).unbind(2)
    truth = F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert out.dtype == torch.bfloat16
    assert (out - truth).norm() < 5e-3 * truth.norm()
    parts, sums = zip(*(rounded(q, *block.transpose(0, 1).unbind(2)) for block in blocks), strict=True)
    shares = torch.stack(sums).double().softmax(0).transpose(2, 3).unsqueeze(-1)  # of what its kernel returned
    merged = (shares * torch.stack(parts).double()).sum(0).bfloat16()
    assert (out != merged).float().mean() < 0.01  # float32's last digit may tip a rounding


@pytest.mark.parametrize("holds_processors", [True, False])
def test_attention_leaves_processors_to_an_exchange_that_needs_some_while_it_is_on_its_way(
    holds_processors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []

    def fa3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, margin: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        left.append(margin)
        return rounded(q, k, v)

    monkeypatch.setattr(attention, "fa3", fa3)
    attend_on_a_ring(fa3, holds_processors=holds_processors)
    assert [margin > 0 for margin in left] == [holds_processors] * 7 + [False], "nothing travels beside the last"


class Work:
    """An exchange that says when it is waited for."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait(self) -> None:
        self.log.append(self.name)


class Logged:
    """A carrier of two Ulysses ranks, of whom the other sends the same."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def scatter(self, slabs: torch.Tensor, rows: list[int]) -> Pending:
        own = slabs[: rows[0]]
        return Pending(torch.cat([own, own]), works=[Work(self.log, "keys" if slabs.shape[2] == 2 else "queries")])

    def gather(self, whole: torch.Tensor, rows: list[int]) -> Pending:
        return Pending(whole, works=[Work(self.log, "back")])


@pytest.mark.parametrize("overlap", [True, False])
def test_nobody_waits_for_an_exchange_before_its_result_is_needed(overlap: bool) -> None:
    log: list[str] = []
    carrier: Any = Logged(log)
    usp = UspAttention(Mesh(2, 1, 0, CPU), share_tokens(64, 64, 8, 2), exact, carrier=carrier, overlap=overlap)
    sent = usp.start(tuple(torch.randn(2, 12, 1, n, 1, 16) for n in (2, 1)), beside=True)
    assert log == ([] if overlap else ["keys", "queries"])
    back = usp.attend(sent)
    assert log == (["keys", "queries"] if overlap else ["keys", "queries", "back"])
    usp.finish(back)
    assert sorted(log) == ["back", "keys", "queries"]


@pytest.mark.parametrize(("size", "small"), [(4096, True), (5120, False)])
def test_a_ring_may_gather_keys_and_values_of_a_gibibyte_where_that_is_faster(
    size: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    # of FLUX.1 in bf16, 24 heads of 128: 0.81 GB and 1.26 GB
    kv = torch.empty(1, 1, 1, 2, 24, 128, dtype=torch.bfloat16, device="meta").as_subclass(OnGpu)
    taken = {True: 1.0, False: 2.0}  # gathered or not
    monkeypatch.setattr(UspAttention, "_time", lambda self, gathered, *_: taken[gathered])
    for faster in (True, False):
        usp = UspAttention(Mesh(1, 2, 0, CPU), share_tokens(size, size, 512, 2), exact)
        usp.choose_keys("auto", (kv, kv), lambda: None, lambda: None)
        assert usp.gathered == Gathered(small and faster, small and faster)
        taken[False] = 0.5
    usp.choose_keys("gathered", (kv, kv), lambda: None, lambda: None)
    assert usp.gathered == Gathered(True, True), "what was asked for is not timed"


def test_single_and_double_blocks_each_take_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    kv = torch.empty(1, 1, 1, 2, 24, 128, dtype=torch.bfloat16, device="meta").as_subclass(OnGpu)
    usp = UspAttention(Mesh(1, 2, 0, CPU), share_tokens(1024, 1024, 512, 2), exact)
    monkeypatch.setattr(usp, "_time", lambda gathered, slabs, work, beside: 1.0 if gathered is beside else 1.1)
    usp.choose_keys("auto", (kv, kv), lambda: None, lambda: None)
    assert usp.gathered == Gathered(beside=True, alone=False)
    assert [usp.start((), beside=beside).gathered for beside in (True, False)] == [True, False]


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
