"""Which pieces of a kidney belong to its shape, and what of it a tumour has stretched too thin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kidseg.check.anomalies import FRAGMENT, numbered_components
from kidseg.errors import Finding
from kidseg.measure.contact import thin_share
from kidseg.measure.mask import Mask
from kidseg.measure.part import Part

__all__ = ["kidney_findings", "main_pieces", "stretched", "without_fragments"]

# A tumour has stretched its kidney if more than this share of their contact is in front of a single
# voxel of parenchyma, and it has at least this part of its volume: small ones lie near the surface.
_THIN, _LARGE = 0.1, 0.5


def without_fragments(kidney: Mask) -> Mask:
    """The kidney without the components that are small beside the largest."""
    return main_pieces(kidney, np.zeros_like(kidney.data), np.inf)


def main_pieces(kidney: Mask, tumour: np.ndarray, least_ml: float) -> Mask:
    """The components of a kidney that belong to its shape.

    Those that are not small beside the largest one; and those that are connected with it by the
    tumour, as where it has stretched the parenchyma between them to less than a voxel.

    Args:
        kidney: not empty.
        tumour: all of its side, on the same voxels.
        least_ml: smaller pieces on a tumour do not count.
    """
    numbered, _ = numbered_components(kidney.data)
    first = np.unique(numbered, return_index=True)[1]
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    is_main = sizes > FRAGMENT * sizes.max()
    if is_main[1:].all():
        return kidney
    joined = numbered_components(kidney.data | tumour)[0].ravel()[first]
    is_joined = joined == joined[sizes.argmax()]
    is_main |= is_joined & (sizes * float(kidney.grid.voxel_ml) >= least_ml)
    return Mask(is_main[numbered], kidney.grid)


def stretched(kidney: Part, tumours: Sequence[Part], around: Mask) -> Part:
    """The kidney, with the place where its unlabelled ends are if a tumour has stretched it.

    Args:
        kidney: the kidney.
        tumours: lesions of its side.
        around: a mask on voxels that contain all of these.
    """
    thin = [
        part
        for part in tumours
        if part.mask.volume_ml >= _LARGE * kidney.mask.volume_ml
        and thin_share(part.mask, kidney.mask) > _THIN
    ]
    if not thin:
        return kidney
    data = kidney.main.onto(around)
    for part in thin:
        data |= part.mask.onto(around)
    (within,) = Mask(data, around.grid).cropped()
    return replace(kidney, within=within, stretched_by=tuple(part.id for part in thin))


def kidney_findings(kidney: Part, least_ml: float, path: str) -> list[Finding]:
    """What is apart from the rest of a kidney, and what of it is too thin for voxels."""
    found = []
    step = "Check the labels."
    apart_ml = kidney.mask.volume_ml - kidney.main.volume_ml
    if apart_ml >= least_ml:
        cause = (
            f"fragments of the {kidney.id}, {apart_ml:.2f} ml altogether, are part of its volume,"
            " but not of its diameters"
        )
        found.append(Finding(code="kidney-fragments", path=path, cause=cause, next_step=step))
    on_ml = kidney.main.volume_ml - without_fragments(kidney.mask).volume_ml
    if on_ml > 0:
        cause = (
            f"small pieces of the {kidney.id}, {on_ml:.2f} ml altogether, are connected with it by"
            " a tumour only; they are part of its diameters, whose intervals also contain those"
            " without them"
        )
        found.append(Finding(code="kidney-pieces", path=path, cause=cause, next_step=step))
    if kidney.stretched_by:
        cause = (
            f"parts of the {kidney.id} are one voxel thin where {' and '.join(kidney.stretched_by)}"
            " stretched it; thinner parenchyma has no label, so the kidney may be longer, and its"
            " contact larger, by as much as the intervals say"
        )
        step = "Thinner slices show more of it."
        found.append(Finding(code="thin-parenchyma", path=path, cause=cause, next_step=step))
    return found
