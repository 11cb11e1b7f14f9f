"""Files in and out; see `kidseg.io.orientation` for the one place that knows axis orders."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import InputError, KidsegError, KidsegWarning, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io.atomic import check_writable, writing
from kidseg.io.orientation import reorient
from kidseg.io.payload import head
from kidseg.io.scan import ReadOptions, Scan

__all__ = [
    "WRITTEN_ENDINGS",
    "ReadOptions",
    "Scan",
    "check_output",
    "load",
    "read",
    "read_grid",
    "save",
]

Kind = Literal["nifti", "nrrd", "metaimage", "dicom", "zip"]

WRITTEN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What `save` writes."""

_DEFAULT = ReadOptions()
_PACKED = ((b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
_META_KEYS = (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType")


def read(path: str | Path, options: ReadOptions = _DEFAULT) -> Scan:
    """A scan from a NIfTI, NRRD or MetaImage file, a DICOM folder or file, or a zip of one.

    What it is is told by its content; a misleading name is a finding at most.

    Raises:
        InputError: it is not one sound scan. The codes are named by the readers.
        ResourceError: "not-enough-memory".
    """
    path = Path(path)
    kind = kind_of(path)
    if options.volume and kind in ("nrrd", "metaimage", "dicom"):
        raise InputError(
            f"volume {options.volume} was asked for, and only NIfTI files are read by volume",
            path=path,
            code="no-such-volume",
            next_step="Save each volume as a file of its own.",
        )
    if kind == "nifti":
        from kidseg.io.nifti import read_nifti

        return read_nifti(path, options)
    if kind == "nrrd":
        from kidseg.io.nrrd import read_nrrd

        return read_nrrd(path, options)
    if kind == "metaimage":
        from kidseg.io.metaimage import read_metaimage

        return read_metaimage(path, options)
    if kind == "dicom":
        from kidseg.io.dicom import read_series

        return read_series(path, options)
    return _read_zip(path, options)


def read_grid(path: str | Path, options: ReadOptions = _DEFAULT) -> Grid:
    """The file's own voxel grid, slowest axis first: from the header alone where it has one.

    Raises:
        InputError: as `read`, for what was looked at.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "nifti":
        from kidseg.io.nifti import read_nifti_grid

        return read_nifti_grid(path, options)
    if kind == "nrrd":
        from kidseg.io.nrrd import read_nrrd_grid

        return read_nrrd_grid(path, options)
    if kind == "metaimage":
        from kidseg.io.metaimage import read_metaimage_grid

        return read_metaimage_grid(path, options)
    return read(path, options).native


def load(path: str | Path, **options: Any) -> Volume:
    """The volume in a file or folder, in canonical order; what was odd comes as `KidsegWarning`.

    Args:
        path: as for `read`.
        options: the fields of `ReadOptions`.

    Raises:
        InputError, ResourceError: as `read`.
    """
    scan = read(path, ReadOptions(**options))
    for finding in scan.findings:
        warnings.warn(str(finding), KidsegWarning, stacklevel=2)
    return scan.volume


def save(
    volume: Volume,
    path: str | Path,
    *,
    like: str | Path | Grid | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a volume with one channel, whole or not at all; values are never rescaled.

    Types are kept, but for bool and int64, which become uint8 where the values are labels (0..255)
    and int32 else, and half floats, which become float32. The same volume always gives the same
    bytes.

    Args:
        volume: one channel, volumetric.
        path: ends in .nii, .nii.gz, .nrrd or .mha.
        like: a scan, or its native grid: the voxels are put in its order, without interpolation.
            NIfTI output takes over the affines of a NIfTI scan bit for bit.
        overwrite: replace a file that exists.

    Returns:
        The path.

    Raises:
        UsageError: "unknown-format", "output-exists", "not-one-volume", "too-large-for-nifti".
        InputError: "grid-mismatch": the voxels are not those of `like`; "not-writable".
        ResourceError: "disk-full".
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    if volume.channels != 1 or volume.grid.is_slicewise:
        raise UsageError(
            f"one channel on one grid can be written, not {volume.channels} on {volume.grid}",
            path=path,
            code="not-one-volume",
        )
    if like is not None:
        volume = _placed(volume, like)
    name = path.name.lower()
    with writing(path, overwrite=overwrite) as file:
        if name.endswith(".nrrd"):
            from kidseg.io.nrrd import write_nrrd

            write_nrrd(volume, file)
        elif name.endswith(".mha"):
            from kidseg.io.metaimage import write_metaimage

            write_metaimage(volume, file)
        else:
            from kidseg.io.nifti import write_nifti

            source = None if like is None or isinstance(like, Grid) else Path(like)
            is_nifti = source is not None and kind_of(source) == "nifti"
            write_nifti(volume, file, path, like=source if is_nifti else None)
    return path


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Could `save` write this file? To be asked before the work starts.

    Raises:
        UsageError: "unknown-format", "output-exists".
        InputError: "not-writable".
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITTEN_ENDINGS):
        raise UsageError(
            f"its ending names no format that can be written ({', '.join(WRITTEN_ENDINGS)})",
            path=path,
            code="unknown-format",
            next_step="Choose one of these endings.",
        )
    check_writable(path, overwrite=overwrite)


def kind_of(path: Path) -> Kind:
    """What a file or folder is, by its content.

    Raises:
        InputError: "not-found", "not-a-file", "unreadable", "empty-file", "not-a-scan", and what
            damaged gzip gives.
    """
    if path.is_dir():
        return "dicom"
    start, encoding = head(path)
    packed = encoding == "gzip"
    if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        return "nifti"
    if not packed:
        if start.startswith(b"NRRD"):
            return "nrrd"
        if start.lstrip().startswith(_META_KEYS) and b"=" in start:
            return "metaimage"
        # Without the preamble, a data set starts with a tag of group 2 or 8.
        if start[128:132] == b"DICM" or start[:2] in (b"\x02\0", b"\x08\0"):
            return "dicom"
        if start.startswith(b"PK"):
            return "zip"
    raise InputError(
        _what_else(start, packed),
        path=path,
        code="not-a-scan",
        next_step="A scan is a NIfTI, NRRD or MetaImage file, a DICOM folder, or a zip of one.",
    )


def _what_else(start: bytes, packed: bool) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, as a failed download leaves it"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the file itself was not fetched"
    for mark, name in _PACKED:
        if start.startswith(mark):
            return f"it is packed with {name}, and must be unpacked first"
    if not any(start):
        return "it is all zeros, as an interrupted copy leaves it"
    return "it is gzip, but no NIfTI file inside" if packed else "it is no scan"


def _placed(volume: Volume, like: str | Path | Grid) -> Volume:
    """The voxels in the order of `like`, on exactly its grid."""
    grid = like if isinstance(like, Grid) else read_grid(like, ReadOptions(values="any"))
    moved = reorient(volume, grid)
    if not moved.grid.same_as(grid):
        raise InputError(
            f"the voxels to write ({volume.grid}) are not those of the scan ({grid})",
            path=None if isinstance(like, Grid) else like,
            code="grid-mismatch",
            next_step="Resample onto the scan's grid first.",
        )
    return Volume(moved.data, grid)


def _read_zip(path: Path, options: ReadOptions) -> Scan:
    """The one scan in a zip. Findings and errors name the zip: the unpacked files are soon gone."""
    from kidseg.io.archive import unpacked

    with unpacked(path) as folder:

        def named(inner: str) -> str:
            return inner.replace(str(folder), str(path))

        try:
            scan = read(_sole_scan(folder, path), options)
        except KidsegError as error:
            raise type(error)(
                named(error.cause),
                path=named(error.path or str(path)),
                next_step=named(error.next_step),
                code=error.code,
            ) from error
    findings = tuple(
        replace(f, path=named(f.path), cause=named(f.cause), next_step=named(f.next_step))
        for f in scan.findings
    )
    return replace(scan, path=path, findings=findings)


def _sole_scan(folder: Path, path: Path) -> Path:
    """The one NIfTI, NRRD or MetaImage file below a folder; the folder if there is none."""
    if not folder.is_dir():
        return folder
    files = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(p == "__MACOSX" or p.startswith(".") for p in parts):
            with suppress(InputError):
                if kind_of(file) in ("nifti", "nrrd", "metaimage"):
                    files.append(file)
    if len(files) > 1:
        names = ", ".join(str(f.relative_to(folder)) for f in files[:5])
        raise InputError(
            f"it holds {len(files)} scans: {names}",
            path=path,
            code="several-scans",
            next_step="Pack one scan in a zip.",
        )
    return files[0] if files else folder
