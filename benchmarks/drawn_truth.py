"""What is true of kidneys and tumours of digital patients: their surfaces as drawn, without labels.

A surface is where the painted share of fine voxels is a half, found between their centres. A kidney
is what was painted as kidney without what was painted as tumour over it: between both surfaces lies
parenchyma much thinner than a voxel, too, and no rule for small pieces takes anything away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import kidseg.phantom.render  # noqa: F401
from kidseg.geometry import Grid
from kidseg.measure.diameters import longest_mm
from kidseg.metrics import union_box
from kidseg.phantom import DrawnPatient, kidneys, tumour
from kidseg.phantom.canvas import Patch
from kidseg.phantom.kidneys import paint_cysts, paint_kidneys
from kidseg.phantom.mass import paint_masses
from kidseg.phantom.tumour import paint_tumours

RENDER = sys.modules["kidseg.phantom.render"]
ALL_PIECES = {"_absorb_shreds": lambda organs, voxel_ml: None}
"""In place of the rule of `RENDER` that gives small pieces of kidney on a tumour to the tumour."""
SIGNS = {"right": 1, "left": -1}
"""Of x in the anatomy."""
FINE_MM = 0.8
_OF_KIDNEY = (kidneys.CORTEX, kidneys.MEDULLA, kidneys.CYST)
THICKNESSES_MM = (0.0, 0.2, 0.5, 1.0, 2.0)
_RAY_MM, _STEP_MM = 12.0, 0.1


def kidneys_alone(canvas: Any, anatomy: Any, pose: Any, details: Any, hu: Any, phase: Any) -> None:
    """Paint kidneys and tumours only, which takes a tenth of the time."""
    paint_kidneys(canvas, anatomy, hu)
    paint_cysts(canvas, anatomy.cysts, hu)
    paint_tumours(canvas, anatomy.tumours, hu, bright=False)
    paint_masses(canvas, anatomy.tumours, hu)


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of voxels, as painted; a half at surfaces.

    Attributes:
        tumour: (slices, rows, columns) float32, of all tumours.
        kidney: {side: the same of the kidney, beneath the tumours}.
    """

    tumour: np.ndarray
    kidney: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, drawn: DrawnPatient, grid: Grid, paint: Callable[..., None] = kidneys_alone
    ) -> Shares:
        """Those of a patient, on any axial voxels; `paint` paints in place of `RENDER._paint`."""
        found = cls(
            np.zeros(grid.shape, np.float32), {s: np.zeros(grid.shape, np.float32) for s in SIGNS}
        )
        start = [0, 0, 0]

        def paint_slab(canvas: Any, *others: Any) -> None:
            start[:] = grid.index(canvas.grid.mm([0.0, 0.0, 0.0])).round().long().tolist()
            paint(canvas, *others)

        def note(here: Patch, cover: torch.Tensor, hu: Any, organ: int | None = None) -> None:
            extents = zip(start, here.deep, cover.shape, strict=True)
            window = tuple(slice(low + e.start, low + e.start + n) for low, e, n in extents)
            if organ is not None:
                found._paint(window, cover.numpy(), here.x[:-1].numpy(), organ)
            # Some organs are painted only where others are.
            paint_patch(here, cover, hu, organ)

        paint_patch = Patch.paint
        painting = patch.multiple(RENDER, _paint=paint_slab, **ALL_PIECES)
        with painting, patch.object(Patch, "paint", note):
            drawn.rendered(grid)
        return found

    def _paint(
        self, window: tuple[slice, ...], cover: np.ndarray, x_mm: np.ndarray, organ: int
    ) -> None:
        if organ == tumour.TUMOUR:
            np.maximum(self.tumour[window], cover, out=self.tumour[window])
            return
        for side, sign in SIGNS.items():
            share = self.kidney[side][window]
            if organ in _OF_KIDNEY:
                np.maximum(share, cover * (sign * x_mm > 0), out=share)
            else:
                np.minimum(share, 1 - cover, out=share)


@dataclass(frozen=True, eq=False)
class Surface:
    """Points on the surface of a structure.

    Attributes:
        index: (points, 3) indices of voxels, one of which is whole or, on an edge between two
            centres, fractional.
        inward: (points, 3) unit vectors along the normals, into the structure.
        thickness_mm: (points,) of the structure along them, up to `most_mm`.
    """

    index: np.ndarray
    inward: np.ndarray
    thickness_mm: np.ndarray

    @classmethod
    def of(cls, shares: Sequence[np.ndarray], spacing_mm: float, most_mm: float) -> Surface:
        """Of what all these shares are more than a half of.

        Args:
            shares: (slices, rows, columns) float32 each.
            spacing_mm: of the voxels, in all directions.
            most_mm: thickness is not followed further.
        """
        box = union_box(shares[0] > 0)
        assert box is not None
        window = tuple(slice(max(e.start - 2, 0), e.stop + 2) for e in box)
        start = [extent.start for extent in window]
        shares = [share[window] for share in shares]
        index, normals = [], []
        for share in shares:
            others = [each for each in shares if each is not share]
            points = crossings(share - 0.5)
            for other in others:
                points = points[at(other, points) > 0.5]
            index.append(points)
            normals.append(inward_at(share, points))
        points, inward = np.concatenate(index), np.concatenate(normals)
        thickness_mm = depth_mm(shares, points, inward / spacing_mm, most_mm)
        return cls(points + start, inward, thickness_mm)


def inward_at(share: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(points, 3) unit vectors at indices, towards where a share grows; 0 where it is even."""
    slope = np.stack([at(each, points) for each in np.gradient(share)], 1)
    return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9))


def depth_mm(
    shares: Sequence[np.ndarray], points: np.ndarray, per_mm: np.ndarray, most_mm: float
) -> np.ndarray:
    """(points,) how far from indices all shares are more than a half, up to `most_mm`.

    Args:
        shares: (slices, rows, columns) each.
        points: (points, 3) indices.
        per_mm: (points, 3) voxels for each mm of the way.
        most_mm: the way is not followed further.
    """
    depth = np.zeros(len(points))
    within = np.ones(len(points), dtype=bool)
    for way_mm in np.arange(_STEP_MM / 2, most_mm, _STEP_MM):
        places = points[within] + per_mm[within] * way_mm
        within[within] = np.all([at(each, places) > 0.5 for each in shares], 0)
        depth += _STEP_MM * within
    return depth


def crossings(values: np.ndarray) -> np.ndarray:
    """(points, 3) indices where a function on voxels changes its sign between two neighbours."""
    found = []
    for axis in range(3):
        low = np.take(values, range(values.shape[axis] - 1), axis)
        high = np.take(values, range(1, values.shape[axis]), axis)
        where = np.argwhere((low > 0) != (high > 0))
        a, b = low[tuple(where.T)], high[tuple(where.T)]
        points = where.astype(float)
        points[:, axis] += a / (a - b)
        found.append(points)
    return np.concatenate(found)


def at(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values at (points, 3) fractional indices."""
    from scipy.ndimage import map_coordinates

    return np.asarray(map_coordinates(data, places.T, order=1))


def diameters_mm(index: np.ndarray, spacing_mm: float) -> dict[str, float]:
    """{name: diameter} as `kidseg measure` has them, of (points, 3) indices on a surface."""
    points = index * spacing_mm
    axial = 0.0
    for k in np.unique(index[:, 0][index[:, 0] % 1 == 0]):
        plane = points[index[:, 0] == k, 1:]
        if len(plane) > 3 and np.linalg.norm(np.ptp(plane, axis=0)) > axial:
            axial = max(axial, longest_mm(plane))
    return {
        "longest diameter": longest_mm(points),
        "longest axial diameter": axial,
        "height": float(np.ptp(points[:, 0])),
    }


def contact_cm2(
    tumour: np.ndarray, kidney: np.ndarray, least_mm: Sequence[float] = THICKNESSES_MM
) -> list[float]:
    """The surface of a tumour that is in a kidney, before at least so much of it.

    Args:
        tumour: shares of voxels of `FINE_MM`.
        kidney: likewise.
        least_mm: of parenchyma, below 12 mm.
    """
    from skimage.measure import marching_cubes

    corners, triangles, _, _ = marching_cubes(tumour, 0.5)
    inside = at(kidney, corners) - 0.5
    one, other = (corners[triangles[:, k]] - corners[triangles[:, 0]] for k in (1, 2))
    areas_cm2 = np.linalg.norm(np.cross(one, other), axis=1) / 2 * FINE_MM**2 / 100
    areas_cm2 *= part_inside(inside[triangles])
    near = np.flatnonzero(inside > -0.5)
    outward = -inward_at(tumour, corners[near])
    thickness = np.zeros(len(corners))
    thickness[near] = depth_mm([kidney], corners[near], outward / FINE_MM, _RAY_MM)
    behind = thickness[triangles].mean(1)
    return [float(areas_cm2[behind >= least].sum()) for least in least_mm]


def part_inside(values: np.ndarray) -> np.ndarray:
    """The part of each triangle where a function with these (triangles, 3) values is positive."""
    count = (values > 0).sum(1)
    part = (count == 3).astype(float)
    for few, is_alone in ((1, values > 0), (2, values <= 0)):
        cut = count == few
        alone = is_alone[cut].argmax(1)
        rows = np.arange(len(alone))
        a, b, c = (values[cut][rows, (alone + k) % 3] for k in range(3))
        corner = a / (a - b) * a / (a - c)
        part[cut] = corner if few == 1 else 1 - corner
    return part
