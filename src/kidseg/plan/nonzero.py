"""The non-zero region of an image, to which nnU-Net crops."""

from __future__ import annotations

import torch
from torch import Tensor

from kidseg.geometry import Volume

__all__ = ["Box", "nonzero_box", "nonzero_region"]

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First index and shape, (slice, row, column) each."""


def nonzero_box(image: Volume) -> Box:
    """First index and shape of the bounding box of the voxels that are non-zero in any channel.

    The box of the full image if all voxels are 0.
    """
    nonzero = (image.data != 0).any(dim=0)
    start, shape = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = nonzero.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]
        if not len(occupied):
            return (0, 0, 0), image.grid.shape
        start.append(int(occupied[0]))
        shape.append(int(occupied[-1]) - start[-1] + 1)
    return (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])


def nonzero_region(data: Tensor) -> Tensor:
    """(slices, rows, columns) bool: non-zero in any channel, holes filled."""
    from scipy import ndimage

    return torch.from_numpy(ndimage.binary_fill_holes((data != 0).any(dim=0).numpy()))
