"""Everything that is measured in one label volume, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import Meaning
from kidseg.meaning import Side
from kidseg.measure.contact import contact_area, contact_of, gap_to, rim_quantities
from kidseg.measure.criteria import Answer, Criteria, answered
from kidseg.measure.diameters import measure_diameters
from kidseg.measure.mask import moved_contours
from kidseg.measure.parts import SIDES, Labelled, Part, Parts
from kidseg.measure.person import Patient
from kidseg.measure.position import BEYOND, PolarLines, beyond_midline, exophytic_share, pole_shares
from kidseg.measure.quantity import Quantity, Unit, Verdict, compared, counted, spanned
from kidseg.measure.renal_score import Component, score_renal
from kidseg.measure.resection import REMAINING, remaining_parenchyma, surgical_record
from kidseg.measure.reviewed import Reviewed, with_review
from kidseg.measure.sides import measure_sides

__all__ = ["Measurement", "Structure", "measure_parts"]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One kidney, one tumour, or one other label, and what was measured of it.

    Attributes:
        id: unique: "right kidney", "left tumour 2", "right cyst", or the name of another label.
        meaning: "kidney" (parenchyma), "tumour" (one lesion), "cyst"; None for other labels.
        side: None for other labels.
        label: its name in the file.
        tracking: identifier of a lesion over time; None if it has none.
        borders: of the scan that it touches, so that values are lower bounds.
        quantities: what was measured.
        renal_score: of a tumour: {component: points}.
    """

    id: str
    meaning: Meaning | None
    side: Side | None
    label: str
    tracking: str | None
    borders: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    renal_score: Mapping[str, Component] = field(default_factory=dict)

    def quantity(self, name: str) -> Quantity | None:
        """By name; None if it was not measured."""
        return next((found for found in self.quantities if found.name == name), None)

    @property
    def crosses_midline(self) -> Verdict | None:
        """Whether it reaches beyond the midline; None for what is no tumour."""
        reach = self.quantity(BEYOND)
        return None if reach is None else compared(reach, ">", 0.0)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("id", "meaning", "side", "label")},
            "tracking": self.tracking,
            "borders": list(self.borders),
            "quantities": [quantity.as_dict() for quantity in self.quantities],
            "crosses_midline": self.crosses_midline,
            "renal_score": {
                name: {"points": list(found.points), "reason": found.reason}
                for name, found in self.renal_score.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured in one label volume.

    Attributes:
        structures: kidneys, tumours from large to small, cysts, other labels.
        sides: {side: measures by the names of `criteria.MEASURES`}; a side without kidney and
            tumour is missing.
        patient: measures of both sides together.
        answers: to the criteria.
        criteria: version of their file, and who signed it off.
        person: as entered.
        midline: what right and left were told apart by.
        findings: warnings.
    """

    structures: tuple[Structure, ...]
    sides: Mapping[Side, Mapping[str, Quantity]]
    patient: Mapping[str, Quantity]
    answers: tuple[Answer, ...]
    criteria: Mapping[str, str]
    person: Patient
    midline: str
    findings: tuple[Finding, ...]

    @property
    def tumours(self) -> tuple[Structure, ...]:
        """The lesions."""
        return tuple(found for found in self.structures if found.meaning == "tumour")

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "person": asdict(self.person),
            "midline": {"from": self.midline, "estimated": self.midline != "body"},
            "structures": [structure.as_dict() for structure in self.structures],
            "sides": {side: _as_dicts(found) for side, found in self.sides.items()},
            "surgical_record": {
                side: surgical_record(found[REMAINING])
                for side, found in self.sides.items()
                if REMAINING in found
            },
            "patient": _as_dicts(self.patient),
            "criteria": {**self.criteria, "answers": [_answer(each) for each in self.answers]},
            "warnings": [finding.as_dict() for finding in self.findings],
        }


def measure_parts(
    labelled: Labelled,
    parts: Parts,
    criteria: Criteria,
    *,
    person: Patient,
    margin_mm: float,
    entered: Mapping[str, bool],
    opinions: Sequence[Volume] = (),
    review: Reviewed | None = None,
) -> Measurement:
    """Measure all structures of a volume and answer the criteria.

    Args:
        labelled: the volume.
        parts: its structures.
        criteria: with settings and thresholds.
        person: for growth.
        margin_mm: of parenchyma that is removed with a tumour.
        entered: facts for the criteria.
        opinions: other segmentations of the same scan with the same labels, such as those of the
            members of an ensemble; they widen the intervals of the volumes of each side.
        review: intervals that the segmentation gave; likewise.
    """
    structures = [*_kidneys(parts), *_tumours(labelled, parts, criteria), *_rest(parts)]
    sides = {
        side: found
        for side in SIDES
        if (found := _side_measures(side, parts, structures, person, margin_mm))
    }
    sides = _with_opinions(sides, labelled, opinions)
    doubts: tuple[Finding, ...] = ()
    if review is not None:
        sides, doubts = with_review(sides, review)
    patient = _patient_measures(sides, parts, person)
    return Measurement(
        structures=tuple(structures),
        sides=sides,
        patient=patient,
        answers=tuple(_answers(criteria, sides, patient, entered)),
        criteria={"version": criteria.version, "signed_off": criteria.signed_off},
        person=person,
        midline=labelled.midline.basis,
        findings=(*parts.findings, *doubts),
    )


def _sizes(part: Part) -> list[Quantity]:
    """Volumes and diameters."""
    masks = (part.main, *moved_contours(part.main))
    diameters = [measure_diameters(mask) for mask in masks]
    values: dict[tuple[str, Unit, str], list[float]] = {
        ("ellipsoid volume", "mL", _ELLIPSOID): [each.ellipsoid_ml for each in diameters],
        ("longest diameter", "mm", "in any direction"): [each.longest_mm for each in diameters],
        ("longest axial diameter", "mm", "in one slice"): [each.axial_mm for each in diameters],
        ("width across it", "mm", "in the same slice"): [each.across_mm for each in diameters],
        ("height", "mm", "across the slices"): [each.height_mm for each in diameters],
    }
    return [
        _volume("volume", part),
        *(
            spanned(name, unit, found[0], found[1:], note=note).partly(part.is_partial)
            for (name, unit, note), found in values.items()
        ),
    ]


_ELLIPSOID = "pi/6 x length x width x height, as measured by hand"


def _structure(
    part: Part,
    quantities: Iterable[Quantity | None],
    score: Mapping[str, Component] | None = None,
) -> Structure:
    return Structure(
        id=part.id,
        meaning=part.meaning,
        side=part.side,
        label=part.label,
        tracking=part.tracking,
        borders=part.borders,
        quantities=tuple(quantity for quantity in quantities if quantity is not None),
        renal_score=score or {},
    )


def _kidneys(parts: Parts) -> list[Structure]:
    return [_structure(kidney, _sizes(kidney)) for kidney in parts.kidneys.values()]


def _rest(parts: Parts) -> list[Structure]:
    """Cysts by side, and labels that are not recognized: only their volumes."""
    cysts = [part for (meaning, _), part in parts.masses.items() if meaning == "cyst"]
    others = [_structure(part, [_volume("volume", part)]) for part in parts.others]
    return [_structure(cyst, _sizes(cyst)) for cyst in cysts] + others


def _tumours(labelled: Labelled, parts: Parts, criteria: Criteria) -> list[Structure]:
    settings, midline = criteria.settings, labelled.midline
    uncertain = settings.midline_mm if midline.is_body else settings.midline_estimated_mm
    lines = {side: PolarLines.of(kidney.main) for side, kidney in parts.kidneys.items()}
    found = []
    for part in parts.tumours:
        assert part.side is not None
        quantities: list[Quantity | None] = [*_sizes(part)]
        kidney, axis = parts.kidneys.get(part.side), lines.get(part.side)
        if kidney is not None:
            quantities.append(contact_area(part.mask, kidney.mask))
            quantities += rim_quantities(contact_of(part.mask, kidney.mask), kidney.mask)
            quantities.append(exophytic_share(part.mask, kidney.main))
        if axis is not None:
            quantities += pole_shares(part.mask, axis)
        if others := [other.mask for other in parts.tumours if other is not part]:
            quantities.append(gap_to(part.mask, others))
        quantities.append(beyond_midline(part.mask, part.side, midline, uncertain))
        named = {quantity.name: quantity for quantity in quantities if quantity is not None}
        score = score_renal(named, part.mask, axis, criteria.renal, settings)
        found.append(_structure(part, quantities, score))
    return found


def _side_measures(
    side: Side,
    parts: Parts,
    structures: Sequence[Structure],
    person: Patient,
    margin_mm: float,
) -> dict[str, Quantity]:
    measures: list[Quantity] = []
    kidney, mass = parts.kidneys.get(side), parts.masses.get(("tumour", side))
    if kidney is not None:
        own = next(found for found in structures if found.id == kidney.id)
        volume = own.quantity("volume")
        assert volume is not None
        measures.append(volume.mapped("kidney volume", "mL", float))
        if (surface := person.body_surface) is not None:
            measures.append(_for_surface(volume, surface))
    if mass is not None:
        count = sum(tumour.side == side for tumour in parts.tumours)
        measures += [
            _volume("tumour volume", mass, "all tumours of the side, specks included"),
            counted("number of tumours", count),
        ]
    if kidney is not None and mass is not None:
        measures += remaining_parenchyma(kidney.mask, [mass.mask], margin_mm)
    return {measure.name: measure for measure in measures}


def _volume(name: str, part: Part, note: str = "") -> Quantity:
    value, *moved = (mask.volume_ml for mask in (part.mask, *moved_contours(part.mask)))
    return spanned(name, "mL", value, moved, note=note).partly(part.is_partial)


def _for_surface(volume: Quantity, surface: Quantity) -> Quantity:
    assert surface.low is not None and surface.high is not None
    low, high = volume.low, volume.high
    return Quantity(
        name="kidney volume for body surface",
        value=volume.value / surface.value,
        unit="mL/m2",
        low=None if low is None else low / surface.high,
        high=None if high is None else high / surface.low,
        interval="contour moved by one voxel, height and weight rounded",
        note=f"body surface {surface.value:.2f} m2",
    )


def _with_opinions(
    sides: Mapping[Side, Mapping[str, Quantity]], labelled: Labelled, opinions: Sequence[Volume]
) -> dict[Side, dict[str, Quantity]]:
    """Volumes whose intervals contain those of other segmentations of the same scan."""
    others = [measure_sides(each, labelled.schema, labelled.midline) for each in opinions]
    because = f"{len(opinions)} other segmentation(s)"
    widened: dict[Side, dict[str, Quantity]] = {}
    for side, measures in sides.items():
        widened[side] = dict(measures)
        for name, meaning in (("kidney volume", "kidney"), ("tumour volume", "tumour")):
            if name in measures:
                values = [
                    getattr(other, side).volumes_ml[meaning]
                    for other in others
                    if other is not None
                ]
                widened[side][name] = measures[name].widened(values, because)
    return widened


def _patient_measures(
    sides: Mapping[Side, Mapping[str, Quantity]], parts: Parts, person: Patient
) -> dict[str, Quantity]:
    measures = [counted("number of tumours", len(parts.tumours))]
    measures.append(counted("sides with a tumour", len({tumour.side for tumour in parts.tumours})))
    volumes = [found["kidney volume"] for found in sides.values() if "kidney volume" in found]
    if len(volumes) == 2:
        measures.append(_excess(*volumes))
    if (surface := person.body_surface) is not None:
        measures.append(surface)
    return {measure.name: measure for measure in measures}


def _excess(one: Quantity, other: Quantity) -> Quantity:
    """By how much the larger kidney exceeds the smaller one."""
    large, small = (one, other) if one.value >= other.value else (other, one)

    def percent(a: float | None, b: float | None) -> float | None:
        return None if a is None or not b else 100 * (a / b - 1)

    value = percent(large.value, small.value)
    low, high = percent(large.low, small.high), percent(large.high, small.low)
    assert value is not None
    return Quantity(
        name="excess of the larger kidney",
        value=value,
        unit="%",
        low=0.0 if low is None else max(low, 0.0),
        high=high,
        note="parenchyma",
    )


def _answers(
    criteria: Criteria,
    sides: Mapping[Side, Mapping[str, Quantity]],
    patient: Mapping[str, Quantity],
    entered: Mapping[str, bool],
) -> Iterable[Answer]:
    needed = {"tumour-side": "tumour volume", "kidney-side": "kidney volume"}
    for criterion in criteria.criterion:
        if criterion.per == "patient":
            yield answered(criterion, "patient", patient, entered, criteria.entered)
            continue
        for side, measures in sides.items():
            if needed[criterion.per] in measures:
                known = {**patient, **measures}
                yield answered(criterion, side, known, entered, criteria.entered)


def _as_dicts(measures: Mapping[str, Quantity]) -> list[dict[str, Any]]:
    return [quantity.as_dict() for quantity in measures.values()]


def _answer(answer: Answer) -> dict[str, Any]:
    criterion = answer.criterion
    return {
        "id": criterion.id,
        "title": criterion.title,
        "about": criterion.about,
        "subject": answer.subject,
        "verdict": answer.verdict,
        "combine": criterion.combine,
        "conditions": [
            {
                "text": each.text,
                "verdict": each.verdict,
                "quantity": None if each.quantity is None else each.quantity.as_dict(),
                "reason": each.reason,
            }
            for each in answer.conditions
        ],
        "source": criterion.source,
        "confirmed": criterion.confirmed,
    }
