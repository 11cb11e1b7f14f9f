"""Postprocess a segmentation: remove small components and report them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume

__all__ = ["Piece", "min_volume_ml", "remove_small"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A connected component that was removed.

    Attributes:
        volume_ml: its volume.
        centre_mm: (x, y, z) centroid, RAS+.
        voxels: {label: number of voxels}.
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    voxels: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "volume_ml": self.volume_ml,
            "centre_mm": self.centre_mm,
            "voxels": dict(self.voxels),
        }


def min_volume_ml(
    config: PostprocessConfig, body_radius_mm: float | None, voxel_ml: float = 0.0
) -> float:
    """The minimum volume of a component, for a body of this size.

    Volumes scale with the cube of a length. A newborn's trunk has a radius of about 55 mm and an
    adult's of 150 mm, so 3 ml for adults become 0.15 ml, far below a newborn's kidney (10-18 ml).

    Args:
        config: threshold for an adult, or in voxels.
        body_radius_mm: geometric mean of the body's semi-axes; None or NaN if there is no body:
            nothing is removed then, unless the threshold is in voxels.
        voxel_ml: volume of the voxels that `least_voxels` counts.
    """
    if config.least_voxels is not None:
        return config.least_voxels * voxel_ml
    if body_radius_mm is None or not np.isfinite(body_radius_mm):
        return 0.0
    return (
        config.least_ml * (min(body_radius_mm, config.body_radius_mm) / config.body_radius_mm) ** 3
    )


def remove_small(
    labels: Volume, min_ml: float, *, keep_ends: bool = True
) -> tuple[Volume, tuple[Piece, ...]]:
    """Remove connected components of all labels together that are smaller than `min_ml`.

    Voxels are connected by faces.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        min_ml: see `min_volume_ml`; 0 removes nothing.
        keep_ends: keep components in the first or last slice, which may continue outside the scan.

    Returns:
        The labels, a new volume if anything was removed, and the removed components, largest first.
        An empty mask stays empty.
    """
    from scipy import ndimage

    values = labels.data[0].numpy()
    box = _box(values)
    if box is None or min_ml <= 0:
        return labels, ()
    inside = values[box]
    pieces, count = ndimage.label(inside > 0)
    foreground = np.flatnonzero(inside)
    piece = pieces.ravel()[foreground]
    sizes = np.bincount(piece, minlength=count + 1)
    small = sizes * float(labels.grid.voxel_ml) < min_ml
    small[0] = False  # the background
    if keep_ends and box[0].start == 0:
        small[pieces[0].ravel()] = False
    if keep_ends and box[0].stop == len(values):
        small[pieces[-1].ravel()] = False
    if not small.any():
        return labels, ()
    remove = small[piece]
    index = np.stack(np.unravel_index(foreground[remove], inside.shape))
    index += np.array([[side.start] for side in box])
    kept = values.copy()
    kept[tuple(index)] = 0
    # Removed components are numbered 0, 1, ... in the order of their first voxels.
    number = (np.cumsum(small) - 1)[piece[remove]]
    removed = _pieces(number, index, values[tuple(index)], labels.grid)
    return Volume(torch.from_numpy(kept)[None], labels.grid), removed


def _box(values: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Bounding box of the foreground; None if it is empty."""
    slices = np.flatnonzero(values.any(axis=(1, 2)))
    if not len(slices):
        return None
    plane = np.zeros(values.shape[1:], dtype=bool)
    for k in slices:
        plane |= values[k] > 0
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    z, y, x = (slice(int(line[0]), int(line[-1]) + 1) for line in (slices, rows, columns))
    return z, y, x


def _pieces(
    number: np.ndarray, index: np.ndarray, values: np.ndarray, grid: Grid
) -> tuple[Piece, ...]:
    """The components that voxels form, largest first.

    Args:
        number: (voxels,) component of each, 0, 1, ...
        index: (3, voxels) slice, row, column.
        values: (voxels,) labels.
        grid: of the labels.
    """
    sizes = np.bincount(number)
    sums = [np.bincount(number, weights=axis) for axis in index]
    centres = grid.mm(np.stack(sums, axis=1) / sizes[:, None]).tolist()
    volumes = (sizes * float(grid.voxel_ml)).tolist()
    voxels: list[dict[int, int]] = [{} for _ in sizes]
    for label in np.unique(values).tolist():
        counts = np.bincount(number[values == label], minlength=len(sizes))
        for k in np.flatnonzero(counts).tolist():
            voxels[k][label] = int(counts[k])
    return tuple(
        Piece(volume_ml=volumes[k], centre_mm=tuple(centres[k]), voxels=voxels[k])
        for k in np.argsort(-sizes, kind="stable").tolist()
    )
