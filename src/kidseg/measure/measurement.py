"""Everything that is measured in one label volume, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kidseg.errors import Finding
from kidseg.labels import Meaning
from kidseg.meaning import Side
from kidseg.measure.contact import contact_area, contact_of, gap_to, rim_quantities
from kidseg.measure.criteria import Answer, Criteria, answered
from kidseg.measure.parts import Labelled, Part, Parts
from kidseg.measure.person import Patient
from kidseg.measure.position import BEYOND, PolarLines, beyond_midline, exophytic_share, pole_shares
from kidseg.measure.quantity import Quantity, Verdict, compared
from kidseg.measure.renal_score import Component, score_renal
from kidseg.measure.resection import REMAINING, surgical_record
from kidseg.measure.reviewed import Reviewed, with_review
from kidseg.measure.sizes import LONGEST, VOLUME, sizes_of, volume_of
from kidseg.measure.totals import patient_measures, side_measures

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
        """Whether it reaches beyond the midline; None for what is not a tumour."""
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
    opinions: Sequence[Labelled] = (),
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
        opinions: other segmentations of the same scan, such as those of the members of an ensemble;
            they widen the intervals of the volumes of each side.
        review: intervals that the segmentation gave; likewise.
    """
    structures = [*_kidneys(parts), *_tumours(labelled, parts, criteria), *_rest(parts)]
    sides = side_measures(
        parts,
        {kidney.id: volume for kidney in structures if (volume := kidney.quantity(VOLUME))},
        person,
        margin_mm=margin_mm,
        smallest_ml=criteria.settings.smallest_tumour_ml,
        opinions=opinions,
    )
    doubts: tuple[Finding, ...] = ()
    if review is not None:
        sides, doubts = with_review(sides, review)
    patient = patient_measures(sides, parts, person)
    return Measurement(
        structures=tuple(structures),
        sides=sides,
        patient=patient,
        answers=tuple(_answers(criteria, sides, patient, entered)),
        criteria={"version": criteria.version, "signed_off": criteria.signed_off},
        person=person,
        midline=labelled.midline.basis,
        findings=(*parts.findings, *_implausible(structures, labelled), *doubts),
    )


# Longest diameters of kidneys: a newborn's has 40 mm, an adult's horseshoe kidney less than 300.
_LEAST_MM, _MOST_MM = 10.0, 400.0


def _implausible(structures: Iterable[Structure], labelled: Labelled) -> Iterable[Finding]:
    """Findings on kidneys as long as none is, as they are with voxel sizes in another unit."""
    for structure in structures:
        length = structure.quantity(LONGEST)
        if structure.meaning != "kidney" or length is None:
            continue
        if length.value > _MOST_MM or (length.value < _LEAST_MM and not structure.borders):
            yield Finding(
                code="implausible-length",
                path=str(labelled.path),
                cause=f"the {structure.id} is {length.value:.3g} mm long",
                next_step="Check the labels, and that the voxel sizes are in millimetres.",
            )


_CUT = "the scan cuts the kidney or the tumour off"


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
    return [_structure(kidney, sizes_of(kidney)) for kidney in parts.kidneys.values()]


def _rest(parts: Parts) -> list[Structure]:
    """Cysts by side, and labels that are not recognized: only their volumes."""
    cysts = [part for (meaning, _), part in parts.masses.items() if meaning == "cyst"]
    others = [_structure(part, [volume_of(part)]) for part in parts.others]
    return [_structure(cyst, sizes_of(cyst)) for cyst in cysts] + others


def _tumours(labelled: Labelled, parts: Parts, criteria: Criteria) -> list[Structure]:
    settings, midline = criteria.settings, labelled.midline
    uncertain = settings.midline_mm if midline.is_body else settings.midline_estimated_mm
    lines = {side: PolarLines.of(kidney.main) for side, kidney in parts.kidneys.items()}
    found = []
    for part in parts.tumours:
        assert part.side is not None
        kidney, axis = parts.kidneys.get(part.side), lines.get(part.side)
        is_cut = part.is_partial or (kidney is not None and kidney.is_partial)
        quantities: list[Quantity | None] = [*sizes_of(part)]
        if kidney is not None:
            quantities.append(contact_area(part.mask, kidney.mask).partly(is_cut))
            rim = rim_quantities(contact_of(part.mask, kidney.mask), kidney.mask)
            quantities += [each.partly(is_cut) for each in rim]
            placed = [exophytic_share(part.mask, kidney.main)]
            placed += [] if axis is None else pole_shares(part.mask, axis)
            quantities += [each.unknown(_CUT) if is_cut and each else each for each in placed]
        if others := [other for other in parts.tumours if other is not part]:
            gap = gap_to(part.mask, [other.mask for other in others])
            may_be_nearer = any(lesion.is_partial for lesion in (part, *others))
            quantities.append(replace(gap, low=0.0) if may_be_nearer else gap)
        reach = beyond_midline(part.mask, part.side, midline, uncertain)
        quantities.append(reach.partly(part.is_partial))
        named = {quantity.name: quantity for quantity in quantities if quantity is not None}
        score = score_renal(named, part.mask, axis, criteria.renal, settings, is_cut=is_cut)
        found.append(_structure(part, quantities, score))
    return found


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
                "fact": each.fact,
            }
            for each in answer.conditions
        ],
        "source": criterion.source,
        "confirmed": criterion.confirmed,
    }
