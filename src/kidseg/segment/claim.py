"""The claim of a run: which scans it segments into a folder, and where its unfinished files are.

A run that was killed leaves its claim, but no lock on it: the next run removes what is unfinished,
and knows which scan was being segmented, as that may be what ended it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kidseg.errors import Finding, UsageError, converted, is_disk_full
from kidseg.io.atomic import disk_full, json_bytes, remove_leftovers
from kidseg.segment.index import Entry, locked, read_index, record_failure

__all__ = ["RUN_DIED", "Claim", "claimed", "remove_unfinished"]

_PREFIX = ".kidseg-run-"
_LOCK = "lock"
_NAMES = "names.json"
_PLACING = "placing.json"
_TRYING = "trying.json"

RUN_DIED = "run-died"
"""Code of the failure of a scan whose run ended while it was segmented, without a word."""


@dataclass(frozen=True)
class Claim:
    """The claim of this run.

    Attributes:
        folder: for its unfinished files, on the file system of the results.
    """

    folder: Path

    def trying(self, name: str, scan: Path) -> None:
        """Note that a scan is segmented now by this process, which it may end."""
        with _errors_of(self.folder.parent):
            (self.folder / _TRYING).write_bytes(json_bytes({"name": name, "scan": str(scan)}))

    def tried(self) -> None:
        """Note that this process survived the scan, and recorded what came of it."""
        (self.folder / _TRYING).unlink(missing_ok=True)

    @contextmanager
    def placing(self, name: str, files: Mapping[Path, Path]) -> Iterator[None]:
        """Note that the outputs of a scan are moved into place now, and recorded after that.

        Args:
            name: of the scan.
            files: {temporary file: output}.
        """
        note = self.folder / _PLACING
        new = [file.name for file in files.values() if not file.exists()]
        with _errors_of(self.folder.parent):
            note.write_bytes(json_bytes({"name": name, "new": new}))
        yield
        note.unlink()


@contextmanager
def claimed(out: Path, names: Collection[str]) -> Iterator[Claim]:
    """Claim scans of these names for this run; the folder of the claim is removed in the end.

    Args:
        out: folder of the results; exists.
        names: of the scans.

    Raises:
        UsageError: "in-use": another run that is not finished segments one of them.
        InputError, ResourceError: the folder cannot be written to.
    """
    with locked(out):
        _refuse_shared(out, names)
        with _errors_of(out), ExitStack() as undo:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            lock = undo.enter_context((folder / _LOCK).open("w"))
            (folder / _NAMES).write_bytes(json_bytes(sorted(names)))
            undo.pop_all()
        _try_lock(lock)
    try:
        yield Claim(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def remove_unfinished(out: Path) -> None:
    """Remove what killed runs left in a folder: temporary files, and outputs without a record.

    The scan that such a run was segmenting is recorded as failed, `RUN_DIED`.

    Raises:
        ModelError, InputError, ResourceError: see `read_index`, `locked`.
    """
    if not any(out.glob(f"{_PREFIX}*")):
        return
    tried: list[Entry] = []
    with locked(out):
        folders = list(out.glob(f"{_PREFIX}*"))
        dead = [folder for folder in folders if not _is_alive(folder)]
        recorded = read_index(out).scans
        for folder in dead:
            tried += [known] if (known := _read(folder / _TRYING, None)) else []
            for output in _unrecorded(folder, recorded):
                (out / output).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        if len(dead) == len(folders):
            remove_leftovers(out)
    for entry in tried:
        record_failure(out, {**entry, **_died(Path(entry["scan"])).as_dict()})


def _died(scan: Path) -> Finding:
    return Finding(
        code=RUN_DIED,
        path=str(scan),
        cause="the process ended while it was segmented: it was killed, or a library crashed",
        next_step="Segment with --resume: it comes last. If it ends the process again, use"
        " --cluster local, which ends the scan only.",
        severity="error",
    )


def _refuse_shared(out: Path, names: Collection[str]) -> None:
    """Raise if another run, not finished, has one of the names."""
    for folder in out.glob(f"{_PREFIX}*"):
        if not _is_alive(folder):
            continue
        if both := set(names) & set(_read(folder / _NAMES, [])):
            more = f" and {len(both) - 1} more of these scans" if len(both) > 1 else ""
            raise UsageError(
                f"another run is segmenting '{min(both)}'{more} into this folder",
                path=out,
                code="in-use",
                next_step="Wait until it ends, or choose another folder.",
            )


def _unrecorded(folder: Path, recorded: Mapping[str, Entry]) -> list[str]:
    """The new outputs of the scan that a killed run was placing, unless they are recorded."""
    note = _read(folder / _PLACING, {"name": "", "new": []})
    entry = recorded.get(note["name"], {"outputs": []})
    return [name for name in note["new"] if name not in entry["outputs"]]


def _is_alive(folder: Path) -> bool:
    """Does a process hold the lock of a claim?"""
    try:
        with (folder / _LOCK).open("r+") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:  # killed before, or removed meanwhile
        return False


def _try_lock(lock: IO[str]) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path, default: Any) -> Any:
    """A JSON file of a claim; the default if the run was killed before it was whole."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return default


@contextmanager
def _errors_of(out: Path) -> Iterator[None]:
    """Convert the errors of files that only this module knows to errors of the results' folder."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(out) from error
        error.filename = None
        known = converted(error, out)
        assert known is not None
        raise known from error
