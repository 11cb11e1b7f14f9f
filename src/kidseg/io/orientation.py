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
    "CANONICAL",
    "affine_of_grid",
    "axes_of",
    "canonical",
    "facing",
    "mm_from_index_of_affine",
    "ras_from",
    "ras_from_lps",
    "reorient",
]

# Columns: slice, row and column axis of a canonical grid in RAS+ patient space.
_CANONICAL = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])

CANONICAL = "SPL"
"""The canonical order as in `axes_of`."""

_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

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


def axes_of(grid: Grid) -> str:
    """Where the slices, rows and columns of a volumetric grid run to: "SPL" if it is canonical.

    Letters stand for the patient's Right, Left, Anterior, Posterior, Superior and Inferior. Oblique
    axes get the letters of the closest order.
    """
    linear = grid.mm_from_index.cpu().numpy()[:3, :3]
    cosines = linear / np.linalg.norm(linear, axis=0)
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[i], i]) for i in range(3)))
    letters = {place: letter for letter, place in _DIRECTIONS.items()}
    return "".join(letters[order[i], 1 if cosines[order[i], i] > 0 else -1] for i in range(3))


def facing(axes: str) -> Grid:
    """A single voxel of 1 mm whose axes run in these directions, for `reorient`; see `axes_of`.

    Raises:
        ValueError: not three letters, one for each axis of the patient.
    """
    known = [_DIRECTIONS.get(letter, (-1, 0)) for letter in axes]
    if sorted(axis for axis, _ in known) != [0, 1, 2]:
        raise ValueError(f"axes must be an order such as {CANONICAL}, not '{axes}'")
    matrix = np.eye(4)
    matrix[:3, :3] = 0.0
    for column, (axis, sign) in enumerate(known):
        matrix[axis, column] = sign
    return Grid((1, 1, 1), torch.from_numpy(matrix))


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
