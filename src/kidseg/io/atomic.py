"""Write files and folders atomically: complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kidseg import new_folders
from kidseg.errors import (
    InputError,
    KidsegError,
    ResourceError,
    UsageError,
    converted,
    is_disk_full,
    renamed,
)

__all__ = [
    "check_writable",
    "disk_full",
    "file_in_the_way",
    "json_bytes",
    "link_or_copy",
    "make_folder",
    "place_with_record",
    "remove_leftovers",
    "staging",
    "write_json",
    "write_text",
    "writing",
    "writing_folder",
]


def check_writable(path: Path, *, overwrite: bool = False) -> None:
    """Check that this file can be written. Call it before long computations.

    Leaves no files behind.

    Raises:
        UsageError: "output-exists": the file exists and `overwrite` is off, or it is a folder.
        InputError: "not-writable": the parent is missing, read-only or not a folder, the name is
            not possible, or it is a device or pipe.
        ResourceError: "disk-full".
    """
    mode = _mode(path)
    is_folder = stat.S_ISDIR(mode)
    if is_folder or (stat.S_ISREG(mode) and not overwrite):
        kind = "a folder of this name" if is_folder else "the file"
        raise UsageError(
            f"{kind} already exists",
            path=path,
            code="output-exists",
            next_step="Choose another name" + ("." if is_folder else ", or --overwrite."),
        )
    if mode and not stat.S_ISREG(mode):
        raise _not_writable(path, "it is a device, pipe or socket")
    with _temporary(path):
        pass


def make_folder(path: Path) -> None:
    """Create a folder with its parents if it is missing, and check that files can be written in it.

    Raises:
        UsageError: "output-exists": it is a file.
        InputError: "not-writable": a parent is a file, it is read-only, or has no possible name.
        ResourceError: "disk-full".
    """
    try:
        new_folders.create(path)
    except FileExistsError as error:
        raise file_in_the_way(path) from error
    except (OSError, ValueError) as error:
        raise _converted(path, error, "the folder cannot be created") from error
    tried = _beside(path / "file")
    try:
        tried.touch(exist_ok=False)
    except OSError as error:
        raise _converted(path, error, "the folder is not writable") from error
    finally:
        with suppress(OSError):
            tried.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link; a copy on another disk, or where the file system has no hard links."""
    source = source.resolve()
    try:
        target.hardlink_to(source)
    except OSError as error:
        if is_disk_full(error):
            raise
        shutil.copyfile(source, target)


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` once it is complete and on disk.

    If anything fails, the temporary file is deleted and an existing file stays unchanged.

    Raises:
        UsageError, InputError: as `check_writable`.
        ResourceError: "disk-full".
    """
    check_writable(path, overwrite=overwrite)
    temporary = None
    try:
        with _temporary(path) as (file, temporary):
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
    except OSError as error:
        # An error of another file, such as the input, names that file.
        if error.filename in (None, str(temporary)):
            raise _converted(path, error, "it cannot be written") from error
        raise


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` once it is complete; replaces one of that name.

    If anything fails, the temporary folder is deleted and an existing one stays unchanged.

    Raises:
        InputError: "not-writable": the parent is missing, read-only or not a folder.
        ResourceError: "disk-full".
    """
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        _put(temporary, path)
    except KidsegError as error:
        raise renamed(error, str(temporary), str(path)) from error
    except OSError as error:
        # An error of another file, such as the input, names that file.
        named = Path(os.fsdecode(error.filename or path))
        if is_disk_full(error) or named == path or named.is_relative_to(temporary):
            raise _converted(path, error, "it cannot be written") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(folder: Path, path: Path) -> None:
    """Rename a folder; one that has this name already is removed last."""
    if not path.exists():
        folder.rename(path)
        return
    old = _beside(path)
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder for temporary files beside the outputs; removed in the end.

    Errors name the outputs, not the temporary files.

    Raises:
        ResourceError: "disk-full".
        InputError: "not-accessible".
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".kidseg-", dir=out) as name:
            try:
                yield Path(name)
            except KidsegError as error:
                raise renamed(error, name, str(out)) from error
    except OSError as error:
        known = converted(error, out)
        assert known is not None
        raise known from error


def place_with_record(record: Path, data: bytes, files: Mapping[Path, Path]) -> None:
    """Move complete files into place and write the record of them, replacing earlier ones.

    Stopped between, the new files are removed.

    Args:
        record: to write.
        data: its content.
        files: {temporary file: file to be}, on the same file system.

    Raises:
        UsageError, InputError, ResourceError: as `writing`; nothing has been moved.
    """
    new = [output for output in files.values() if not output.exists()]
    try:
        with writing(record, overwrite=True) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            for temporary, output in files.items():
                temporary.replace(output)
    except BaseException:  # such as KeyboardInterrupt
        if not record.is_file() or record.read_bytes() != data:
            for output in new:
                output.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `writing` that a killed process left in a folder.

    Only for a folder that no other process writes into.
    """
    for file in folder.glob(".kidseg-*.tmp"):
        file.unlink(missing_ok=True)


def file_in_the_way(path: Path) -> UsageError:
    """The error "output-exists" for an output folder whose name a file has."""
    return UsageError(
        "it is a file, not a folder",
        path=path,
        code="output-exists",
        next_step="Choose another name for the folder.",
    )


def disk_full(path: Path) -> ResourceError:
    """The error "disk-full" for an output of which nothing was kept."""
    return ResourceError(
        "the disk is full, or a quota or size limit is reached; nothing was written",
        path=path,
        code="disk-full",
        next_step="Free some space, or write elsewhere.",
    )


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Create a file in the folder of `path`, open for writing; remove it unless it was renamed."""
    temporary = _beside(path)
    try:  # creates the file too: a signal may come right after that
        with _created(temporary, path) as file:
            yield file, temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _beside(path: Path) -> Path:
    """A name for a temporary file or folder on the same disk."""
    return path.parent / f".kidseg-{secrets.token_hex(8)}.tmp"


def _created(temporary: Path, path: Path) -> BinaryIO:
    """Create the temporary file of `path`, open for writing."""
    try:
        return temporary.open("xb")
    except OSError as error:
        raise _converted(path, error, "its folder is not writable") from error


def _mode(path: Path) -> int:
    """The mode of a file or folder; 0 if there is none.

    Raises:
        InputError: "not-writable": the name is too long or has a zero byte, for example.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        raise _converted(path, error, "it cannot be written") from error


def _converted(path: Path, error: OSError | ValueError, what: str) -> KidsegError:
    """Convert an error of the system to a KidsegError."""
    if is_disk_full(error):
        return disk_full(path)
    return _not_writable(path, f"{what} ({getattr(error, 'strerror', None) or error})")


def _not_writable(path: Path, cause: str) -> InputError:
    return InputError(
        cause,
        path=path,
        code="not-writable",
        next_step="Create the folder, or choose a writable one.",
    )


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> None:
    """Write plain data as an indented JSON file atomically. None becomes null.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
        UsageError, InputError, ResourceError: as `writing`.
    """
    data = json_bytes(content)
    with writing(path, overwrite=overwrite) as file:
        file.write(data)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write text as UTF-8 atomically. A byte of a name that is not UTF-8 becomes an escape.

    Raises:
        UsageError, InputError, ResourceError: as `writing`.
    """
    with writing(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def json_bytes(content: Any) -> bytes:
    """Plain data as indented JSON in UTF-8.

    A name that is not UTF-8 has escapes for its bytes, which Python reads as that name again.

    Raises:
        ValueError: as `write_json`.
    """
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
