"""Zip files from anywhere: looked through before a byte is unpacked, and refused whole.

A zip is an upload of a stranger. It may hold one scan: a NIfTI, NRRD or MetaImage file, or the
files of a DICOM series in any folders. Nothing in it decides where anything is written.
"""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kidseg.errors import DISK_FULL, InputError, ResourceError

__all__ = ["Limits", "unpacked"]

_CHUNK = 2**20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_PACKED_ENDINGS = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_LOCAL_HEADER = 30  # bytes before the name of an entry (PKWARE APPNOTE.TXT, 4.3.7)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a zip may hold.

    Attributes:
        files: number of entries, folders included.
        depth: folders within each other, the file counted.
        name_bytes: length of one part of a name, which file systems limit to 255.
        total_bytes: all files unpacked.
        ratio: unpacked to packed size. Deflate reaches 1032 on zeros; a CT 2 to 10.
        ratio_free_bytes: the ratio is not looked at below this unpacked size.
        spare_disk_bytes: to be left free on the disk.
    """

    files: int = 5000
    depth: int = 12
    name_bytes: int = 255
    total_bytes: int = 8 * 2**30
    ratio: float = 100.0
    ratio_free_bytes: int = 64 * 2**20
    spare_disk_bytes: int = 256 * 2**20


_DEFAULT = Limits()


@contextmanager
def unpacked(path: Path, limits: Limits = _DEFAULT) -> Iterator[Path]:
    """A folder with the files of a zip; it is gone afterwards, whatever happens.

    Files that operating systems add (`__MACOSX`, `.DS_Store`) are checked like all others, but left
    packed.

    Raises:
        InputError: "bad-zip": no zip, truncated or damaged; "encrypted-zip"; "unsafe-name": a name
            that is absolute, leads outside, or cannot be a file's; "archive-link": a link or
            device; "duplicate-name"; "nested-archive"; "nested-too-deep"; "too-many-files";
            "too-large"; "zip-bomb"; "unsupported-compression"; "empty-zip".
        ResourceError: "disk-full": more than the free space of the disk for temporary files.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="kidseg-") as name:
        folder = Path(name).resolve()
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                _check(entries, path, limits)
                _check_disk(entries, folder, path, limits)
                for entry in entries:
                    if not entry.is_dir() and not _is_clutter(entry):
                        _extract(archive, entry, folder, path)
        except (
            zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError
        ) as error:  # fmt: skip
            raise _refused(
                path, "bad-zip", f"it is no sound zip file ({error})", "Pack or copy it again."
            ) from error
        except OSError as error:
            raise _failed(path, error) from error
        yield folder


def _refused(path: Path, code: str, cause: str, next_step: str = "") -> InputError:
    step = next_step or "Pack the files of one scan, and nothing else, in a zip."
    return InputError(f"{cause}; nothing was unpacked", path=path, code=code, next_step=step)


def _failed(path: Path, error: OSError) -> InputError | ResourceError:
    if error.errno in DISK_FULL:
        return _no_space(path)
    return InputError(
        f"it cannot be read ({error.strerror or error})",
        path=path,
        code="not-found" if error.errno == errno.ENOENT else "unreadable",
        next_step="Check its name and permissions.",
    )


def _no_space(path: Path) -> ResourceError:
    return ResourceError(
        "the disk for temporary files has not enough space to unpack it",
        path=path,
        code="disk-full",
        next_step="Free some space, or set TMPDIR to a larger disk.",
    )


# ---- before anything is unpacked ---------------------------------------------------------------


def _check(entries: Sequence[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    if len(entries) > limits.files:
        cause = f"it holds {len(entries)} files; {limits.files} are allowed"
        raise _refused(path, "too-many-files", cause)
    for entry in entries:
        _check_name(entry, path, limits)
        _check_kind(entry, path)
    _check_unique(entries, path)
    _check_sizes(entries, path, limits)
    if not any(not entry.is_dir() and not _is_clutter(entry) for entry in entries):
        raise _refused(path, "empty-zip", "it holds no files")


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """The folders and the name of an entry; backslashes, which some writers use, separate too."""
    return PurePosixPath(entry.orig_filename.replace("\\", "/")).parts


def _check_name(entry: zipfile.ZipInfo, path: Path, limits: Limits) -> None:
    name, parts = entry.orig_filename, _parts(entry)
    shown = ascii(name[:100])
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or not parts:
        raise _refused(path, "unsafe-name", f"it holds {shown}, which leads outside its folder")
    unprintable = any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts)
    if unprintable or longest > limits.name_bytes:
        raise _refused(path, "unsafe-name", f"it holds {shown}, which cannot name a file")
    if len(parts) > limits.depth:
        cause = f"{shown} lies {len(parts)} folders deep; {limits.depth} are allowed"
        raise _refused(path, "nested-too-deep", cause)


def _check_kind(entry: zipfile.ZipInfo, path: Path) -> None:
    shown = ascii(entry.orig_filename[:100])
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device"
        raise _refused(path, "archive-link", f"it holds {what}, {shown}")
    if entry.flag_bits & 0x1:
        raise _refused(path, "encrypted-zip", f"{shown} is encrypted", "Pack it unencrypted.")
    if entry.is_dir():
        if entry.file_size:
            raise _refused(path, "bad-zip", f"the folder {shown} has a content")
        return
    if entry.compress_type not in _METHODS:
        step = "Pack it with the usual method (deflate)."
        raise _refused(path, "unsupported-compression", f"{shown} is packed unusually", step)
    if _parts(entry)[-1].lower().endswith(_PACKED_ENDINGS):
        raise _refused(path, "nested-archive", f"it holds another archive, {shown}")


def _check_unique(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """No two names for one file, also where a file system ignores case or Unicode forms."""
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for entry in entries:
        key = tuple(unicodedata.normalize("NFC", part).casefold() for part in _parts(entry))
        above = {key[:n] for n in range(1, len(key) + entry.is_dir())}
        folders |= above
        if not entry.is_dir():
            if key in files:
                shown = ascii(entry.orig_filename[:100])
                raise _refused(path, "duplicate-name", f"it holds {shown} twice")
            files.add(key)
    both = files & folders
    if both:
        shown = ascii("/".join(min(both))[:100])
        raise _refused(path, "duplicate-name", f"{shown} is a file and a folder")


def _check_sizes(entries: Sequence[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    packed = max(1, path.stat().st_size)
    if total > limits.ratio_free_bytes and total / packed > limits.ratio:
        cause = f"it unpacks to {total} bytes, {total / packed:.0f} times its size: a zip bomb"
        raise _refused(path, "zip-bomb", cause)
    if total > limits.total_bytes:
        cause = f"it unpacks to {total} bytes; {limits.total_bytes} are allowed"
        raise _refused(path, "too-large", cause)
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if entry.header_offset < end:  # many entries that share one stretch of packed bytes
            raise _refused(path, "zip-bomb", "its entries overlap: a zip bomb")
        end = entry.header_offset + _LOCAL_HEADER + entry.compress_size


def _check_disk(
    entries: Sequence[zipfile.ZipInfo], folder: Path, path: Path, limits: Limits
) -> None:
    total = sum(entry.file_size for entry in entries)
    if total + limits.spare_disk_bytes > shutil.disk_usage(folder).free:
        raise _no_space(path)


# ---- unpacking ---------------------------------------------------------------------------------


def _is_clutter(entry: zipfile.ZipInfo) -> bool:
    parts = _parts(entry)
    return "__MACOSX" in parts or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    """One file, never more bytes than it says it has; its CRC is checked on the way."""
    target = folder.joinpath(*_parts(entry))
    assert target.parent.resolve().is_relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := _read(source, left):
            file.write(chunk)
            left -= len(chunk)
    if left:
        shown = ascii(entry.orig_filename[:100])
        raise _refused(path, "bad-zip", f"{shown} ends early", "Pack or copy it again.")


def _read(source: Any, left: int) -> bytes:
    """The next bytes; reading on after the last lets zipfile compare the CRC."""
    chunk: bytes = source.read(min(_CHUNK, left) or 1)
    if len(chunk) > left:
        raise zipfile.BadZipFile("an entry is longer than it says")
    return chunk
