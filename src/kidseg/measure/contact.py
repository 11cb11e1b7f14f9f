"""Where a tumour touches its kidney: area of the contact, parenchyma behind it, gaps.

Areas are sums over the faces between voxels, each projected onto the plane of the smoothed contour
there. For a plane in any direction this is exact on average, where counting faces gives up to
sqrt(3) times the area, and marching cubes of a mask about 1.09 times.

Between thick slices the contours are interpolated first: on the steps between them, much of a
contact that is curved or ends between two slices would be missed.

Parenchyma thinner than a voxel is labelled in patches, where centres of voxels happen to be in it.
An even film of it is found by closing the narrow gaps between its patches, and parenchyma that
tapers towards the end of the contact by extrapolation (`contact_ends`). Each of both is too small
where the other one is right, so the larger one is taken.

Source: Lenoir, Malgouyres and Revenu, "Fast computation of the normal vector field of the surface
of a 3-D discrete object", DGCI 1996: area of a digital surface by its normals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kidseg.geometry import distances_mm, divided
from kidseg.measure.contact_ends import END, Pair, Steps, bare_mm, faces, narrow_gaps
from kidseg.measure.diameters import surface_mm
from kidseg.measure.mask import MARGIN, Mask, moved_contours
from kidseg.measure.quantity import Quantity, counted, spanned

__all__ = [
    "Contact",
    "contact_area",
    "contact_of",
    "gap_to",
    "rim_quantities",
    "thickness_mm",
    "thin_share",
]

# Width of the Gaussian from whose gradient the normals are taken: in voxels, and at least this part
# of the widest spacing. Narrower, they follow the steps between voxels; wider, curved contacts get
# too small. Chosen on balls and planes with spacings from 1:1 to 1:7.
_SIGMA, _SIGMA_WIDEST = 1.25, 0.6
_MAX_SIGMA = 9.0  # for the memory that voxels of any shape take
# Where it ends, in widths; scipy's default.
_TRUNCATE = 4.0
# Thick slices are divided until they are about so many times as thick as the pixels are wide; the
# Gaussian is then at least this part of the slices that they were. Chosen on balls and discs with
# slices up to 5 mm.
_DIVIDED, _SIGMA_DIVIDED = 1.5, 0.35
_MAX_DIVIDED = 10  # parts; likewise
# Rays through the parenchyma: at most so many, so long, in steps of this part of a voxel.
_RAYS = 4000
_LONGEST_MM = 150.0
_STEP = 0.5
_MISSED = (
    "{percent:.0f} % of it is in front of parenchyma one voxel thick; thinner parenchyma has no"
    " label, so as much again is added to the upper end"
)


@dataclass(frozen=True, eq=False)
class Contact:
    """The faces between voxels of a tumour and voxels of its kidney.

    Attributes:
        points_mm: (faces, 3) their centres.
        normals: (faces, 3) unit vectors from the tumour to the kidney.
        areas_mm2: (faces,) area of the contour at each; single ones may be negative.
    """

    points_mm: np.ndarray
    normals: np.ndarray
    areas_mm2: np.ndarray

    @property
    def area_cm2(self) -> float:
        """Area of the contact."""
        return max(float(self.areas_mm2.sum()) / 100, 0.0)

    def thinned(self, count: int) -> Contact:
        """At most `count` of the faces, chosen evenly."""
        faces = len(self.areas_mm2)
        kept = np.unique(np.linspace(0, max(faces - 1, 0), min(count, faces)).astype(int))
        return Contact(self.points_mm[kept], self.normals[kept], self.areas_mm2[kept])


def contact_of(tumour: Mask, kidney: Mask) -> Contact:
    """The contact of a tumour with the parenchyma of a kidney, of the same image."""
    meeting = _meeting(tumour, kidney)
    return _NONE if meeting is None else _contact(*meeting, _sigma(meeting[0]))


def contact_area(tumour: Mask, kidney: Mask) -> Quantity:
    """Area of the contact, thin parts included; its interval is that of contours moved by a voxel.

    The contour between both is moved either way, and so is the contour of both together, at whose
    edge the contact ends. Parenchyma that a tumour has stretched to less than 0.2 voxels has few
    labels or none. How much that is, labels cannot tell: as much is added to the upper end as is
    seen before single voxels.
    """
    from scipy import ndimage

    name = "contact with the kidney"
    if (meeting := _meeting(tumour, kidney)) is None:
        return counted(name, 0.0, "cm2")
    first, second = meeting[0].data, meeting[1]
    both = first | second
    grown = ndimage.binary_dilation(first)
    shrunk = first & ~ndimage.binary_dilation(second)
    inside = ndimage.binary_erosion(both, border_value=1)
    outside = grown & ~second
    gaps = narrow_gaps(meeting[0], second)
    grid = meeting[0].grid
    as_labelled = _finer(meeting[0], second)
    pairs = (
        (first, second | gaps),
        (grown & both, second & ~grown),
        (shrunk, both & ~shrunk),
        (first & inside, second & inside),
        (outside, ndimage.binary_dilation(second) & ~outside),
    )
    areas = [_contact(*_finer(Mask(inner, grid), outer)).area_cm2 for inner, outer in pairs]
    widest_mm = float(np.linalg.norm(meeting[0].linear, axis=0).max())
    with_ends = _with_ends_cm2(*as_labelled, gaps, widest_mm)
    areas += [_contact(*as_labelled).area_cm2, with_ends]
    value = max(areas[0], with_ends)
    found = spanned(name, "cm2", value, areas)
    if not (thin := thin_share(tumour, kidney)):
        return found
    most = max(areas) + thin * value
    return replace(found, high=most, note=_MISSED.format(percent=100 * thin))


def thin_share(tumour: Mask, kidney: Mask) -> float:
    """The share of the contact behind which the parenchyma is one voxel thick; 0 without any.

    By the faces between voxels of both, along the axis across each.
    """
    (wide,) = tumour.cropped(margin=MARGIN + 1)
    other = kidney.onto(wide)
    volume_mm3 = abs(float(np.linalg.det(wide.linear)))
    faces_mm2 = volume_mm3 * np.linalg.norm(np.linalg.inv(wide.linear), axis=1)
    thin = total = 0.0
    for axis in range(3):
        inner, outer = faces(wide.data, other, axis)
        beyond = 2 * outer - inner
        thin += float(faces_mm2[axis]) * np.count_nonzero(~other[tuple(beyond.T)])
        total += float(faces_mm2[axis]) * len(outer)
    return thin / total if total else 0.0


def _meeting(tumour: Mask, kidney: Mask) -> tuple[Mask, np.ndarray] | None:
    """Both structures around their contact, on one grid; None if they do not touch."""
    margin = int(np.ceil(4 * _sigma(tumour).max())) + MARGIN
    (tumour,) = tumour.cropped(margin=margin)
    other = kidney.onto(tumour)
    near = np.zeros_like(other)
    for axis in range(3):
        for voxels in faces(tumour.data, other, axis):
            near[tuple(voxels.T)] = True
    if not near.any():
        return None
    _, here, there = Mask(near, tumour.grid).cropped(tumour.data, other, margin=margin)
    return here, there.data


def _with_ends_cm2(
    tumour: Mask, kidney: np.ndarray, sigma: np.ndarray, gaps: np.ndarray, widest_mm: float
) -> float:
    """The contact of what `_finer` gives, extrapolated where it ends.

    Gaps and the widest spacing are those of the labels.
    """
    for axis, (many, few) in enumerate(zip(kidney.shape, gaps.shape, strict=True)):
        gaps = gaps.repeat(many // few, axis)
    steps = Steps.of(tumour.data, kidney)
    found = _contact(tumour, kidney, sigma, steps.pairs)
    if not len(found.areas_mm2):
        return 0.0
    away_mm = bare_mm(tumour, kidney | gaps, found.points_mm, 2 * END * widest_mm)
    return max(steps.extrapolated_mm2(found.areas_mm2, away_mm, widest_mm) / 100, 0.0)


def _finer(tumour: Mask, kidney: np.ndarray) -> tuple[Mask, np.ndarray, np.ndarray]:
    """Both, with contours interpolated between thick slices, and the width of their Gaussian."""
    spacing_mm = np.linalg.norm(tumour.linear, axis=0)
    axis = int(np.argmax(spacing_mm))
    parts = min(round(spacing_mm[axis] / (_DIVIDED * np.sort(spacing_mm)[1])), _MAX_DIVIDED)
    if parts < 2:
        return tumour, kidney, _sigma(tumour)
    # From centres to centres: from the contours, areas of balls get 1 to 3 % smaller, too small.
    in_slices = [
        distances_mm(each, spacing_mm, axis, 1, to_contour=False)
        for each in (tumour.data | kidney, tumour.data)
    ]
    both, inner = (divided(each, axis, parts) > 0 for each in in_slices)
    inner &= both
    # Interpolated alone, the parenchyma of a slice would become thinner up to the next slice, and
    # end there, although it ends half-way on average: it covers the tumour as in its own slice.
    covered = (in_slices[0] > in_slices[1]).repeat(parts, axis)
    outer = both & ~inner & covered
    fine = Mask(inner, tumour.grid.resized(both.shape))
    least_mm = _SIGMA_DIVIDED * spacing_mm[axis]
    sigma = np.maximum(_SIGMA, least_mm / np.linalg.norm(fine.linear, axis=0))
    return fine, outer, np.minimum(sigma, _MAX_SIGMA)


def _contact(
    tumour: Mask, kidney: np.ndarray, sigma: np.ndarray, pairs: Sequence[Pair] | None = None
) -> Contact:
    """At the faces between both, or between other pairs of neighbours along the three axes."""
    if pairs is None:
        pairs = [faces(tumour.data, kidney, axis) for axis in range(3)]
    seen = np.concatenate([index for pair in pairs for index in pair])
    if not len(seen):
        return _NONE
    reach = (_TRUNCATE * sigma + 0.5).astype(int)  # all that the gradients at the faces see
    low = np.maximum(seen.min(0) - reach, 0)
    near = tuple(slice(a, b) for a, b in zip(low, seen.max(0) + reach + 1, strict=True))
    gradient = _gradient(tumour.data[near], kidney[near], sigma)
    # Gradients in mm, and the area vectors of the faces, from those along the indices.
    mm_from_slope = np.linalg.inv(tumour.linear).T
    volume_mm3 = abs(float(np.linalg.det(tumour.linear)))
    points, normals, areas = [], [], []
    for axis in range(3):
        inner, outer = pairs[axis]
        slopes = gradient[:, *(inner - low).T] + gradient[:, *(outer - low).T]
        slope = -slopes.T @ mm_from_slope.T
        normal = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)
        face = volume_mm3 * mm_from_slope[:, axis] * (outer - inner)[:, axis, None]
        points.append(tumour.mm((inner + outer) / 2))
        normals.append(normal)
        areas.append((face * normal).sum(1))
    return Contact(np.concatenate(points), np.concatenate(normals), np.concatenate(areas))


_NONE = Contact(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))


def rim_quantities(contact: Contact, kidney: Mask) -> tuple[Quantity, ...]:
    """Thickness of the parenchyma behind the contact: its median, and the thinnest tenth.

    Measured along the normals, from the contact to where the parenchyma ends for the first time.
    () without contact.

    Args:
        contact: of the tumour with this kidney.
        kidney: the parenchyma.
    """
    thickness = thickness_mm(contact.thinned(_RAYS), kidney)
    if not len(thickness):
        return ()
    voxel = float(np.linalg.norm(kidney.linear, axis=0).max())
    found = []
    for name, percent in (("rim, median", 50), ("rim, thinnest tenth", 10)):
        value = float(np.percentile(thickness, percent))
        found.append(
            Quantity(
                name=name,
                value=value,
                unit="mm",
                low=max(value - 2 * voxel, 0.0),
                high=value + 2 * voxel,
                interval="both contours moved by a voxel of the widest spacing",
                note="parenchyma behind the contact",
            )
        )
    return tuple(found)


def thickness_mm(contact: Contact, kidney: Mask) -> np.ndarray:
    """(faces,) thickness of the parenchyma behind each face, along its normal."""
    start, along = contact.points_mm, contact.normals
    step = _STEP * float(np.linalg.norm(kidney.linear, axis=0).min())
    is_inside = np.ones(len(start), dtype=bool)
    thickness = np.zeros(len(start))
    for k in range(1, int(_LONGEST_MM / step)):
        index = np.rint(kidney.grid.index(start + (k - 0.5) * step * along).numpy()).astype(int)
        within = ((index >= 0) & (index < kidney.data.shape)).all(1)
        here = np.zeros(len(start), dtype=bool)
        here[within] = kidney.data[tuple(index[within].T)]
        # The first step may still be in the voxel of the tumour.
        is_inside &= here | (k == 1)
        thickness += step * (is_inside & here)
        if not is_inside.any():
            break
    return thickness


def gap_to(tumour: Mask, others: Sequence[Mask]) -> Quantity:
    """The least distance from the contour of a tumour to that of the nearest other one.

    Args:
        tumour: not empty.
        others: at least one, none empty.
    """
    inner, outer = moved_contours(tumour)
    moved = [moved_contours(other) for other in others]
    value = _gap_mm(tumour, others)
    return spanned(
        "distance to the nearest other tumour",
        "mm",
        value,
        [
            _gap_mm(outer, [wide for _, wide in moved]),
            _gap_mm(inner, [narrow for narrow, _ in moved]),
        ],
    )


def _gap_mm(tumour: Mask, others: Sequence[Mask]) -> float:
    """Infinite if one is empty: a structure thinner than two voxels vanishes."""
    from scipy.spatial import KDTree

    surfaces = [surface_mm(other) for other in others if other.data.any()]
    if not (surfaces and tumour.data.any()):
        return math.inf
    return float(np.min(KDTree(np.concatenate(surfaces)).query(surface_mm(tumour))[0]))


def _sigma(mask: Mask) -> np.ndarray:
    """(3,) width in voxels along slices, rows and columns."""
    spacing_mm = np.linalg.norm(mask.linear, axis=0)
    sigma = np.maximum(_SIGMA, _SIGMA_WIDEST * spacing_mm.max() / spacing_mm)
    return np.asarray(np.minimum(sigma, _MAX_SIGMA))


def _gradient(tumour: np.ndarray, kidney: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """(3, slices, rows, columns) slopes along the indices of the local share of the tumour.

    Of tumour and kidney alone, so that what is beside them, at the edge of the contact, does not
    turn the normals. Without factors that do not matter for the direction.

    Source: normalized convolution, Knutsson and Westin, CVPR 1993.
    """
    from scipy import ndimage

    def smooth(values: np.ndarray, order: int | tuple[int, ...]) -> np.ndarray:
        return np.asarray(
            ndimage.gaussian_filter(values, sigma, order=order, mode="constant", truncate=_TRUNCATE)
        )

    balance = tumour.astype(np.float32) - kidney
    both = (tumour | kidney).astype(np.float32)
    share = smooth(balance, 0) / np.maximum(smooth(both, 0), 1e-3)
    orders = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    return np.stack([smooth(balance, order) - share * smooth(both, order) for order in orders])
