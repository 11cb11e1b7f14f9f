"""The position of the voxels in a NIfTI header: two affines, sform and qform, that must agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from kidseg.errors import Finding, InputError
from kidseg.io import checks
from kidseg.io.orientation import mm_from_index_of_affine
from kidseg.io.scan import ReadOptions

if TYPE_CHECKING:
    import nibabel

__all__ = ["AGREE_MM", "corner_gap_mm", "position", "qform_of", "sform_of"]

AGREE_MM = 1e-3
"""Two affines agree if no corner differs by more than this distance."""

_UNKNOWN_UNIT, _MILLIMETRE = 0, 2
_NEITHER = (
    "If you know that its axes run to right, anterior and superior, specify the spacing with "
    "--spacing SLICE ROW COLUMN, without --trust."
)


def position(
    fields: nibabel.Nifti1Header,
    shape: tuple[int, int, int],
    path: Path,
    options: ReadOptions,
) -> tuple[torch.Tensor, tuple[Finding, ...]]:
    """mm_from_index (4, 4) of the native voxel order, and findings.

    With `options.trust`, only that affine is read: the sform has its own lengths, so that neither
    pixdim nor the qform matters; the qform consists of the quaternion and pixdim.

    Raises:
        InputError: "bad-unit", "bad-spacing", "bad-affine", "affines-disagree", "no-orientation".
    """
    unit = int(fields["xyzt_units"]) % 8
    if unit not in (_UNKNOWN_UNIT, _MILLIMETRE):
        raise InputError(
            "its unit of length is not millimetres, but "
            f"{({1: 'metres', 3: 'micrometres'}).get(unit, 'unknown')}",
            path=path,
            code="bad-unit",
            next_step="Export the scan again in millimetres.",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        if options.trust is None:
            affine, findings = _agreed(fields, shape, path, options)
        else:
            affine, findings = _trusted(fields, options.trust, path, options), ()
    matrix = mm_from_index_of_affine(affine)
    if options.spacing_mm is None:
        return matrix, findings
    return checks.with_spacing(matrix, options.spacing_mm, path), findings


def _trusted(
    fields: nibabel.Nifti1Header,
    trust: Literal["sform", "qform"],
    path: Path,
    options: ReadOptions,
) -> np.ndarray:
    other = "qform" if trust == "sform" else "sform"
    if int(fields[f"{trust}_code"]) <= 0:
        raise InputError(
            f"it has no {trust} (its code is 0)",
            path=path,
            code="no-orientation",
            next_step=f"Use --trust {other}." if int(fields[f"{other}_code"]) > 0 else _NEITHER,
        )
    if trust == "qform":
        return qform_of(fields, _steps(fields, path, options), path)
    sform = sform_of(fields)
    _check_affine(sform, trust, other, path)
    return sform


def _agreed(
    fields: nibabel.Nifti1Header,
    shape: tuple[int, int, int],
    path: Path,
    options: ReadOptions,
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The affine on which sform, qform and pixdim agree, as far as the file has them."""
    findings: tuple[Finding, ...] = ()
    has_qform = int(fields["qform_code"]) > 0
    sform = sform_of(fields) if int(fields["sform_code"]) > 0 else None
    if sform is not None and not sform[:3, :3].any():
        sform = None
        used = "; the qform was used" if has_qform else ""
        cause = f"its sform is empty: its code is {int(fields['sform_code'])}, but all axes are 0"
        findings = (Finding(code="empty-sform", path=str(path), cause=cause + used),)
    steps = _steps(fields, path, options, or_trust=sform is not None)
    if sform is not None:
        _check_affine(sform, "sform", "qform" if has_qform else "", path)
    if not has_qform:
        if sform is None:
            affine, assumed = _without_codes(path, options)
            return affine, (*findings, *assumed)
        if options.spacing_mm is None:
            findings = _check_lengths(sform, steps, shape, path)
        return sform, findings
    qform = qform_of(fields, steps, path)
    if sform is None:
        return qform, findings
    _check_affine(qform, "qform", "sform", path)
    _check_agreement(sform, qform, shape, fields, path, options)
    return sform, findings


def _steps(
    fields: nibabel.Nifti1Header, path: Path, options: ReadOptions, *, or_trust: bool = False
) -> np.ndarray:
    """(3,) pixdim, fastest axis first; ones if a spacing overrides it: directions are kept."""
    if options.spacing_mm is not None:
        return np.ones(3)
    pixdim = np.array(fields["pixdim"][1:4], dtype=np.float64)
    step = ", or use --trust sform, which does not depend on it." if or_trust else "."
    checks.check_spacing(
        pixdim[::-1].tolist(),
        path,
        next_step=f"Specify the correct spacing with --spacing SLICE ROW COLUMN{step}",
    )
    return pixdim


def _check_affine(affine: np.ndarray, name: str, other: str, path: Path) -> None:
    """Refuse an affine without three directions, naming it and the other one."""
    if checks.is_invertible(torch.from_numpy(affine)):
        return
    state = "empty: all axes are 0" if not affine[:3, :3].any() else "not finite or not invertible"
    raise InputError(
        f"its {name} is invalid: {state}",
        path=path,
        code="bad-affine",
        next_step=f"If its {other} is valid, use --trust {other}."
        if other
        else "Export the scan again.",
    )


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
            next_step="If its sform is valid, use --trust sform."
            if int(fields["sform_code"]) > 0
            else "Export the scan again.",
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


def _without_codes(path: Path, options: ReadOptions) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Source: NIfTI-1, "method 1", for files whose codes are both 0: axes run R, A, S."""
    if options.spacing_mm is None:
        raise InputError(
            "its position and orientation are missing (it has neither sform nor qform)",
            path=path,
            code="no-orientation",
            next_step=_NEITHER,
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
    if handed * np.linalg.det(turn) <= 0:
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
