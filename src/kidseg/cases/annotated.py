"""Data sets of DICOM series and their annotations: RT Structure Sets and Segmentations.

The folders and names of files mean nothing. Each series with structures that are labels is a case;
each without is a test case. Cases of one patient have one patient, at however many times; the time
is that of a clinical trial, if an annotation states one, else the number of the date of study.
Names of cases and patients are digests of UIDs and Patient IDs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from kidseg.cases.annotated_series import (
    ImageSeries,
    find_series,
    numbered_times,
    series_of,
)
from kidseg.cases.case import Side, Survey
from kidseg.cases.gathering import Gathering
from kidseg.cases.persons import Person
from kidseg.cases.roi_rules import Match, RoiRules
from kidseg.errors import Finding, InputError, quoted
from kidseg.io.annotations import annotation_files, is_copy, read_object_head
from kidseg.io.dicom_header import files_in
from kidseg.io.structures import Annotation, AnnotationObject, Part, Structure
from kidseg.labels import LabelSchema

__all__ = ["UNCLEAR", "UNUSED", "combined", "parts_of", "structures_text", "survey_annotated"]

UNUSED, UNCLEAR = "", "?"
"""The labels, in `Survey.structures`, of structures that are none, and of unclear ones."""

_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """An object and the labels of its structures."""

    head: AnnotationObject
    matches: tuple[tuple[Structure, Match], ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(
            Part(path=self.head.path, number=one.number, label=match.label)
            for one, match in self.matches
            if match.label is not None
        )

    @property
    def labelled(self) -> list[tuple[Structure, int]]:
        return [(one, match.label) for one, match in self.matches if match.label is not None]


@dataclass
class _Named:
    """Counts, over all objects, the structures of each label by name."""

    labels: Mapping[int, str]
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, one: _Labelled) -> None:
        for structure, match in one.matches:
            label = UNUSED if match.label is None else self.labels[match.label]
            label = UNCLEAR if match.reason == "unclear" else label
            self.counts.setdefault(label, Counter())[structure.name or "(no name)"] += 1


def survey_annotated(root: Path, rules: RoiRules) -> Survey | None:
    """Survey a folder of DICOM series with annotations; None if it has none.

    Findings: errors "unclear-structure", "no-label", "several-annotations", "same-uid", those of
    damaged files and of `series_of`; warnings "structures-without-label", "duplicate-object",
    "other-modality", and those of `series_of`.

    Raises:
        InputError: "not-a-dataset": there are annotations, but no images.
    """
    try:
        files = list(files_in(root))
        annotations = annotation_files(root)
    except InputError:
        return None  # whoever reads it says why
    if not annotations:
        return None
    series, findings = find_series([file for file in files if file not in set(annotations)])
    if not series:
        raise InputError(
            f"it contains {len(annotations)} DICOM annotations, but no images",
            path=root,
            code="not-a-dataset",
            next_step="Fetch the images; 'kidseg contours' gives volumes without them.",
        )
    found = Gathering(root, 1)
    found.findings += findings
    modalities = Counter(one.modality or "unknown" for one in series)
    modality = "CT" if "CT" in modalities else min(modalities)
    used = tuple(one for one in series if (one.modality or "unknown") == modality)
    others = tuple(one for one in series if one not in used)
    _note_others(found, modalities, modality)
    named = _Named(rules.names)
    by_series: dict[ImageSeries, list[_Labelled]] = {one: [] for one in used}
    for head in _heads(annotations, found):
        its_series, said = _series_of(head, used, others)
        found.findings += said
        labelled = _labelled(head, rules)
        named.add(labelled)
        if its_series is not None:
            by_series[its_series].append(labelled)
    persons = _add_cases(found, by_series, rules)
    _note_unused(found, named)
    survey = found.survey(
        persons,
        layout="annotated",
        name=root.name,
        schema=_schema(rules, named),
        channels=(modality,),
    )
    return Survey(
        dataset=survey.dataset,
        findings=survey.findings,
        incomplete=survey.incomplete,
        structures={label: dict(counts) for label, counts in named.counts.items()},
    )


def _add_cases(
    found: Gathering, by_series: Mapping[ImageSeries, Sequence[_Labelled]], rules: RoiRules
) -> dict[str, Person]:
    """Add a case for each series; {case: its patient}."""
    persons = {}
    times = numbered_times(list(by_series))
    for one, objects in by_series.items():
        side = _add_case(found, one, objects, rules)
        stated = next((each.head.time_point for each in objects if each.head.time_point), None)
        persons[one.case] = Person(
            patient=one.patient,
            age_years=one.age_years,
            side=side,
            time_point=stated or times.get(one),
        )
    return persons


def parts_of(head: AnnotationObject, rules: RoiRules) -> tuple[Part, ...]:
    """The structures of an object that are labels.

    Raises:
        InputError: "unclear-structure".
    """
    labelled = _labelled(head, rules)
    if unclear := _unclear([labelled]):
        raise InputError(unclear, path=head.path, code="unclear-structure", next_step=_RULES)
    return labelled.parts


def combined(heads: Sequence[AnnotationObject], rules: RoiRules) -> bool:
    """Whether the structures of these objects are different bodies, to be used together."""
    return not _several([_labelled(head, rules) for head in heads])


def structures_text(structures: Mapping[str, Mapping[str, int]]) -> str:
    """What became of the structures, in one line."""
    said = [
        f"{label} is {_listed(counts)}"
        for label, counts in structures.items()
        if label not in (UNUSED, UNCLEAR)
    ]
    for label, what in ((UNCLEAR, "unclear"), (UNUSED, "no label")):
        said += [f"{what}: {_listed(counts)}"] if (counts := structures.get(label)) else []
    return f"structures: {'; '.join(said)}"


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(f"{quoted(name)} ({n})" for name, n in ordered[:_LISTED]) + more


def _heads(files: Sequence[Path], found: Gathering) -> list[AnnotationObject]:
    heads: dict[str, AnnotationObject] = {}
    for file in files:
        try:
            head = read_object_head(file)
        except InputError as error:
            found.findings.append(error.as_finding())
            continue
        key = head.uid or str(file)
        if key in heads and is_copy(file, heads[key].path):
            cause = f"it is the same object as {heads[key].path}; it was used once"
            found.warn("duplicate-object", file, cause)
        elif key in heads:
            cause = f"it has the SOP Instance UID of {heads[key].path}, but other content"
            found.error("same-uid", file, cause, "Remove the one that is not right.")
        heads.setdefault(key, head)
    return list(heads.values())


def _series_of(
    head: AnnotationObject, series: Sequence[ImageSeries], others: Sequence[ImageSeries]
) -> tuple[ImageSeries | None, list[Finding]]:
    """As `series_of`; of an annotation on a series of another modality that is said."""
    its_series, said = series_of(head, series)
    if its_series is None and [one.code for one in said] == ["missing-images"]:
        other, _ = series_of(head, others)
        if other is not None:
            cause = f"it is on a series of {other.modality or 'unknown'} images, which was left out"
            return None, [replace(said[0], code="other-modality", cause=cause, next_step=_APART)]
    return its_series, said


def _note_others(found: Gathering, modalities: Mapping[str, int], modality: str) -> None:
    listed = ", ".join(f"{n} {name}" for name, n in sorted(modalities.items()) if name != modality)
    if listed:
        cause = f"series that are not {modality} were left out: {listed}"
        found.findings.append(
            Finding(code="other-modality", path=str(found.root), cause=cause, next_step=_APART)
        )


def _labelled(head: AnnotationObject, rules: RoiRules) -> _Labelled:
    return _Labelled(head=head, matches=tuple((one, rules.match(one)) for one in head.structures))


def _add_case(
    found: Gathering, series: ImageSeries, objects: Sequence[_Labelled], rules: RoiRules
) -> Side | None:
    """Add the case of a series; the side of its tumour."""
    chosen = _chosen(objects, rules)
    unclear = _unclear(chosen)
    parts = tuple(part for one in chosen for part in one.parts)
    path = chosen[0].head.path if chosen else series.folder
    several = _several(chosen)
    if several:
        found.error("several-annotations", series.folder, several, _CHOOSE)
    elif unclear:
        found.error("unclear-structure", path, unclear, _RULES)
    elif chosen and not parts:
        names = ", ".join(quoted(s.name) for one in chosen for s, _ in one.matches[:_LISTED])
        cause = f"none of its structures is a label: {names}"
        found.error("no-label", path, cause, _RULES)
    annotation = Annotation(
        folder=series.folder, images=series.files, series=series.uid, parts=parts
    )
    failed = bool(several or unclear or (chosen and not parts))
    labels = path if chosen and not failed else None
    found.add(series.case, [series.folder], labels, annotation, is_complete=not failed)
    return _side(chosen, rules)


_APART = "A data set is of one modality: move these into a folder of their own."
_RULES = (
    "Name the structures of each label in a rule file, roi_rules.toml in the data set or"
    " --roi-rules; docs/dicom_labels.md has an example."
)
_CHOOSE = (
    "Choose with --annotation TEXT: a UID, series number, label, description or creator, with *"
    " for any text."
)


def _chosen(objects: Sequence[_Labelled], rules: RoiRules) -> Sequence[_Labelled]:
    """The objects to use: if one is chosen by the rules, the others are not."""
    useful = [one for one in objects if one.parts or _is_unclear(one)] or list(objects)
    if len(useful) < 2 or not rules.annotation:
        return useful
    return [one for one in useful if rules.takes(one.head)] or useful


def _unclear(objects: Sequence[_Labelled]) -> str:
    """Which structures cannot be told, and why; "" for none."""
    said = [
        f"{quoted(structure.name)}: {match.said}"
        for one in objects
        for structure, match in one.matches
        if match.reason == "unclear"
    ]
    if not said:
        return ""
    more = f" and {len(said) - _LISTED} more" if len(said) > _LISTED else ""
    return f"it is unclear which label a structure is: {'; '.join(said[:_LISTED])}{more}"


def _is_unclear(one: _Labelled) -> bool:
    return any(match.reason == "unclear" for _, match in one.matches)


def _several(objects: Sequence[_Labelled]) -> str:
    """Why these objects cannot be used together; "" if their structures are different bodies."""
    for one, other in combinations(objects, 2):
        for structure, label in one.labelled:
            for second, other_label in other.labelled:
                if label == other_label and not _apart(structure, second):
                    listed = "; ".join(str(each.head) for each in objects[:_LISTED])
                    return (
                        f"{len(objects)} annotations of one series have the same labels: {listed}"
                    )
    return ""


def _apart(one: Structure, other: Structure) -> bool:
    """Do two structures state that they are of different sides, or have different numbers?"""
    sides = one.side is not None and other.side is not None and one.side != other.side
    numbers = None not in (one.counted, other.counted) and one.counted != other.counted
    return sides or numbers


def _side(objects: Sequence[_Labelled], rules: RoiRules) -> Side | None:
    schema = LabelSchema.from_names(rules.names)
    sides: set[Side] = {
        structure.side
        for one in objects
        for structure, label in one.labelled
        if schema.meaning[label] == "tumour" and structure.side is not None
    }
    return "bilateral" if len(sides) > 1 else next(iter(sides), None)


def _schema(rules: RoiRules, named: _Named) -> LabelSchema:
    """The labels of the rules; without rules kidney and tumour, and cyst if there is any."""
    names = dict(rules.names)
    if rules.is_default and "cyst" not in named.counts:
        names = {number: name for number, name in names.items() if name != "cyst"}
    return LabelSchema.from_names(names)


def _note_unused(found: Gathering, named: _Named) -> None:
    unused = named.counts.get(UNUSED)
    if unused:
        cause = f"structures that are not labels were left out: {_listed(unused)}"
        step = "If one is a label, name it in a rule file, roi_rules.toml."
        found.findings.append(
            Finding(
                code="structures-without-label", path=str(found.root), cause=cause, next_step=step
            )
        )
