"""Position, orientation and size of the patient's body in a CT.

They are measured from a body mask, which needs no organ labels. Its image moments (centre,
principal axes, radii) are the simplest way to normalise pose and size, and the baseline for the
learned ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry import (
    Grid,
    Volume,
    boxed,
    index_from_voxels,
    is_sub_grid,
    posed,
    resample,
    sample_window,
)

__all__ = ["Moments", "body_mask", "moments", "normalized"]

# Skin and fat are above, air, foam and clothes below. Source: fat is -120..-60 HU, lung and foam
# below -500 (Hounsfield scale); a threshold half way keeps partial volume at the skin unbiased.
_AIR_HU = -300.0
# The darkest fat: a window that begins above it gives fat the value of air. Source: as above.
_FAT_HU = -120.0
# A scan without air was clipped to a window if at least this share of voxels has the lowest value.
_CLIPPED_SHARE = 0.1
# Interpolation between values at the lower end of a window returns that value only up to rounding.
# HU are integers, so anything less than half a unit above it counts as that value.
_FLOOR_ROUNDING_HU = 0.5
# Sheets thinner than twice this are not body: table tops, blankets, tubes. Thinner than any wrist.
_SHEET_RADIUS_MM = 4.0
# A hole of which more than this share of the rim is so near to the air outside is the foam in the
# shell of a table. Air in a body, even if only 3 mm of wall are in front of it, has organs behind
# it, and a body lies on less than a third of a table's rim. Chosen on drawn bodies: see tests.
_SHELL_MM = 7.0
_SHELL_SHARE = 2 / 3
# Where the outline of a body is farther from its tissue than this, its wall is open: the front of a
# thin abdomen. What belongs to it there is at most so far away.
_OPEN_MM = 12.0
_OPEN_REACH_MM = 40.0
_ENCLOSING_ROUNDS = 4
# The shape of the mask is determined at this pixel size, its edge at the scan's own.
_COARSE_MM = 2.0
# Slices that are converted to float64 together.
_CHUNK = 16


def body_mask(scan: Volume) -> Volume:
    """The largest body in a CT, without table, blankets, tubes and detached arms.

    Air is thresholded; a morphological opening in the axial planes removes thin sheets; the largest
    3D component remains, and the holes of each slice (lungs, bowel gas) are filled, except for a
    table's foam in its closed shell. The shape is determined at 2 mm, the edge at the scan's own
    pixels.

    In a scan that was clipped to a soft-tissue window (finding "windowed-intensities" of the
    readers), voxels with the lowest value count as air. If the window begins above fat, that is fat
    too: the skin, a thin line with gaps, and the wall of the abdomen are then closed, and the mask
    is convex in each slice. It has the fat beneath the skin only where skin is visible all around,
    and a table with a closed shell may be taken for a part of the body, or for that of a newborn.

    Args:
        scan: (1, slices, rows, columns) HU, volumetric, canonical.

    Returns:
        (1, slices, rows, columns) bool on the scan's grid; all False if nothing is denser than air.
    """
    grid = scan.grid
    dz, dy, dx = grid.spacing_mm.tolist()
    coarse = grid.with_spacing((dz, max(dy, _COARSE_MM), max(dx, _COARSE_MM)))
    air_hu = _air_hu(scan)
    fat_hidden = air_hu > _FAT_HU
    outer: Iterator[Tensor] = repeat(torch.ones((), dtype=torch.bool))
    if not fat_hidden:
        dense = resample(scan, coarse, fill=-1024.0).data[0].numpy() > air_hu
        body = _largest_body(dense, coarse)
    else:
        dense = resample(_thickened(scan, air_hu), coarse).data[0].numpy() > 0
        body = _enclosed(_largest_body(_closed(dense, coarse), coarse), dense, coarse)
        outer = _around(Volume(torch.from_numpy(~_eroded(body))[None], coarse), grid)
    near = _around(Volume(torch.from_numpy(body)[None], coarse), grid)
    mask = torch.empty(scan.data.shape, dtype=torch.bool)
    for k in range(grid.shape[0]):
        solid = next(near) & ((scan.data[0, k] > air_hu) | ~next(outer))
        mask[0, k] = torch.from_numpy(_filled(solid.numpy()[None])[0])
    return Volume(mask, grid)


def _thickened(scan: Volume, air_hu: float) -> Volume:
    """uint8: 1 within half a coarse pixel of a pixel that is not air, so that no skin is missed."""
    reach = [int(_COARSE_MM / 2 / mm) for mm in scan.grid.spacing_mm[1:].tolist()]
    size = [2 * n + 1 for n in reach]
    data = torch.empty(scan.data.shape, dtype=torch.uint8)
    for k, plane in enumerate(scan.data[0]):
        dense = (plane > air_hu)[None].float()
        data[0, k] = F.max_pool2d(dense, size, stride=1, padding=reach)[0]
    return Volume(data, scan.grid)


def _closed(dense: np.ndarray, grid: Grid) -> np.ndarray:
    """Outlines with gaps of up to twice the radius of a sheet are closed and filled in each plane.

    Filled while they are thick: a morphological closing alone would open a thin line again.
    """
    from scipy import ndimage

    _, dy, dx = grid.spacing_mm.tolist()
    margin = [(int(_SHEET_RADIUS_MM / mm) + 2,) * 2 for mm in (dy, dx)]
    inside = tuple(slice(before, -after) for before, after in margin)
    out = np.empty_like(dense)
    for k, plane in enumerate(dense):
        away = ndimage.distance_transform_edt(~np.pad(plane, margin), (dy, dx))
        thick = ndimage.binary_fill_holes(away <= _SHEET_RADIUS_MM)
        closed = ndimage.distance_transform_edt(thick, (dy, dx)) > _SHEET_RADIUS_MM
        out[k] = closed[inside] | plane
    return out


def _enclosed(body: np.ndarray, dense: np.ndarray, grid: Grid) -> np.ndarray:
    """The convex hull in each plane, with what is dense in front of openings of the body's wall.

    The wall is open where the nearest point of the hull is far from the body, and only in front:
    there, thin muscles that the removal of sheets has taken away belong to the body. A table lies
    behind the spine and its muscles (below the belly of a prone patient, it may be taken for them).
    """
    from scipy import ndimage

    _, dy, dx = grid.spacing_mm.tolist()
    out = body.copy()
    for k, plane in enumerate(body):
        if not plane.any():
            continue
        for _ in range(_ENCLOSING_ROUNDS):
            out[k] = _convex(plane)
            gap = ndimage.distance_transform_edt(~plane, (dy, dx))
            away, (y, x) = ndimage.distance_transform_edt(~out[k], (dy, dx), return_indices=True)
            beyond = dense[k] & ~out[k] & (away <= _OPEN_REACH_MM) & (gap[y, x] > _OPEN_MM)
            beyond[int(np.nonzero(plane)[0].mean()) :] = False
            if not beyond.any():
                break
            plane = plane | beyond
    return out


def _convex(plane: np.ndarray) -> np.ndarray:
    """The convex hull of a plane with at least one pixel."""
    from scipy.spatial import ConvexHull

    rows, columns = np.indices(plane.shape)
    corners = np.array([(y, x) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
    hull = np.ones_like(plane)
    for y, x, offset in ConvexHull(
        (np.argwhere(plane)[:, None] + corners).reshape(-1, 2)
    ).equations:
        hull &= rows * y + columns * x + offset <= 0
    return hull


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Without the two outermost pixels of each plane; the border of the image is none."""
    from scipy import ndimage

    cross = ndimage.generate_binary_structure(2, 1)[None]
    return np.asarray(ndimage.binary_erosion(mask, cross, iterations=2, border_value=1))


def _around(rough: Volume, grid: Grid) -> Iterator[Tensor]:
    """(rows, columns) bool for each slice of the grid: pixels that touch voxels of the mask."""
    index_from_target, planes = index_from_voxels(rough.grid, grid)
    window = (range(grid.shape[1]), range(grid.shape[2]))
    if planes is not None and is_sub_grid(index_from_target):
        yield from rough.data[0]
        return
    for k in range(grid.shape[0]):
        this = slice(k, k + 1)
        chosen = None if planes is None else planes[this]
        seen = sample_window(rough.data, index_from_target[this], chosen, window, torch.zeros(1))
        yield seen[0, 0] > 0


def _air_hu(scan: Volume) -> float:
    """The highest value that counts as air."""
    lowest = float(scan.data.min())
    if not lowest > _AIR_HU:
        return _AIR_HU
    count = sum(int((plane == lowest).sum()) for plane in scan.data[0])
    clipped = _CLIPPED_SHARE <= count / scan.data.numel() < 1.0
    return lowest + _FLOOR_ROUNDING_HU if clipped else _AIR_HU


def _largest_body(dense: np.ndarray, grid: Grid) -> np.ndarray:
    """(slices, rows, columns) bool: opened in the planes, largest component, dilated by a pixel."""
    from scipy import ndimage

    _, dy, dx = grid.spacing_mm.tolist()
    thick = np.zeros_like(dense)
    for k, plane in enumerate(dense):
        filled, depth = _filled_but_shells(plane, (dy, dx))
        core = depth > _SHEET_RADIUS_MM
        if core.any():
            reach = ndimage.distance_transform_edt(~core, (dy, dx)) <= _SHEET_RADIUS_MM
            thick[k] = reach & filled
    components, count = ndimage.label(thick)
    if count == 0:
        return thick
    largest = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = True
    return np.asarray(ndimage.binary_dilation(largest, in_plane))


def _filled_but_shells(
    plane: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The plane with its holes filled, except for shells, and the depth in mm below its outline.

    A shell that is left open is air outside for its neighbours: a table may have ribs.
    """
    from scipy import ndimage

    plane = np.pad(plane, 1)
    filled = ndimage.binary_fill_holes(plane)
    while True:
        depth = ndimage.distance_transform_edt(filled, spacing_mm)
        hole = filled & ~plane
        holes, _ = ndimage.label(hole)
        rim = hole & ~ndimage.binary_erosion(hole)
        near_air = np.bincount(holes[rim], weights=depth[rim] <= _SHELL_MM)
        shell = near_air > _SHELL_SHARE * np.bincount(holes[rim])
        if not shell.any():
            return filled[1:-1, 1:-1], depth[1:-1, 1:-1]
        filled &= ~shell[holes]


def _filled(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


@dataclass(frozen=True, eq=False)
class Moments:
    """Position, orientation and size of a mask in its grid's planes; leading shape () or (slices,).

    Attributes:
        centre_mm: (..., 2) centroid as (x along columns, y along rows) from the grid's centre.
        angle_rad: (...) from the columns to the long principal axis, in -pi/2 .. pi/2, positive
            towards the rows.
        radii_mm: (..., 2) semi-axes, long and short, of the ellipse with the same second moments.

    For an empty mask, centre and angle are 0 and radii NaN.
    """

    centre_mm: Tensor
    angle_rad: Tensor
    radii_mm: Tensor


def moments(mask: Volume, *, per: Literal["slice", "volume"] = "slice") -> Moments:
    """First and second moments of a mask (1, slices, rows, columns), per slice or per volume.

    A pixel is a square, not a point, so radii are correct for few pixels too. The second moments of
    a volume are the area-weighted mean of those of the slices about their own centres, so an
    oblique body does not appear wider.

    Source: an ellipse with semi-axis a has variance a^2 / 4 along it.
    """
    slices, rows, columns = mask.grid.shape
    _, dy, dx = (float(s) for s in _plane_spacing(mask.grid))
    y = (torch.arange(rows) - (rows - 1) / 2) * dy
    x = (torch.arange(columns) - (columns - 1) / 2) * dx
    y, x = y.double(), x.double()
    by_row = torch.empty((slices, rows), dtype=torch.float64)
    by_column = torch.empty((slices, columns), dtype=torch.float64)
    product = torch.empty(slices, dtype=torch.float64)
    for part in _chunks(slices):  # float64 takes eight times the memory of the mask
        weight = mask.data[0, part].double().cpu()
        by_row[part], by_column[part] = weight.sum(2), weight.sum(1)
        product[part] = torch.einsum("krc,r,c->k", weight, y, x)
    mass = by_row.sum(1)
    safe = mass.clamp(min=1e-12)
    mean_y, mean_x = by_row @ y / safe, by_column @ x / safe
    yy = by_row @ (y * y) / safe - mean_y**2 + dy**2 / 12
    xx = by_column @ (x * x) / safe - mean_x**2 + dx**2 / 12
    xy = product / safe - mean_x * mean_y
    if per == "volume":
        share = mass / mass.sum().clamp(min=1e-12)
        mean_y, mean_x, yy, xx, xy = ((share * m).sum() for m in (mean_y, mean_x, yy, xx, xy))
        mass = mass.sum()
    spread = torch.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    middle = (xx + yy) / 2
    radii = 2 * torch.sqrt(torch.stack([middle + spread, (middle - spread).clamp(min=0)], dim=-1))
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    empty = mass <= 0
    return Moments(
        torch.stack([mean_x, mean_y], dim=-1),
        torch.where(empty, torch.zeros_like(angle), angle),
        torch.where(empty[..., None], torch.full_like(radii, torch.nan), radii),
    )


def _chunks(count: int) -> list[slice]:
    """Slices to convert together; the last chunk takes the rest.

    Matrix products of at least so many slices add up in the order in which those of all would, so
    that moments do not depend on the chunks.
    """
    starts = range(0, max(count - _CHUNK + 1, 1), _CHUNK)
    return [slice(s, count if s == starts[-1] else s + _CHUNK) for s in starts]


def normalized(
    grid: Grid,
    own: Moments,
    *,
    radii_mm: tuple[float, float],
    field_mm: float,
    size: int,
    scales: Literal[1, 2] = 2,
) -> Grid:
    """The grid on which a body with these moments is upright, centred and of the reference size.

    Args:
        grid: the scan's, volumetric; its planes and slices stay.
        own: the body's moments on it, per slice (gives a slice-wise grid) or per volume.
        radii_mm: long (left-right) and short semi-axis of the normalised body.
        field_mm: side of the square field of view, in millimetres of the reference.
        size: pixels along each side.
        scales: 2 fits each radius, 1 their geometric mean (a similarity transform).

    For an empty mask the image is only centred: angle 0, scale 1.
    """
    _, dy, dx = _plane_spacing(grid)
    half = torch.tensor([0.0, field_mm / 2 / float(dy), field_mm / 2 / float(dx)])
    middle = torch.tensor([(n - 1) / 2 for n in grid.shape])
    depth = torch.tensor([grid.shape[0] / 2, 0.0, 0.0])
    frame = boxed(grid, middle - half - depth, middle + half + depth, (grid.shape[0], size, size))
    scale = own.radii_mm / torch.tensor(radii_mm, dtype=own.radii_mm.dtype)
    if scales == 1:
        scale = scale.prod(-1, keepdim=True).sqrt().expand_as(scale)
    scale = torch.where(scale.isfinite(), scale, torch.ones_like(scale))
    return posed(frame, angle_rad=own.angle_rad, scale=scale, shift_mm=own.centre_mm)


def _plane_spacing(grid: Grid) -> Tensor:
    spacing = grid.spacing_mm
    return spacing.median(dim=0).values if grid.is_slicewise else spacing
