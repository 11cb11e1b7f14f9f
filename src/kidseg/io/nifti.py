"""NIfTI-1 and NIfTI-2, uncompressed or gzip.

nibabel parses the header; `kidseg.io.payload` reads and verifies the data, directly into one array.
nibabel and SimpleITK use different affines of a file, so files whose affines disagree are refused.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from kidseg.errors import Finding, InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io.checks import bad_header
from kidseg.io.nifti_affine import AGREE_MM, corner_gap_mm, qform_of, sform_of
from kidseg.io.nifti_header import parse, read_header
from kidseg.io.numbers import scaled, stored_array
from kidseg.io.orientation import affine_of_grid
from kidseg.io.payload import open_payload, write_gzip
from kidseg.io.scan import ReadOptions, Scan, scan_of

if TYPE_CHECKING:
    import nibabel

__all__ = ["read_nifti", "read_nifti_grid", "write_nifti"]


def read_nifti(path: Path, options: ReadOptions) -> Scan:
    """Read a NIfTI file as a scan.

    Raises:
        InputError: the file is not one valid volume; see the codes of `kidseg.io.checks`, and
            "not-nifti", "bad-header", "unsupported-type", "colour-image", "bad-scaling",
            "affines-disagree", "no-orientation", "bad-unit", "no-such-volume".
        ResourceError: "not-enough-memory".
    """
    with open_payload(path) as payload:
        header = read_header(payload, options)
        count = math.prod(header.native.shape)
        payload.skip(header.bytes_before)
        values = payload.array(header.stored, count, options.memory_limit_bytes)
        payload.skip(header.bytes_after)
        extra = payload.finish()
    if header.doubtful_offset and extra:
        raise bad_header(f"{header.doubtful_offset}; {extra[0].cause}", path)
    is_gzip = payload.encoding == "gzip"
    findings = (*header.findings, *_name_findings(path, is_gzip=is_gzip), *extra)
    data = scaled(values, header.slope, header.intercept, path)
    return scan_of(
        data.reshape(1, *header.native.shape),
        header.native,
        path=path,
        format="nifti",
        options=options,
        stored=header.stored,
        findings=findings,
    )


def read_nifti_grid(path: Path, options: ReadOptions) -> Grid:
    """Read the native grid of a NIfTI file from its header.

    Raises:
        InputError: as `read_nifti`, for problems in the header.
    """
    with open_payload(path) as payload:
        return read_header(payload, options).native


def write_nifti(
    volume: Volume, file: BinaryIO, path: Path, *, like: Path | None = None, step: float = 1.0
) -> None:
    """Write one channel in its native voxel order; gzip if `path` ends in .gz.

    Both affines are written with code 1. Those of `like`, a NIfTI file on the same grid, are copied
    bit for bit. If the qform cannot represent the grid to 1e-3 mm (a float32 quaternion of a
    rotation by almost 180 degrees, or a sheared grid), its code is 0 and readers use the sform.
    Readers multiply the stored values by `step`.

    Raises:
        UsageError: "too-large-for-nifti": over 32767 voxels along an axis.
    """
    array = stored_array(volume.data[0])
    header = _new_header(volume.grid, array.dtype, path, like)
    header["scl_slope"] = step
    start = memoryview(header.binaryblock + b"\0\0\0\0")
    voxels = memoryview(array.data).cast("B")
    if path.suffix.lower() == ".gz":
        write_gzip(file, start, voxels)
    else:
        file.write(start)
        file.write(voxels)


def _name_findings(path: Path, *, is_gzip: bool) -> tuple[Finding, ...]:
    if is_gzip == (path.suffix.lower() == ".gz"):
        return ()
    code = "gzip-not-named-gz" if is_gzip else "plain-named-gz"
    cause = (
        "it is a gzip file, but is not named .gz"
        if is_gzip
        else "it is named .gz, but is not a gzip file"
    )
    step = "Rename it: other programs rely on the name."
    return (Finding(code=code, path=str(path), cause=cause, next_step=step),)


def _new_header(
    grid: Grid, stored: np.dtype, path: Path, like: Path | None
) -> nibabel.Nifti1Header:
    import nibabel

    shape = grid.shape[::-1]
    if max(shape) > np.iinfo(np.int16).max:
        raise UsageError(
            f"{max(shape)} voxels along an axis are too many for NIfTI",
            path=path,
            code="too-large-for-nifti",
            next_step="Write .nrrd or .mha.",
        )
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(stored)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"], header["descrip"] = b"n+1", 352, b"kidseg"
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    affine = affine_of_grid(grid)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1, strip_shears=True)
    if like is not None:
        with open_payload(like) as payload:
            _copy_affines(header, parse(payload), grid, path)
    steps = np.array(header["pixdim"][1:4], dtype=np.float64)
    written = qform_of(header, steps, path)
    if corner_gap_mm(sform_of(header), written, grid.shape) > AGREE_MM:
        header["qform_code"] = 0
    return header


def _copy_affines(
    header: nibabel.Nifti1Header, source: nibabel.Nifti1Header, grid: Grid, path: Path
) -> None:
    """Copy those affines of `source` bit for bit that are the grid's.

    The other one may be, for example, the one that was not trusted when the scan was read.
    """
    affine = affine_of_grid(grid)
    if int(source["sform_code"]) > 0 and _is_near(sform_of(source), affine, grid):
        for name in ("srow_x", "srow_y", "srow_z"):
            header[name] = source[name]
    if int(source["qform_code"]) > 0:
        steps = np.array(source["pixdim"][1:4], dtype=np.float64)
        with suppress(InputError):  # no rotation
            if _is_near(qform_of(source, steps, path), affine, grid):
                header["pixdim"][:4] = source["pixdim"][:4]
                for name in [*(f"quatern_{i}" for i in "bcd"), *(f"qoffset_{i}" for i in "xyz")]:
                    header[name] = source[name]


def _is_near(affine: np.ndarray, wanted: np.ndarray, grid: Grid) -> bool:
    return bool(np.isfinite(affine).all()) and corner_gap_mm(affine, wanted, grid.shape) <= AGREE_MM
