"""Exceptions as ranks report them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from xdit_bench.errors import Infeasible, MissingExtraError
from xdit_bench.runner.failure import describe, drop_locals, forget_frames

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("error", "stage", "kind"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."), "vae", "oom"),
    (FULL, "parity", "disk"),
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "parity", "disk"),
    (FULL, "mesh", "exception"),  # shared memory of NCCL, a compiler's cache: not the results' disk
    (Infeasible("24 heads; use 8"), "prepare", "infeasible"),
    (MissingExtraError("fa3 needs the extra flash"), "prepare", "infeasible"),
    (ValueError("shape"), "denoise", "exception"),
])  # fmt: skip
def test_kind_says_what_to_do_about_it(error: Exception, stage: str, kind: str) -> None:
    report = describe(error, stage, 2)
    assert report["kind"] == kind
    assert (report["stage"], report["iteration"]) == (stage, 2)
    assert type(error).__name__ in report["trace"]


def test_forgotten_frames_let_the_points_tensors_go() -> None:
    alive = []

    def fail() -> None:
        tensor = torch.zeros(8)
        alive.append(weakref.ref(tensor))
        try:
            raise ValueError("first")
        except ValueError:
            raise RuntimeError("then")  # noqa: B904

    try:
        fail()
    except RuntimeError as error:
        forget_frames(error)
        gc.collect()
        assert alive[0]() is None


def test_what_a_failed_frame_holds_can_be_dropped_while_its_trace_stays() -> None:
    class Held:
        pass

    seen: list[weakref.ref[Held]] = []

    def decode() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError) as caught:
        decode()
    drop_locals(caught.value)
    assert seen[0]() is None
    assert "in decode" in describe(caught.value, "vae", 0)["trace"]
