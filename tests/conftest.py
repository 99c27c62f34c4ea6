"""Markers for hardware: a test that needs GPUs is skipped, with its reason, where there are none. Ctrl-C works."""

from __future__ import annotations

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# a script's background jobs ignore Ctrl-C, and so would every command that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)


def gpus() -> int:
    """CUDA devices of this machine; torch is imported only where a marked test was collected."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {"gpu": 1, "multigpu": 2, "fourgpu": 4}
    marked = [(item, count) for item in items for name, count in needs.items() if item.get_closest_marker(name)]
    present = gpus() if marked else 0
    for item, count in marked:
        if present < count:
            item.add_marker(pytest.mark.skip(reason=f"needs {count} CUDA GPU(s), there are {present}"))
