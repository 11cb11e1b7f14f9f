"""Solids with known volume, diameters and contact, on oblique grids of any spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kidseg.geometry import Grid, Volume
from kidseg.measure.mask import Mask
from kidseg.measure.parts import Part

Box = tuple[int, slice, slice, slice]
"""A label, and the voxels that it has."""


def boxes(*each: Box, grid: Grid) -> Volume:
    """Labels of boxes; later ones are over earlier ones."""
    data = torch.zeros((1, *grid.shape), dtype=torch.uint8)
    for value, *where in each:
        data[(0, *where)] = value
    return Volume(data, grid)


def right_kidney(mask: Mask) -> Part:
    """A right kidney with this mask."""
    (mask,) = mask.cropped()
    return Part(
        id="right kidney",
        meaning="kidney",
        side="right",
        label="kidney",
        numbers=(1,),
        tracking=None,
        mask=mask,
        main=mask,
        borders=(),
    )


def right_tumour(mask: Mask) -> Part:
    """A right tumour with this mask."""
    one = {"id": "right tumour 1", "meaning": "tumour", "label": "tumour", "numbers": (2,)}
    return replace(right_kidney(mask), **one)


def rotation(seed: int) -> np.ndarray:
    """A random (3, 3) rotation; the identity for seed 0."""
    if seed == 0:
        return np.eye(3)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return np.asarray(q * np.sign(np.linalg.det(q)))


def oblique(reach_mm: float, spacing_mm: Sequence[float], seed: int = 0) -> Grid:
    """A grid around the origin, turned by `rotation(seed)`, off-centre by a part of a voxel."""
    shape = [int(2 * reach_mm / step) + 6 for step in spacing_mm]
    away = np.random.default_rng(seed).uniform(-0.5, 0.5, 3) * np.array(spacing_mm)[::-1]
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed)
    return Grid.from_spacing(shape, spacing_mm, away).moved(torch.from_numpy(matrix))


def positions(grid: Grid) -> np.ndarray:
    """(slices, rows, columns, 3) positions of the voxels in mm."""
    return np.asarray(grid.mm(np.stack(np.indices(grid.shape), -1).astype(float)).numpy())


def ball(grid: Grid, radius_mm: float, centre_mm: Sequence[float] = (0.0, 0.0, 0.0)) -> Mask:
    away = positions(grid) - np.array(centre_mm)
    return Mask((away**2).sum(-1) <= radius_mm**2, grid)


def filmed_ball(
    grid: Grid, radius_mm: float, thick_mm: float, seed: int
) -> tuple[Mask, Mask, float]:
    """A ball, an even film around six tenths of it, and the area between both in cm2."""
    inner = ball(grid, radius_mm)
    is_covered = positions(grid) @ rotation(seed + 50)[:, 0] > -0.2 * radius_mm
    film = ball(grid, radius_mm + thick_mm).data & ~inner.data & is_covered
    return inner, Mask(film, grid), six_tenths_cm2(radius_mm)


def six_tenths_cm2(radius_mm: float) -> float:
    """Of the surface of a ball."""
    return 2 * math.pi * radius_mm * 1.2 * radius_mm / 100


def ellipsoid(grid: Grid, half_mm: Sequence[float]) -> Mask:
    """Along the axes (x, y, z) of the patient."""
    return Mask(((positions(grid) / np.array(half_mm)) ** 2).sum(-1) <= 1, grid)


def cylinder(grid: Grid, radius_mm: float, length_mm: float) -> Mask:
    """Along the patient."""
    place = positions(grid)
    around = np.hypot(place[..., 0], place[..., 1]) <= radius_mm
    return Mask(around & (np.abs(place[..., 2]) <= length_mm / 2), grid)
