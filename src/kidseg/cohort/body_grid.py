"""The grid of 3D networks on which bodies have a chosen size and lie upright."""

from __future__ import annotations

import torch

from kidseg.cohort.subject import Subject
from kidseg.config import BodyConfig
from kidseg.geometry import Grid, boxed, posed

__all__ = ["body_grid", "finest_mm"]

# Radius of the smallest trunk that is expected, a newborn's: 31 cm around the abdomen.
_NEWBORN_MM = 50.0


def body_grid(subject: Subject, config: BodyConfig, spacing_mm: tuple[float, ...]) -> Grid:
    """The grid of the body: the whole scan along its slices, the body's box within them.

    Size and angle are those of the body mask's moments; one factor scales all three axes, since a
    scan seldom contains the whole length of a trunk, so that shapes are kept. Without a body, the
    scan's extent at the given spacing.

    Args:
        subject: the scan.
        config: the size of the bodies, and whether they are turned.
        spacing_mm: of the voxels (slice, row, column), in millimetres of a body of that size.
    """
    scan, body = subject.image.grid, subject.body
    if body is None or body.box is None:
        return scan.with_spacing(spacing_mm)
    angle_rad = _tilt(body.whole.angle_rad) if config.upright else torch.zeros(())
    turned = posed(scan, angle_rad=angle_rad, shift_mm=body.whole.centre_mm)
    first_row, last_row, first_column, last_column = body.box
    rows, columns = (first_row - 0.5, last_row + 0.5), (first_column - 0.5, last_column + 0.5)
    ends = [(0.0, row, column) for row in rows for column in columns]
    at = turned.index(scan.mm(torch.tensor(ends, dtype=torch.float64)))
    low, high = at.amin(0), at.amax(0)
    low[0], high[0] = -0.5, scan.shape[0] - 0.5
    factor = _factor(body.radius_mm, config)
    return boxed(turned, low, high, (1, 1, 1)).with_spacing([factor * mm for mm in spacing_mm])


def finest_mm(config: BodyConfig, pixel_mm: float) -> float:
    """The pixel size of the smallest body, a newborn's, that has `pixel_mm` when it is enlarged."""
    return pixel_mm * _factor(_NEWBORN_MM, config) if config.min_radius_mm else pixel_mm


def _factor(radius_mm: float, config: BodyConfig) -> float:
    """Size of a body relative to that to which it is brought."""
    wanted = max(radius_mm, config.min_radius_mm or radius_mm)
    return radius_mm / min(wanted, config.max_radius_mm or wanted)


def _tilt(angle_rad: torch.Tensor) -> torch.Tensor:
    """The smallest turn that makes a principal axis horizontal, in -pi/4 .. pi/4.

    A small child's trunk may be deeper than it is wide, and is not to be laid on its side.
    """
    quarter = torch.pi / 2
    return angle_rad - quarter * torch.round(angle_rad / quarter)
