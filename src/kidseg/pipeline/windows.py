"""Windows: rows and columns of a slice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from torch import Tensor

__all__ = ["Window", "bounding_window", "disjoint", "intersection", "part_of", "projected"]

Window = tuple[range, range]
"""Rows and columns of a slice of the scan."""


def part_of(values: Tensor, part: Window, window: Window = (range(0), range(0))) -> Tensor:
    """The rows and columns `part` of values that cover `window`; shares memory."""
    top, left = (line.start for line in window)
    rows, columns = part
    return values[
        ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]


def intersection(one: Window | None, other: Window) -> Window | None:
    """The intersection of two windows; None if it is empty."""
    if one is None:
        return None
    rows, columns = (
        range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (rows, columns) if rows and columns else None


def bounding_window(windows: Sequence[Window]) -> Window:
    """The smallest window that contains all windows."""
    rows, columns = (
        range(min(w[i].start for w in windows), max(w[i].stop for w in windows)) for i in (0, 1)
    )
    return rows, columns


def disjoint(windows: Iterable[Window | None]) -> list[Window]:
    """Disjoint windows that cover all of these; overlapping windows are merged."""
    apart: list[Window] = []
    for window in windows:
        if window is None:
            continue
        while overlapping := [other for other in apart if intersection(other, window)]:
            apart = [other for other in apart if other not in overlapping]
            window = bounding_window([window, *overlapping])
        apart.append(window)
    return apart


def projected(
    boxes: np.ndarray, index_from_target: np.ndarray, plane: int | None, size: tuple[int, int]
) -> Window | None:
    """Rows and columns of a target slice that the boxes can influence; None if there are none.

    Args:
        boxes: (slices, 4) first and last row and column in each slice of the source; -1 for none.
        index_from_target: (4, 4), see `index_from_voxels`.
        plane: the source slice whose plane contains the target slice, if there is one.
        size: rows and columns of the target.
    """
    if plane is None:
        depths = index_from_target[0] @ _corners((0, 0), *((0, n - 1) for n in size))
        first, last = int(np.floor(depths.min())), int(np.ceil(depths.max()))
    else:
        first = last = plane
    slices = np.arange(max(first, 0), min(last, len(boxes) - 1) + 1)
    slices = slices[boxes[slices, 0] >= 0]
    if not len(slices):
        return None
    # A pixel influences the interpolation up to its neighbours; the rest covers rounding.
    low, high = boxes[slices].min(0)[[0, 2]] - 1.01, boxes[slices].max(0)[[1, 3]] + 1.01
    ends = (slices[0] - 1.01, slices[-1] + 1.01)
    if plane is not None:
        ends = (index_from_target[0, 3],) * 2
    corners = _corners(ends, *zip(low, high, strict=True))
    on_target = np.linalg.inv(index_from_target)[1:3] @ corners
    starts = np.maximum(np.ceil(on_target.min(1)), 0).astype(int)
    stops = np.minimum(np.floor(on_target.max(1)) + 1, size).astype(int)
    if (starts >= stops).any():
        return None
    return range(starts[0], stops[0]), range(starts[1], stops[1])


def _corners(*ends: tuple[float, float]) -> np.ndarray:
    """(4, 8) homogeneous coordinates of the corners of a box, given both ends of each axis."""
    return np.array([(*corner, 1.0) for corner in product(*ends)]).T
