"""What is done to a segmentation after the networks: small pieces removed, and said so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kidseg.config import PostprocessConfig
from kidseg.geometry import Volume

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
        return asdict(self)


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
    pieces, count = ndimage.label(values > 0)
    voxel_ml = float(labels.grid.voxel_ml)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    at_ends = set(np.unique(pieces[[0, -1]]).tolist())
    small = [
        number
        for number in range(1, count + 1)
        if sizes[number] * voxel_ml < least_ml and number not in at_ends
    ]
    if not small:
        return labels, ()
    kept, removed = values.copy(), []
    boxes = ndimage.find_objects(pieces)
    for number in small:
        box = boxes[number - 1]
        there = pieces[box] == number
        found = values[box][there]
        index = np.argwhere(there).mean(axis=0) + [side.start for side in box]
        x, y, z = labels.grid.mm(index).tolist()
        ids, counts = np.unique(found, return_counts=True)
        removed.append(
            Piece(
                volume_ml=float(sizes[number] * voxel_ml),
                centre_mm=(x, y, z),
                voxels={int(i): int(n) for i, n in zip(ids, counts, strict=True)},
            )
        )
        kept[box][there] = 0
    removed.sort(key=lambda piece: -piece.volume_ml)
    return Volume(torch.from_numpy(kept)[None], labels.grid), tuple(removed)
