"""Areas inside polygons: pixels and square units, by the even-odd rule.

A point is inside if a ray from it crosses the polygons an odd number of times. So an inner polygon
is a hole, one in the hole an island, and a channel without width that joins a hole to its outer
polygon (a keyhole) has no effect. A pixel is inside if its centre is, or lies on a polygon: masks
that were traced through the centres of their outermost pixels, as OpenCV does, come back as they
were.

Libraries that fill polygons fill one at a time, and treat a centre on a polygon as it happens to be
rounded. Here both edges of a keyhole are crossed at bit-identical positions, and "on a polygon"
allows for the rounding of coordinates in files.

Source: even-odd rule and scan conversion with edges half-open at their lower end, Foley et al.,
"Computer Graphics: Principles and Practice" (2nd edition, 1990), 3.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

__all__ = ["ON_EDGE", "area_inside", "filled"]

ON_EDGE = 0.01
"""A centre this close to a polygon, in pixels along a row or column, is on it.

Coordinates with two decimals are rounded by 0.005 mm, which is less for pixels over 0.5 mm.
"""

_AT_ONCE = 2**20  # crossings of edges and rows that are computed at a time
_MAX_STRIPS = 2**10


def filled(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres are inside an odd number of closed polygons, or on one.

    Args:
        polygons: each (points, 2) positions (row, column) of finite numbers; centres of pixels are
            at integers.
        shape: (rows, columns); what is outside is cut off.

    Returns:
        (rows, columns) bool.
    """
    rows, columns = shape
    starts, ends = _edges(polygons)
    crosses = starts[:, 0] < ends[:, 0]
    toggles = np.zeros((rows, columns + 1), np.uint8)
    for edge, row in _rows_of(starts[crosses], ends[crosses], rows, 0.0):
        at = _meets(starts[crosses][edge], ends[crosses][edge], row)
        column = np.clip(np.ceil(at), 0, columns).astype(np.int64)
        np.bitwise_xor.at(toggles, (row, column), 1)
    inside: np.ndarray = np.bitwise_xor.accumulate(toggles[:, :columns], axis=1).astype(bool)
    _mark_on(inside, starts, ends)
    swap = (ends[:, 1] < starts[:, 1])[:, None]
    left, right = np.where(swap, ends, starts), np.where(swap, starts, ends)
    _mark_on(inside.T, left[:, ::-1], right[:, ::-1])
    return inside


def _mark_on(inside: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Set the pixels whose centres edges meet along their rows. Each start is at a lower row."""
    rows, columns = inside.shape
    for edge, row in _rows_of(starts, ends, rows, ON_EDGE):
        at = _meets(starts[edge], ends[edge], row)
        column = np.clip(np.rint(at), -1, columns).astype(np.int64)
        on = (np.abs(at - column) <= ON_EDGE) & (column >= 0) & (column < columns)
        inside[row[on], column[on]] = True


def _rows_of(
    starts: np.ndarray, ends: np.ndarray, rows: int, beyond: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(edges, rows) where edges meet rows of pixel centres, in parts that fit in memory.

    An edge ends before its last row, unless it may reach beyond both.
    """
    first = np.clip(np.ceil(starts[:, 0] - beyond), 0, rows).astype(np.int64)
    after = np.ceil(ends[:, 0]) if beyond == 0 else np.floor(ends[:, 0] + beyond) + 1
    last = np.clip(after, 0, rows).astype(np.int64)
    for part in _parts(np.maximum(last - first, 0)):
        edge, row = _crossed(first[part], np.maximum(last[part], first[part]))
        yield edge + part.start, row


def area_inside(polygons: Sequence[np.ndarray]) -> float:
    """The area inside an odd number of closed polygons, in squared units of the positions.

    Exact (to rounding) if edges meet only at corners: between neighbouring corners, the width
    inside changes linearly with the row, so the width half-way times the height is the area. Where
    edges cross between corners, or of more than 1,023 strips, it is as exact as such a strip is
    narrow.

    Args:
        polygons: each (points, 2) positions (row, column), finite.
    """
    starts, ends = _edges(polygons)
    crosses = starts[:, 0] < ends[:, 0]
    starts, ends = starts[crosses], ends[crosses]
    levels = np.unique(np.concatenate([starts[:, 0], ends[:, 0]]))
    if len(levels) < 2:
        return 0.0
    if len(levels) > _MAX_STRIPS:
        levels = np.linspace(levels[0], levels[-1], _MAX_STRIPS)
    heights, middles = np.diff(levels), (levels[1:] + levels[:-1]) / 2
    first, last = (np.searchsorted(middles, side[:, 0]) for side in (starts, ends))
    changes = np.bincount(first, minlength=len(levels)) - np.bincount(last, minlength=len(levels))
    area = 0.0
    for part in _parts(np.cumsum(changes)[:-1]):
        edge, strip = _crossed(*(np.clip(side, part.start, part.stop) for side in (first, last)))
        at = _meets(starts[edge], ends[edge], middles[strip])
        order = np.lexsort((at, strip))
        widths = np.diff(at[order].reshape(-1, 2), axis=1)[:, 0]  # each is crossed evenly often
        area += float(widths @ heights[strip[order][::2]])
    return area


def _edges(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ends (edges, 2) of all edges, the one at the lower row first.

    The order makes an edge and its reverse cross a row at the same position, to the last bit.
    """
    each = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    here = np.concatenate([np.zeros((0, 2)), *each])
    there = np.concatenate([np.zeros((0, 2)), *(np.roll(one, -1, axis=0) for one in each)])
    swap = there[:, 0] < here[:, 0]
    return np.where(swap[:, None], there, here), np.where(swap[:, None], here, there)


def _parts(counts: np.ndarray) -> list[slice]:
    """Consecutive edges, or strips, whose crossings fit in memory together."""
    ends = np.flatnonzero(np.diff(np.cumsum(counts) // _AT_ONCE)) + 1
    bounds = [0, *ends.tolist(), len(counts)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _crossed(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(edge, row) of all crossings of edges with the rows first .. last - 1 of each."""
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return edge, np.arange(len(edge)) - before[edge] + first[edge]


def _meets(starts: np.ndarray, ends: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The columns at which edges meet rows; of an edge along a row, that of its start."""
    rise = ends[:, 0] - starts[:, 0]
    share = np.divide(row - starts[:, 0], rise, out=np.zeros(len(rise)), where=rise > 0)
    columns: np.ndarray = starts[:, 1] + share.clip(0, 1) * (ends[:, 1] - starts[:, 1])
    return columns
