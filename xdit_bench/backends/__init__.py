"""Engines behind one protocol. A new one is a module here, a file in `conf/engine/` and a line in this table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdit_bench.backends.base import Backend

BACKENDS = {
    "stock": "xdit_bench.backends.stock:StockBackend",
    "diffusers": "xdit_bench.backends.diffusers_cp:DiffusersBackend",
    "usp": "xdit_bench.backends.usp:UspBackend",
    "xfuser": "xdit_bench.backends.xfuser:XfuserBackend",
    "fake": "xdit_bench.backends.fake:FakeBackend",  # tests only: no file in conf/engine names it
}


def make_backend(name: str) -> Backend:
    """The engine of that name; its module (and what it needs) is imported only now."""
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend
