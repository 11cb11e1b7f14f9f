"""Where a tumour lies in its kidney and in the body: poles, exophytic share, midline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kidseg.measure.diameters import surface_mm
from kidseg.measure.mask import Mask, moved_contours
from kidseg.measure.midline import Midline
from kidseg.measure.quantity import Quantity, spanned

__all__ = ["BEYOND", "POLES", "PolarLines", "beyond_midline", "exophytic_share", "pole_shares"]

POLES = ("share above the upper polar line", "between the polar lines", "below the lower one")
"""Names of shares of a tumour's volume."""

BEYOND = "reach beyond the midline"

# Without the sinus, the polar lines are taken to divide the kidney into thirds of its length.
_THIRD = 1 / 3
# A kidney's long axis is within this angle of the patient's; Source: 14 (SD 4) degrees in children.
_MOST_TILTED_DEG = 45.0
_SAMPLES = 60_000


@dataclass(frozen=True, eq=False)
class PolarLines:
    """The planes across a kidney's long axis that divide it into upper pole, middle, lower pole.

    Estimated: at thirds of the length between the poles, as the renal sinus, by which they are
    defined, is not labelled.

    Attributes:
        axis: (3,) unit vector of the long axis, towards the head.
        lower_mm, upper_mm: position of the lines along the axis.
        is_tilted: whether the axis is that of the kidney; otherwise it is the patient's, as a
            tumour deforms the kidney too much.
    """

    axis: np.ndarray
    lower_mm: float
    upper_mm: float
    is_tilted: bool

    @classmethod
    def of(cls, kidney: Mask) -> PolarLines | None:
        """Of the parenchyma of a kidney; None if there is none."""
        points = kidney.points_mm()
        if not len(points):
            return None
        axis = np.array([0.0, 0.0, 1.0])
        own = np.linalg.svd(np.cov(points.T))[0][:, 0] if len(points) > 1 else axis
        own = own * (1.0 if own[2] >= 0 else -1.0)
        is_tilted = bool(own[2] >= np.cos(np.deg2rad(_MOST_TILTED_DEG)))
        axis = own if is_tilted else axis
        along = surface_mm(kidney) @ axis
        low, high = float(along.min()), float(along.max())
        third = _THIRD * (high - low)
        return cls(axis, low + third, high - third, is_tilted)

    @property
    def middle_mm(self) -> float:
        """Position of the middle of the kidney along the axis."""
        return (self.lower_mm + self.upper_mm) / 2


def pole_shares(tumour: Mask, lines: PolarLines) -> tuple[Quantity, ...]:
    """Shares of a tumour's volume above the upper, between, and below the lower polar line."""
    variants = [mask for mask in (tumour, *moved_contours(tumour)) if mask.data.any()]
    rows = []
    for mask in variants:
        along = mask.points_mm() @ lines.axis
        above, below = (along > lines.upper_mm).mean(), (along < lines.lower_mm).mean()
        rows.append((100 * above, 100 * max(1 - above - below, 0.0), 100 * below))
    note = _LINES if lines.is_tilted else f"{_LINES}, along the body"
    return tuple(
        spanned(name, "%", float(values[0]), map(float, values[1:]), note=note)
        for name, values in zip(POLES, zip(*rows, strict=True), strict=True)
    )


_LINES = "polar lines estimated at thirds of the length"


def exophytic_share(tumour: Mask, kidney: Mask) -> Quantity | None:
    """Share of a tumour's volume outside of the convex hull of its kidney's parenchyma.

    Estimated: the hull stands for the kidney without the tumour. Its interval is that of a
    parenchyma with its contour moved by a voxel. None without parenchyma.

    Args:
        tumour: not empty.
        kidney: the parenchyma.
    """
    from scipy.spatial import ConvexHull, Delaunay

    points = tumour.points_mm()
    points = points[:: max(1, len(points) // _SAMPLES)]
    shares = []
    for mask in (kidney, *moved_contours(kidney)):
        if not mask.data.any():
            continue
        surface = surface_mm(mask)
        hull = Delaunay(surface[ConvexHull(surface).vertices])
        shares.append(100 * float((hull.find_simplex(points) < 0).mean()))
    if not kidney.data.any():
        return None
    note = "estimate: outside of the convex hull of the parenchyma"
    return spanned("exophytic share", "%", shares[0], shares[1:], note=note)


def beyond_midline(tumour: Mask, side: str, midline: Midline, uncertainty_mm: float) -> Quantity:
    """How far a tumour reaches beyond the midline, to the other side; negative if it does not.

    Args:
        tumour: not empty.
        side: of its kidney, "right" or "left".
        midline: of the body, or an estimate.
        uncertainty_mm: of the midline.
    """
    away = midline.right_of(surface_mm(tumour))
    reach = float((-away if side == "right" else away).max())
    step = float(np.abs(tumour.linear[0]).max()) + uncertainty_mm
    how = "of the body" if midline.is_body else f"estimated from the {midline.basis}"
    return Quantity(
        name=BEYOND,
        value=reach,
        unit="mm",
        low=reach - step,
        high=reach + step,
        interval=f"contour moved by one voxel, and midline by {uncertainty_mm:g} mm",
        note=f"midline {how}",
    )
