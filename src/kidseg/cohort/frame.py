"""The field of view of slice-wise methods before any spatial transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kidseg.cohort.subject import Subject
from kidseg.config import ViewConfig
from kidseg.geometry import Grid, boxed
from kidseg.plan import Plan

__all__ = ["Frame", "frame", "pixel_mm"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """The grids of one subject for slice-wise networks.

    Attributes:
        base: (slices, size, size), centred on the body, with the scan's slices; for training.
        whole: `base`, padded symmetrically along rows and columns until it contains the body; for
            inference.
    """

    base: Grid
    whole: Grid


def pixel_mm(config: ViewConfig, plan: Plan) -> float:
    """Pixel size of the base grid: as configured; or the plan's, coarser if the field needs it."""
    if config.pixel_mm is not None:
        return config.pixel_mm
    planned = plan.configurations["2d"]
    pairs = zip(planned.median_shape, planned.spacing_mm, strict=True)
    field_mm = max(n * s for n, s in pairs)
    return max(*planned.spacing_mm, field_mm / config.size)


def frame(subject: Subject, config: ViewConfig, plan: Plan, multiple: int) -> Frame:
    """The grids of a subject. Without a body they are centred on the image and contain all of it.

    Args:
        subject: the scan.
        config: size and pixel size of the base grid.
        plan: of the training set.
        multiple: `Frame.whole` is padded by multiples of it.
    """
    grid = subject.image.grid
    centre = torch.zeros(2, dtype=torch.float64)
    box = (0, grid.shape[1] - 1, 0, grid.shape[2] - 1)
    if subject.body is not None:
        centre, box = subject.body.whole.centre_mm, subject.body.box or box
    base = _centred(grid, centre, config.size, pixel_mm(config, plan))
    return Frame(base=base, whole=_extended(base, grid, box, multiple))


def _centred(grid: Grid, centre: Tensor, side: int, pixel: float) -> Grid:
    """The scan's slices with `side` x `side` pixels, centred at the offset (x, y) mm."""
    spacing = grid.spacing_mm
    middle = torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64)
    middle = middle + torch.stack([torch.zeros(()), *(centre.flip(0) / spacing[1:])])
    half = torch.tensor([grid.shape[0], side * pixel, side * pixel], dtype=torch.float64) / 2
    half = half / torch.cat([torch.ones(1), spacing[1:]])
    return boxed(grid, middle - half, middle + half, (grid.shape[0], side, side))


def _extended(base: Grid, grid: Grid, box: tuple[int, int, int, int], multiple: int) -> Grid:
    """Pad rows and columns of `base` on both sides, by multiples, until it contains the box."""
    added = []
    for axis, (first, last) in ((1, box[:2]), (2, box[2:])):
        ends = torch.zeros((2, 3), dtype=torch.float64)
        ends[0, axis], ends[1, axis] = first - 0.5, last + 0.5
        at = base.index(grid.mm(ends))[:, axis]
        beyond = max(-0.5 - float(at.min()), float(at.max()) - (base.shape[axis] - 0.5), 0.0)
        added.append(-(-2 * beyond // multiple) * multiple)
    rows, columns = (int(n) for n in added)
    start = (0, -(rows // 2), -(columns // 2))
    return base.crop(start, (base.shape[0], base.shape[1] + rows, base.shape[2] + columns))
