"""Do scans, and what was entered, belong to one patient? What headers and sides say against it.

Only series of DICOM have such headers. Their values are personal, and not said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kidseg.cases.annotated_series import years_of
from kidseg.errors import Finding
from kidseg.measure.matching import GONE, NEW
from kidseg.measure.parts import Labelled, Parts
from kidseg.measure.person import Patient
from kidseg.measure.response import Change

__all__ = ["pair_findings", "person_findings"]

_SEXES = {"F": "female", "M": "male"}
_SAME_AGE_YEARS = 1.0  # headers state whole years
_NO_ID = "unknown"  # of a series without one
_CHECK = "Check that both are of one patient."


def person_findings(labelled: Labelled, person: Patient) -> list[Finding]:
    """Findings if sex or age, as entered, are not those in the header of the scan."""
    sex = _SEXES.get(labelled.facts.get("sex", ""))
    age = years_of(labelled.facts.get("age", ""))
    found = []
    if None not in (sex, person.sex) and sex != person.sex:
        cause = "the sex that was entered is not that in the header of the scan"
        found.append(_finding("sex-differs", labelled, cause))
    if age is not None and person.age_years is not None:
        apart = abs(age - person.age_years)
        if apart > _SAME_AGE_YEARS:
            cause = f"the age that was entered is {apart:.1f} years from that in the header of the"
            found.append(_finding("age-differs", labelled, f"{cause} scan"))
    return found


def pair_findings(
    before: tuple[Labelled, Parts], after: tuple[Labelled, Parts], found: Collection[Change]
) -> list[Finding]:
    """Findings if two scans seem to be of two patients, flipped, or in the wrong order.

    Args:
        before: the earlier labels, and their structures.
        after: the later ones.
        found: the changes between them.
    """
    (earlier, old), (later, new) = before, after
    findings = []
    both = (earlier.facts, later.facts)
    for name, what in (("patient_id", "Patient ID"), ("sex", "sex")):
        if _differ(*both, name):
            cause = f"the header of the earlier scan states another {what} than that of this one"
            findings.append(_finding("other-patient", later, cause))
    dates = [facts.get("study_date", "") for facts in both]
    if all(len(date) == 8 and date.isdigit() for date in dates) and dates[0] > dates[1]:
        cause = "the scan that was named as the earlier one is of a later day"
        step = "Exchange them: --before names the earlier scan."
        findings.append(_finding("later-before", later, cause, step))
    lesions = [change for change in found if change.matched != "side"]
    pairs = [("the only kidney", set(old.kidneys), set(new.kidneys))]
    if all(change.matched in (NEW, GONE) for change in lesions):
        then, later_on = (
            {part.side for part in parts.tumours if part.side} for parts in (old, new)
        )
        pairs.append(("each tumour", then, later_on))
    for what, before_sides, after_sides in pairs:
        if len(before_sides) == len(after_sides) == 1 and before_sides != after_sides:
            (was,), (now,) = before_sides, after_sides
            cause = f"{what} of the earlier scan lies on the {was}, of this one on the {now}"
            step = "Check that neither scan is flipped, and that both are of one patient."
            findings.append(_finding("sides-exchanged", later, cause, step))
    return findings


def _differ(one: Mapping[str, str], other: Mapping[str, str], name: str) -> bool:
    values = [facts.get(name, "").strip() for facts in (one, other)]
    return "" not in values and _NO_ID not in values and values[0] != values[1]


def _finding(code: str, labelled: Labelled, cause: str, next_step: str = _CHECK) -> Finding:
    return Finding(code=code, path=str(labelled.path), cause=cause, next_step=next_step)
