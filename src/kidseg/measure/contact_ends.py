"""Where a contact of tumour and kidney ends: narrow gaps, and parenchyma that tapers to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kidseg.measure.mask import Mask

__all__ = ["END", "Pair", "Steps", "bare_mm", "faces", "narrow_gaps"]

Pair = tuple[np.ndarray, np.ndarray]
"""(faces, 3) indices of the inner voxel of each face, and of the outer one."""

# Gaps belong to a contact up to twice this width, in voxels of the widest spacing, beside thin
# parenchyma. Chosen on shells of parenchyma (docs/measure.md): 1 leaves more of them open.
_GAP = 1.5
# The contact up to so many voxels of the widest spacing from its end is extrapolated. Chosen on
# tapering and even shells: with 3, slow tapers stay too small.
END = 6.0
# Of the contact at an end, so much must lie beside it. Around a tumour of 14 mm radius it is below
# 0.07 in voxels of 3 mm, where even films would become a fifth too large, and 0.8 in those of 1.5.
_LEAST_BESIDE = 0.1


def faces(tumour: np.ndarray, kidney: np.ndarray, axis: int, apart: int = 1) -> Pair:
    """Voxels of the tumour, and of the kidney `apart` voxels from them along an axis."""
    lower = [slice(None)] * 3
    upper = [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -apart), slice(apart, None)
    step = np.zeros(3, dtype=int)
    step[axis] = apart
    up = np.argwhere(tumour[tuple(lower)] & kidney[tuple(upper)])
    down = np.argwhere(kidney[tuple(lower)] & tumour[tuple(upper)])
    return np.concatenate([up, down + step]), np.concatenate([up + step, down])


def narrow_gaps(tumour: Mask, kidney: np.ndarray) -> np.ndarray:
    """Voxels on the surface of the tumour in narrow gaps between patches of thin parenchyma.

    Gaps beside parenchyma of two voxels and more are seen as they are, and stay open.

    Source: morphological closing, Serra, Image Analysis and Mathematical Morphology, 1982.
    """
    from scipy import ndimage

    spacing_mm = np.linalg.norm(tumour.linear, axis=0)
    reach_mm = _GAP * float(spacing_mm.max())

    def is_far(from_where: np.ndarray) -> np.ndarray:
        if not from_where.any():
            return np.ones_like(from_where)
        away_mm = ndimage.distance_transform_edt(~from_where, sampling=spacing_mm)
        return np.asarray(away_mm > reach_mm)

    grown = ndimage.binary_dilation(tumour.data)
    around = grown & ~tumour.data
    behind = ndimage.binary_dilation(grown) & ~grown & kidney
    thin = around & kidney & ~ndimage.binary_dilation(behind)
    bare = around & is_far(around & kidney)
    return np.asarray(around & ~kidney & is_far(bare) & ~is_far(thin))


def bare_mm(
    tumour: Mask, covered: np.ndarray, points_mm: np.ndarray, within_mm: float
) -> np.ndarray:
    """Distances of points from the bare surface of a tumour; infinite if there is none within."""
    from scipy import ndimage
    from scipy.spatial import KDTree

    bare = np.argwhere(ndimage.binary_dilation(tumour.data) & ~tumour.data & ~covered)
    if not len(bare):
        return np.full(len(points_mm), np.inf)
    found = KDTree(tumour.mm(bare)).query(points_mm, distance_upper_bound=within_mm)[0]
    return np.asarray(found)


@dataclass(frozen=True, eq=False)
class Steps:
    """Pairs of neighbours at which contact begins within one voxel, and within two.

    Attributes:
        pairs: along each axis: of tumour and kidney, then of the tumour and what is between both.
        is_face: of all pairs: between tumour and kidney.
        missed: what counts one voxel apart, less what counts two apart, in areas at the pair.
    """

    pairs: Sequence[Pair]
    is_face: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(cls, tumour: np.ndarray, kidney: np.ndarray) -> Steps:
        """Those of two structures."""
        pairs, is_face, missed = [], [], []
        for axis in range(3):
            inner, outer = faces(tumour, kidney, axis)
            step = outer - inner
            behind = 1.0 * tumour[tuple((inner - step).T)] + kidney[tuple((outer + step).T)]
            first, second = faces(tumour, kidney, axis, 2)
            between = (first + second) // 2
            is_notch = ~(tumour | kidney)[tuple(between.T)]
            first, between = first[is_notch], between[is_notch]
            pairs.append((np.concatenate([inner, first]), np.concatenate([outer, between])))
            is_face += [np.ones(len(inner), bool), np.zeros(len(first), bool)]
            missed += [1 - behind / 2, np.full(len(first), -0.5)]
        return cls(pairs, np.concatenate(is_face), np.concatenate(missed))

    def extrapolated_mm2(
        self, areas_mm2: np.ndarray, away_mm: np.ndarray, widest_mm: float
    ) -> float:
        """The contact, extrapolated at its ends to what voxels without size would show.

        A pair of tumour and kidney one voxel apart sees the mean contact within the depth of that
        voxel, and one of two voxels apart that of two. Near an end both differ from the contact in
        proportion to the depth: parenchyma that tapers is missed, a notch between tumour and kidney
        is filled. So twice the first less the second is the contact. Behind an even film, which
        does not end, this is too much: as much as there is of it beside the end is not counted. If
        the contact is too small to have much beside its end, nothing is extrapolated. (Of specks,
        faces that look away from the smoothed contour may outweigh the others: areas below 0.)

        Args:
            areas_mm2: at the pairs.
            away_mm: of the pairs from the bare surface; see `bare_mm`.
            widest_mm: the widest spacing of the labels.

        Source: Richardson, Phil. Trans. R. Soc. A 210 (1911) 307: deferred approach to the limit.
        """
        missed_mm2 = areas_mm2 * self.missed
        at_end = away_mm <= END * widest_mm
        beside = ~at_end & (away_mm <= 2 * END * widest_mm)
        ends = float(missed_mm2[at_end].sum())
        seen_mm2, ending_mm2, beside_mm2 = (
            float(areas_mm2[where & self.is_face].sum())
            for where in (np.ones_like(at_end), at_end, beside)
        )
        if beside_mm2 <= max(0.0, _LEAST_BESIDE * ending_mm2):
            return seen_mm2
        film = float(missed_mm2[beside].sum()) / beside_mm2 * ending_mm2
        return seen_mm2 + ends - float(np.clip(film, min(ends, 0.0), max(ends, 0.0)))
