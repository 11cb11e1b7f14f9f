"""The non-zero part of an image, which nnU-Net crops to and may normalise inside."""

from __future__ import annotations

import torch
from torch import Tensor

from kidseg.geometry import Volume

__all__ = ["Box", "nonzero_box", "nonzero_region"]

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First index and shape, (slice, row, column) each."""


def nonzero_box(image: Volume) -> Box:
    """First index and shape of the smallest box around the voxels that are not 0 in all channels.

    The whole image, if all are 0.
    """
    nonzero = (image.data != 0).any(dim=0)
    start, shape = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        there = nonzero.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]
        if not len(there):
            return (0, 0, 0), image.grid.shape
        start.append(int(there[0]))
        shape.append(int(there[-1]) - start[-1] + 1)
    return (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])


def nonzero_region(data: Tensor) -> Tensor:
    """(slices, rows, columns) bool: not 0 in any channel, holes filled."""
    from scipy import ndimage

    return torch.from_numpy(ndimage.binary_fill_holes((data != 0).any(dim=0).numpy()))
