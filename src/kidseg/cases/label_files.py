"""Label files that a command is given, and one attempt at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kidseg.cases.naming import LABEL_ENDINGS, is_marked, label_name
from kidseg.cases.paths import visible
from kidseg.errors import InputError, KidsegError, ResourceError, UsageError

__all__ = ["attempt_each", "find_label_files"]

Result = TypeVar("Result")
Failed = list[tuple[Path, KidsegError]]


def find_label_files(inputs: Sequence[Path]) -> tuple[Path, ...]:
    """The label files in these files and folders, each once.

    Of a folder, without its subfolders, those whose names say that they are labels, such as
    `anna_seg.nii.gz`; if there are none, all volumes.

    Raises:
        InputError: "no-labels": a folder has none.
        UsageError: "no-input"; "same-name": two files are of the same case.
    """
    if not inputs:
        raise UsageError("no file was named", code="no-input", next_step="Name label files.")
    found: dict[Path, str] = {}
    for given in inputs:
        for path in _in_folder(given) if given.is_dir() else [given]:
            found.setdefault(path, label_name(path))
    files: dict[str, Path] = {}
    for path, name in found.items():
        if name in files:
            raise UsageError(
                f"{files[name]} and {path} are both labels of {name}",
                path=path,
                code="same-name",
                next_step="Name one file of each case, such as FOLDER/*_seg.nii.gz.",
            )
        files[name] = path
    return tuple(files.values())


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
    files: Sequence[Path],
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
