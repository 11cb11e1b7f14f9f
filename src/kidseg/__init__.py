"""kidseg: kidneys and renal tumours in CT, of children first.

    >>> import kidseg
    >>> scan = kidseg.load("scan.nii.gz")
    >>> kidseg.save(scan, "copy.nrrd")

Names are imported when first used, so that `import kidseg` costs nothing.
Research use only, not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kidseg.geometry import Grid, Volume, resample
    from kidseg.io import load, save

__all__ = ["Grid", "Volume", "load", "resample", "save"]

_HOME = {
    "Grid": "geometry",
    "Volume": "geometry",
    "resample": "geometry",
    "load": "io",
    "save": "io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kidseg' has no attribute '{name}'")
    return getattr(import_module(f"kidseg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
