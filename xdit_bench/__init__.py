"""Measures and predicts how FLUX.1 scales over GPUs: Ulysses x Ring sequence parallelism, parallel VAE.

python -m xdit_bench -m ulysses=1,2,4,8 ring=1,2 res=1024,2048,4096
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Folder of the data that ships with the package: `conf` or `published`.

    In a checkout or an editable install these stand beside the package, in a wheel below it.
    """
    shipped = _PACKAGE / "data" / name
    if shipped.is_dir():
        return shipped
    checkout = _PACKAGE.parent / ("results/published" if name == "published" else name)
    if not checkout.is_dir():
        raise FileNotFoundError(f"xdit_bench ships a folder {name!r}, but neither {shipped} nor {checkout} exists")
    return checkout
