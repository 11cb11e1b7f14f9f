"""Sort image planes into a stack, and check their geometry.

All positions are LPS millimetres, as in DICOM, until a Grid is created. Planes are sorted along
their normal (row direction x column direction); `depth_mm` is the position along it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kidseg.errors import InputError
from kidseg.io import checks
from kidseg.io.dicom_frames import Plane

__all__ = [
    "Stack",
    "arrange",
    "check_line",
    "gap_error",
    "group_coincident",
    "multiples",
]

# Positions are decimal strings, often with two decimals: rounding changes the difference of two
# by at most 0.01 mm.
_DECIMALS_MM = 0.011
# Cosines with four decimals move the end of a 500 mm stack 0.05 mm off its axis.
_DRIFT_MM = 0.05
_SAME_DIRECTION = 1e-4
# Tolerance of a slice position: fraction of the slice distance along the stack, and fraction of a
# pixel off the line.
_POSITION_TOLERANCE = 0.01
_LINE_TOLERANCE = 0.1
# Gaps within this tolerance of a multiple of the smallest gap mean missing slices.
_MULTIPLE_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Planes of one orientation and pixel spacing, sorted along their normal.

    Attributes:
        planes: in sorted order.
        shape: (rows, columns) of each.
        directions: (2, 3) unit vectors along a row and down a column.
        spacing_mm: between (rows, columns).
        positions_mm: (planes, 3) of their first voxels.
        thickness_mm: slice distance according to the header, for a single slice.
    """

    planes: tuple[Plane, ...]
    shape: tuple[int, int]
    directions: np.ndarray
    spacing_mm: tuple[float, float]
    positions_mm: np.ndarray
    thickness_mm: float | None

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector perpendicular to the planes."""
        normal: np.ndarray = np.cross(self.directions[0], self.directions[1])
        return normal

    @property
    def depth_mm(self) -> np.ndarray:
        """(planes,) positions along the normal, ascending."""
        depth: np.ndarray = self.positions_mm @ self.normal
        return depth

    @property
    def stack_direction(self) -> np.ndarray:
        """(3,) unit vector from the first slice to the last; the normal unless the gantry tilts."""
        extent = self.positions_mm[-1] - self.positions_mm[0]
        drift = extent - (extent @ self.normal) * self.normal
        if len(self.planes) < 2 or float(np.linalg.norm(drift)) <= _DRIFT_MM:
            return self.normal
        direction: np.ndarray = extent / np.linalg.norm(extent)
        return direction

    @property
    def tilt_deg(self) -> float:
        """Angle between the normal and the stack direction."""
        return math.degrees(math.acos(min(1.0, abs(float(self.stack_direction @ self.normal)))))

    def select(self, indices: Sequence[int]) -> Stack:
        """A stack of the planes with these indices."""
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
    """Sort planes into a stack. They must share one orientation and one pixel spacing.

    Args:
        planes: at least one.
        shape: (rows, columns) of each.
        path: the series, for messages.
        spacing_mm: (slice, row, column); overrides the header.

    Raises:
        InputError: "no-position", "bad-spacing", "mixed-spacing", "mixed-orientation".
    """
    positions, directions = _geometry(planes, path)
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


def _geometry(planes: Sequence[Plane], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(planes, 3) positions and (planes, 2, 3) directions."""
    positions = [p.position_mm for p in planes if p.position_mm is not None]
    directions = [p.directions for p in planes if p.directions is not None]
    if len(positions) < len(planes) or len(directions) < len(planes):
        missing = [p for p in planes if p.position_mm is None or p.directions is None]
        name = "Position" if missing[0].position_mm is None else "Orientation"
        raise InputError(
            f"Image {name} (Patient) is missing in {len(missing)} of {len(planes)} images, "
            f"first {_name(missing[0])}",
            path=path,
            code="no-position",
            next_step="Export the original series from the scanner or the archive again.",
        )
    return np.array(positions), np.array(directions)


def _check_one_orientation(planes: Sequence[Plane], directions: np.ndarray, path: Path) -> None:
    off = np.abs(directions - directions[0]).max(axis=(1, 2)) > _SAME_DIRECTION
    if not off.any():
        return
    other = int(np.argmax(off))
    raise InputError(
        f"{int(off.sum())} of {len(planes)} images differ in orientation from the first, by up to "
        f"{_degrees(_largest_angle(directions))} degrees ({_name(planes[0])}, "
        f"{_name(planes[other])})",
        path=path,
        code="mixed-orientation",
        next_step="Put each orientation in a separate folder.",
    )


def _largest_angle(directions: np.ndarray) -> float:
    """The largest angle between an axis of any plane and that of the first, in degrees."""
    normals = np.cross(directions[:, 0], directions[:, 1])
    axes = np.concatenate([directions, normals[:, None]], axis=1)
    sine = np.linalg.norm(np.cross(axes, axes[:1]), axis=-1)
    cosine = (axes * axes[:1]).sum(axis=-1)
    return math.degrees(float(np.arctan2(sine, cosine).max()))


def _degrees(angle: float) -> str:
    """With two decimals, or as many as two digits need."""
    return f"{angle:.2f}" if angle >= 0.1 else f"{angle:.2g}"


def _one_spacing(
    planes: Sequence[Plane],
    shape: tuple[int, int],
    path: Path,
    given_mm: tuple[float, float] | None,
) -> tuple[float, float]:
    """The given pixel spacing (row, column), or the one that all planes share."""
    if given_mm is not None:
        checks.check_spacing(given_mm, path)
        return given_mm
    missing = [p for p in planes if p.spacing_mm is None]
    if missing:
        raise InputError(
            f"Pixel Spacing is missing in {len(missing)} of {len(planes)} images, "
            f"first {_name(missing[0])}",
            path=path,
            code="bad-spacing",
            next_step="Specify the correct spacing with --spacing SLICE ROW COLUMN.",
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
            next_step="Put each reconstruction in a separate folder.",
        )
    return float(spacings[0, 0]), float(spacings[0, 1])


def _counted(rows: np.ndarray) -> list[tuple[tuple[float, ...], int]]:
    return Counter(tuple(float(v) for v in row) for row in rows).most_common()


def group_coincident(stack: Stack) -> list[list[int]]:
    """Group planes with the same depth, in order. A valid stack has one plane in each group."""
    groups = [[0]]
    depth = stack.depth_mm
    for k in range(1, len(depth)):
        if depth[k] - depth[groups[-1][0]] < _DECIMALS_MM:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


def check_line(stack: Stack, path: Path) -> None:
    """Check that the slices are on one line. No two may coincide.

    Raises:
        InputError: "misaligned-slices": a slice is shifted in its plane. This is never repaired.
    """
    depth, positions = stack.depth_mm, stack.positions_mm
    if len(depth) < 3:
        return
    along = (depth - depth[0]) / (depth[-1] - depth[0])
    line = positions[0] + along[:, None] * (positions[-1] - positions[0])
    offset = np.linalg.norm(positions - line, axis=1)
    worst = int(offset.argmax())
    if offset[worst] > max(_DRIFT_MM, _LINE_TOLERANCE * min(stack.spacing_mm)):
        raise InputError(
            f"slice {worst + 1} ({_name(stack.planes[worst])}) is {offset[worst]:.2f} mm off "
            "the line from the first slice to the last",
            path=path,
            code="misaligned-slices",
            next_step="Slices with different fields of view cannot be stacked: export only one.",
        )


def gap_error(stack: Stack, path: Path) -> InputError | None:
    """An error if the slices are unevenly spaced, otherwise None. No two slices may coincide.

    Codes: "missing-slices" (gaps are multiples of the smallest one) and "uneven-slices".
    """
    depth, count = stack.depth_mm, len(stack.planes)
    if count < 2:
        return None
    even = np.linspace(depth[0], depth[-1], count)
    apart = (depth[-1] - depth[0]) / (count - 1)
    if np.abs(depth - even).max() <= max(_DECIMALS_MM, _POSITION_TOLERANCE * apart):
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
    if (times := multiples(gaps)) is not None:
        missing = int((times - 1).sum())
        seems = "slice seems" if missing == 1 else "slices seem"
        cause = (
            f"{missing} {seems} to be missing: slices are {smallest:.3g} mm apart, but {between}"
        )
    else:
        counts = Counter(f"{gap:.2f}" for gap in gaps).most_common(6)
        listed = ", ".join(f"{gap} mm ({n}x)" for gap, n in counts)
        cause = f"slices are unevenly spaced: gaps of {listed}; widest {between}"
    return InputError(
        cause,
        path=path,
        code="uneven-slices" if times is None else "missing-slices",
        next_step="Export the complete series again, or interpolate across the gaps with --repair.",
    )


def multiples(gaps: np.ndarray) -> np.ndarray | None:
    """How many of the smallest gap each gap is, as if slices were missing; None if none fits."""
    times = gaps / gaps.min()
    whole: np.ndarray = times.round()
    return whole if np.abs(times - whole).max() <= _MULTIPLE_TOLERANCE else None


def _name(plane: Plane) -> str:
    return f"{plane.path.name}, frame {plane.frame + 1}" if plane.frame else plane.path.name
