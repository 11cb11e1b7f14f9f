"""The grids of a stack of image planes: as acquired, and evenly spaced to repair it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, resample
from kidseg.io import checks
from kidseg.io.dicom_stack import Stack, gap_error, multiples
from kidseg.io.orientation import ras_from_lps

__all__ = ["even_grid", "native_grid", "resample_evenly"]

# The widest gap that is repaired: two consecutive slices of 5 mm are missing. A wider gap may hide
# a tumour of surgical size.
_MAX_GAP_MM = 15.0


def native_grid(stack: Stack, path: Path) -> Grid:
    """The grid of an evenly spaced stack; sheared if the gantry was tilted.

    Raises:
        InputError: "no-thickness": a single slice without a thickness.
    """
    count = len(stack.planes)
    if count == 1:
        if stack.thickness_mm is None:
            raise InputError(
                "it is a single slice, and its thickness is missing",
                path=path,
                code="no-thickness",
                next_step="Specify the spacing with --spacing SLICE ROW COLUMN.",
            )
        step = stack.normal * stack.thickness_mm
    else:
        depth = stack.depth_mm
        cosine = float(stack.stack_direction @ stack.normal)
        step = stack.stack_direction * (depth[-1] - depth[0]) / (count - 1) / cosine
    first = stack.positions_mm.mean(axis=0) - step * (count - 1) / 2
    return checks.grid_of((count, *stack.shape), _matrix(stack, step, first), path)


def _matrix(stack: Stack, step: np.ndarray, first: np.ndarray) -> Tensor:
    """mm_from_index (4, 4) RAS+ of slices that are `step` (LPS) apart."""
    lps_from_index = np.eye(4)
    lps_from_index[:3, 0] = step
    lps_from_index[:3, 1] = stack.directions[1] * stack.spacing_mm[0]
    lps_from_index[:3, 2] = stack.directions[0] * stack.spacing_mm[1]
    lps_from_index[:3, 3] = first
    return torch.from_numpy(ras_from_lps @ lps_from_index)


def even_grid(stack: Stack, path: Path) -> Grid:
    """The orthogonal grid with evenly spaced slices onto which a stack is repaired.

    Raises:
        InputError: "gap-too-wide".
    """
    gaps = np.diff(stack.depth_mm)
    if gaps.max() > _MAX_GAP_MM:
        raise InputError(
            f"a gap of {gaps.max():.1f} mm is too wide to interpolate (the limit is "
            f"{_MAX_GAP_MM:g} mm)",
            path=path,
            code="gap-too-wide",
            next_step="Export the complete series again.",
        )
    even = gap_error(stack, path) is None
    return _orthogonal_grid(stack, len(stack.planes) if even else _even_count(gaps), path)


def resample_evenly(
    values: Tensor, stack: Stack, path: Path, *, labels: bool = False, fill: float
) -> Volume:
    """Resample the stack onto an orthogonal grid with evenly spaced slices.

    The new slices are parallel to the acquired ones. After gantry tilt they are the acquired
    slices, shifted within their planes. Unevenly spaced slices are interpolated between the
    acquired ones on either side; a new slice at the position of an acquired one keeps its values.

    Args:
        values: (1, planes, rows, columns); at least two planes.
        stack: their geometry, with any spacing.
        path: the series, for messages.
        labels: use nearest-neighbour instead of linear interpolation.
        fill: value outside the stack.

    Raises:
        InputError: "gap-too-wide".
        ResourceError: "not-enough-memory".
    """
    depth = stack.depth_mm
    gaps = np.diff(depth)
    target = even_grid(stack, path)
    checks.check_memory(2 * 4 * math.prod(target.shape), path)
    mode: Literal["linear", "nearest"] = "nearest" if labels else "linear"
    if gap_error(stack, path) is None:
        return resample(Volume(values, native_grid(stack, path)), target, mode=mode, fill=fill)
    parts = []
    for k, position in enumerate(np.linspace(depth[0], depth[-1], target.shape[0])):
        # The gap around this position; the position of an acquired slice is the start of a gap.
        gap = int(np.searchsorted(depth, position + 1e-6, side="right")) - 1
        gap = min(max(gap, 0), len(gaps) - 1)
        step = stack.positions_mm[gap + 1] - stack.positions_mm[gap]
        pair = Grid((2, *stack.shape), _matrix(stack, step, stack.positions_mm[gap]))
        slab = Volume(values[:, gap : gap + 2], pair)
        parts.append(resample(slab, target.slices(k, k + 1), mode=mode, fill=fill).data)
    return Volume(torch.cat(parts, dim=1), target)


def _even_count(gaps: np.ndarray) -> int:
    """Number of evenly spaced slices that replace uneven ones, including both ends.

    If slices are missing, all gaps are multiples of one distance. Otherwise the median gap is used.
    """
    times = multiples(gaps)
    return 1 + int(round(gaps.sum() / np.median(gaps)) if times is None else times.sum())


def _orthogonal_grid(stack: Stack, count: int, path: Path) -> Grid:
    """The smallest grid of `count` slices parallel to the stack that covers all of its planes."""
    along, down = stack.directions
    spacing = np.array([(stack.depth_mm[-1] - stack.depth_mm[0]) / (count - 1), *stack.spacing_mm])
    axes = np.array([stack.normal, down, along])
    placed = stack.positions_mm @ axes.T
    if stack.tilt_deg == 0:  # deviations from the normal are rounding
        placed[:, 1:] = placed[:, 1:].mean(axis=0)
    low, high = placed.min(axis=0), placed.max(axis=0)
    wider = np.ceil((high - low) / spacing - 1e-3).astype(int)
    shape = (count, stack.shape[0] + int(wider[1]), stack.shape[1] + int(wider[2]))
    matrix = np.eye(4)
    matrix[:3, :3] = axes.T * spacing
    matrix[:3, 3] = axes.T @ low
    return checks.grid_of(shape, torch.from_numpy(ras_from_lps @ matrix), path)
