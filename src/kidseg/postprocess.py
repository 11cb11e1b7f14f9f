"""What is done to a segmentation after the networks: small pieces removed, and said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume

__all__ = ["Piece", "least_volume_ml", "remove_small"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A connected piece that was removed.

    Attributes:
        volume_ml: of the piece.
        centre_mm: (x, y, z) of its voxels, RAS+.
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


def least_volume_ml(config: PostprocessConfig, body_radius_mm: float | None) -> float:
    """The smallest volume that stays, in a body of this size.

    Volumes scale with the cube of a length. A newborn's trunk has a radius of about 55 mm and an
    adult's of 150 mm: of 3 ml for adults 0.15 ml are left, far below a newborn's kidney (10-18 ml).

    Args:
        config: threshold for an adult.
        body_radius_mm: geometric mean of the body's semi-axes; None or NaN if there was no body:
            then nothing is removed.
    """
    if body_radius_mm is None or not np.isfinite(body_radius_mm):
        return 0.0
    return (
        config.least_ml * (min(body_radius_mm, config.body_radius_mm) / config.body_radius_mm) ** 3
    )


def remove_small(labels: Volume, least_ml: float) -> tuple[Volume, tuple[Piece, ...]]:
    """Remove connected pieces, all labels together, that are smaller than `least_ml`.

    Voxels are connected by faces. Pieces in the first or last slice stay: what they belong to may
    lie outside the scan.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        least_ml: see `least_volume_ml`; 0 removes nothing.

    Returns:
        The labels, a new volume if anything was removed, and what was removed, largest first. An
        empty mask stays empty.
    """
    from scipy import ndimage

    values = labels.data[0].numpy()
    box = _box(values)
    if box is None or least_ml <= 0:
        return labels, ()
    inside = values[box]
    pieces, count = ndimage.label(inside > 0)
    there = np.flatnonzero(inside)
    piece = pieces.ravel()[there]
    sizes = np.bincount(piece, minlength=count + 1)
    small = sizes * float(labels.grid.voxel_ml) < least_ml
    small[0] = False  # the background
    if box[0].start == 0:
        small[pieces[0].ravel()] = False
    if box[0].stop == len(values):
        small[pieces[-1].ravel()] = False
    if not small.any():
        return labels, ()
    goes = small[piece]
    index = np.stack(np.unravel_index(there[goes], inside.shape))
    index += np.array([[side.start] for side in box])
    kept = values.copy()
    kept[tuple(index)] = 0
    # Numbered 0, 1, ... without those that stay, in the order of their first voxels.
    number = (np.cumsum(small) - 1)[piece[goes]]
    removed = _pieces(number, index, values[tuple(index)], labels.grid)
    return Volume(torch.from_numpy(kept)[None], labels.grid), removed


def _box(values: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Around all that is no background; None if there is nothing."""
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
    """What voxels make up, largest first.

    Args:
        number: (voxels,) the piece of each, 0, 1, ...
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
