"""Writing a file whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kidseg.errors import DISK_FULL, InputError, ResourceError, UsageError

__all__ = ["check_writable", "write_json", "writing"]


def check_writable(path: Path, *, overwrite: bool = False) -> None:
    """Can this file be written? To be asked before the work starts; leaves nothing behind.

    Raises:
        UsageError: "output-exists": it is there, and `overwrite` is off, or it is a folder.
        InputError: "not-writable": its folder is missing, read-only or no folder.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        kind = "a folder of this name" if path.is_dir() else "the file"
        raise UsageError(
            f"{kind} exists already",
            path=path,
            code="output-exists",
            next_step="Choose another name" + ("." if path.is_dir() else ", or --overwrite."),
        )
    file, temporary = _temporary(path)
    file.close()
    temporary.unlink()


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes its name only once it is whole and on the disk.

    If anything fails, no file is left, and one that was there before is untouched.

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
            raise ResourceError(
                "the disk is full; nothing was written",
                path=path,
                code="disk-full",
                next_step="Free some space, or write elsewhere.",
            ) from error
        raise


def _temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A new file in the folder of `path`, open for writing."""
    temporary = path.parent / f".kidseg-{secrets.token_hex(8)}.tmp"
    try:
        return temporary.open("xb"), temporary
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                "the disk is full; nothing was written",
                path=path,
                code="disk-full",
                next_step="Free some space, or write elsewhere.",
            ) from error
        raise InputError(
            f"its folder cannot be written to ({error.strerror})",
            path=path,
            code="not-writable",
            next_step="Create the folder, or choose one that you may write to.",
        ) from error


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> None:
    """Plain data as an indented JSON file, whole or not at all; None is null.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        UsageError, InputError, ResourceError: as `writing`.
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with writing(path, overwrite=overwrite) as file:
        file.write(text.encode() + b"\n")
