"""Parse and check the header of a NIfTI file: data type, scaling and geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid
from kidseg.io import checks
from kidseg.io.checks import bad_header
from kidseg.io.numbers import is_supported
from kidseg.io.orientation import mm_from_index_of_affine
from kidseg.io.payload import Payload
from kidseg.io.scan import ReadOptions

if TYPE_CHECKING:
    import nibabel

__all__ = [
    "AGREE_MM",
    "NiftiHeader",
    "corner_gap_mm",
    "parse",
    "qform_of",
    "read_header",
    "sform_of",
]

AGREE_MM = 1e-3
"""Two affines agree if no corner differs by more than this distance."""

_UNKNOWN_UNIT, _MILLIMETRE = 0, 2
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_SINGLE_FILE = {b"n+1\0", b"n+2\0"}


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A valid header: stored data type, native grid, scaling, findings.

    In a file with several volumes, the others take `bytes_before` and `bytes_after` the chosen one.
    """

    stored: np.dtype
    native: Grid
    slope: float
    intercept: float
    findings: tuple[Finding, ...]
    bytes_before: int = 0
    bytes_after: int = 0


# ---- header ------------------------------------------------------------------------------------


def read_header(payload: Payload, options: ReadOptions) -> NiftiHeader:
    """Read the header from the start of a payload, up to the first voxel.

    Raises:
        InputError: as `kidseg.io.nifti.read_nifti`, for problems in the header.
    """
    path = payload.path
    fields = parse(payload)
    offset = float(fields["vox_offset"])
    if not (offset.is_integer() and fields.sizeof_hdr <= offset < 2**31):
        raise bad_header(f"its voxel offset, byte {offset:g}, is invalid", path)
    skip = int(offset) - fields.sizeof_hdr
    if len(payload.read(skip)) < skip:
        raise InputError(
            "it is truncated before the first voxel",
            path=path,
            code="truncated-file",
            next_step="Copy or export the file again.",
        )
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
    mm_from_index, findings = _position(fields, (nz, ny, nx), path, options)
    slope, intercept = _scaling(fields, path)
    native = checks.grid_of((nz, ny, nx), mm_from_index, path)
    return NiftiHeader(
        stored=stored,
        native=native,
        slope=slope,
        intercept=intercept,
        findings=findings,
        bytes_before=before * volume_bytes,
        bytes_after=after * volume_bytes,
    )


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


# ---- geometry ----------------------------------------------------------------------------------


def _position(
    fields: nibabel.Nifti1Header,
    shape: tuple[int, int, int],
    path: Path,
    options: ReadOptions,
) -> tuple[torch.Tensor, tuple[Finding, ...]]:
    """mm_from_index (4, 4) of the native voxel order, and findings."""
    unit = int(fields["xyzt_units"]) % 8
    if unit not in (_UNKNOWN_UNIT, _MILLIMETRE):
        raise InputError(
            "its unit of length is not millimetres, but "
            f"{({1: 'metres', 3: 'micrometres'}).get(unit, 'unknown')}",
            path=path,
            code="bad-unit",
            next_step="Export the scan again in millimetres.",
        )
    pixdim = np.array(fields["pixdim"][1:4], dtype=np.float64)
    override = options.spacing_mm
    if override is None:
        checks.check_spacing(pixdim[::-1].tolist(), path)
    affine, findings = _affine(fields, pixdim, shape, path, options)
    matrix = mm_from_index_of_affine(affine)
    if override is None:
        return matrix, findings
    return checks.with_spacing(matrix, override, path), findings


def _affine(
    fields: nibabel.Nifti1Header,
    pixdim: np.ndarray,
    shape: tuple[int, int, int],
    path: Path,
    options: ReadOptions,
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    sform = sform_of(fields) if int(fields["sform_code"]) > 0 else None
    qform = None
    if int(fields["qform_code"]) > 0 and options.trust != "sform":
        # An overriding spacing replaces these lengths; the directions are kept.
        steps = np.ones(3) if options.spacing_mm is not None else pixdim
        qform = qform_of(fields, steps, path)
    if options.trust is not None:
        trusted = {"sform": sform, "qform": qform}[options.trust]
        if trusted is None:
            raise InputError(
                f"it has no {options.trust} (its code is 0)",
                path=path,
                code="no-orientation",
                next_step="Use the other one with --trust.",
            )
        return trusted, ()
    if sform is None and qform is None:
        return _without_codes(fields, path, options)
    if sform is None or qform is None:
        only = qform if sform is None else sform
        assert only is not None
        if sform is not None and options.spacing_mm is None:
            return only, _check_lengths(sform, pixdim, shape, path)
        return only, ()
    _check_agreement(sform, qform, shape, fields, path, options)
    return sform, ()


def sform_of(fields: nibabel.Nifti1Header) -> np.ndarray:
    """(4, 4) affine of the sform."""
    affine = np.eye(4)
    affine[:3] = [fields["srow_x"], fields["srow_y"], fields["srow_z"]]
    return affine


def qform_of(fields: nibabel.Nifti1Header, steps_mm: np.ndarray, path: Path) -> np.ndarray:
    """(4, 4) affine of the qform, with the given voxel size.

    Raises:
        InputError: "bad-affine": the quaternion is not a rotation.

    Source: NIfTI-1, "method 2": rotation by a quaternion, steps, and a handedness.
    """
    imaginary = np.array([fields[f"quatern_{i}"] for i in "bcd"], dtype=np.float64)
    b, c, d = imaginary
    rest = 1.0 - float(imaginary @ imaginary)
    rounding = 3 * float(np.finfo(fields["quatern_b"].dtype).eps)
    if not rest >= -rounding:
        raise InputError(
            f"the quaternion of its qform, ({b:g}, {c:g}, {d:g}), is not a rotation",
            path=path,
            code="bad-affine",
            next_step="If its sform is valid, use --trust sform.",
        )
    a = math.sqrt(rest) if rest > rounding else 0.0
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if a == 0.0:
        turn /= float(imaginary @ imaginary)
    steps = steps_mm.copy()
    steps[2] *= -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = turn * steps
    affine[:3, 3] = [float(fields[f"qoffset_{i}"]) for i in "xyz"]
    return affine


def _without_codes(
    fields: nibabel.Nifti1Header, path: Path, options: ReadOptions
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Source: NIfTI-1, "method 1", for files whose codes are both 0: axes run R, A, S."""
    if options.spacing_mm is None:
        raise InputError(
            "its position and orientation are missing (sform and qform codes are 0)",
            path=path,
            code="no-orientation",
            next_step="If you know that its axes run to right, anterior and superior, specify the "
            "spacing with --spacing SLICE ROW COLUMN.",
        )
    cause = (
        "its position and orientation are missing; axes were assumed to run to right, anterior "
        "and superior"
    )
    return np.eye(4), (Finding(code="orientation-assumed", path=str(path), cause=cause),)


def _check_agreement(
    sform: np.ndarray,
    qform: np.ndarray,
    shape: tuple[int, int, int],
    fields: nibabel.Nifti1Header,
    path: Path,
    options: ReadOptions,
) -> None:
    """Refuse affines that differ by over 1e-3 mm at a corner, unless rounding explains it.

    A file does not store the real part of the quaternion. For rotations by almost 180 degrees, as
    in any oblique scan stored in LPS, rounding of the other three parts changes it by up to 5e-4,
    and a corner by 0.1 mm. So a quaternion that equals the sform's after rounding agrees with it.
    """
    if options.spacing_mm is not None:
        sform = sform.copy()
        sform[:3, :3] /= np.linalg.norm(sform[:3, :3], axis=0)
    apart = corner_gap_mm(sform, qform, shape)
    if apart > AGREE_MM and _is_rounded_rotation(fields, sform):
        steps = np.linalg.norm(qform[:3, :3], axis=0)
        turned = qform.copy()
        turned[:3, :3] = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0) * steps
        apart = corner_gap_mm(sform, turned, shape)
    if not apart <= AGREE_MM:
        raise InputError(
            f"its two affines, sform and qform, disagree by {apart:.3g} mm",
            path=path,
            code="affines-disagree",
            next_step="Determine which is correct, then use --trust sform or --trust qform.",
        )


def _is_rounded_rotation(fields: nibabel.Nifti1Header, sform: np.ndarray) -> bool:
    """Whether the file's quaternion is the rotation of the sform up to rounding."""
    from nibabel.quaternions import mat2quat

    turn = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
    handed = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    if not np.isfinite(turn).all() or handed * np.linalg.det(turn) <= 0:
        return False
    real, *imaginary = mat2quat(turn * [1.0, 1.0, handed])
    stored = np.array([fields[f"quatern_{i}"] for i in "bcd"], dtype=np.float64)
    rounding = 4 * float(np.finfo(fields["quatern_b"].dtype).eps)
    signs = (1.0, -1.0) if abs(real) < 1e-3 else (1.0 if real > 0 else -1.0,)
    return any(np.abs(sign * np.array(imaginary) - stored).max() <= rounding for sign in signs)


def _check_lengths(
    sform: np.ndarray, pixdim: np.ndarray, shape: tuple[int, int, int], path: Path
) -> tuple[Finding, ...]:
    """Compare the voxel size of the sform with pixdim, which SimpleITK uses.

    A deviation of less than half a voxel over the full extent is rounding and gives a finding.
    """
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    apart = np.abs(lengths - pixdim) * (np.array(shape[::-1]) - 1)
    if (apart <= AGREE_MM).all():
        return ()
    lengths_text = " x ".join(f"{s:.6g}" for s in lengths)
    cause = (
        f"its voxel size is {lengths_text} mm in the sform, but "
        f"{' x '.join(f'{s:.6g}' for s in pixdim)} mm in pixdim"
    )
    if not (apart < 0.5 * pixdim).all():
        raise InputError(
            cause,
            path=path,
            code="affines-disagree",
            next_step="Use --trust sform, or specify the spacing with --spacing SLICE ROW COLUMN.",
        )
    cause = f"{cause}; the sform was used"
    return (Finding(code="spacing-rounded", path=str(path), cause=cause),)


def corner_gap_mm(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Largest distance between the corners of (slices, rows, columns) under two affines."""
    nz, ny, nx = shape
    ends = np.array(np.meshgrid([0, nx - 1], [0, ny - 1], [0, nz - 1], [1])).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ ends)[:3], axis=0).max())
