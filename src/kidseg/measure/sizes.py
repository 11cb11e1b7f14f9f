"""Volumes and diameters of one structure, each with its interval."""

from __future__ import annotations

from dataclasses import replace

from kidseg.measure.diameters import measure_diameters
from kidseg.measure.kidney_pieces import without_fragments
from kidseg.measure.mask import moved_contours
from kidseg.measure.part import Part
from kidseg.measure.quantity import Quantity, Unit, spanned

__all__ = ["ACROSS", "AXIAL", "ELLIPSOID", "HEIGHT", "LONGEST", "VOLUME", "sizes_of", "volume_of"]

VOLUME = "volume"
ELLIPSOID = "ellipsoid volume"
LONGEST = "longest diameter"
AXIAL = "longest axial diameter"
ACROSS = "width across it"
HEIGHT = "height"

_BY_HAND = "pi/6 x length x width x height, as measured by hand"


def sizes_of(part: Part) -> list[Quantity]:
    """Volumes and diameters of a structure; the latter without its fragments.

    Those of a kidney may be as without the pieces that only a tumour connects with it; and, where a
    tumour has stretched it to less than a voxel, up to those of both together (but its own width).
    """
    masks = [part.main, *moved_contours(part.main)]
    if part.meaning == "kidney":
        masks.append(without_fragments(part.main))
    diameters = [measure_diameters(mask) for mask in masks]
    ends = ""
    if part.within is not None:
        most = measure_diameters(moved_contours(part.within)[1])
        diameters.append(replace(most, across_mm=max(each.across_mm for each in diameters)))
        ends = "; its ends may be too thin for a label: up to those of kidney and tumour together"
    values: dict[tuple[str, Unit, str], list[float]] = {
        (ELLIPSOID, "mL", _BY_HAND): [each.ellipsoid_ml for each in diameters],
        (LONGEST, "mm", "in any direction"): [each.longest_mm for each in diameters],
        (AXIAL, "mm", "in one slice"): [each.axial_mm for each in diameters],
        (ACROSS, "mm", "in the same slice"): [each.across_mm for each in diameters],
        (HEIGHT, "mm", "across the slices"): [each.height_mm for each in diameters],
    }
    return [
        volume_of(part),
        *(
            spanned(name, unit, found[0], found[1:], note=note + ends).partly(part.is_partial)
            for (name, unit, note), found in values.items()
        ),
    ]


def volume_of(part: Part, name: str = VOLUME, note: str = "") -> Quantity:
    """The volume of a structure, fragments included."""
    value, *moved = (mask.volume_ml for mask in (part.mask, *moved_contours(part.mask)))
    return spanned(name, "mL", value, moved, note=note).partly(part.is_partial)
