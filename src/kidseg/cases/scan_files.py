"""The scans of cases, in a data set or in a folder of files and folders named as the cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from kidseg.cases.dataset import survey_dataset
from kidseg.cases.naming import SCAN_ENDINGS, label_name, matching_names, scan_name
from kidseg.cases.paths import visible
from kidseg.errors import InputError

__all__ = ["scans_of_cases", "scans_of_labels"]


def scans_of_cases(folder: Path, cases: Collection[str]) -> dict[str, Path]:
    """{case: its scan} of the cases that have one; their names match as in `matching_names`.

    Args:
        folder: a data set, or a folder of scans named as the cases: files, or folders with a DICOM
            series. A file comes before a folder of the same name.
        cases: their names.

    Raises:
        InputError: "no-images": there are none; "several-scans": two files are named as one case;
            see `survey_dataset`.
    """
    scans = _scans_in(folder)
    found = {}
    for name, case in matching_names(list(scans), cases).items():
        found[case], *others = scans[name]
        if others:
            raise InputError(
                f"{found[case].name} and {others[0].name} are both named as a scan of {case}",
                path=folder,
                code="several-scans",
                next_step="Keep one of them in this folder.",
            )
    return found


def scans_of_labels(folder: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """{label file: its scan}, by the names of the cases.

    Args:
        folder: see `scans_of_cases`.
        files: the label files.

    Raises:
        InputError: "no-scan": one has none; see `scans_of_cases`.
    """
    names = {path: label_name(path) for path in files}
    of_case = scans_of_cases(folder, set(names.values()))
    if missing := [path for path, name in names.items() if name not in of_case]:
        more = f", and of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(
            f"contains no scan of {missing[0].name}{more}",
            path=folder,
            code="no-scan",
            next_step="Name the scans as the labels are named, or leave these labels out.",
        )
    return {path: of_case[name] for path, name in names.items()}


def _scans_in(folder: Path) -> dict[str, list[Path]]:
    """{case: files or folders that are its scan, or the first of its channels}."""
    try:
        survey = survey_dataset(folder)
    except InputError as error:
        if error.code != "not-a-dataset":
            raise
    else:
        dataset = survey.dataset
        cases = (*dataset.cases, *survey.incomplete, *dataset.unlabelled)
        if found := {case.id: [case.images[0]] for case in cases if case.images}:
            return found
    inside = visible(folder)
    files = [path for path in inside if path.name.lower().endswith(SCAN_ENDINGS)]
    folders = [path for path in inside if path not in files and path.is_dir()]
    if not (files or folders):
        raise InputError(
            "contains no images",
            path=folder,
            code="no-images",
            next_step="Name the folder of the scans, or a data set.",
        )
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(scan_name(file), []).append(file)
    for path in folders:
        named.setdefault(scan_name(path), [path])
    return named
