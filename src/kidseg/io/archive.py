"""Extract zip files from untrusted sources.

All entries are checked before anything is extracted, and one bad entry rejects the archive. A zip
may contain one scan: a NIfTI, NRRD or MetaImage file, or the files of a DICOM series in any
folders. Its contents never decide where files are written.
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

from kidseg.errors import InputError, ResourceError, is_disk_full

__all__ = ["Limits", "extracted"]

_CHUNK = 2**20
_ONE_SCAN = "Create a zip with the files of one scan and nothing else."
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ARCHIVE_ENDINGS = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_LOCAL_HEADER = 30  # bytes before the name of an entry (PKWARE APPNOTE.TXT, 4.3.7)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the contents of a zip.

    Attributes:
        files: number of entries, including folders.
        depth: levels of nested folders, including the file.
        name_bytes: length of one path component, which file systems limit to 255.
        total_bytes: uncompressed size of all files.
        ratio: uncompressed to compressed size. Deflate reaches 1032 on zeros; a CT 2 to 10.
        ratio_free_bytes: the ratio is not checked below this uncompressed size.
        spare_disk_bytes: disk space to keep free.
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
def extracted(path: Path, limits: Limits = _DEFAULT) -> Iterator[Path]:
    """Extract a zip into a temporary folder, which is always deleted afterwards.

    Files that operating systems add (`__MACOSX`, `.DS_Store`) are checked like all others, but not
    extracted.

    Raises:
        InputError: "bad-zip": not a zip file, truncated or damaged; "encrypted-zip";
            "unsafe-name": an absolute name, one that leads outside the folder, or an invalid file
            name; "archive-link": a link or device; "duplicate-name"; "nested-archive";
            "nested-too-deep"; "too-many-files"; "too-large"; "zip-bomb";
            "unsupported-compression"; "empty-zip".
        ResourceError: "disk-full": the disk for temporary files has too little free space.
    """
    path = Path(path)
    with _temporary_folder(path) as folder:
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
                path, "bad-zip", f"it is not a valid zip file ({error})", "Create or copy it again."
            ) from error
        except OSError as error:
            raise _converted(path, error) from error
        yield folder


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="kidseg-")
    except OSError as error:
        raise _no_space(path, f"cannot be used ({error.strerror or error})") from error
    with temporary as name:
        yield Path(name).resolve()


def _refused(path: Path, code: str, cause: str, next_step: str = _ONE_SCAN) -> InputError:
    return InputError(f"{cause}; nothing was extracted", path=path, code=code, next_step=next_step)


def _converted(path: Path, error: OSError) -> InputError | ResourceError:
    """Convert an OSError to a KidsegError."""
    if is_disk_full(error):
        return _no_space(path)
    return InputError(
        f"it cannot be read ({error.strerror or error})",
        path=path,
        code="not-found" if error.errno == errno.ENOENT else "unreadable",
        next_step="Check its name and permissions.",
    )


def _no_space(path: Path, cause: str = "has too little free space") -> ResourceError:
    folder = tempfile.tempdir or "TMPDIR"
    return ResourceError(
        f"the folder for temporary files ({folder}) {cause}, so it was not extracted",
        path=path,
        code="disk-full",
        next_step="Free some space, or set TMPDIR to a folder on a larger disk.",
    )


# ---- checks before extraction ------------------------------------------------------------------


def _check(entries: Sequence[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    if len(entries) > limits.files:
        cause = f"it contains {len(entries)} files; the limit is {limits.files}"
        raise _refused(path, "too-many-files", cause)
    for entry in entries:
        _check_name(entry, path, limits)
        _check_kind(entry, path)
    _check_unique(entries, path)
    _check_sizes(entries, path, limits)
    if not any(not entry.is_dir() and not _is_clutter(entry) for entry in entries):
        raise _refused(path, "empty-zip", "it contains no files")


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """The path components of an entry. Some writers use backslashes as separators."""
    return PurePosixPath(entry.orig_filename.replace("\\", "/")).parts


def _check_name(entry: zipfile.ZipInfo, path: Path, limits: Limits) -> None:
    name, parts = entry.orig_filename, _parts(entry)
    shown = ascii(name[:100])
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if absolute or ".." in parts or not parts:
        raise _refused(path, "unsafe-name", f"it contains {shown}, which leads outside its folder")
    unprintable = any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts)
    if unprintable or longest > limits.name_bytes:
        raise _refused(path, "unsafe-name", f"it contains {shown}, which is an invalid file name")
    if len(parts) > limits.depth:
        cause = f"{shown} is {len(parts)} levels deep; the limit is {limits.depth}"
        raise _refused(path, "nested-too-deep", cause)


def _check_kind(entry: zipfile.ZipInfo, path: Path) -> None:
    shown = ascii(entry.orig_filename[:100])
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device"
        raise _refused(path, "archive-link", f"it contains {what}, {shown}")
    if entry.flag_bits & 0x1:
        step = "Create the zip without encryption."
        raise _refused(path, "encrypted-zip", f"{shown} is encrypted", step)
    if entry.is_dir():
        if entry.file_size:
            raise _refused(path, "bad-zip", f"the folder entry {shown} contains data")
        return
    if entry.compress_type not in _METHODS:
        step = "Use the standard compression method (deflate)."
        cause = f"the compression method of {shown} is not supported"
        raise _refused(path, "unsupported-compression", cause, step)
    if _parts(entry)[-1].lower().endswith(_ARCHIVE_ENDINGS):
        raise _refused(path, "nested-archive", f"it contains another archive, {shown}")


def _check_unique(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Reject names that collide, also on file systems that ignore case or Unicode form."""
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for entry in entries:
        key = tuple(unicodedata.normalize("NFC", part).casefold() for part in _parts(entry))
        above = {key[:n] for n in range(1, len(key) + entry.is_dir())}
        folders |= above
        if not entry.is_dir():
            if key in files:
                shown = ascii(entry.orig_filename[:100])
                raise _refused(path, "duplicate-name", f"it contains {shown} twice")
            files.add(key)
    both = files & folders
    if both:
        shown = ascii("/".join(min(both))[:100])
        raise _refused(path, "duplicate-name", f"{shown} is both a file and a folder")


def _check_sizes(entries: Sequence[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    compressed = max(1, path.stat().st_size)
    if total > limits.ratio_free_bytes and total / compressed > limits.ratio:
        times = total / compressed
        cause = f"it expands to {total} bytes, {times:.0f} times its size: a zip bomb"
        raise _refused(path, "zip-bomb", cause)
    if total > limits.total_bytes:
        cause = f"it expands to {total} bytes; the limit is {limits.total_bytes}"
        raise _refused(path, "too-large", cause)
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if entry.header_offset < end:  # several entries share compressed bytes
            raise _refused(path, "zip-bomb", "its entries overlap: a zip bomb")
        end = entry.header_offset + _LOCAL_HEADER + entry.compress_size


def _check_disk(
    entries: Sequence[zipfile.ZipInfo], folder: Path, path: Path, limits: Limits
) -> None:
    total = sum(entry.file_size for entry in entries)
    if total + limits.spare_disk_bytes > shutil.disk_usage(folder).free:
        raise _no_space(path)


# ---- extraction --------------------------------------------------------------------------------


def _is_clutter(entry: zipfile.ZipInfo) -> bool:
    parts = _parts(entry)
    return "__MACOSX" in parts or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    """Extract one file, up to its declared size, and verify its CRC."""
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
        raise _refused(path, "bad-zip", f"{shown} is truncated", "Create or copy it again.")


def _read(source: Any, left: int) -> bytes:
    """The next bytes. Reading past the last one makes zipfile verify the CRC."""
    chunk: bytes = source.read(min(_CHUNK, left) or 1)
    if len(chunk) > left:
        raise zipfile.BadZipFile("an entry is longer than its declared size")
    return chunk
