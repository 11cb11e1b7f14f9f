"""Labels to measure that are a DICOM Segmentation or RT Structure Set, on the series it refers to.

A tumour with tracking identifiers is a lesion with a label of its own, and so is one whose name has
a number. Kidneys that state their side can have a label for each side. The other structures are the
labels that the rules say.

Source: DICOM PS3.3, Segment Description Macro and RT ROI Observations: a Tracking UID identifies
what is followed over time, Tracking ID is its name. kidseg's own Segmentations have one for each
series and label, which may be several lesions: they are none here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kidseg.cases.annotated import parts_of
from kidseg.cases.annotated_series import ImageSeries, find_series, series_of
from kidseg.cases.roi_rules import RoiRules, default_rules
from kidseg.errors import Finding, InputError, first_error
from kidseg.io.annotations import annotation_files, read_object_head
from kidseg.io.dicom_header import derived_uid, files_in
from kidseg.io.structures import Annotation, AnnotationObject, Structure
from kidseg.labels import LabelSchema
from kidseg.meaning import meaning_of, side_of

__all__ = ["AnnotatedLabels", "find_annotated", "is_annotated"]

_MOST_LABELS = 255


@dataclass(frozen=True, kw_only=True)
class AnnotatedLabels:
    """Where the labels of an object are, and what they are.

    Attributes:
        annotation: its structures, and the images on which they lie.
        schema: of the labels.
        tracking: {label: name of the lesion}: Tracking ID, or a name with a number.
        tracking_uids: {label: Tracking UID}, where it is stated.
        findings: about the series.
    """

    annotation: Annotation
    schema: LabelSchema
    tracking: Mapping[int, str]
    tracking_uids: Mapping[int, str]
    findings: tuple[Finding, ...]


@dataclass
class _Numbering:
    """Labels of structures: those of the rules, then one for each lesion and kidney of a side."""

    rules: RoiRules
    by_side: bool
    names: dict[int, str] = field(default_factory=dict)
    tracking: dict[int, str] = field(default_factory=dict)
    uids: dict[int, str] = field(default_factory=dict)
    _of_lesion: dict[str, int] = field(default_factory=dict)
    _of_side: dict[str, int] = field(default_factory=dict)

    def label(self, structure: Structure, label: int, identity: tuple[str, str] | None) -> int:
        """The label of a structure; that of the rules unless it is a lesion or states a side."""
        if identity is None:
            return self._of_rule(structure, label)
        name, uid = identity
        if (known := self._of_lesion.get(uid or name)) is not None:
            return known
        number = self._next
        taken = {*self.rules.names.values(), *self.names.values()}
        numbered = f"{self.rules.names[label]} {len(self._of_lesion) + 1}"
        is_clear = meaning_of(structure.name) == "tumour" and structure.name not in taken
        self.names[number] = structure.name if is_clear else numbered
        self.tracking[number] = name
        self.uids |= {number: uid} if uid else {}
        self._of_lesion[uid or name] = number
        return number

    @property
    def _next(self) -> int:
        return len(self.rules.names) + len(self._of_lesion) + len(self._of_side) + 1

    def _of_rule(self, structure: Structure, label: int) -> int:
        name = self.rules.names[label]
        is_plain = meaning_of(name) != "kidney" or side_of(name) is not None
        if not self.by_side or structure.side is None or is_plain:
            self.names[label] = name
            return label
        sided = f"{structure.side} {name}"
        number = self._of_side.get(sided, self._next)
        self._of_side[sided] = number
        self.names[number] = sided
        return number


def is_annotated(path: Path) -> bool:
    """Whether a file is a DICOM Segmentation or RT Structure Set."""
    return path.is_file() and bool(annotation_files(path))


def find_annotated(
    path: Path, ct: Path | None, rules: RoiRules | None, *, by_side: bool = False
) -> AnnotatedLabels:
    """The structures of a DICOM object as labels.

    Args:
        path: of the object.
        ct: folder with the series that it refers to, perhaps among others.
        rules: which structures are which labels; by default their codes and names.
        by_side: kidneys that state their side get a label for each side.

    Raises:
        InputError: "series-required": none is named; "missing-images" and the errors of
            `series_of`; "no-label"; "too-many-labels"; see `parts_of`, `read_object_head`.
    """
    if ct is None:
        raise InputError(
            "the voxels of a DICOM object are those of its images, which were not named",
            path=path,
            code="series-required",
            next_step="Name the folder of its series: --ct (of an earlier one: --before-ct)."
            " 'kidseg contours' gives volumes without images.",
        )
    rules = rules or default_rules()
    head = read_object_head(path)
    series, findings = _series(head, ct)
    given = parts_of(head, rules)
    if not given:
        raise InputError(
            "none of its structures is a label",
            path=path,
            code="no-label",
            next_step="Name the structures of each label in a rule file: --roi-rules.",
        )
    structures = {one.number: one for one in head.structures}
    labels = {part.number: part.label for part in given}
    identities = _identities(head, labels, rules)
    numbering = _Numbering(rules, by_side)
    parts = tuple(
        replace(
            part,
            label=numbering.label(structures[part.number], part.label, identities.get(part.number)),
        )
        for part in given
    )
    if max(numbering.names) > _MOST_LABELS:
        cause = f"it has {len(numbering.tracking)} lesions, more than there are labels"
        raise InputError(
            cause,
            path=path,
            code="too-many-labels",
            next_step="Measure its structures in parts, by rules: --roi-rules.",
        )
    return AnnotatedLabels(
        annotation=Annotation(folder=ct, images=series.files, series=series.uid, parts=parts),
        schema=LabelSchema.from_names(numbering.names),
        tracking=numbering.tracking,
        tracking_uids=numbering.uids,
        findings=findings,
    )


def _series(head: AnnotationObject, ct: Path) -> tuple[ImageSeries, tuple[Finding, ...]]:
    objects = set(annotation_files(ct))
    series, damaged = find_series([file for file in files_in(ct) if file not in objects])
    one, said = series_of(head, series)
    if one is None:
        why = first_error(said) or said[0]
        raise InputError(
            why.cause, path=head.path, code=why.code, next_step="Name its series: --ct FOLDER."
        )
    return one, (*damaged, *said)


def _identities(
    head: AnnotationObject, labels: Mapping[int, int], rules: RoiRules
) -> dict[int, tuple[str, str]]:
    """{structure: (name, Tracking UID or "")} of lesions.

    A name without UID that several structures have is none; several with UIDs count by these.
    """
    tumours = LabelSchema.from_names(rules.names).ids_of("tumour")
    found = {
        one.number: identity
        for one in head.structures
        if labels.get(one.number) in tumours
        and (identity := _identity(one, head.referenced_series)) is not None
    }
    lesions: dict[str, list[str]] = {}
    for name, uid in found.values():
        if not uid or uid not in lesions.get(name, ()):
            lesions.setdefault(name, []).append(uid)
    return {
        number: (name if len(lesions[name]) == 1 else uid, uid)
        for number, (name, uid) in found.items()
        if uid or len(lesions[name]) == 1
    }


def _identity(one: Structure, series: Collection[str]) -> tuple[str, str] | None:
    uid, name = one.tracking_uid, one.tracking_id
    is_own = any(uid == derived_uid("tracking", each, name) for each in series)
    if (uid or name) and not is_own:
        return name or uid, uid
    return (one.name, "") if any(letter.isdigit() for letter in one.name) else None
