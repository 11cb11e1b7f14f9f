"""The contours of a structure that can be used, and the planes in which they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kidseg.errors import Finding, quoted
from kidseg.geometry import Grid
from kidseg.io.structure_set import CLOSED, Contour

__all__ = ["Noticed", "PlaneContours", "grouped", "planes_of", "slice_distance_mm", "usable"]

_MAX_BEND_MM = 0.5  # of a contour out of its plane; more is another plane, or none
_SAME_POINT_MM = 1e-3


@dataclass(kw_only=True)
class Noticed:
    """Collects the findings about one structure.

    Attributes:
        path: of the file.
        name: of the structure.
        findings: so far.
    """

    path: Path
    name: str
    findings: list[Finding] = field(default_factory=list)

    def warn(self, code: str, cause: str, next_step: str = "") -> None:
        """Add a warning."""
        cause = f"structure {quoted(self.name)}: {cause}"
        self.findings.append(
            Finding(code=code, path=str(self.path), cause=cause, next_step=next_step)
        )

    def error(self, code: str, cause: str, next_step: str) -> None:
        """Add an error."""
        cause = f"structure {quoted(self.name)}: {cause}"
        self.findings.append(
            Finding(
                code=code, path=str(self.path), cause=cause, next_step=next_step, severity="error"
            )
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaneContours:
    """The contours of a structure in one plane.

    Attributes:
        depth: of the plane, in slices (fractional) or mm.
        rings: each (points, 2) positions in the plane.
    """

    depth: float
    rings: tuple[np.ndarray, ...]


def usable(contours: Sequence[Contour], noticed: Noticed) -> list[Contour]:
    """The closed contours that enclose something, without copies; findings on the others.

    Findings: errors "bad-contour", "open-contours"; warnings "decimal-comma", "point-contours",
    "degenerate-contours", "duplicate-contours".
    """
    if faults := [contour.fault for contour in contours if contour.fault]:
        noticed.error(
            "bad-contour",
            f"{len(faults)} of {len(contours)} contours cannot be used, the first because "
            f"{faults[0]}",
            "The file is damaged: export it again, or leave the structure out by a rule.",
        )
    sound = [contour for contour in contours if not contour.fault]
    if commas := [contour.comma for contour in sound if contour.comma]:
        noticed.warn(
            "decimal-comma",
            f"coordinates of {len(commas)} of {len(contours)} contours are written with a decimal "
            f"comma ({quoted(commas[0])}); it was read as a point",
        )
    kinds = Counter(contour.kind for contour in sound if contour.kind not in CLOSED)
    points = kinds.pop("POINT", 0)
    if points:
        noticed.warn("point-contours", f"{points} points (POINT) enclose nothing and are left out")
    if kinds:
        named = ", ".join(f"{n} {kind[:40]}" for kind, n in kinds.items())
        noticed.error(
            "open-contours",
            f"it has contours that are not closed: {named}",
            "Close them in the program that drew them, or leave the structure out by a rule.",
        )
    closed = [contour for contour in sound if contour.kind in CLOSED]
    whole = [c for c in closed if len(np.unique(c.points_mm.round(3), axis=0)) >= 3]
    if len(whole) < len(closed):
        noticed.warn(
            "degenerate-contours",
            f"{len(closed) - len(whole)} contours have fewer than 3 different points and are left "
            "out",
        )
    once = {_shape_of(contour): contour for contour in reversed(whole)}
    if len(once) < len(whole):
        noticed.warn(
            "duplicate-contours",
            f"{len(whole) - len(once)} contours are copies of others; each was used once",
        )
    return [contour for contour in whole if once[_shape_of(contour)] is contour]


def _shape_of(contour: Contour) -> bytes:
    """Equal for contours with the same points, wherever they start and in either direction."""
    points = (contour.points_mm / _SAME_POINT_MM).round().astype(np.int64)
    return points[np.lexsort(points.T)].tobytes()


def planes_of(
    contours: Sequence[Contour], index_from_lps: np.ndarray, apart_mm: float, noticed: Noticed
) -> list[tuple[Contour, np.ndarray]]:
    """The contours that are parallel to the slices, each with its (points, 3) indices.

    Findings: errors "contour-orientation": contours in other planes; "contour-not-planar".

    Args:
        contours: usable ones.
        index_from_lps: (4, 4); the first index is along the slices.
        apart_mm: distance of slices.
        noticed: collects the findings.
    """
    kept, across, bent = [], 0, 0
    for contour in contours:
        index = contour.points_mm @ index_from_lps[:3, :3].T + index_from_lps[:3, 3]
        if np.ptp(index[:, 0]) * apart_mm <= _MAX_BEND_MM:
            kept.append((contour, index))
        elif _flatness_mm(contour.points_mm) <= _MAX_BEND_MM:
            across += 1
        else:
            bent += 1
    step = "Use the series on whose slices they were drawn, or leave the structure out by a rule."
    if across:
        cause = f"{across} of {len(contours)} contours are in planes of another orientation"
        noticed.error("contour-orientation", f"{cause} than the slices", step)
    if bent:
        cause = f"{bent} of {len(contours)} contours are not planar (more than {_MAX_BEND_MM:g} mm)"
        noticed.error("contour-not-planar", cause, step)
    return kept


def _flatness_mm(points: np.ndarray) -> float:
    """Distance between the two planes, of any orientation, between which the points lie."""
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return float(np.ptp(centred @ axes[-1]))


def slice_distance_mm(grid: Grid) -> float:
    """Distance of the planes of a volumetric grid, along their normal."""
    matrix = grid.mm_from_index.numpy()
    normal = np.cross(matrix[:3, 1], matrix[:3, 2])
    return float(abs(matrix[:3, 0] @ normal) / np.linalg.norm(normal))


def grouped(placed: Sequence[tuple[Contour, np.ndarray]], same: float) -> list[PlaneContours]:
    """The contours by plane, ordered; planes less than `same` apart are one."""
    ordered = sorted(placed, key=lambda one: float(one[1][:, 0].mean()))
    planes: list[list[np.ndarray]] = []
    for _, index in ordered:
        depth = float(index[:, 0].mean())
        if planes and depth - float(planes[-1][0][:, 0].mean()) <= same:
            planes[-1].append(index)
        else:
            planes.append([index])
    return [
        PlaneContours(
            depth=float(np.mean([one[:, 0].mean() for one in each])),
            rings=tuple(one[:, 1:] for one in each),
        )
        for each in planes
    ]
