"""Paths in the description of a data set, and what is at them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from kidseg.errors import InputError, not_found

__all__ = ["problem_at", "stated_path", "visible"]

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_SHOWN = 60
_LONGEST = 255  # bytes of a name, on all usual file systems


def stated_path(root: Path, text: str, described: Path, *, variables: bool = False) -> Path:
    r"""A path that a dataset.json states, absolute or relative to the data set.

    A backslash is part of a name where such a file exists, else a separator: `.\imagesTr\a.nii.gz`
    was written on Windows, where upper and lower case are equal; here if there is one such file.

    Args:
        root: of the data set.
        text: the path as stated.
        described: the file that states it.
        variables: expand environment variables, `$NAME` and `${NAME}`.

    Raises:
        InputError: "bad-dataset-json": not a possible path; "unset-variable".
    """
    shown = f"'{text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}'"
    parts = PureWindowsPath(text).parts
    if not text.strip() or "\0" in text or any(len(os.fsencode(p)) > _LONGEST for p in parts):
        raise InputError(
            f"{shown} is not a possible file name",
            path=described,
            code="bad-dataset-json",
            next_step="Fix the file, or download it again.",
        )
    if variables:
        names = [name.strip("{}") for name in _VARIABLE.findall(text)]
        if unset := [name for name in names if name not in os.environ]:
            raise InputError(
                f"the environment variable {unset[0]} in {shown} is not set",
                path=described,
                code="unset-variable",
                next_step="Set it, or state the path without variables.",
            )
        text = os.path.expandvars(text)
    path = Path(os.path.normpath(root / text))
    if PureWindowsPath(text).drive and problem_at(path) is not None:
        raise InputError(
            f"{shown} is a path of another computer, with Windows",
            path=described,
            code="bad-dataset-json",
            next_step="State paths relative to dataset.json.",
        )
    if problem_at(path) is None:
        return path
    if "\\" in text:
        path = Path(os.path.normpath(root / PureWindowsPath(text).as_posix()))
    return _in_other_case(path) or path


def _in_other_case(path: Path) -> Path | None:
    """The only file or folder whose path is equal but for upper and lower case; else None."""
    if problem_at(path) is None:
        return path
    if path.parent == path or (folder := _in_other_case(path.parent)) is None:
        return None
    wanted = path.name.casefold()
    with suppress(OSError):
        same = [other for other in visible(folder) if other.name.casefold() == wanted]
        return same[0] if len(same) == 1 else None
    return None


def problem_at(path: Path) -> str | None:
    """Why no file or folder can be found at a path; None if there is one."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return not_found(path).cause
    except OSError as error:
        return f"cannot be found ({error.strerror})"
    except ValueError as error:  # NUL, or characters that the system's encoding lacks
        return f"not a possible path ({error})"
    return None


def visible(folder: Path) -> list[Path]:
    """Sorted contents of a folder, without hidden files (macOS's "._" too); [] if missing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
