"""The grids of the cascade, all in voxels of the resampled scan.

Source of the sizes: Zhang et al., KiTS19, sections 1.3 and 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kidseg.config import FineConfig, TumourConfig
from kidseg.geometry import Grid
from kidseg.methods.cascade.components import Component, union_box

__all__ = [
    "centred",
    "coarse_grid",
    "framed_box",
    "inside",
    "kidney_crop",
    "part_of",
    "sagittal_crop",
    "union_grid",
    "voxel_box",
]

# Axes of sagittal slices: columns become slices, slices become rows, rows become columns.
_SAGITTAL = (2, 0, 1)
# Edges of voxels that coincide up to rounding are the same.
_SAME_INDEX = 1e-6


def coarse_grid(scan: Grid, size: int) -> Grid:
    """Every slice, padded symmetrically to a square and resized to `size` x `size` pixels."""
    slices, rows, columns = scan.shape
    side = max(rows, columns)
    start = (0, -((side - rows) // 2), -((side - columns) // 2))
    return scan.crop(start, (slices, side, side)).resized((slices, size, size))


def sagittal_crop(scan: Grid, centre_mm: Sequence[float], size: tuple[int, int]) -> Grid:
    """All sagittal slices, cropped to (axial slices, rows) around a centre; may leave the scan."""
    grid = scan.permuted(_SAGITTAL)
    at = grid.index(torch.tensor(centre_mm, dtype=torch.float64)).tolist()
    start = [0, *(_first(c, n) for c, n in zip(at[1:], size, strict=True))]
    return grid.crop(start, (grid.shape[0], *size))


def kidney_crop(scan: Grid, kidney: Component, config: FineConfig, multiple: int) -> Grid:
    """Axial slices of a kidney, cropped to a square around its centroid.

    The slices are those of the kidney and `margin_mm` beyond, inside the scan. With `grow`, a side
    that does not contain the kidney, with a voxel around it, is enlarged until it does, with
    `margin_mm`, and to a multiple.

    Args:
        scan: volumetric, axial.
        kidney: of a mask on any grid in the planes of the scan or across them.
        config: size and margin.
        multiple: of a side that is enlarged.
    """
    low, high = voxel_box(scan, kidney.grid, *union_box([kidney]))
    margin = [round(config.margin_mm / float(step)) for step in scan.spacing_mm]
    first, last = max(0, low[0] - margin[0]), min(scan.shape[0] - 1, high[0] + margin[0])
    # A kidney whose voxels all lie beyond the scan has its nearest slice.
    first, last = min(first, scan.shape[0] - 1), max(last, 0)
    start, shape = [first], [max(1, last - first + 1)]
    at = scan.index(torch.tensor(kidney.centre_mm, dtype=torch.float64)).tolist()
    for axis in (1, 2):
        begin = _first(at[axis], config.size)
        end = begin + config.size
        if config.grow and not (begin < low[axis] and high[axis] < end - 1):
            begin = min(begin, low[axis] - margin[axis])
            end = max(end, high[axis] + 1 + margin[axis])
            added = -(end - begin) % multiple
            begin, end = begin - added // 2, end + added - added // 2
        start.append(begin)
        shape.append(end - begin)
    return scan.crop(start, shape)


def framed_box(scan: Grid, kidneys: Sequence[Component], config: TumourConfig) -> Grid:
    """The bounding box of components, with a frame, inside the scan."""
    low, high = voxel_box(scan, kidneys[0].grid, *union_box(kidneys))
    along = round(config.frame_mm / float(scan.spacing_mm[0]))
    frame = (along, config.frame_px, config.frame_px)
    start = [min(max(0, n - f), m - 1) for n, f, m in zip(low, frame, scan.shape, strict=True)]
    stop = [
        max(min(m, n + 1 + f), first + 1)
        for n, f, m, first in zip(high, frame, scan.shape, start, strict=True)
    ]
    return scan.crop(start, [b - a for a, b in zip(start, stop, strict=True)])


def union_grid(scan: Grid, grids: Sequence[Grid]) -> Grid:
    """The smallest part of a scan that contains parts of it, which lie on its voxels."""
    ends = torch.tensor([[n - 1 for n in grid.shape] for grid in grids])
    first = torch.stack([scan.index(grid.mm((0, 0, 0))) for grid in grids]).round().long()
    low, high = first.amin(0), (first + ends).amax(0)
    return scan.crop(low.tolist(), (high - low + 1).tolist())


def part_of(whole: Grid, part: Grid) -> tuple[slice, ...]:
    """The voxels of a grid that are those of a part of it, which lies on its voxels."""
    first = whole.index(part.mm((0, 0, 0))).round().long().tolist()
    return tuple(slice(n, n + m) for n, m in zip(first, part.shape, strict=True))


def centred(grid: Grid, size: int) -> Grid:
    """All slices of a grid, cropped or extended to `size` x `size` pixels around its middle."""
    slices, rows, columns = grid.shape
    start = (0, _first((rows - 1) / 2, size), _first((columns - 1) / 2, size))
    return grid.crop(start, (slices, size, size))


def voxel_box(scan: Grid, grid: Grid, low: Tensor, high: Tensor) -> tuple[list[int], list[int]]:
    """The voxels of a scan that voxels `low` to `high` of another grid touch, first and last.

    Args:
        scan: volumetric.
        grid: with axes parallel to the scan's, in any order.
        low: (3,) first voxel.
        high: (3,) last voxel.
    """
    edges = torch.stack([low.double() - 0.5, high.double() + 0.5])
    at = scan.index(grid.mm(edges))
    first = torch.floor(at.amin(0) + 0.5 + _SAME_INDEX).long().tolist()
    last = torch.ceil(at.amax(0) - 0.5 - _SAME_INDEX).long().tolist()
    return first, last


def inside(scan: Grid, grid: Grid) -> tuple[slice, ...]:
    """The voxels of a grid, with axes parallel to a scan's in any order, that touch the scan."""
    end = torch.tensor(scan.shape) - 1
    low, high = voxel_box(grid, scan, torch.zeros_like(end), end)
    return tuple(slice(max(0, a), max(0, b + 1)) for a, b in zip(low, high, strict=True))


def _first(centre: float, count: int) -> int:
    """The first of `count` voxels around a centre."""
    return round(centre - (count - 1) / 2)
