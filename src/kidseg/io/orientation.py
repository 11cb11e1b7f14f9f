"""Convert between a file's native axis order and the canonical one, without interpolation.

In memory a volume is *canonical*: slices run to superior, rows to posterior and columns to the
patient's left, as closely as the axes of an oblique scan allow. Slices are then axial and in
radiological orientation. A file may store the same volume in 48 ways (six axis orders, eight
combinations of flips). The conversion only permutes and flips axes, so values do not change and
it can be inverted exactly.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume

__all__ = [
    "affine_of_grid",
    "canonical",
    "mm_from_index_of_affine",
    "ras_from",
    "ras_from_lps",
    "reorient",
]

# Columns: slice, row and column axis of a canonical grid in RAS+ patient space.
_CANONICAL = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])

ras_from_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4): from DICOM and ITK patient space (LPS+) to RAS+; its own inverse."""

ras_from = {
    "RAS": np.eye(4),
    "LPS": ras_from_lps,
    "LAS": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
"""(4, 4): from each supported patient space to RAS+."""


def mm_from_index_of_affine(affine: np.ndarray) -> Tensor:
    """Convert a NIfTI affine (4, 4), index order (column, row, slice), to a Grid's matrix."""
    return torch.from_numpy(np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]].copy())


def affine_of_grid(grid: Grid) -> np.ndarray:
    """The NIfTI affine (4, 4), index order (i, j, k), RAS+ mm, of a volumetric grid."""
    return np.ascontiguousarray(grid.mm_from_index.cpu().numpy()[:, [2, 1, 0, 3]])


def canonical(volume: Volume) -> Volume:
    """The same voxels in canonical order. The data are a view of the input where possible."""
    return _reordered(volume, _CANONICAL)


def reorient(volume: Volume, like: Grid) -> Volume:
    """The same voxels in the axis order and directions closest to those of `like`.

    `reorient(canonical(v), v.grid)` equals `v` exactly, for any volume `v`.
    """
    linear = like.mm_from_index.cpu().numpy()[:3, :3]
    return _reordered(volume, linear / np.linalg.norm(linear, axis=0))


def _reordered(volume: Volume, directions: np.ndarray) -> Volume:
    """Permute and flip axes so that each follows the closest column of `directions`."""
    linear = volume.grid.mm_from_index.cpu().numpy()[:3, :3]
    cosines = directions.T @ (linear / np.linalg.norm(linear, axis=0))
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[i, p[i]]) for i in range(3)))
    flips = [i for i in range(3) if cosines[i, order[i]] < 0]
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1.0
    for new, old in enumerate(order):
        old_from_new[old, new] = -1.0 if new in flips else 1.0
        old_from_new[old, 3] = volume.grid.shape[old] - 1 if new in flips else 0.0
    data = volume.data.permute(0, *(1 + axis for axis in order))
    if flips:
        data = data.flip([1 + axis for axis in flips])
    matrix = volume.grid.mm_from_index @ torch.from_numpy(old_from_new).to(
        volume.grid.mm_from_index
    )
    return Volume(data, Grid((data.shape[1], data.shape[2], data.shape[3]), matrix))
