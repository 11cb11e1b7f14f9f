"""Connected components of a mask, and which of them are kidneys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.config import ThresholdConfig
from kidseg.geometry import Grid

__all__ = ["NORMAL", "Component", "components_of", "kidneys_among", "numbered", "threshold_ml"]

NORMAL = 2
"""Kidneys of a normal case. Source: Zhang et al., KiTS19, eq. 5."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """A connected component of a mask.

    Attributes:
        grid: of the mask.
        volume_ml: its volume.
        centre_mm: (x, y, z) centroid, RAS+.
        low: first (slice, row, column).
        high: last (slice, row, column).
        voxels: (n, 3) (slice, row, column) of each voxel.
    """

    grid: Grid
    volume_ml: float
    centre_mm: tuple[float, float, float]
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    voxels: np.ndarray


def numbered(mask: Tensor) -> tuple[np.ndarray, int]:
    """Components of (slices, rows, columns) bool, numbered from 1 (0 outside), and their number.

    Voxels that share a corner are connected. Source: the default of scikit-image's `label`, which
    Zhang et al. use.
    """
    from scipy import ndimage

    found, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3, 3)))
    return found, int(count)


def components_of(mask: Tensor, grid: Grid) -> tuple[Component, ...]:
    """The components of a mask, largest first; () if it is empty.

    Args:
        mask: (slices, rows, columns) bool on the CPU.
        grid: volumetric, of the mask.
    """
    from scipy import ndimage

    found, count = numbered(mask)
    if not count:
        return ()
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(found)
    voxel_ml = float(grid.voxel_ml)
    components = []
    for number in np.argsort(-sizes, kind="stable").tolist():
        box = boxes[number]
        low = np.array([side.start for side in box])
        voxels = np.argwhere(found[box] == number + 1) + low
        x, y, z = grid.mm(voxels.mean(0)).tolist()
        first = tuple(int(side.start) for side in box)
        last = tuple(int(side.stop) - 1 for side in box)
        components.append(
            Component(
                grid=grid,
                volume_ml=float(sizes[number]) * voxel_ml,
                centre_mm=(x, y, z),
                low=(first[0], first[1], first[2]),
                high=(last[0], last[1], last[2]),
                voxels=voxels,
            )
        )
    return tuple(components)


def kidneys_among(components: Sequence[Component], min_kidney_ml: float) -> tuple[Component, ...]:
    """The components of at least this volume; the largest of all if none has it."""
    kidneys = tuple(each for each in components if each.volume_ml >= min_kidney_ml)
    return kidneys or tuple(components[:1])


def threshold_ml(
    config: ThresholdConfig, spacing_mm: Sequence[float], body_radius_mm: float | None
) -> float:
    """A threshold in ml for a body.

    Args:
        config: the threshold for an adult.
        spacing_mm: of the voxels that `config.min_voxels` counts.
        body_radius_mm: geometric mean of the body's semi-axes; None or NaN if there is no body.
    """
    if config.min_voxels is not None:
        return config.min_voxels * math.prod(spacing_mm) / 1000
    if body_radius_mm is None or not math.isfinite(body_radius_mm):
        return config.min_volume_ml
    share: float = min(body_radius_mm, config.body_radius_mm) / config.body_radius_mm
    return config.min_volume_ml * share**3


def union_box(components: Sequence[Component]) -> tuple[Tensor, Tensor]:
    """First and last (slice, row, column) of components of one mask, (3,) each."""
    low = torch.tensor([each.low for each in components]).amin(0)
    high = torch.tensor([each.high for each in components]).amax(0)
    return low, high
