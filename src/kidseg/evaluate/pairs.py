"""Match predictions with references."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kidseg.cases import Case, Survey, survey_dataset
from kidseg.cases.naming import LABEL_ENDINGS, is_marked, label_name, matching_names
from kidseg.cases.paths import visible
from kidseg.cases.roi_rules import RoiRules, rules_of, unused_rules
from kidseg.errors import Finding, InputError, UsageError, first_error, not_found
from kidseg.evaluate.numbering import Numbering, numbering_of
from kidseg.evaluate.predicted_objects import first_paths, predicted_objects
from kidseg.io.structures import Annotation
from kidseg.labels import LabelSchema

__all__ = ["Missing", "Pair", "Pairing", "label_files", "pair"]

Missing = Literal["error", "empty"]

# Problems of images, which do not matter for references.
_IMAGE_FINDINGS = {
    "missing-image",
    "wrong-channel-count",
    "wrong-case-count",
    "wrong-file-ending",
}
# Problems of a dataset.json that lists no files of its folder.
_CASE_FINDINGS = {"no-cases", "missing-labels"}
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case to score.

    Attributes:
        id: of the case.
        reference: its labels.
        predicted: its labels; None if a missing prediction counts as empty.
        patient: of the case.
        age_years: if known.
        time_point: see `Case`.
        reference_copies: further files of the reference, which must contain the same labels.
        copies: further files of the prediction, likewise.
        image: of the case, to be shown; None: not known.
        annotations: {file: the structures that are its labels}, of DICOM objects.
    """

    id: str
    reference: Path
    predicted: Path | None
    patient: str
    age_years: float | None = None
    time_point: str = ""
    reference_copies: tuple[Path, ...] = ()
    copies: tuple[Path, ...] = ()
    image: Path | None = None
    annotations: Mapping[Path, Annotation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The cases to score.

    Attributes:
        pairs: ordered by id.
        numbering: the meaning of numbers.
        by_number: the references are those of a data set, which defines their numbers.
        findings: predictions without a reference.
    """

    pairs: tuple[Pair, ...]
    numbering: Numbering
    by_number: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class _References:
    cases: Mapping[str, Case]
    schema: LabelSchema | None = None
    ignore_label: int | None = None
    copies: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    by_number: bool = False
    rules: RoiRules | None = None
    findings: tuple[Finding, ...] = ()


def pair(
    predicted: Path,
    reference: Path,
    *,
    missing: Missing = "error",
    cases: Collection[str] | None = None,
    rules: RoiRules | None = None,
) -> Pairing:
    """Match predictions with references by case id.

    Args:
        predicted: a folder of label volumes, or one label volume; if the reference is a data set of
            DICOM annotations, also of DICOM objects, which are matched by the images they refer to.
        reference: a data set, a folder of label volumes (a dataset.json in it defines the labels,
            as beside nnU-Net's predictions), or one label volume.
        missing: a reference without a prediction is an "error", or scored as "empty".
        cases: ids of the cases to score; all references by default.
        rules: for the structures of DICOM annotations; by default the data set's, or the usual.

    Raises:
        InputError: "not-found", "no-labels", "missing-prediction", "unknown-case";
            "unmarked-prediction": a case would count as empty, but a file of its name is taken for
            an image; errors of `kidseg.cases.open_dataset` about labels and tables. The images of a
            data set may be missing.
        UsageError: "unknown-choice" for `missing`.
    """
    if missing not in ("error", "empty"):
        raise UsageError(
            f"missing must be 'error' or 'empty', not '{missing}'",
            code="unknown-choice",
            next_step="Choose one of these.",
        )
    references = _references(reference, rules)
    known = references.cases
    found, objects, noted = _predictions(predicted, references)
    only = reference.is_file() or (references.rules is not None and len(known) == 1)
    if predicted.is_file() and only and not objects:
        found = dict(zip(known, found.values(), strict=True))
    same = matching_names(found, known)
    found = {same.get(case, case): file for case, file in found.items()}
    wanted = sorted(known) if cases is None else sorted(set(cases))
    if not wanted:
        raise InputError(
            "no cases to score",
            path=reference,
            code="no-labels",
            next_step="Name a data set with labels, or at least one of its cases.",
        )
    _check_complete(wanted, reference, known, predicted, found if missing == "error" else None)
    _refuse_unmarked([case for case in wanted if case not in found], predicted)
    pairs = tuple(
        Pair(
            id=case,
            reference=known[case].labels or reference,
            predicted=found[case][0] if case in found else None,
            patient=known[case].patient,
            age_years=known[case].age_years,
            time_point=known[case].time_point,
            reference_copies=references.copies.get(case, ()),
            copies=found[case][1:] if case in found else (),
            image=next(iter(known[case].images), None),
            annotations=_annotations(known[case], objects.get(case, ())),
        )
        for case in wanted
    )
    extra = (_extra(found[case][0], case) for case in sorted(set(found) - set(known)))
    numbering = numbering_of(
        (file for one in pairs if one.predicted for file in (one.predicted, *one.copies)),
        (file for one in pairs for file in (one.reference, *one.reference_copies)),
        references.schema,
        references.ignore_label,
    )
    return Pairing(
        pairs=pairs,
        numbering=numbering,
        by_number=references.by_number,
        findings=(*references.findings, *noted, *extra),
    )


def _predictions(
    predicted: Path, references: _References
) -> tuple[dict[str, tuple[Path, ...]], dict[str, tuple[Annotation, ...]], list[Finding]]:
    """{case: files of its prediction}, and of DICOM objects their structures, and findings."""
    try:
        return label_files(predicted), {}, []
    except InputError as error:
        if error.code != "no-labels" or references.rules is None:
            raise
        objects, noted = predicted_objects(predicted, references.cases.values(), references.rules)
        if not objects:
            raise
    return first_paths(objects), objects, noted


def _annotations(case: Case, objects: Sequence[Annotation]) -> dict[Path, Annotation]:
    """{file: the structures that are its labels}, of the reference and of the predictions."""
    found = {one.objects[0]: one for one in objects}
    if case.annotation is not None and case.labels is not None:
        found[case.labels] = case.annotation
    return found


def _check_complete(
    wanted: Sequence[str],
    reference: Path,
    known: Collection[str],
    predicted: Path,
    found: Collection[str] | None,
) -> None:
    """Every wanted case needs a reference; and a prediction, unless `found` is None."""
    _refuse_missing(
        [case for case in wanted if case not in known],
        reference,
        code="unknown-case",
        what="no reference for",
        next_step="Check the case ids.",
    )
    if found is not None:
        _refuse_missing(
            [case for case in wanted if case not in found],
            predicted,
            code="missing-prediction",
            what="no prediction for",
            next_step="Predict these cases, or count them as empty with --missing empty."
            f" Predictions exist for: {_listed(sorted(found))}.{_taken_for_images(predicted)}",
        )


def _refuse_unmarked(missing: Sequence[str], predicted: Path) -> None:
    """A case must not count as empty if a file of its name was taken for an image."""
    unmarked = {label_name(file): file for file in _unmarked(predicted)}
    for name, case in sorted(matching_names(unmarked, missing).items()):
        raise InputError(
            f"case '{case}' would be scored as empty, but this file has its name; it was taken for"
            " an image, because others in its folder are named _seg",
            path=unmarked[name],
            code="unmarked-prediction",
            next_step="If it is the prediction, name it like the others, _seg; if it is the image,"
            " keep it in another folder.",
        )


def label_files(path: Path) -> dict[str, tuple[Path, ...]]:
    """{case id: its label volumes} of a folder and its subfolders, or of one file.

    The id is `kidseg.cases.naming.label_name`. If a folder contains files marked as segmentations,
    its other files are images. Several files of a case are copies, such as other formats.

    Raises:
        InputError: "not-found", "no-labels".
    """
    if path.is_file():
        if not path.name.lower().endswith(LABEL_ENDINGS):
            raise InputError(
                f"it is not a label volume ({', '.join(LABEL_ENDINGS)})",
                path=path,
                code="no-labels",
                next_step="Name a label volume, or the folder that contains them.",
            )
        return {label_name(path): (path,)}
    if not path.is_dir():
        raise not_found(path)
    files = [file for folder in _folders(path) for file in _labels_in(folder)]
    if not files:
        raise InputError(
            f"contains no label volumes ({', '.join(LABEL_ENDINGS)})",
            path=path,
            code="no-labels",
            next_step="Provide a folder with one label volume per case.",
        )
    return _by_case(files)


def _by_case(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        name = label_name(file)
        found[name] = (*found.get(name, ()), file)
    return found


def _references(path: Path, rules: RoiRules | None) -> _References:
    if path.is_dir():
        try:
            survey = survey_dataset(path, rules)
        except InputError as error:
            if error.code != "not-a-dataset":
                raise
        else:
            cases = [c for c in (*survey.dataset.cases, *survey.incomplete) if c.labels is not None]
            if not cases and (files := _labels_in(path)):
                return _described(survey, files)
            # Folders named case_00000 look like KiTS, but may contain labels under other names.
            if cases or not survey.dataset.layout.startswith("kits"):
                return _of_dataset(survey, cases, path, rules)
    unused_rules(rules, path)
    return _of_files(label_files(path))


def _of_files(files: Mapping[str, tuple[Path, ...]]) -> _References:
    return _References(
        cases={
            i: Case(id=i, images=(), labels=first, patient=i) for i, (first, *_) in files.items()
        },
        copies={i: tuple(others) for i, (_, *others) in files.items()},
    )


def _described(survey: Survey, files: Sequence[Path]) -> _References:
    """Label files beside a dataset.json that describes them, as nnU-Net writes predictions."""
    _refuse_errors(survey, _IMAGE_FINDINGS | _CASE_FINDINGS)
    return replace(
        _of_files(_by_case(files)),
        schema=survey.dataset.schema,
        ignore_label=survey.dataset.ignore_label,
    )


def _refuse_errors(survey: Survey, apart_from: Collection[str]) -> None:
    found = [finding for finding in survey.findings if finding.code not in apart_from]
    if (error := first_error(found)) is not None:
        raise error


def _of_dataset(
    survey: Survey, cases: list[Case], path: Path, rules: RoiRules | None
) -> _References:
    _refuse_errors(survey, _IMAGE_FINDINGS)
    if not cases:
        raise InputError(
            "the data set has no labels",
            path=path,
            code="no-labels",
            next_step="Name a data set with labels, or at least one of its cases.",
        )
    return _References(
        cases={case.id: case for case in cases},
        schema=survey.dataset.schema,
        ignore_label=survey.dataset.ignore_label,
        by_number=True,
        rules=rules_of(path, rules) if survey.dataset.layout == "annotated" else None,
        findings=survey.findings if survey.dataset.layout == "annotated" else (),
    )


def _folders(path: Path) -> list[Path]:
    """A folder and its visible subfolders."""
    return [path, *(inner for inner in visible(path) if inner.is_dir())]


def _volumes_in(folder: Path) -> list[Path]:
    return [p for p in visible(folder) if p.name.lower().endswith(LABEL_ENDINGS) and p.is_file()]


def _labels_in(folder: Path) -> list[Path]:
    """The label volumes in a folder: the marked files, or all if none is marked."""
    files = _volumes_in(folder)
    return [p for p in files if is_marked(p)] or files


def _unmarked(path: Path) -> list[Path]:
    """The files that are not label volumes because others in their folder are marked."""
    return [
        file
        for folder in (_folders(path) if path.is_dir() else [])
        for file in sorted(set(_volumes_in(folder)) - set(_labels_in(folder)))
    ]


def _taken_for_images(path: Path) -> str:
    unmarked = sorted(file.name for file in _unmarked(path))
    if not unmarked:
        return ""
    return f" Taken for images, because others are named _seg: {_listed(unmarked)}."


def _refuse_missing(cases: list[str], path: Path, *, code: str, what: str, next_step: str) -> None:
    if cases:
        raise InputError(
            f"{what} {len(cases)} case(s): {_listed(cases)}",
            path=path,
            code=code,
            next_step=next_step,
        )


def _listed(cases: list[str]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return ", ".join(cases[:_NAMED]) + more


def _extra(path: Path, case: str) -> Finding:
    return Finding(
        code="extra-prediction",
        path=str(path),
        cause=f"no reference for case '{case}'; it was not scored",
    )
