"""Label files that a command is given, and one attempt at each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from kidseg.cases.naming import LABEL_ENDINGS, SLICER_ENDING, is_marked, label_name
from kidseg.cases.paths import visible
from kidseg.errors import InputError, KidsegError, ResourceError, UsageError
from kidseg.io import ReadOptions, read

__all__ = ["attempt_each", "check_copies", "find_label_files"]

_LABELS = ReadOptions(values="labels")

Result = TypeVar("Result")
Failed = list[tuple[Path, KidsegError]]


def find_label_files(inputs: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """{label file of a case: its other files}, in these files and folders.

    Of a folder, without its subfolders, those whose names say that they are labels, such as
    `anna_seg.nii.gz`; if there are none, all volumes. Several files of a case in one folder are
    copies in other formats; see `check_copies`.

    Raises:
        InputError: "no-labels": a folder has none.
        UsageError: "no-input"; "same-name": two folders contain files of the same case.
    """
    if not inputs:
        raise UsageError("no file was named", code="no-input", next_step="Name label files.")
    found: dict[Path, str] = {}
    for given in inputs:
        for path in _in_folder(given) if given.is_dir() else [given]:
            found.setdefault(path, label_name(path))
    cases: dict[str, list[Path]] = {}
    for path, name in found.items():
        cases.setdefault(name, []).append(path)
    for paths in cases.values():
        paths.sort(key=lambda path: path.name.lower().endswith(SLICER_ENDING))  # perhaps cropped
    for name, (first, *others) in cases.items():
        if elsewhere := [path for path in others if path.parent != first.parent]:
            raise UsageError(
                f"{first} and {elsewhere[0]} are both labels of {name}",
                path=elsewhere[0],
                code="same-name",
                next_step="Name one file of each case.",
            )
    return {first: tuple(others) for first, *others in cases.values()}


def check_copies(path: Path, copies: Sequence[Path]) -> None:
    """Check that files of one case contain the same labels.

    Raises:
        InputError: "duplicate-case": they differ; errors of `kidseg.io.read`.
    """
    if not copies:
        return
    first = read(path, _LABELS).volume
    for copy in copies:
        other = read(copy, _LABELS).volume
        if not (
            other.grid.same_as(first.grid) and torch.equal(other.data.double(), first.data.double())
        ):
            raise InputError(
                f"its labels differ from those of {path}, which belong to the same case",
                path=copy,
                code="duplicate-case",
                next_step="Remove or rename one.",
            )


def _in_folder(folder: Path) -> list[Path]:
    volumes = [
        path
        for path in visible(folder)
        if path.is_file() and path.name.lower().endswith(LABEL_ENDINGS)
    ]
    found = [path for path in volumes if is_marked(path)] or volumes
    if not found:
        raise InputError(
            "contains no label volumes",
            path=folder,
            code="no-labels",
            next_step="Name the folder in which they lie: subfolders are not searched.",
        )
    return found


def attempt_each(
    files: Collection[Path],
    attempt: Callable[[Path], Result],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Path, Result], Failed]:
    """One attempt at each file: a bad file does not stop the others.

    Args:
        files: to attempt.
        attempt: raises KidsegError.
        progress: called with (done, total) after each.

    Returns:
        {file: its result}, and the files that failed.

    Raises:
        ResourceError: memory or disk are full, so that the others would fail, too.
    """
    done: dict[Path, Result] = {}
    failed: Failed = []
    for number, path in enumerate(files, 1):
        try:
            done[path] = attempt(path)
        except ResourceError:
            raise
        except KidsegError as error:
            failed.append((path, error))
        if progress is not None:
            progress(number, len(files))
    return done, failed
