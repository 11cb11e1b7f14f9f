"""The R.E.N.A.L. nephrometry score, as far as masks of kidney and tumour can tell it.

R, the size, and E, the exophytic share, are measured; L, the location, is estimated with polar
lines at thirds of the kidney. N, the nearness to the sinus, A, anterior or posterior, and the
hilar suffix need structures that are not labelled.

Source: Kutikov and Uzzo, J Urol 182 (2009) 844-853.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kidseg.measure.criteria import RenalScore, Settings
from kidseg.measure.mask import Mask, moved_contours
from kidseg.measure.position import PolarLines
from kidseg.measure.quantity import Quantity, compared

__all__ = ["Component", "score_renal"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of the score.

    Attributes:
        points: 1 to 3, all that the uncertainty leaves; () if it cannot be told at all.
        reason: what it was derived from, or why it cannot be told.
    """

    points: tuple[int, ...]
    reason: str

    @property
    def is_known(self) -> bool:
        """Whether one number of points is left."""
        return len(self.points) == 1


def score_renal(
    quantities: Mapping[str, Quantity],
    tumour: Mask,
    lines: PolarLines | None,
    table: RenalScore,
    settings: Settings,
    *,
    is_cut: bool = False,
) -> dict[str, Component]:
    """{component: points} of one tumour.

    Args:
        quantities: of the tumour, by name.
        tumour: its mask.
        lines: of its kidney; None without parenchyma.
        table: thresholds.
        settings: what counts as entirely endophytic.
        is_cut: the scan cuts the kidney or the tumour off, so that its place is not known.
    """
    cut = _unknown("the scan cuts the kidney or the tumour off")
    return {
        "R": _radius(quantities["longest diameter"], table),
        "E": cut if is_cut else _exophytic(quantities.get("exophytic share"), table, settings),
        "N": _unknown("the renal sinus and the collecting system are not labelled"),
        "A": _unknown("which side of the kidney is its front is not labelled"),
        "L": cut if is_cut else _location(tumour, lines),
        "hilar suffix": _unknown("the main renal vessels are not labelled"),
    }


def _radius(longest: Quantity, table: RenalScore) -> Component:
    """Source: 1 point for at most 4 cm, 3 for at least 7 cm, 2 between."""
    small, large = (10 * cm for cm in table.radius_cm)
    left = {1, 2, 3}
    left -= _excluded(compared(longest, "<=", small), if_met={2, 3}, if_not={1})
    left -= _excluded(compared(longest, ">=", large), if_met={1, 2}, if_not={3})
    return Component(points=tuple(sorted(left)), reason=f"longest diameter {longest.value:.0f} mm")


def _exophytic(share: Quantity | None, table: RenalScore, settings: Settings) -> Component:
    """Source: 1 point for at least 50 % exophytic, 2 for less, 3 for entirely endophytic."""
    if share is None:
        return _unknown("no parenchyma is labelled on its side")
    left = {1, 2, 3}
    left -= _excluded(compared(share, ">=", table.exophytic), if_met={2, 3}, if_not={1})
    endophytic = compared(share, "<", settings.exophytic_least)
    left -= _excluded(endophytic, if_met={1, 2}, if_not={3})
    reason = f"{share.value:.0f} % exophytic, estimated"
    return Component(points=tuple(sorted(left)), reason=reason)


def _location(tumour: Mask, lines: PolarLines | None) -> Component:
    """1 beyond a polar line; 2 across it; 3 mostly or wholly between both, or over the middle."""
    if lines is None:
        return _unknown("no parenchyma is labelled on its side")
    masks = [mask for mask in (tumour, *moved_contours(tumour)) if mask.data.any()]
    points = {_location_points(mask.points_mm() @ lines.axis, lines) for mask in masks}
    along = "" if lines.is_tilted else ", along the body"
    reason = f"polar lines estimated at thirds of the length{along}"
    return Component(points=tuple(sorted(points)), reason=reason)


def _location_points(along_mm: np.ndarray, lines: PolarLines) -> int:
    low, high = float(along_mm.min()), float(along_mm.max())
    if low >= lines.upper_mm or high <= lines.lower_mm:
        return 1
    between = float(((along_mm > lines.lower_mm) & (along_mm < lines.upper_mm)).mean())
    return 3 if between > 0.5 or low < lines.middle_mm < high else 2


def _excluded(verdict: str, *, if_met: set[int], if_not: set[int]) -> set[int]:
    return {"met": if_met, "not met": if_not}.get(verdict, set())


def _unknown(reason: str) -> Component:
    return Component(points=(), reason=reason)
