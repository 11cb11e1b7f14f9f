"""The voxels inside the contours of a structure.

Contours belong to the slice in whose plane they lie. What is between two slices, at most half a
slice distance from one, belongs to the nearest, which is said; slices between contours are never
filled. On a slice all contours of a structure count together, by the even-odd rule: an inner
contour is a hole, whether it is joined to the outer one by a channel without width (CLOSED_PLANAR),
drawn by itself, or CLOSEDPLANAR_XOR. A voxel is inside if its centre is, or lies on a contour.

Source: DICOM PS3.3, C.8.8.6.3 (contour geometric types and holes); "nearest slice, without
interpolation" is the smallest change that places every contour where some expert drew it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from typing import Literal

import numpy as np

from kidseg.geometry import Grid
from kidseg.io.contour_planes import (
    Noticed,
    PlaneContours,
    grouped,
    planes_of,
    slice_distance_mm,
    usable,
)
from kidseg.io.orientation import ras_from_lps
from kidseg.io.polygons import area_inside, filled
from kidseg.io.structure_set import Contour

__all__ = ["note_overlaps", "voxels_inside"]

_IN_PLANE_MM = 0.05  # rounding of positions in DICOM files
_SAME_SLICE = 0.1  # of a slice distance: contours of one slice that lie off it, and side by side
_TIE = 0.02  # of a slice distance: half-way between two slices, but for rounding
_CROSSED = 0.02  # of the area inside a contour that it encloses twice: more is noticed
_MAX_PAIRS = 5000  # of contours that are compared
_MAX_BOX = 4096  # pixels


def voxels_inside(
    contours: Sequence[Contour],
    grid: Grid,
    noticed: Noticed,
    slice_of: Mapping[str, int] | None = None,
) -> np.ndarray:
    """The voxels whose centres are inside the contours of a structure, or on them.

    Findings besides those of `usable` and `planes_of`: warnings "between-slices", "dropped-planes",
    "contour-outside", "contour-gap", "overlapping-contours", "nested-contours",
    "self-crossing-contours", "other-image"; error "nothing-inside".

    Args:
        contours: of the structure.
        grid: of the series, slices in its planes.
        noticed: collects the findings.
        slice_of: {SOP Instance UID: slice} of the images.

    Returns:
        (slices, rows, columns) bool.
    """
    inside = np.zeros(grid.shape, bool)
    apart_mm = slice_distance_mm(grid)
    index_from_lps = np.linalg.inv(grid.mm_from_index.numpy()) @ ras_from_lps
    placed = planes_of(usable(contours, noticed), index_from_lps, apart_mm, noticed)
    rings: dict[int, list[np.ndarray]] = {}
    for k, plane in _slices(placed, grid, apart_mm, noticed):
        rings.setdefault(k, []).extend(plane.rings)
    cut = 0
    for k, each in rings.items():
        inside[k] = filled(each, grid.shape[1:])
        limit = np.array(grid.shape[1:]) - 0.5
        cut += sum(bool((ring < -0.5).any() or (ring > limit).any()) for ring in each)
    if cut:
        noticed.warn("contour-outside", f"{cut} contours reach beyond the image; they were cut off")
    if contours and not inside.any() and not any(f.severity == "error" for f in noticed.findings):
        cause = "no centre of a voxel is inside its contours"
        noticed.error("nothing-inside", cause, "Compare it with the images in a viewer.")
    _note_gaps(sorted(rings), noticed)
    is_plain = any(contour.kind == "CLOSED_PLANAR" for contour, _ in placed)
    note_overlaps(rings, noticed, is_plain=is_plain)
    _note_images(placed, slice_of or {}, noticed)
    return inside


def _slices(
    placed: Sequence[tuple[Contour, np.ndarray]], grid: Grid, apart_mm: float, noticed: Noticed
) -> Iterator[tuple[int, PlaneContours]]:
    """The slice of each plane of contours; of several planes near a slice, the nearest."""
    nearest: dict[int, PlaneContours] = {}
    outside, dropped, between = 0, 0, 0.0
    near = max(_IN_PLANE_MM, _SAME_SLICE * apart_mm)
    for plane in grouped(placed, _IN_PLANE_MM / apart_mm):
        k = math.floor(plane.depth + 0.5 + _TIE)  # half-way ones all go the same way
        off = abs(plane.depth - k) * apart_mm
        if not 0 <= k < grid.shape[0]:
            outside += len(plane.rings)
            continue
        if off > _IN_PLANE_MM:
            between = max(between, off)
        other = nearest.get(k)
        other_off = 0.0 if other is None else abs(other.depth - k) * apart_mm
        most = max(off, other_off)
        if other is not None and (
            most <= _IN_PLANE_MM or (most <= near and _are_apart(other.rings, plane.rings))
        ):
            nearest[k] = PlaneContours(depth=other.depth, rings=other.rings + plane.rings)
            continue
        if other is None or off < other_off:
            nearest[k] = plane
        dropped += other is not None
    if outside:
        cause = f"{outside} contours are beyond the first or last slice; they were left out"
        noticed.warn("contour-outside", cause, "Check that the series is complete.")
    if between:
        noticed.warn(
            "between-slices",
            f"contours are up to {between:.2f} mm from the nearest slice, of slices {apart_mm:.3g}"
            " mm apart; each was taken for the contour of that slice",
            "Compare them with the images in a viewer.",
        )
    if dropped:
        noticed.warn(
            "dropped-planes",
            f"{dropped} planes of contours share their slice with a nearer one; they were left out",
            "Use the series on whose slices the contours were drawn.",
        )
    yield from nearest.items()


def _are_apart(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    pairs = islice(product(some, others), _MAX_PAIRS)
    return all(_relation(*pair) == "apart" for pair in pairs)


def _note_gaps(slices: Sequence[int], noticed: Noticed) -> None:
    gaps = np.diff(slices)
    if not len(gaps) or gaps.max() == 1:
        return
    missing = int((gaps - 1).sum())
    k = slices[int(gaps.argmax())]
    every = int(np.median(gaps))
    cause = f"slices between its contours have none ({missing})"
    cause += f" (only one in {every} has)" if every > 1 else f" (the widest gap is after {k + 1})"
    noticed.warn(
        "contour-gap",
        f"{cause}; they were not filled",
        "If it is one body, complete its contours in the program that drew them.",
    )


def note_overlaps(
    rings: Mapping[int, Sequence[np.ndarray]], noticed: Noticed, *, is_plain: bool
) -> None:
    """Notice contours that cross, and those that are holes because they are inside others.

    What two contours enclose, or one twice, counts as outside, by the even-odd rule; some programs
    unite contours.

    Args:
        rings: of each slice, in pixels.
        noticed: collects the findings.
        is_plain: they are CLOSED_PLANAR, which does not say what an inner contour is.
    """
    if twisted := sum(_crosses_itself(ring) for each in rings.values() for ring in each):
        noticed.warn(
            "self-crossing-contours",
            f"{twisted} contours cross themselves, or go round a place twice; what one encloses"
            " twice counts as outside",
            "Compare them with the images in a viewer.",
        )
    pairs = (pair for each in rings.values() for pair in combinations(each, 2))
    found = Counter(_relation(*pair) for pair in islice(pairs, _MAX_PAIRS))
    if crossing := found["cross"]:
        noticed.warn(
            "overlapping-contours",
            f"{crossing} pairs of contours overlap in part; what both enclose counts as outside",
            "Compare them with the images in a viewer.",
        )
    if is_plain and (nested := found["nested"]):
        noticed.warn(
            "nested-contours",
            f"contours inside others ({nested}) count as holes; they are CLOSED_PLANAR, and some"
            " programs would fill them",
            "Compare them with the images in a viewer.",
        )


def _crosses_itself(ring: np.ndarray) -> bool:
    """Whether the area by the even-odd rule is not the area that its edges go round once.

    Source: the shoelace formula, which counts what is gone round twice twice, and what is gone
    round the other way negatively.
    """
    centred = ring - ring.mean(axis=0)
    after = np.roll(centred, -1, axis=0)
    once = abs(float((centred[:, 0] * after[:, 1] - centred[:, 1] * after[:, 0]).sum())) / 2
    return abs(area_inside([centred]) - once) > max(1.0, _CROSSED * once)


def _relation(one: np.ndarray, other: np.ndarray) -> Literal["apart", "nested", "cross"]:
    """Whether the pixels in two rings are apart, all of one in the other, or neither."""
    low = np.maximum(one.min(axis=0), other.min(axis=0))
    high = np.minimum(one.max(axis=0), other.max(axis=0))
    if (low >= high).any():
        return "apart"
    corner = np.floor(np.minimum(one.min(axis=0), other.min(axis=0)))
    size = np.ceil(np.maximum(one.max(axis=0), other.max(axis=0)) - corner) + 1
    if size.max() > _MAX_BOX:
        return "apart"
    shape = (int(size[0]), int(size[1]))
    masks = [filled([ring - corner], shape) for ring in (one, other)]
    both = int((masks[0] & masks[1]).sum())
    if not both:
        return "apart"
    return "cross" if both < min(int(mask.sum()) for mask in masks) else "nested"


def _note_images(
    placed: Sequence[tuple[Contour, np.ndarray]], slice_of: Mapping[str, int], noticed: Noticed
) -> None:
    wrong = sum(
        all(abs(float(index[:, 0].mean()) - slice_of[uid]) > 0.5 + _TIE for uid in known)
        for contour, index in placed
        if (known := [uid for uid in contour.images if uid in slice_of])
    )
    if wrong:
        noticed.warn(
            "other-image",
            f"{wrong} contours are in the plane of another slice than the image they refer to; "
            "their positions were used",
            "Compare them with the images in a viewer.",
        )
