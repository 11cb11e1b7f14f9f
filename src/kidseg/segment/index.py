"""`result.json`: what is known of each scan that was segmented into a folder.

One entry for each scan, by its name, with the model, device, versions and date of its own run, so
that several runs, also at the same time, share a folder and no record is lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kidseg.checkpoint import INTENDED_USE
from kidseg.errors import InputError, ModelError, UsageError, is_disk_full
from kidseg.io.atomic import disk_full, json_bytes, place_with_record
from kidseg.segment.entry import check_entry

__all__ = ["RESULT", "Entry", "Index", "locked", "read_index", "record_failure", "record_scan"]

RESULT = "result.json"
FORMAT = 1
_LOCK = ".result.lock"

Entry = Mapping[str, Any]


@dataclass
class Index:
    """The entries of a folder, each by the name of its scan.

    Attributes:
        scans: the scans with results; as an entry of `kidseg.segment.segment`, with "name" and
            "outputs".
        failed: the scans whose last attempt failed; their earlier results, if any, stay.
    """

    scans: dict[str, Entry] = field(default_factory=dict)
    failed: dict[str, Entry] = field(default_factory=dict)

    def copy(self) -> Index:
        """With the same entries."""
        return Index(dict(self.scans), dict(self.failed))

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "format": FORMAT,
            "intended_use": INTENDED_USE,
            "scans": list(self.scans.values()),
            "failed": list(self.failed.values()),
        }


def read_index(folder: Path) -> Index:
    """Read the index of a folder; empty if there is none.

    Raises:
        ModelError: "damaged-index": result.json is damaged, or not of this kind or version.
    """
    path = folder / RESULT
    try:
        with path.open("rb") as file:
            state = _state_of(file)
            if (known := _remembered(path, state)) is not None:
                return known
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return Index()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if content.get("format") != FORMAT:
            raise ValueError("not an index of this version of kidseg")
        index = Index(_by_name(content["scans"]), _by_name(content["failed"]))
        for entry in index.scans.values():
            check_entry(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, cause) from error
    _remember(path, state, index)
    return index


def record_scan(
    folder: Path, entry: Entry, written: Mapping[Path, Path], *, overwrite: bool = False
) -> None:
    """Move the complete outputs of a scan into place, and add its entry to the index.

    If the disk is full, nothing has been moved.

    Args:
        folder: with the index.
        entry: with "name" and "outputs".
        written: {temporary file: output}, on the same file system.
        overwrite: replace the entry and the outputs of this name; those of other names stay.

    Raises:
        UsageError: "output-exists": another run has written them since.
        ModelError: see `read_index`.
        InputError, ResourceError: see `kidseg.io.atomic.writing`.
    """
    with locked(folder):
        index = read_index(folder)
        taken = [file for file in written.values() if file.exists()]
        if entry["name"] in index.scans and not overwrite:
            taken.append(folder / RESULT)
        if taken and not overwrite:
            raise UsageError(
                f"another run has segmented '{entry['name']}' meanwhile",
                path=taken[0],
                code="output-exists",
                next_step="Choose another folder, or use --overwrite.",
            )
        index.scans[entry["name"]] = _plain(entry)
        index.failed.pop(entry["name"], None)
        _write(folder, index, written)


def record_failure(folder: Path, entry: Entry) -> None:
    """Add the failure of a scan to the index; an earlier result stays.

    Raises:
        ModelError, InputError, ResourceError: as `record_scan`.
    """
    with locked(folder):
        index = read_index(folder)
        index.failed[entry["name"]] = _plain(entry)
        _write(folder, index, {})


def _write(folder: Path, index: Index, written: Mapping[Path, Path]) -> None:
    """Move outputs into place and write the index."""
    place_with_record(folder / RESULT, _bytes_of(index), written)
    with (folder / RESULT).open("rb") as file:
        _remember(folder / RESULT, _state_of(file), index)


# In a batch of hundreds, reading and writing all entries after each scan would take long: the index
# that was read or written last is remembered, and the text of each entry.


@dataclass
class _Memory:
    """An index as it is in a file of this state."""

    path: Path
    state: tuple[int, ...]
    index: Index
    texts: dict[int, tuple[Entry, bytes]]


_memory: list[_Memory] = []


def _state_of(file: BinaryIO) -> tuple[int, ...]:
    """What changes if the file is replaced; of an open file, since NFS remembers that of a path."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _remember(path: Path, state: tuple[int, ...], index: Index) -> None:
    texts = _memory[0].texts if _memory else {}
    entries = [*index.scans.values(), *index.failed.values()]
    kept = {id(entry): texts[id(entry)] for entry in entries if id(entry) in texts}
    _memory[:] = [_Memory(path.absolute(), state, index.copy(), kept)]


def _remembered(path: Path, state: tuple[int, ...]) -> Index | None:
    """The index of a file that is unchanged."""
    if _memory and _memory[0].path == path.absolute() and _memory[0].state == state:
        return _memory[0].index.copy()
    return None


def _bytes_of(index: Index) -> bytes:
    """The same as `json_bytes(index.as_dict())`."""
    texts = _memory[0].texts if _memory else {}

    def text(entry: Entry) -> bytes:
        known = texts.get(id(entry))
        if known is None or known[0] is not entry:
            lines = json_bytes(entry).rstrip(b"\n")  # in texts they are escaped
            known = texts[id(entry)] = entry, b"    " + lines.replace(b"\n", b"\n    ")
        return known[1]

    def listed(entries: Mapping[str, Entry]) -> bytes:
        return b"[\n%b\n  ]" % b",\n".join(map(text, entries.values())) if entries else b"[]"

    head, middle, end = json_bytes(Index().as_dict()).split(b"[]")
    return b"".join((head, listed(index.scans), middle, listed(index.failed), end))


def _plain(entry: Entry) -> Entry:
    """The entry as it will be read; a copy, since it is remembered."""
    found: Entry = json.loads(json_bytes(entry))
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for other processes that write the index, and keep them waiting.

    The lock file is removed in the end. A process that waited for a removed one tries again.
    """
    import fcntl

    path = folder / _LOCK
    while True:
        try:
            lock = path.open("ab")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(folder) from error
            raise InputError(
                f"the index of results cannot be locked ({error.strerror})",
                path=folder,
                code="not-writable",
                next_step="Choose a folder on a disk that you can write to.",
            ) from error
        with lock:
            if not _is_open(path, lock.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open(path: Path, descriptor: int) -> bool:
    """Is the open file still the one at the path?"""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _by_name(entries: Sequence[Any]) -> dict[str, Entry]:
    if not isinstance(entries, list):
        raise TypeError("the entries are not a list")
    found: dict[str, Entry] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError("an entry has no name")
        if entry["name"] in found:
            raise ValueError(f"'{entry['name']}' occurs twice")
        found[entry["name"]] = entry
    return found


def _damaged(path: Path, cause: str) -> ModelError:
    return ModelError(
        f"not a complete index of results: {cause}",
        path=path,
        code="damaged-index",
        next_step="Move it elsewhere, or choose another folder.",
    )
