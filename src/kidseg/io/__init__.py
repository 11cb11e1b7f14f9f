"""Read and write image files. Only `kidseg.io.orientation` knows axis orders."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import InputError, KidsegError, KidsegWarning, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io.atomic import check_writable, writing
from kidseg.io.checks import orthogonal_grid
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
_COMPRESSED = ((b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
_PICTURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
_HEADERS = (".hdr", ".mhd", ".nhdr")  # of formats with voxels in another file
_VOXELS = (".img", ".raw", ".zraw", ".bin", ".dat")  # of those files
_META_KEYS = (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType")


def read(path: str | Path, options: ReadOptions = _DEFAULT) -> Scan:
    """Read a scan from a NIfTI, NRRD or MetaImage file, a DICOM folder or file, or a zip of one.

    The format is detected from the content. A misleading file name gives at most a finding.

    Raises:
        InputError: the input is not exactly one valid scan. Each reader lists its codes.
        ResourceError: "not-enough-memory".
    """
    path = Path(path)
    kind = kind_of(path)
    if options.volume and kind in ("nrrd", "metaimage", "dicom"):
        raise InputError(
            f"volume {options.volume} was requested, but only NIfTI files can hold several volumes",
            path=path,
            code="no-such-volume",
            next_step="Save each volume as a separate file.",
        )
    if kind == "nifti":
        from kidseg.io.nifti import read_nifti

        return read_nifti(path, options)
    if kind == "nrrd":
        from kidseg.io.nrrd import describe_nrrd
        from kidseg.io.voxels import read_block

        return read_block(describe_nrrd(path, options), path, "nrrd", options)
    if kind == "metaimage":
        from kidseg.io.metaimage import describe_metaimage
        from kidseg.io.voxels import read_block

        return read_block(describe_metaimage(path, options), path, "metaimage", options)
    if kind == "dicom" and options.annotation is not None and options.values == "labels":
        from kidseg.io.annotations import read_annotation

        return read_annotation(path, options.annotation, options)
    if kind == "dicom":
        from kidseg.io.dicom import read_series

        return read_series(path, options)
    return _read_zip(path, options)


def read_grid(path: str | Path, options: ReadOptions = _DEFAULT) -> Grid:
    """Read the file's native voxel grid, slowest axis first.

    Only the header is read where the format has one.

    Raises:
        InputError: as `read`, for the parts that were read.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "nifti":
        from kidseg.io.nifti import read_nifti_grid

        return read_nifti_grid(path, options)
    if kind == "nrrd":
        from kidseg.io.nrrd import describe_nrrd

        return describe_nrrd(path, options).native
    if kind == "metaimage":
        from kidseg.io.metaimage import describe_metaimage

        return describe_metaimage(path, options).native
    return read(path, options).native


def load(path: str | Path, **options: Any) -> Volume:
    """Load the volume in a file or folder in canonical order; findings become `KidsegWarning`s.

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
    like: str | Path | Scan | Grid | None = None,
    overwrite: bool = False,
    step: float = 1.0,
) -> Path:
    """Write a volume with one channel atomically. Values are never rescaled.

    Data types are kept, with these exceptions: bool and int64 become uint8 if all values are in
    0..255 and int32 otherwise; half-precision floats become float32. The same volume always gives
    the same bytes.

    Args:
        volume: one channel, volumetric.
        path: ends in .nii, .nii.gz, .nrrd or .mha.
        like: a scan, its file, or its native grid. Voxels are written in its order, without
            interpolation. NIfTI output copies the affines of a NIfTI scan bit for bit. A file is
            read with default options, so give the scan if it was read with others. Integers on
            the orthogonal grid that the readers give to a slightly sheared scan are written on the
            scan's own voxels, one for one.
        overwrite: replace an existing file.
        step: what a stored 1 means; the header of a NIfTI file says so, and readers multiply.

    Returns:
        The path.

    Raises:
        ValueError: a step for a format other than NIfTI.
        UsageError: "unknown-format", "output-exists", "not-one-volume", "too-large-for-nifti".
        InputError: "grid-mismatch": the grid differs from that of `like`; "not-writable".
        ResourceError: "disk-full".
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    if volume.channels != 1 or volume.grid.is_slicewise:
        raise UsageError(
            f"only one channel on one grid can be written, not {volume.channels} on {volume.grid}",
            path=path,
            code="not-one-volume",
            next_step="Choose one channel, resampled onto one grid.",
        )
    source: Path | None = None
    if isinstance(like, Scan):
        source = like.path
    elif isinstance(like, str | Path):
        source = Path(like)
    if like is not None:
        volume = _reordered(volume, _native(like), source)
    name = path.name.lower()
    if step != 1 and name.endswith((".nrrd", ".mha")):
        raise ValueError(f"{path.name}: only NIfTI has a unit of the stored values")
    with writing(path, overwrite=overwrite) as file:
        if name.endswith(".nrrd"):
            from kidseg.io.nrrd import write_nrrd

            write_nrrd(volume, file)
        elif name.endswith(".mha"):
            from kidseg.io.metaimage import write_metaimage

            write_metaimage(volume, file)
        else:
            from kidseg.io.nifti import write_nifti

            is_nifti = source is not None and kind_of(source) == "nifti"
            write_nifti(volume, file, path, like=source if is_nifti else None, step=step)
    return path


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Check that `save` can write this file. Call it before long computations.

    Raises:
        UsageError: "unknown-format", "output-exists".
        InputError: "not-writable".
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITTEN_ENDINGS):
        raise UsageError(
            f"the file extension is not supported for writing ({', '.join(WRITTEN_ENDINGS)})",
            path=path,
            code="unknown-format",
            next_step="Use one of these extensions.",
        )
    check_writable(path, overwrite=overwrite)


def kind_of(path: Path) -> Kind:
    """Detect the format of a file or folder from its content.

    Raises:
        InputError: "not-found", "not-a-file", "unreadable", "empty-file", "not-a-scan", and the
            codes for damaged gzip data.
    """
    with suppress(OSError):  # such as a name that is too long; `head` reports it
        if path.is_dir():
            return "dicom"
    start, encoding = head(path)
    is_gzip = encoding == "gzip"
    if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        return "nifti"
    if not is_gzip:
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
        _describe_other(start, is_gzip, path),
        path=path,
        code="not-a-scan",
        next_step="A scan is a NIfTI, NRRD or MetaImage file, a DICOM folder, or a zip of one.",
    )


def _describe_other(start: bytes, is_gzip: bool, path: Path) -> str:
    """Describe a file that is not a scan, by its first bytes, and by a header beside it."""
    headers = (
        (path.with_suffix(ending) for ending in _HEADERS) if path.suffix.lower() in _VOXELS else ()
    )
    if beside := [header.name for header in headers if header != path and header.is_file()]:
        return f"it contains only the voxels of {beside[0]}, which is the file to name"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, probably from a failed download"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the file itself was not fetched"
    for magic, name in _COMPRESSED:
        if start.startswith(magic):
            return f"it is compressed with {name} and must be decompressed first"
    for magic, name in _PICTURES:
        if start.startswith(magic):
            return f"it is a {name} picture, of grey values without Hounsfield units, size or place"
    if not any(start):
        return "it contains only zeros, probably from an interrupted copy"
    if is_gzip:
        return "it is a gzip file, but does not contain a NIfTI file"
    return "it is not a scan in a supported format"


def _native(like: str | Path | Scan | Grid) -> Grid:
    if isinstance(like, Scan):
        return like.native
    return like if isinstance(like, Grid) else read_grid(like, ReadOptions(values="any"))


def _reordered(volume: Volume, grid: Grid, path: Path | None) -> Volume:
    """Reorder the voxels to match a scan's native grid, and return them on exactly this grid."""
    reordered = reorient(volume, grid)
    is_same = reordered.grid.same_as(grid)
    if not is_same and not volume.data.is_floating_point():
        with suppress(InputError):  # too sheared to be read
            straight, _ = orthogonal_grid(grid, path or Path())
            is_same = reordered.grid.same_as(straight)
    if not is_same:
        raise InputError(
            f"the grid of the volume is not that of the scan: {reordered.grid.difference(grid)}",
            path=path,
            code="grid-mismatch",
            next_step="Resample the volume onto the scan's grid first.",
        )
    return Volume(reordered.data, grid)


def _read_zip(path: Path, options: ReadOptions) -> Scan:
    """Read the only scan in a zip.

    Findings and errors name the zip, because the extracted files are temporary.
    """
    from kidseg.io.archive import extracted

    with extracted(path) as folder:

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
    """Find the only NIfTI, NRRD or MetaImage file below a folder; the folder if there is none."""
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
            f"it contains {len(files)} scans: {names}",
            path=path,
            code="several-scans",
            next_step="Put only one scan in each zip.",
        )
    return files[0] if files else folder
