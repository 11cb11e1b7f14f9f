"""Parse and check the header of a NIfTI file: data type, scaling and the first voxel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid
from kidseg.io import checks
from kidseg.io.checks import bad_header
from kidseg.io.nifti_affine import position
from kidseg.io.numbers import is_supported
from kidseg.io.payload import Payload
from kidseg.io.scan import ReadOptions

if TYPE_CHECKING:
    import nibabel

__all__ = [
    "NiftiHeader",
    "parse",
    "read_header",
]

_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
# Source: NIfTI-1, "extended header": the size of an extension is a positive multiple of 16 bytes.
_LEAST_EXTENSION = 16
_SINGLE_FILE = {b"n+1\0", b"n+2\0"}


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A valid header: stored data type, native grid, scaling, findings.

    In a file with several volumes, the others take `bytes_before` and `bytes_after` the chosen one.
    `doubtful_offset` says why the position of the first voxel is doubtful; then it is only right
    if the file ends with the last voxel.
    """

    stored: np.dtype
    native: Grid
    slope: float
    intercept: float
    findings: tuple[Finding, ...]
    bytes_before: int = 0
    bytes_after: int = 0
    doubtful_offset: str = ""


# ---- header ------------------------------------------------------------------------------------


def read_header(payload: Payload, options: ReadOptions) -> NiftiHeader:
    """Read the header from the start of a payload, up to the first voxel.

    Raises:
        InputError: as `kidseg.io.nifti.read_nifti`, for problems in the header.
    """
    path = payload.path
    fields = parse(payload)
    doubtful_offset, moved = _go_to_voxels(payload, fields)
    ranks = int(fields["dim"][0])
    if not 1 <= ranks <= 7:
        raise bad_header(f"its number of dimensions, {ranks}, is invalid", path)
    stored = _stored_type(fields, path)
    sizes = [int(n) for n in fields["dim"][1 : 1 + ranks]]
    before, after = 0, 0
    if options.volume is not None and min(sizes) >= 1:
        before, after = _other_volumes(math.prod(sizes[3:]), options.volume, path)
        sizes = sizes[:3]
    nx, ny, nz = checks.volume_shape(sizes, path)
    volume_bytes = nx * ny * nz * stored.itemsize
    mm_from_index, findings = position(fields, (nz, ny, nx), path, options)
    slope, intercept = _scaling(fields, path)
    native = checks.grid_of((nz, ny, nx), mm_from_index, path)
    return NiftiHeader(
        stored=stored,
        native=native,
        slope=slope,
        intercept=intercept,
        findings=(*moved, *findings),
        bytes_before=before * volume_bytes,
        bytes_after=after * volume_bytes,
        doubtful_offset=doubtful_offset,
    )


def _go_to_voxels(
    payload: Payload, fields: nibabel.Nifti1Header
) -> tuple[str, tuple[Finding, ...]]:
    """Skip extensions up to the first voxel.

    Returns:
        Why the stated offset is doubtful ("" if it is not), and findings. No voxel can be before
        byte 352 (NIfTI-2: 544). That byte replaces two offsets that some programs write: 0, and the
        size of the header without the four bytes after it.

    Raises:
        InputError: "bad-header": no possible offset; "truncated-file".

    Source: NIfTI-1, "extended header": four bytes follow the header; the first is not zero if
    extensions follow, each of which starts with its size in four bytes.
    """
    offset, at = float(fields["vox_offset"]), fields.sizeof_hdr + 4
    is_short = offset in (0, fields.sizeof_hdr)
    if not (is_short or (offset.is_integer() and at <= offset < 2**31)):
        raise bad_header(f"its voxel offset, byte {offset:g}, is invalid", payload.path)
    has_extensions = payload.read(4)[:1] not in (b"\0", b"")
    if is_short:
        cause = f"its voxel offset, byte {offset:g}, is inside the header"
        finding = Finding(
            code="voxel-offset-corrected",
            path=str(payload.path),
            cause=f"{cause}; the length of the file shows that voxels start at byte {at}",
            next_step="Other programs may show it shifted: save it again with a valid header.",
        )
        return cause, (finding,)
    count = int(offset) - at
    if not has_extensions:
        payload.skip(count)
    elif not _skip_extensions(payload, count, "little" if fields.endianness == "<" else "big"):
        return f"its voxel offset, byte {offset:g}, is inside an extension", ()
    return "", ()


def _skip_extensions(payload: Payload, count: int, order: Literal["little", "big"]) -> bool:
    """Skip `count` bytes of extensions and padding; whether they end with no extension cut."""
    left = count
    while left >= _LEAST_EXTENSION:
        size = int.from_bytes(payload.read(4), order)
        fits = not size % _LEAST_EXTENSION and size <= left
        step = size if fits and size else left
        payload.skip(step - 4)
        left -= step
        if not fits:
            return False
    return count >= _LEAST_EXTENSION and not any(payload.read(left))


def parse(payload: Payload) -> nibabel.Nifti1Header:
    """Parse the raw fields of a NIfTI-1 or NIfTI-2 header without checking them.

    Raises:
        InputError: "not-nifti", "truncated-file", "detached-nifti".
    """
    import nibabel

    start = payload.read(4)
    known = {n.to_bytes(4, order): n for n in (348, 540) for order in _ORDERS}
    if (size := known.get(start)) is None:
        raise InputError(
            "it is not a NIfTI file",
            path=payload.path,
            code="not-nifti",
            next_step="Check that this is the intended file.",
        )
    block = start + payload.read(size - 4)
    if len(block) < size:
        raise InputError(
            f"its header is truncated after {len(block)} bytes",
            path=payload.path,
            code="truncated-file",
            next_step="Copy or export the file again.",
        )
    fields: nibabel.Nifti1Header
    if size == 348:
        fields = nibabel.Nifti1Header(block, check=False)
    else:
        fields = nibabel.Nifti2Header(block, check=False)
    if bytes(fields["magic"].tobytes()[:4]) not in _SINGLE_FILE:
        raise InputError(
            "its voxels are in a separate file (.hdr and .img: NIfTI pair or Analyze)",
            path=payload.path,
            code="detached-nifti",
            next_step="Convert it to a single .nii.gz; Analyze files do not state left and right.",
        )
    return fields


def _other_volumes(count: int, chosen: int, path: Path) -> tuple[int, int]:
    """Number of volumes before and after the chosen one."""
    if not 0 <= chosen < count:
        raise InputError(
            f"it contains {count} volume(s), so there is no volume {chosen} (counted from 0)",
            path=path,
            code="no-such-volume",
            next_step="Check the number of channels in the dataset.",
        )
    return chosen, count - 1 - chosen


def _stored_type(fields: nibabel.Nifti1Header, path: Path) -> np.dtype:
    from nibabel.spatialimages import HeaderDataError

    try:
        stored: np.dtype = np.dtype(fields.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise InputError(
            f"its data type code {int(fields['datatype'])} is unknown",
            path=path,
            code="unsupported-type",
            next_step="Convert it to int16 or float32.",
        ) from error
    if stored.fields is not None:
        raise InputError(
            "it is a colour image, not one value per voxel",
            path=path,
            code="colour-image",
            next_step="Use the original scan.",
        )
    if not is_supported(stored):
        raise InputError(
            f"its data type {stored.name} is not supported",
            path=path,
            code="unsupported-type",
            next_step="Convert it to int16 or float32.",
        )
    if int(fields["bitpix"]) != 8 * stored.itemsize:
        raise bad_header(
            f"data type {stored.name} and {int(fields['bitpix'])} bits per voxel disagree", path
        )
    return stored


def _scaling(fields: nibabel.Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept. Source: NIfTI-1, scl_slope: zero means no scaling."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            f"its scaling is invalid: {slope:g} x value + {intercept:g}",
            path=path,
            code="bad-scaling",
            next_step="The header is damaged: export the scan again.",
        )
    return slope, intercept
