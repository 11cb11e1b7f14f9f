"""Agreement of a mask with its reference: Dice, HD95, surface Dice, volume error.

Pure functions of two masks on the same grid. Distances are in millimetres on any volumetric grid,
anisotropic ones included. Masks are (slices, rows, columns), boolean, arrays or tensors.

A surface consists of *surface elements*: one at each corner of eight voxels that are not all on the
same side, with the area of the marching-cubes patch that separates them. So the measures do not
depend on the number of voxels along a face. Voxels outside the volume are background: a mask that
touches the border has a surface there. A single slice is a slab with a top and a bottom surface.

Source: the surface elements of DeepMind's surface-distance (Nikolov et al., "Clinically applicable
segmentation of head and neck anatomy for radiotherapy", J Med Internet Res 2021), with which KiTS23
is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
from torch import Tensor

from kidseg.geometry import Grid

__all__ = [
    "Measures",
    "SurfaceDistances",
    "dice",
    "hd95_mm",
    "measure",
    "surface_dice",
    "surface_distances",
    "union_box",
    "volume_error_ml",
]

Mask = np.ndarray | Tensor
Box = tuple[slice, slice, slice]

# The patches of marching cubes. A patch cuts a group of neighbouring corners off a 2 x 2 x 2 cell,
# half-way along each edge. Up to rotation and reflection there are six. Each entry gives the
# corners of the group as (dz, dy, dx), and for each triangle of the patch the areas of its
# projections along z, y and x in eighths of the cell's face. A patch that is not flat can be
# triangulated in several ways; these are the ones that KiTS23 uses. Source: Lorensen and Cline,
# "Marching cubes", SIGGRAPH 1987; triangles as in surface-distance (see the module docstring),
# which MONAI includes too. The tests compare all 256 codes with it.
_PATCHES = (
    ("000", ((1, 1, 1),)),
    ("000 001", ((2, 2, 0), (2, 2, 0))),
    ("000 001 010", ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    ("000 001 010 011", ((4, 0, 0), (4, 0, 0))),
    ("000 001 010 100", ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    ("001 000 010 110", ((3, 3, 3), (2, 2, 0), (0, 2, 2), (1, 1, 1))),
)

# Margin of the tolerance. Files store spacings as 32-bit floats, whose rounding over a tolerance of
# 10 mm stays below this.
_SAME_MM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All measures of one structure in one case; None if a measure is undefined.

    Attributes:
        reference_ml: volume of the reference.
        predicted_ml: volume of the prediction.
        dice: None if both masks are empty; 0 if one is.
        hd95_mm: None if either mask is empty.
        surface_dice: None if both masks are empty; 0 if one is.
        volume_error_ml: predicted minus reference volume; 0 if both masks are empty.
    """

    reference_ml: float
    predicted_ml: float
    dice: float | None
    hd95_mm: float | None
    surface_dice: float | None
    volume_error_ml: float

    @property
    def both_empty(self) -> bool:
        """Whether both masks are empty."""
        return self.dice is None


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The surface elements of two masks, and the distance of each to the other surface.

    Attributes:
        predicted_mm: (elements of the prediction,) to the nearest element of the reference; inf if
            the reference is empty.
        predicted_mm2: (elements of the prediction,) area of each.
        reference_mm: (elements of the reference,) to the nearest element of the prediction.
        reference_mm2: (elements of the reference,) area of each.
    """

    predicted_mm: np.ndarray
    predicted_mm2: np.ndarray
    reference_mm: np.ndarray
    reference_mm2: np.ndarray

    def percentile_mm(self, percent: float) -> float | None:
        """Percentile of the distances from each surface to the other; the larger of the two.

        Weighted by area. None if a surface is missing.
        """
        if not (self.predicted_mm.size and self.reference_mm.size):
            return None
        return max(
            _weighted_percentile(self.predicted_mm, self.predicted_mm2, percent),
            _weighted_percentile(self.reference_mm, self.reference_mm2, percent),
        )

    def overlap(self, tolerance_mm: float) -> float | None:
        """Share of the area of both surfaces within `tolerance_mm` of the other surface.

        None if both surfaces are missing; 0 if one is.

        Raises:
            ValueError: the tolerance is negative or not finite.
        """
        if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
            raise ValueError(f"the tolerance must be at least 0 mm, not {tolerance_mm}")
        area = self.predicted_mm2.sum() + self.reference_mm2.sum()
        if not area:
            return None
        limit = tolerance_mm + _SAME_MM
        near = self.predicted_mm2[self.predicted_mm <= limit].sum()
        near += self.reference_mm2[self.reference_mm <= limit].sum()
        return float(near / area)


def dice(predicted: Mask, reference: Mask) -> float | None:
    """Overlap of two masks of any shape: 2 |A and B| / (|A| + |B|).

    None if both masks are empty; 0 if one is.

    Raises:
        ValueError: not boolean, or of different shapes.

    Source: Dice, "Measures of the amount of ecologic association between species", Ecology 1945.
    """
    a, b = _pair(predicted, reference)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else None


def volume_error_ml(predicted: Mask, reference: Mask, grid: Grid) -> float:
    """Predicted minus reference volume; the signed volume of the other mask if one is empty.

    Raises:
        ValueError: masks and grid do not match.
    """
    a, b = _pair(predicted, reference)
    _check_grid(a, grid)
    return (int(np.count_nonzero(a)) - int(np.count_nonzero(b))) * float(grid.voxel_ml)


def hd95_mm(predicted: Mask, reference: Mask, grid: Grid) -> float | None:
    """95th percentile of the distances from each surface to the other; the larger of the two.

    Percentiles are weighted by surface area. None if either mask is empty.

    Raises:
        ValueError: masks and grid do not match.

    Source: "robust Hausdorff" of DeepMind's surface-distance; see the module docstring.
    """
    return surface_distances(predicted, reference, grid).percentile_mm(95.0)


def surface_dice(predicted: Mask, reference: Mask, grid: Grid, tolerance_mm: float) -> float | None:
    """Share of the area of both surfaces within `tolerance_mm` of the other surface.

    None if both masks are empty; 0 if one is.

    Raises:
        ValueError: masks and grid do not match, or the tolerance is invalid.

    Source: Nikolov et al. 2021, "surface Dice at tolerance"; see the module docstring.
    """
    return surface_distances(predicted, reference, grid).overlap(tolerance_mm)


def measure(predicted: Mask, reference: Mask, grid: Grid, tolerance_mm: float) -> Measures:
    """All measures from one computation of the surfaces: see the functions of the same names.

    Raises:
        ValueError: masks and grid do not match, or the tolerance is invalid.
    """
    a, b = _pair(predicted, reference)
    surfaces = surface_distances(a, b, grid)
    voxel_ml = float(grid.voxel_ml)
    return Measures(
        reference_ml=int(np.count_nonzero(b)) * voxel_ml,
        predicted_ml=int(np.count_nonzero(a)) * voxel_ml,
        dice=dice(a, b),
        hd95_mm=surfaces.percentile_mm(95.0),
        surface_dice=surfaces.overlap(tolerance_mm),
        volume_error_ml=volume_error_ml(a, b, grid),
    )


def surface_distances(predicted: Mask, reference: Mask, grid: Grid) -> SurfaceDistances:
    """The surface elements of both masks, and the distance of each to the other surface.

    Only the bounding box of both masks is processed, so the run time depends on the masks, not on
    the volume.

    Raises:
        ValueError: masks and grid do not match.
    """
    a, b = _pair(predicted, reference)
    _check_grid(a, grid)
    spacing_mm = grid.spacing_mm.detach().cpu().numpy()
    box = union_box(a, b)
    if box is None:
        empty = np.zeros(0)
        return SurfaceDistances(empty, empty, empty, empty)
    areas_mm2 = _areas_mm2(spacing_mm)
    codes_a, codes_b = _corner_codes(a[box]), _corner_codes(b[box])
    surface_a, surface_b = _is_surface(codes_a), _is_surface(codes_b)
    return SurfaceDistances(
        _distances_mm(surface_a, surface_b, spacing_mm),
        areas_mm2[codes_a[surface_a]],
        _distances_mm(surface_b, surface_a, spacing_mm),
        areas_mm2[codes_b[surface_b]],
    )


def union_box(*masks: np.ndarray) -> Box | None:
    """Bounding box of the non-zero voxels of all masks; None if there are none.

    Args:
        masks: (slices, rows, columns), at least one, all of the same shape.
    """
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        if not used.size:
            return None
        sides.append(slice(int(used[0]), int(used[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _pair(predicted: Mask, reference: Mask) -> tuple[np.ndarray, np.ndarray]:
    a, b = (
        m.detach().cpu().numpy() if isinstance(m, Tensor) else m for m in (predicted, reference)
    )
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"masks must be boolean, not {a.dtype} and {b.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"masks have different shapes: {a.shape} and {b.shape}")
    return a, b


def _check_grid(mask: np.ndarray, grid: Grid) -> None:
    if grid.is_slicewise:
        raise ValueError("distances and volumes need a volumetric grid")
    if mask.shape != grid.shape:
        raise ValueError(f"masks of shape {mask.shape} do not match a grid of {grid.shape}")


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """The eight voxels around each corner as the bits of one byte; 1 is inside.

    (n + 1, ...) for a mask (n, ...). The voxel at offset (dz, dy, dx) from the first of the eight
    is bit 7 - (4 dz + 2 dy + dx), as in the table of areas.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for position in range(8):
        dz, dy, dx = position >> 2, position >> 1 & 1, position & 1
        part = padded[dz : dz + codes.shape[0], dy : dy + codes.shape[1], dx : dx + codes.shape[2]]
        codes |= part << np.uint8(7 - position)
    return codes


def _is_surface(codes: np.ndarray) -> np.ndarray:
    surface: np.ndarray = (codes != 0) & (codes != 255)
    return surface


def _areas_mm2(spacing_mm: np.ndarray) -> np.ndarray:
    """(256,): area of the surface element of each corner code, for a spacing in mm (z, y, x)."""
    faces_mm2 = spacing_mm.prod() / spacing_mm
    areas: np.ndarray = np.linalg.norm(_triangles() * faces_mm2, axis=-1).sum(axis=-1)
    return areas


@cache
def _triangles() -> np.ndarray:
    """(256, 4, 3): projections of the triangles of each corner code, in a cell of unit size.

    The corners on the smaller side are cut off, each group of neighbours by a separate patch; with
    four corners on each side, both choices give the same areas. Unused rows are 0.
    """
    patches = _oriented_patches()
    table = np.zeros((256, 4, 3))
    for code in range(256):
        inside = frozenset(corner for corner in range(8) if code >> (7 - corner) & 1)
        smaller = min(inside, frozenset(range(8)) - inside, key=len)
        found = [triangle for group in _groups(smaller) for triangle in patches[group]]
        if found:
            table[code, : len(found)] = np.array(found) / 8
    return table


def _oriented_patches() -> dict[frozenset[int], list[tuple[int, ...]]]:
    """The triangles of each group of corners: the patches in all 48 orientations."""
    oriented = {}
    for corners, triangles in _PATCHES:
        for order, flip in product(permutations(range(3)), range(8)):
            group = frozenset(
                int("".join(corner[axis] for axis in order), 2) ^ flip for corner in corners.split()
            )
            oriented[group] = [tuple(triangle[axis] for axis in order) for triangle in triangles]
    return oriented


def _groups(corners: frozenset[int]) -> list[frozenset[int]]:
    """Group the corners of a cell, numbered 4 dz + 2 dy + dx, that are connected by edges."""
    groups = []
    while corners:
        group = frozenset({min(corners)})
        while joined := {c for c in corners - group if {c ^ 1, c ^ 2, c ^ 4} & group}:
            group |= joined
        groups.append(group)
        corners -= group
    return groups


def _distances_mm(surface: np.ndarray, other: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """From each element of a surface to the nearest one of the other; inf if that is empty."""
    from scipy.spatial import KDTree

    distances = np.zeros(np.count_nonzero(surface))
    if not other.any():
        return np.full_like(distances, np.inf)
    apart = ~other[surface]
    if apart.any():
        tree = KDTree(np.argwhere(other) * spacing_mm)
        distances[apart] = tree.query(np.argwhere(surface)[apart] * spacing_mm)[0]
    return distances


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> float:
    """The smallest value such that values up to it have `percent` of the total weight."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    position = int(np.searchsorted(share, percent / 100.0))
    return float(values[order[min(position, values.size - 1)]])
