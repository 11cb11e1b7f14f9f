"""Predictions that are DICOM objects: matched with the series of the reference by their references.

Only for a reference that is a data set of DICOM annotations: its series give the voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kidseg.cases import Case
from kidseg.cases.annotated import combined, parts_of
from kidseg.cases.annotated_series import find_series, series_of
from kidseg.cases.roi_rules import RoiRules
from kidseg.errors import Finding, InputError
from kidseg.io.annotations import annotation_files, read_object_head
from kidseg.io.structures import Annotation, AnnotationObject

__all__ = ["first_paths", "predicted_objects"]


def predicted_objects(
    predicted: Path, references: Iterable[Case], rules: RoiRules
) -> tuple[dict[str, tuple[Annotation, ...]], list[Finding]]:
    """{case: its predictions} of DICOM objects, and findings about objects of no case.

    Objects of a case with different structures are one prediction; others are copies of each other,
    such as a Segmentation and a Structure Set of the same labels.

    Args:
        predicted: a folder or a file.
        references: cases with annotations.
        rules: of the reference, for the structures of the predictions.

    Raises:
        InputError: see `annotation_files`, `read_object_head`; "unclear-structure", "no-label".
    """
    by_files = {case.annotation.images: case for case in references if case.annotation is not None}
    series, _ = find_series([file for files in by_files for file in files])
    cases = {one: case for one in series if (case := by_files.get(one.files)) is not None}
    found: dict[str, list[AnnotationObject]] = {}
    findings = []
    for file in annotation_files(predicted):
        head = read_object_head(file)
        one, said = series_of(head, list(cases))
        findings += said
        if one is not None:
            found.setdefault(cases[one].id, []).append(head)
    annotations = {
        case.id: _annotations(found[case.id], case, rules)
        for case in cases.values()
        if case.id in found
    }
    return annotations, findings


def _annotations(
    heads: list[AnnotationObject], case: Case, rules: RoiRules
) -> tuple[Annotation, ...]:
    assert case.annotation is not None
    images, series = case.annotation.images, case.annotation.series
    folder = case.annotation.folder
    groups = [heads] if combined(heads, rules) else [[head] for head in heads]
    made = []
    for group in groups:
        parts = tuple(part for head in group for part in parts_of(head, rules))
        if not parts:
            raise InputError(
                "none of its structures is a label of the reference",
                path=group[0].path,
                code="no-label",
                next_step="Name them like those of the reference, or add them to its rules.",
            )
        made.append(Annotation(folder=folder, images=images, series=series, parts=parts))
    return tuple(made)


def first_paths(found: Mapping[str, tuple[Annotation, ...]]) -> dict[str, tuple[Path, ...]]:
    """{case: one path for each of its predictions}."""
    return {case: tuple(one.objects[0] for one in each) for case, each in found.items()}
