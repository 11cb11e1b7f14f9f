"""Which tumours are kept, and how kidney and tumour are combined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.geometry import Grid
from kidseg.methods.cascade.components import numbered
from kidseg.methods.cascade.crops import part_of

__all__ = ["Lesions", "boxes_around", "combined", "touching"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesions:
    """Lesions on a grid.

    Attributes:
        grid: volumetric.
        kept: (slices, rows, columns) bool on it: those that touch a kidney.
        kept_ml: volume of each, largest first.
        dropped_ml: volume of each of the others, largest first.
    """

    grid: Grid
    kept: Tensor
    kept_ml: tuple[float, ...]
    dropped_ml: tuple[float, ...]

    def kept_in(self, grid: Grid) -> Tensor:
        """`kept` on a part of the grid, voxel by voxel."""
        return self.kept[part_of(self.grid, grid)]


def touching(found: Tensor, kidneys: Tensor, grid: Grid) -> Lesions:
    """Keep the lesions that are connected to a kidney: that overlap it or share a corner with it.

    Args:
        found: (slices, rows, columns) bool, lesions.
        kidneys: the same for kidneys with their tumours.
        grid: of both.

    Source: Zhang et al., KiTS19, section 2.4.
    """
    from scipy import ndimage

    lesions, count = numbered(found)
    near = ndimage.binary_dilation(kidneys.numpy(), structure=np.ones((3, 3, 3), dtype=bool))
    kept = np.zeros(count + 1, dtype=bool)
    kept[np.unique(lesions[near])] = True
    kept[0] = False
    volumes = np.bincount(lesions.ravel(), minlength=count + 1) * float(grid.voxel_ml)
    chosen, others = (
        tuple(sorted((float(v) for v in volumes[1:][mask]), reverse=True))
        for mask in (kept[1:], ~kept[1:])
    )
    mask = torch.from_numpy(kept[lesions])
    return Lesions(grid=grid, kept=mask, kept_ml=chosen, dropped_ml=others)


def boxes_around(lesions: Tensor) -> Tensor:
    """(slices, rows, columns) bool: the bounding boxes of all components of a mask."""
    from scipy import ndimage

    found, _ = numbered(lesions)
    boxes = torch.zeros_like(lesions)
    for box in ndimage.find_objects(found):
        boxes[box] = True
    return boxes


def combined(kidney: Tensor, tumour: Tensor) -> Tensor:
    """Probabilities of background, kidney and tumour, that sum to 1.

    A voxel is tumour if it is more probable than not, whatever the kidney; otherwise kidney if that
    is more probable than not.

    Args:
        kidney: (slices, rows, columns) probability of kidney or tumour.
        tumour: the same of tumour.

    Returns:
        (3, slices, rows, columns). With q the larger of kidney and 1 - kidney, they are
        proportional to (1 - tumour) (1 - kidney), (1 - tumour) kidney and tumour q.
    """
    rest = torch.maximum(kidney, 1 - kidney)
    each = torch.stack([(1 - tumour) * (1 - kidney), (1 - tumour) * kidney, tumour * rest])
    return each / each.sum(0)
