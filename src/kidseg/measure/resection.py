"""How much parenchyma would remain if a kidney's tumours were removed with a margin: an estimate.

Geometry only: it knows neither vessels nor the collecting system, and says nothing about whether
an operation is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kidseg.check.anomalies import numbered_components
from kidseg.measure.diameters import surface_mm
from kidseg.measure.mask import Mask
from kidseg.measure.quantity import Quantity

__all__ = ["REMAINING", "remaining_parenchyma", "surgical_record"]

REMAINING = "parenchyma remaining"


def remaining_parenchyma(
    kidney: Mask, tumours: Sequence[Mask], margin_mm: float
) -> tuple[Quantity, ...]:
    """Share of the parenchyma that is farther from the tumours than a margin.

    The interval is that of a margin one voxel wider and one voxel narrower, along the widest
    spacing. A second quantity is the share in the largest connected piece, as others may lose
    their vessels. () without parenchyma.

    Args:
        kidney: the parenchyma of one kidney.
        tumours: all tumours of this kidney, none empty.
        margin_mm: of parenchyma that is removed with the tumours.

    Source: RRP, "remaining renal parenchyma", percent of the operated kidney; van den
    Heuvel-Eibrink et al., Nat Rev Urol 14 (2017) 743-752, table 3.
    """
    if not kidney.data.any():
        return ()
    index = np.argwhere(kidney.data)
    voxel_mm = float(np.linalg.norm(kidney.linear, axis=0).max())
    away = _away_mm(tumours, kidney.mm(index), margin_mm + voxel_mm)
    margins = (margin_mm, margin_mm + voxel_mm, max(margin_mm - voxel_mm, 0.0))
    shares = [100 * float((away > margin).mean()) for margin in margins]
    pieces = [100 * _largest(kidney, index[away > margin]) / len(index) for margin in margins]
    note = f"estimate of geometry alone, for a margin of {margin_mm:g} mm"
    return tuple(
        Quantity(
            name=name,
            value=value,
            unit="%",
            low=min(low, value),
            high=max(high, value),
            interval="margin one voxel wider or narrower",
            note=note,
        )
        for name, (value, low, high) in (
            (REMAINING, shares),
            (f"{REMAINING} in one piece", pieces),
        )
    )


def surgical_record(remaining: Quantity) -> dict[str, Any]:
    """The record NSS(A/B)-SRM-PRM-RRP %, of which masks tell only an estimate of the last.

    Source: van den Heuvel-Eibrink et al., Nat Rev Urol 14 (2017) 743-752, table 3.
    """
    unknown = dict.fromkeys(("NSS", "SRM", "PRM"), "cannot tell")
    return {
        **unknown,
        "RRP": remaining.as_dict(),
        "text": f"NSS(?)-SRM(?)-PRM(?)-RRP({remaining.value:.0f} %, estimated)",
    }


def _away_mm(tumours: Sequence[Mask], points: np.ndarray, farthest_mm: float) -> np.ndarray:
    """(points,) distance from the contour of the tumours; infinite beyond `farthest_mm`."""
    from scipy.spatial import KDTree

    if not tumours:
        return np.full(len(points), np.inf)
    tree = KDTree(np.concatenate([surface_mm(tumour) for tumour in tumours]))
    return np.asarray(tree.query(points, distance_upper_bound=farthest_mm + 1e-6)[0])


def _largest(kidney: Mask, index: np.ndarray) -> int:
    """Voxels of the largest connected piece."""
    if not len(index):
        return 0
    left = np.zeros_like(kidney.data)
    left[tuple(index.T)] = True
    return int(np.bincount(numbered_components(left)[0].ravel())[1:].max())
