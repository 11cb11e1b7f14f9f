"""Axis order: between a file's own voxel order and the canonical one, without interpolation.

In memory a volume is *canonical*: slices go up (superior), rows back (posterior), columns to the
patient's left, as far as the axes of an oblique scan allow; so slices are axial and look as a
radiologist expects. A file may store the same patient in 48 ways (six orders of the axes, eight
flips). Going from one to the other only relabels voxels: no value changes, and the way back is
exact.
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
"""(4, 4): DICOM and ITK patient space (Left, Posterior, Superior) to ours; its own inverse."""

ras_from = {
    "RAS": np.eye(4),
    "LPS": ras_from_lps,
    "LAS": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
"""(4, 4) from each patient space that a file may use to ours."""


def mm_from_index_of_affine(affine: np.ndarray) -> Tensor:
    """A Grid's matrix from a NIfTI affine (4, 4), whose index order is (column, row, slice)."""
    return torch.from_numpy(np.asarray(affine, dtype=np.float64)[:, [2, 1, 0, 3]].copy())


def affine_of_grid(grid: Grid) -> np.ndarray:
    """The NIfTI affine (4, 4), index order (i, j, k), RAS+ mm, of a volumetric grid."""
    return np.ascontiguousarray(grid.mm_from_index.cpu().numpy()[:, [2, 1, 0, 3]])


def canonical(volume: Volume) -> Volume:
    """The same voxels in canonical order. Data are a view of the given ones where torch allows."""
    return _rearranged(volume, _CANONICAL)


def reorient(volume: Volume, like: Grid) -> Volume:
    """The same voxels in the axis order and directions nearest to those of `like`.

    `reorient(canonical(v), v.grid)` is `v` again, exactly, for any volume `v`.
    """
    linear = like.mm_from_index.cpu().numpy()[:3, :3]
    return _rearranged(volume, linear / np.linalg.norm(linear, axis=0))


def _rearranged(volume: Volume, directions: np.ndarray) -> Volume:
    """Axes permuted and flipped so that each runs along the nearest column of `directions`."""
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
