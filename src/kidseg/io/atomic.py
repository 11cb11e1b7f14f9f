"""Write files atomically: complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kidseg.errors import DISK_FULL, InputError, ResourceError, UsageError

__all__ = ["check_writable", "disk_full", "json_bytes", "write_json", "writing"]


def check_writable(path: Path, *, overwrite: bool = False) -> None:
    """Check that this file can be written. Call it before long computations.

    Leaves no files behind.

    Raises:
        UsageError: "output-exists": the file exists and `overwrite` is off, or it is a folder.
        InputError: "not-writable": the parent is missing, read-only or not a folder.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        kind = "a folder of this name" if path.is_dir() else "the file"
        raise UsageError(
            f"{kind} already exists",
            path=path,
            code="output-exists",
            next_step="Choose another name" + ("." if path.is_dir() else ", or --overwrite."),
        )
    file, temporary = _temporary(path)
    file.close()
    temporary.unlink()


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` once it is complete and on disk.

    If anything fails, the temporary file is deleted and an existing file stays unchanged.

    Raises:
        UsageError, InputError: as `check_writable`.
        ResourceError: "disk-full".
    """
    check_writable(path, overwrite=overwrite)
    file, temporary = _temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> ResourceError:
    """The error "disk-full" for an output of which nothing was kept."""
    return ResourceError(
        "the disk is full; nothing was written",
        path=path,
        code="disk-full",
        next_step="Free some space, or write elsewhere.",
    )


def _temporary(path: Path) -> tuple[BinaryIO, Path]:
    """Create a file in the folder of `path`, open for writing."""
    temporary = path.parent / f".kidseg-{secrets.token_hex(8)}.tmp"
    try:
        return temporary.open("xb"), temporary
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full(path) from error
        raise InputError(
            f"its folder is not writable ({error.strerror})",
            path=path,
            code="not-writable",
            next_step="Create the folder, or choose a writable one.",
        ) from error


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> None:
    """Write plain data as an indented JSON file atomically. None becomes null.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
        UsageError, InputError, ResourceError: as `writing`.
    """
    data = json_bytes(content)
    with writing(path, overwrite=overwrite) as file:
        file.write(data)


def json_bytes(content: Any) -> bytes:
    """Plain data as indented JSON in UTF-8.

    A name that is not UTF-8 has escapes for its bytes, which Python reads as that name again.

    Raises:
        ValueError: as `write_json`.
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
