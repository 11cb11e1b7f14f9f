"""One structure in its bounding box, and the same with its contour moved by a voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kidseg.geometry import Grid
from kidseg.metrics import union_box

__all__ = ["MARGIN", "Mask", "bounds", "moved_contours"]

MARGIN = 2
"""Voxels around a structure, so that its contour can move."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A structure on voxels.

    Attributes:
        data: (slices, rows, columns) bool, canonical order.
        grid: of the voxels, volumetric.
    """

    data: np.ndarray
    grid: Grid

    @property
    def volume_ml(self) -> float:
        """Voxels times their volume; 0 if empty."""
        return int(np.count_nonzero(self.data)) * float(self.grid.voxel_ml)

    @property
    def linear(self) -> np.ndarray:
        """(3, 3): columns are the steps in mm (x, y, z) along slices, rows and columns."""
        return self.grid.mm_from_index.numpy()[:3, :3]

    def mm(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) positions (x, y, z) of indices (..., 3), which may be fractional."""
        return np.asarray(self.grid.mm(index.astype(np.float64)).numpy())

    def points_mm(self) -> np.ndarray:
        """(voxels, 3) centres of the voxels."""
        return self.mm(np.argwhere(self.data))

    def cropped(self, *others: np.ndarray, margin: int = MARGIN) -> tuple[Mask, ...]:
        """This mask, and others on its grid, in its own bounding box with a margin.

        The margin may reach beyond the image, where there is nothing. The whole if it is empty.
        """
        box = union_box(self.data)
        if box is None:
            return (self, *(Mask(other, self.grid) for other in others))
        start = [extent.start - margin for extent in box]
        shape = [extent.stop - extent.start + 2 * margin for extent in box]
        grid = self.grid.crop(start, shape)
        return tuple(Mask(bounds(data, start, shape), grid) for data in (self.data, *others))

    def onto(self, other: Mask) -> np.ndarray:
        """This structure in the box of another one of the same image; cut off outside."""
        start = self.grid.index(other.grid.mm([0.0, 0.0, 0.0])).round().long().tolist()
        return bounds(self.data, start, list(other.data.shape))


def bounds(data: np.ndarray, start: list[int], shape: list[int]) -> np.ndarray:
    """`shape` voxels from index `start`, which may be outside, where the value is 0."""
    out = np.zeros(shape, dtype=data.dtype)
    source, target = [], []
    for low, count, total in zip(start, shape, data.shape, strict=True):
        first, last = max(low, 0), min(low + count, total)
        source.append(slice(first, max(last, first)))
        target.append(slice(first - low, max(last, first) - low))
    out[tuple(target)] = data[tuple(source)]
    return out


def moved_contours(mask: Mask) -> tuple[Mask, Mask]:
    """The mask with its contour one voxel further inside, and one voxel further outside.

    By the six neighbours of each voxel. A thin structure may vanish.
    """
    from scipy import ndimage

    return (
        Mask(ndimage.binary_erosion(mask.data), mask.grid),
        Mask(ndimage.binary_dilation(mask.data), mask.grid),
    )
