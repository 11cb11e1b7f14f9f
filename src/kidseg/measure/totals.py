"""Measures of a side of the patient, and of both sides together, which criteria use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kidseg.check.anomalies import numbered_components
from kidseg.labels import Meaning
from kidseg.meaning import Side
from kidseg.measure.mask import Mask, moved_contours
from kidseg.measure.parts import SIDES, Labelled, Part, Parts
from kidseg.measure.person import Patient
from kidseg.measure.quantity import Quantity, spanned
from kidseg.measure.resection import remaining_parenchyma
from kidseg.measure.sides import Sides, measure_sides
from kidseg.measure.sizes import volume_of

__all__ = ["excess_of", "patient_measures", "side_measures"]

_TUMOURS, _TUMOUR_SIDES = "number of tumours", "sides with a tumour"
_CUT = "the scan cuts the kidney or a tumour off"


def side_measures(
    parts: Parts,
    volumes: Mapping[str, Quantity],
    person: Patient,
    *,
    margin_mm: float,
    smallest_ml: float,
    opinions: Sequence[Labelled],
) -> dict[Side, dict[str, Quantity]]:
    """{side: its measures by name}; a side without kidney and tumour is missing.

    Args:
        parts: the structures.
        volumes: {id of a kidney: its volume}.
        person: for growth.
        margin_mm: of parenchyma that is removed with a tumour.
        smallest_ml: smaller pieces of a tumour are not lesions.
        opinions: other segmentations of the same scan.
    """
    others = [
        sides
        for each in opinions
        if (sides := measure_sides(each.labels, each.schema, each.midline)) is not None
    ]
    found = {}
    for side in SIDES:
        measures: list[Quantity] = []
        kidney, mass = parts.kidneys.get(side), parts.masses.get(("tumour", side))
        if kidney is not None:
            volume = volumes[kidney.id].mapped("kidney volume", "mL", float)
            volume = _with_opinions(volume, side, "kidney", others)
            measures.append(volume)
            if (surface := person.body_surface) is not None:
                measures.append(_for_surface(volume, surface))
        if mass is not None:
            volume = volume_of(mass, "tumour volume", "all tumours of the side, specks included")
            measures.append(_with_opinions(volume, side, "tumour", others))
            measures.append(_number(side, mass, parts, smallest_ml))
        if kidney is not None and mass is not None:
            is_cut = kidney.is_partial or mass.is_partial
            measures += [
                share.unknown(_CUT) if is_cut else share
                for share in remaining_parenchyma(kidney.mask, [mass.mask], margin_mm)
            ]
        if measures:
            found[side] = {measure.name: measure for measure in measures}
    return found


def patient_measures(
    sides: Mapping[Side, Mapping[str, Quantity]], parts: Parts, person: Patient
) -> dict[str, Quantity]:
    """Measures of both sides together, by name; nothing of structures that no label stands for."""
    measures = []
    if "tumour" in parts.meanings:
        numbers = [found[_TUMOURS] for found in sides.values() if _TUMOURS in found]
        measures.append(_added(_TUMOURS, numbers))
        on_side = [number.mapped(_TUMOUR_SIDES, "1", _at_least_one) for number in numbers]
        number = _added(_TUMOUR_SIDES, on_side)
        if number.value == 1 and any(one.code == "mass-on-both-sides" for one in parts.findings):
            number = replace(number, high=2.0, note="a mass touches the kidneys of both sides")
        measures.append(number)
    volumes = [found["kidney volume"] for found in sides.values() if "kidney volume" in found]
    if len(volumes) == 2:
        measures.append(excess_of(*volumes))
    if (surface := person.body_surface) is not None:
        measures.append(surface)
    return {measure.name: measure for measure in measures}


def _number(side: Side, mass: Part, parts: Parts, smallest_ml: float) -> Quantity:
    """The number of lesions of a side; its interval, if their contours moved by a voxel.

    Then lesions may meet, come apart, or become specks. Lesions with a tracking id are as many as
    were labelled.
    """
    own = [lesion for lesion in parts.tumours if lesion.side == side]
    tracked = [lesion for lesion in own if lesion.tracking is not None]
    free = mass.mask.data.copy()
    for lesion in tracked:
        free &= ~lesion.mask.onto(mass.mask)
    moved = [
        len(tracked) + _pieces(each, smallest_ml)
        for each in moved_contours(Mask(free, mass.mask.grid))
    ]
    number = spanned(_TUMOURS, "1", len(own), moved)
    return number if not own else replace(number, low=max(number.low or 0.0, 1.0))


def _pieces(mask: Mask, smallest_ml: float) -> int:
    numbered, _ = numbered_components(mask.data)
    volumes_ml = np.bincount(numbered.ravel())[1:] * float(mask.grid.voxel_ml)
    return int(np.count_nonzero(volumes_ml >= smallest_ml))


def _at_least_one(number: float) -> float:
    return float(number >= 1)


def _added(name: str, numbers: Sequence[Quantity]) -> Quantity:
    """The sum of the numbers of both sides."""
    lows, highs = [number.low or 0.0 for number in numbers], [number.high for number in numbers]
    return Quantity(
        name=name,
        value=sum(number.value for number in numbers),
        unit="1",
        low=sum(lows),
        high=sum(high for high in highs if high is not None),
    )


def _with_opinions(
    volume: Quantity, side: Side, meaning: Meaning, others: Sequence[Sides]
) -> Quantity:
    """A volume whose interval contains those of other segmentations of the same scan."""
    known = [getattr(other, side).volumes_ml for other in others]
    values = [volumes[meaning] for volumes in known if meaning in volumes]
    return volume.widened(values, f"{len(values)} other segmentation(s)")


def _for_surface(volume: Quantity, surface: Quantity) -> Quantity:
    assert surface.low is not None and surface.high is not None
    low, high = volume.low, volume.high
    return Quantity(
        name="kidney volume for body surface",
        value=volume.value / surface.value,
        unit="mL/m2",
        low=None if low is None else low / surface.high,
        high=None if high is None else high / surface.low,
        interval=f"{volume.interval}; height and weight rounded",
        note=f"body surface {surface.value:.2f} m2",
    )


def excess_of(one: Quantity, other: Quantity) -> Quantity:
    """By how much the larger kidney exceeds the smaller one."""
    large, small = (one, other) if one.value >= other.value else (other, one)

    value = 100 * (large.value / small.value - 1)
    low = None if large.low is None or not small.high else 100 * (large.low / small.high - 1)
    high = None
    if large.low and large.high is not None and small.low and small.high is not None:
        # Within their intervals, the smaller one may be the larger.
        high = 100 * (max(large.high / small.low, small.high / large.low) - 1)
    return Quantity(
        name="excess of the larger kidney",
        value=value,
        unit="%",
        low=0.0 if low is None else max(low, 0.0),
        high=high,
        note="parenchyma",
    )
