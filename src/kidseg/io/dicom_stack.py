"""From image planes to a stack: are they an even, upright grid, and can they be made one?

All positions here are LPS millimetres as DICOM states them, until a Grid is made. Planes are sorted
along their normal (row direction x column direction); `depth_mm` is the position along it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, resample
from kidseg.io import checks
from kidseg.io.dicom_header import Plane
from kidseg.io.orientation import ras_from_lps

__all__ = [
    "Stack",
    "arrange",
    "check_line",
    "coincident",
    "gap_error",
    "made_even",
    "native_grid",
]

# Positions are decimal strings, often with two decimals: two of them differ by 0.01 mm at most
# through rounding.
_DECIMALS_MM = 0.011
# Cosines with four decimals put the end of a 500 mm stack 0.05 mm beside its axis.
_DRIFT_MM = 0.05
_SAME_DIRECTION = 1e-4
# A slice may lie this part of a slice distance off its place, and of a pixel off the line.
_OFF_PLACE = 0.01
_OFF_LINE = 0.1
# So much may a gap differ from a multiple of the smallest, and still mean missing slices.
_OFF_MULTIPLE = 0.05
# The widest gap that a repair bridges: two slices of 5 mm missing in a row. Wider, a tumour of
# surgical size may hide in it.
_BRIDGED_MM = 15.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Planes of one orientation and pixel spacing, sorted along their normal.

    Attributes:
        planes: in order.
        shape: (rows, columns) of each.
        directions: (2, 3) unit vectors along a row and down a column.
        spacing_mm: between (rows, columns).
        positions_mm: (planes, 3) of their first voxels.
        thickness_mm: what the file says of the distance of slices, for a stack of one.
    """

    planes: tuple[Plane, ...]
    shape: tuple[int, int]
    directions: np.ndarray
    spacing_mm: tuple[float, float]
    positions_mm: np.ndarray
    thickness_mm: float | None

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the planes."""
        normal: np.ndarray = np.cross(self.directions[0], self.directions[1])
        return normal

    @property
    def depth_mm(self) -> np.ndarray:
        """(planes,) positions along the normal, growing."""
        depth: np.ndarray = self.positions_mm @ self.normal
        return depth

    @property
    def travel(self) -> np.ndarray:
        """(3,) unit vector from the first slice to the last; the normal but for a tilted gantry."""
        across = self.positions_mm[-1] - self.positions_mm[0]
        beside = across - (across @ self.normal) * self.normal
        if len(self.planes) < 2 or float(np.linalg.norm(beside)) <= _DRIFT_MM:
            return self.normal
        travel: np.ndarray = across / np.linalg.norm(across)
        return travel

    @property
    def tilt_deg(self) -> float:
        """Angle between the normal and the travel from slice to slice."""
        return math.degrees(math.acos(min(1.0, abs(float(self.travel @ self.normal)))))

    def kept(self, indices: Sequence[int]) -> Stack:
        """The stack of some of the planes."""
        chosen = list(indices)
        return Stack(
            planes=tuple(self.planes[k] for k in chosen),
            shape=self.shape,
            directions=self.directions,
            spacing_mm=self.spacing_mm,
            positions_mm=self.positions_mm[chosen],
            thickness_mm=self.thickness_mm,
        )


def arrange(
    planes: Sequence[Plane],
    shape: tuple[int, int],
    path: Path,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Stack:
    """The planes in order, if they have one orientation and one pixel spacing.

    Args:
        planes: at least one.
        shape: (rows, columns) of each.
        path: of the series, for messages.
        spacing_mm: (slice, row, column) that overrides the header.

    Raises:
        InputError: "no-position", "bad-spacing", "mixed-spacing", "mixed-orientation".
    """
    positions, directions = _placed(planes, path)
    _check_one_orientation(planes, directions, path)
    spacing = _one_spacing(planes, shape, path, None if spacing_mm is None else spacing_mm[1:])
    order = np.argsort(positions @ np.cross(directions[0, 0], directions[0, 1]), kind="stable")
    return Stack(
        planes=tuple(planes[k] for k in order),
        shape=shape,
        directions=directions[0],
        spacing_mm=spacing,
        positions_mm=positions[order],
        thickness_mm=planes[0].thickness_mm if spacing_mm is None else spacing_mm[0],
    )


def _placed(planes: Sequence[Plane], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(planes, 3) positions and (planes, 2, 3) directions."""
    positions = [p.position_mm for p in planes if p.position_mm is not None]
    directions = [p.directions for p in planes if p.directions is not None]
    if len(positions) < len(planes) or len(directions) < len(planes):
        lost = [p for p in planes if p.position_mm is None or p.directions is None]
        name = "position" if lost[0].position_mm is None else "orientation"
        raise InputError(
            f"{len(lost)} of {len(planes)} images do not say their {name} in the patient "
            f"(Image {name.title()} (Patient)), first {_name(lost[0])}",
            path=path,
            code="no-position",
            next_step="Export the original series from the scanner or the archive again.",
        )
    return np.array(positions), np.array(directions)


def _check_one_orientation(planes: Sequence[Plane], directions: np.ndarray, path: Path) -> None:
    off = np.abs(directions - directions[0]).max(axis=(1, 2)) > _SAME_DIRECTION
    if not off.any():
        return
    normals = np.cross(directions[:, 0], directions[:, 1])
    angles = np.degrees(np.arccos(np.clip(normals @ normals[0], -1, 1)))
    other = int(np.argmax(off))
    raise InputError(
        f"{int(off.sum())} of {len(planes)} images are turned against the first, by up to "
        f"{angles.max():.2f} degrees across ({_name(planes[0])}, {_name(planes[other])})",
        path=path,
        code="mixed-orientation",
        next_step="Put each orientation in a folder of its own.",
    )


def _one_spacing(
    planes: Sequence[Plane],
    shape: tuple[int, int],
    path: Path,
    given_mm: tuple[float, float] | None,
) -> tuple[float, float]:
    """The pixel spacing (row, column) that all share, or that is given."""
    if given_mm is not None:
        checks.check_spacing(given_mm, path)
        return given_mm
    lost = [p for p in planes if p.spacing_mm is None]
    if lost:
        raise InputError(
            f"{len(lost)} of {len(planes)} images do not say their Pixel Spacing, "
            f"first {_name(lost[0])}",
            path=path,
            code="bad-spacing",
            next_step="State the true spacing with --spacing SLICE ROW COLUMN.",
        )
    spacings = np.array([p.spacing_mm for p in planes])
    for spacing, plane in zip(spacings, planes, strict=True):
        checks.check_spacing(spacing.tolist(), plane.path)
    off = np.abs(spacings - spacings[0]) * np.array(shape) > _DECIMALS_MM
    if off.any():
        counts = Counter(f"{r:g} x {c:g} mm ({n}x)" for (r, c), n in _counted(spacings))
        raise InputError(
            f"images differ in pixel spacing: {', '.join(counts)}",
            path=path,
            code="mixed-spacing",
            next_step="Put each reconstruction in a folder of its own.",
        )
    return float(spacings[0, 0]), float(spacings[0, 1])


def _counted(rows: np.ndarray) -> list[tuple[tuple[float, ...], int]]:
    return Counter(tuple(float(v) for v in row) for row in rows).most_common()


def coincident(stack: Stack) -> list[list[int]]:
    """Groups of planes at one depth, in order; all of one plane in a sound stack."""
    groups = [[0]]
    depth = stack.depth_mm
    for k in range(1, len(depth)):
        if depth[k] - depth[groups[-1][0]] < _DECIMALS_MM:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


def check_line(stack: Stack, path: Path) -> None:
    """The slices must follow each other along one line. No two may coincide.

    Raises:
        InputError: "misaligned-slices": one is shifted in its plane. That is never repaired.
    """
    depth, positions = stack.depth_mm, stack.positions_mm
    if len(depth) < 3:
        return
    along = (depth - depth[0]) / (depth[-1] - depth[0])
    line = positions[0] + along[:, None] * (positions[-1] - positions[0])
    beside = np.linalg.norm(positions - line, axis=1)
    worst = int(beside.argmax())
    if beside[worst] > max(_DRIFT_MM, _OFF_LINE * min(stack.spacing_mm)):
        raise InputError(
            f"slice {worst + 1} ({_name(stack.planes[worst])}) lies {beside[worst]:.2f} mm beside "
            "the line from the first slice to the last",
            path=path,
            code="misaligned-slices",
            next_step="Slices of several fields of view cannot be stacked: export one.",
        )


def gap_error(stack: Stack, path: Path) -> InputError | None:
    """Why the slices are unevenly spaced, None if they are not. No two may coincide.

    Codes "missing-slices" (gaps are multiples of the smallest) and "uneven-slices".
    """
    depth, count = stack.depth_mm, len(stack.planes)
    if count < 2:
        return None
    even = np.linspace(depth[0], depth[-1], count)
    apart = (depth[-1] - depth[0]) / (count - 1)
    if np.abs(depth - even).max() <= max(_DECIMALS_MM, _OFF_PLACE * apart):
        return None
    return _uneven(stack, path)


def _uneven(stack: Stack, path: Path) -> InputError:
    gaps = np.diff(stack.depth_mm)
    smallest = float(gaps.min())
    widest = int(gaps.argmax())
    between = (
        f"{gaps[widest]:.4g} mm between slice {widest + 1} ({_name(stack.planes[widest])}, at "
        f"{stack.depth_mm[widest]:.2f} mm) and slice {widest + 2} "
        f"({_name(stack.planes[widest + 1])})"
    )
    times = gaps / smallest
    if np.abs(times - times.round()).max() <= _OFF_MULTIPLE:
        lost = int((times.round() - 1).sum())
        seems = "slice seems" if lost == 1 else "slices seem"
        cause = f"{lost} {seems} to be missing: they are {smallest:.3g} mm apart, but {between}"
        code = "missing-slices"
    else:
        counts = Counter(f"{gap:.2f}" for gap in gaps).most_common(6)
        listed = ", ".join(f"{gap} mm ({n}x)" for gap, n in counts)
        cause = f"slices are unevenly spaced: gaps of {listed}; widest {between}"
        code = "uneven-slices"
    return InputError(
        cause,
        path=path,
        code=code,
        next_step="Export the whole series again, or fill the gaps by interpolation with --repair.",
    )


# ---- grids -------------------------------------------------------------------------------------


def native_grid(stack: Stack, path: Path) -> Grid:
    """The grid of an evenly spaced stack, its slices along the normal; sheared if it is tilted.

    Raises:
        InputError: "no-thickness": one slice that does not say how thick it is.
    """
    count = len(stack.planes)
    if count == 1:
        if stack.thickness_mm is None:
            raise InputError(
                "it is one slice, and does not say how thick it is",
                path=path,
                code="no-thickness",
                next_step="State the spacing with --spacing SLICE ROW COLUMN.",
            )
        step = stack.normal * stack.thickness_mm
    else:
        depth = stack.depth_mm
        along = float(stack.travel @ stack.normal)
        step = stack.travel * (depth[-1] - depth[0]) / (count - 1) / along
    first = stack.positions_mm.mean(axis=0) - step * (count - 1) / 2
    return checks.grid_of((count, *stack.shape), _matrix(stack, step, first), path)


def _matrix(stack: Stack, step: np.ndarray, first: np.ndarray) -> Tensor:
    """mm_from_index (4, 4) RAS+ of slices that follow each other by `step` (LPS)."""
    lps_from_index = np.eye(4)
    lps_from_index[:3, 0] = step
    lps_from_index[:3, 1] = stack.directions[1] * stack.spacing_mm[0]
    lps_from_index[:3, 2] = stack.directions[0] * stack.spacing_mm[1]
    lps_from_index[:3, 3] = first
    return torch.from_numpy(ras_from_lps @ lps_from_index)


def made_even(
    values: Tensor, stack: Stack, path: Path, *, labels: bool = False, fill: float
) -> Volume:
    """The stack on a grid with even slices and right angles.

    The new slices are parallel to the acquired ones. Of a tilted gantry they are the acquired ones,
    moved within their planes. Uneven ones are interpolated between the two acquired on either side;
    where a new slice falls on an acquired one, its values are kept.

    Args:
        values: (1, planes, rows, columns); at least two planes.
        stack: where they lie, in any spacing.
        path: of the series, for messages.
        labels: take the nearest value instead of interpolating.
        fill: value outside of the stack.

    Raises:
        InputError: "gap-too-wide" to be bridged.
        ResourceError: "not-enough-memory".
    """
    depth = stack.depth_mm
    gaps = np.diff(depth)
    if gaps.max() > _BRIDGED_MM:
        raise InputError(
            f"a gap of {gaps.max():.1f} mm is too wide to be bridged (the limit is "
            f"{_BRIDGED_MM:g} mm)",
            path=path,
            code="gap-too-wide",
            next_step="Export the whole series again.",
        )
    even = gap_error(stack, path) is None
    target = _upright_grid(stack, len(depth) if even else _even_count(gaps), path)
    checks.check_memory(2 * 4 * math.prod(target.shape), path)
    mode: Literal["linear", "nearest"] = "nearest" if labels else "linear"
    if even:
        return resample(Volume(values, native_grid(stack, path)), target, mode=mode, fill=fill)
    parts = []
    for k, wanted in enumerate(np.linspace(depth[0], depth[-1], target.shape[0])):
        # The gap that it lies in; a slice at an acquired one is at the start of a gap.
        gap = int(np.searchsorted(depth, wanted + 1e-6, side="right")) - 1
        gap = min(max(gap, 0), len(gaps) - 1)
        step = stack.positions_mm[gap + 1] - stack.positions_mm[gap]
        pair = Grid((2, *stack.shape), _matrix(stack, step, stack.positions_mm[gap]))
        slab = Volume(values[:, gap : gap + 2], pair)
        parts.append(resample(slab, target.slices(k, k + 1), mode=mode, fill=fill).data)
    return Volume(torch.cat(parts, dim=1), target)


def _even_count(gaps: np.ndarray) -> int:
    """How many even slices to put in place of uneven ones, ends included.

    Where slices are missing the gaps are multiples of one distance; else the median is as good as
    any.
    """
    times = gaps / gaps.min()
    whole = np.abs(times - times.round()).max() <= _OFF_MULTIPLE
    return 1 + int(times.round().sum() if whole else round(gaps.sum() / np.median(gaps)))


def _upright_grid(stack: Stack, count: int, path: Path) -> Grid:
    """`count` slices parallel to those of the stack, just wide enough for all of them."""
    along, down = stack.directions
    spacing = np.array([(stack.depth_mm[-1] - stack.depth_mm[0]) / (count - 1), *stack.spacing_mm])
    axes = np.array([stack.normal, down, along])
    placed = stack.positions_mm @ axes.T
    if stack.tilt_deg == 0:  # what is left beside the normal is rounding
        placed[:, 1:] = placed[:, 1:].mean(axis=0)
    low, high = placed.min(axis=0), placed.max(axis=0)
    wider = np.ceil((high - low) / spacing - 1e-3).astype(int)
    shape = (count, stack.shape[0] + int(wider[1]), stack.shape[1] + int(wider[2]))
    matrix = np.eye(4)
    matrix[:3, :3] = axes.T * spacing
    matrix[:3, 3] = axes.T @ low
    return checks.grid_of(shape, torch.from_numpy(ras_from_lps @ matrix), path)


def _name(plane: Plane) -> str:
    return f"{plane.path.name}, frame {plane.frame + 1}" if plane.frame else plane.path.name
