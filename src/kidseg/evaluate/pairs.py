"""Match predictions with references."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kidseg.cases import Case, Survey, survey_dataset
from kidseg.cases.naming import LABEL_ENDINGS, is_marked, label_name, matching_names
from kidseg.errors import Finding, InputError, UsageError
from kidseg.labels import LabelSchema

__all__ = ["Missing", "Pair", "Pairing", "label_files", "pair"]

Missing = Literal["error", "empty"]

# Problems of images, which do not matter for references.
_IMAGE_FINDINGS = {"missing-image", "wrong-channel-count", "wrong-case-count"}
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case to score; `predicted` is None if a missing prediction counts as empty."""

    id: str
    reference: Path
    predicted: Path | None
    patient: str
    age_years: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The cases to score.

    Attributes:
        pairs: ordered by id.
        schema: labels of the data set; None for plain files.
        ignore_label: voxels of the reference with this value are ignored.
        findings: predictions without a reference.
    """

    pairs: tuple[Pair, ...]
    schema: LabelSchema | None
    ignore_label: int | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class _References:
    cases: Mapping[str, Case]
    schema: LabelSchema | None = None
    ignore_label: int | None = None


def pair(
    predicted: Path,
    reference: Path,
    *,
    missing: Missing = "error",
    cases: Collection[str] | None = None,
) -> Pairing:
    """Match predictions with references by case id.

    Args:
        predicted: a folder of label volumes, or one label volume.
        reference: a data set, a folder of label volumes, or one label volume.
        missing: a reference without a prediction is an "error", or scored as "empty".
        cases: ids of the cases to score; all references by default.

    Raises:
        InputError: "not-found", "no-labels", "duplicate-case", "missing-prediction",
            "unknown-case"; errors of `kidseg.cases.open_dataset` about labels and tables. The
            images of a data set may be missing.
        UsageError: "unknown-choice" for `missing`.
    """
    if missing not in ("error", "empty"):
        raise UsageError(
            f"missing must be 'error' or 'empty', not '{missing}'", code="unknown-choice"
        )
    references = _references(reference)
    known = references.cases
    found = label_files(predicted)
    if predicted.is_file() and reference.is_file():
        found = dict(zip(known, found.values(), strict=True))
    same = matching_names(found, known)
    found = {same.get(case, case): file for case, file in found.items()}
    wanted = sorted(known) if cases is None else sorted(set(cases))
    if not wanted:
        raise InputError("no cases to score", path=reference, code="no-labels")
    _check_complete(wanted, reference, known, predicted, found if missing == "error" else None)
    pairs = tuple(
        Pair(
            id=case,
            reference=known[case].labels or reference,
            predicted=found.get(case),
            patient=known[case].patient,
            age_years=known[case].age_years,
        )
        for case in wanted
    )
    return Pairing(
        pairs=pairs,
        schema=references.schema,
        ignore_label=references.ignore_label,
        findings=tuple(_extra(found[case], case) for case in sorted(set(found) - set(known))),
    )


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
            f" Predictions exist for: {_listed(sorted(found))}.",
        )


def label_files(path: Path) -> dict[str, Path]:
    """{case id: label volume} of a folder and its subfolders, or of one file.

    The id is the file name without ending and `_seg`, or the name of the folder if the file is
    named after its content, like KiTS's `segmentation.nii.gz`. If a folder contains files marked as
    segmentations, its other files are images.

    Raises:
        InputError: "not-found", "no-labels", "duplicate-case".
    """
    if path.is_file():
        return {label_name(path): path}
    if not path.is_dir():
        raise InputError("no such file or folder", path=path, code="not-found")
    found: dict[str, Path] = {}
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    for file in [file for folder in (path, *inside) for file in _labels_in(folder)]:
        case = label_name(file)
        if case in found:
            raise InputError(
                f"case '{case}' occurs twice: {found[case]} and {file}",
                path=path,
                code="duplicate-case",
                next_step="Remove or rename one.",
            )
        found[case] = file
    if not found:
        raise InputError(
            f"contains no label volumes ({', '.join(LABEL_ENDINGS)})",
            path=path,
            code="no-labels",
            next_step="Provide a folder with one label volume per case.",
        )
    return found


def _references(path: Path) -> _References:
    if path.is_dir():
        try:
            survey = survey_dataset(path)
        except InputError as error:
            if error.code != "not-a-dataset":
                raise
        else:
            cases = [c for c in (*survey.dataset.cases, *survey.incomplete) if c.labels is not None]
            # Folders named case_00000 look like KiTS, but may contain labels under other names.
            if cases or not survey.dataset.layout.startswith("kits"):
                return _of_dataset(survey, cases, path)
    files = label_files(path)
    return _References(
        cases={i: Case(id=i, images=(), labels=file, patient=i) for i, file in files.items()}
    )


def _of_dataset(survey: Survey, cases: list[Case], path: Path) -> _References:
    for finding in survey.findings:
        if finding.severity == "error" and finding.code not in _IMAGE_FINDINGS:
            raise InputError(
                finding.cause, path=finding.path, code=finding.code, next_step=finding.next_step
            )
    if not cases:
        raise InputError("the data set has no labels", path=path, code="no-labels")
    return _References(
        cases={case.id: case for case in cases},
        schema=survey.dataset.schema,
        ignore_label=survey.dataset.ignore_label,
    )


def _labels_in(folder: Path) -> list[Path]:
    files = sorted(
        p
        for p in folder.iterdir()
        if p.name.lower().endswith(LABEL_ENDINGS)
        and not p.name.startswith(".")
        and not p.name.lower().endswith(".seg.nrrd")
        and p.is_file()
    )
    marked = [p for p in files if is_marked(p)]
    return marked or files


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
