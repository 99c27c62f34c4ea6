"""Records: what one is (`schema`), how it is kept (`store`), and a study as a table (`load`).

import xdit_bench.results
frame = xdit_bench.results.load("results/h200x2")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdit_bench.results.frame import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` on first use: a plan that only writes records imports no tables."""
    if name == "load":
        from xdit_bench.results.frame import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
