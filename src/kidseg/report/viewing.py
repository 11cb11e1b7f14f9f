"""What a viewer in a page shows: scan and labels as small NIfTI files, surfaces as MZ3 files.

Everything is coarser than the data, so that the page stays small; `Viewed.facts` says how.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.geometry import Grid, Volume, binned, resample
from kidseg.io.mesh import Surface, surface_of
from kidseg.io.nifti import write_nifti
from kidseg.labels import Label, LabelSchema

__all__ = ["HU_RANGE", "HU_STEP", "Shape", "Viewed", "mz3", "view"]

HU_RANGE = (-1024.0, 3071.0)
"""Values beyond are clipped."""

HU_STEP = 4.0
"""Values are rounded to multiples of this, which halves the size and is invisible in any window."""

# Base64 adds a third to these; with the viewer of 2.3 MB a page stays below 15 MB.
_SCAN_BYTES, _SURFACE_BYTES = 6_500_000, 1_200_000
_VOXELS = 8_000_000
_SMALLER = 0.75  # of the voxels, when the bytes are too many
_FACES = 60_000  # of all surfaces
_GREYS = 1023  # of images without a unit
_MZ3 = struct.Struct("<HHIII")
_STEP_MM = 1 / 64  # vertices are rounded to this


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """The surface of a label.

    Attributes:
        label: which.
        mz3: the surface as a file.
        volume_ml: inside it; that of the voxels is the one to take.
    """

    label: Label
    mz3: bytes
    volume_ml: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Viewed:
    """Scan, labels and surfaces for a viewer.

    Attributes:
        scan: a gzipped NIfTI file, int16.
        labels: likewise, uint8, of the same grid.
        shapes: surfaces of the labels that occur.
        grid: of scan and labels.
        is_ct: the values are HU; else they are stretched to 0..1023.
        facts: plain data: how the view differs from the data.
    """

    scan: bytes
    labels: bytes
    shapes: tuple[Shape, ...]
    grid: Grid
    is_ct: bool
    facts: Mapping[str, Any]


def view(
    scan: Volume, labels: Volume, schema: LabelSchema, *, is_ct: bool = True, size: float = 1.0
) -> Viewed:
    """Make a scan and its labels small enough for a page.

    Args:
        scan: (channels, slices, rows, columns); the first channel is shown.
        labels: (1, ...) uint8 on the same voxels.
        schema: of the labels.
        is_ct: the values are HU.
        size: share of the usual number of bytes.
    """
    first = Volume(scan.data[:1], scan.grid)
    voxels, limit = int(_VOXELS * size), int(_SCAN_BYTES * size)
    while True:
        grid = coarser(scan.grid, voxels)
        packed = _nifti(_values(_sampled(first, grid), is_ct))
        if len(packed) <= limit:
            break
        voxels = int(min(voxels, math.prod(grid.shape)) * _SMALLER)
    shapes = _shapes(labels, schema, size)
    shown = resample(labels, grid, mode="nearest")
    facts = {
        "scan_grid": _grid_facts(scan.grid),
        "grid": _grid_facts(grid),
        "resampled": grid.shape != scan.grid.shape,
        **({"hu_step": HU_STEP, "hu_range": list(HU_RANGE)} if is_ct else {}),
        "surfaces_ml": {shape.label.name: round(shape.volume_ml, 4) for shape in shapes},
    }
    return Viewed(
        scan=packed,
        labels=_nifti(shown),
        shapes=shapes,
        grid=grid,
        is_ct=is_ct,
        facts=facts,
    )


def coarser(grid: Grid, voxels: int) -> Grid:
    """The finest grid of this extent with at most so many voxels; itself if it has no more.

    Fine axes become coarser first: the voxels of the result are as cubic as those of the input
    allow.
    """
    if math.prod(grid.shape) <= voxels:
        return grid
    spacing = grid.spacing_mm.tolist()
    low, high = min(spacing), max(s * n for s, n in zip(spacing, grid.shape, strict=True))
    for _ in range(40):  # bisection of the least spacing
        middle = (low + high) / 2
        found = grid.with_spacing([max(s, middle) for s in spacing])
        low, high = (middle, high) if math.prod(found.shape) > voxels else (low, middle)
    return grid.with_spacing([max(s, high) for s in spacing])


def mz3(surface: Surface) -> bytes:
    """A surface as a gzipped MZ3 file, in RAS millimetres.

    Source: github.com/neurolabusc/surf-ice, mz3 format: magic number, attributes (1 faces, 2
    vertices), counts, bytes to skip; then int32 faces and float32 vertices.
    """
    vertices = np.round(surface.vertices_mm / _STEP_MM) * _STEP_MM
    header = _MZ3.pack(0x5A4D, 3, len(surface.faces), len(vertices), 0)
    content = header + surface.faces.astype("<i4").tobytes() + vertices.astype("<f4").tobytes()
    return gzip.compress(content, mtime=0)


def _sampled(scan: Volume, grid: Grid) -> Volume:
    """A scan on a coarser grid of the same extent, without aliasing in its slices."""
    if grid.shape == scan.grid.shape:
        return scan
    ratios = (grid.spacing_mm / scan.grid.spacing_mm)[1:]
    factor = max(1, int(float(ratios.min()) + 1e-6))
    return resample(binned(scan, factor), grid, fill=float(scan.data.min()))


def _values(scan: Volume, is_ct: bool) -> Volume:
    """The values as int16: rounded HU, or stretched to 0.._GREYS."""
    values = scan.data.float()
    if is_ct:
        values = (values.clamp(*HU_RANGE) / HU_STEP).round() * HU_STEP
    else:
        low = float(values.min())
        # Up to the 99.9th percentile: single bright voxels would darken everything else.
        step = max(1, values.numel() // 2**20)
        high = float(torch.quantile(values.flatten()[::step], 0.999))
        values = ((values - low) / max(high - low, 1e-6) * _GREYS).clamp(0, 2 * _GREYS).round()
    return Volume(values.to(torch.int16), scan.grid)


def _shapes(labels: Volume, schema: LabelSchema, size: float) -> tuple[Shape, ...]:
    """Surfaces; on a coarser grid as long as they are too large."""
    present = [label for label in schema.labels if bool((labels.data == label.id).any())]
    voxels = math.prod(labels.grid.shape)
    grid = labels.grid
    while True:
        shown = labels if grid is labels.grid else resample(labels, grid, mode="nearest")
        values = shown.data[0].numpy()
        if _face_count(values) <= _FACES * size:
            made = [(label, surface_of(values == label.id, grid)) for label in present]
            found = [(label, surface) for label, surface in made if surface is not None]
            shapes = tuple(
                Shape(label=label, mz3=mz3(surface), volume_ml=surface.volume_ml)
                for label, surface in found
            )
            faces = sum(len(surface.faces) for _, surface in found)
            bytes_ = sum(len(shape.mz3) for shape in shapes)
            if faces <= _FACES * size and bytes_ <= _SURFACE_BYTES * size:
                return shapes
        voxels = int(min(voxels, math.prod(grid.shape)) * _SMALLER)
        grid = coarser(labels.grid, max(voxels, 1))


def _face_count(values: np.ndarray) -> int:
    """About how many triangles the surfaces of labels have at least: two for each voxel's face."""
    changes = sum(int((np.diff(values, axis=axis) != 0).sum()) for axis in range(3))
    return 2 * changes


def _nifti(volume: Volume) -> bytes:
    file = io.BytesIO()
    write_nifti(volume, file, Path("view.nii.gz"))
    return file.getvalue()


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {
        "shape": list(grid.shape),
        "spacing_mm": [round(float(s), 4) for s in grid.spacing_mm],
    }
