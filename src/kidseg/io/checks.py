"""Validity checks that the readers of all formats share.

Each check raises `InputError` for invalid input and returns findings for doubtful input. Nothing
here opens a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kidseg.errors import Finding, InputError, ResourceError
from kidseg.geometry import Grid

__all__ = [
    "AIR_HU",
    "available_memory_bytes",
    "bad_header",
    "check_matrix",
    "check_memory",
    "check_resolution",
    "check_spacing",
    "grid_of",
    "is_invertible",
    "orthogonal_grid",
    "replace_nonfinite",
    "volume_shape",
    "with_spacing",
]

AIR_HU = -1024.0
"""Replaces missing CT values: the lowest value of most scanners, at or below air."""

# Row 16 of the robustness table.
_MAX_ANISOTROPY = 6.0
_MAX_SLICE_MM = 5.0
# Tolerance for rounding in a header, such as 5.0000002 mm.
_ROUNDING = 1e-4

# Sides of a scan of a patient, from a newborn's to those of the longest couch.
_MAX_SIDE_MM, _MIN_SIDE_MM = 3000.0, 80.0
# A crop around a kidney may be as small, but has fewer pixels.
_MIN_PIXELS = 128
# No patient is further from the origin of a scanner.
_MAX_MM = 1e6
# More voxels along an axis than any scanner or format gives.
_MAX_AXIS = 2**31 - 1


def bad_header(cause: str, path: Path) -> InputError:
    """The error "bad-header"."""
    return InputError(
        cause,
        path=path,
        code="bad-header",
        next_step="The header is damaged: copy or export the file again.",
    )


# ---- size and shape ----------------------------------------------------------------------------


def available_memory_bytes() -> int | None:
    """Memory available now, within the limit of a container; None if it is unknown."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no container, or one without a limit ("max")
    return max(0, min(found)) if found else None


def check_memory(
    asked_bytes: int, path: Path, *, held_bytes: int | None = None, limit_bytes: int | None = None
) -> None:
    """Check a size before allocation: it must be plausible for the file and fit in memory.

    Args:
        asked_bytes: size of the voxels according to the header.
        path: the file, for the message.
        held_bytes: maximum size of the file's decompressed content, if known.
        limit_bytes: memory limit; by default the memory available now.

    Raises:
        InputError: "absurd-size": the file cannot hold as many voxels as its header states.
        ResourceError: "not-enough-memory".
    """
    if held_bytes is not None and asked_bytes > held_bytes:
        raise InputError(
            f"the header states {_size(asked_bytes)} of voxels, but the file cannot hold more "
            f"than {_size(held_bytes)}",
            path=path,
            code="absurd-size",
            next_step="The file is truncated or its header is damaged: copy or export it again.",
        )
    limit = available_memory_bytes() if limit_bytes is None else limit_bytes
    if limit is not None and asked_bytes > limit:
        raise ResourceError(
            f"reading it needs {_size(asked_bytes)} of memory, but only {_size(limit)} may be used",
            path=path,
            code="not-enough-memory",
            next_step="Use a machine with more memory, or crop the scan.",
        )


def volume_shape(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    """The three sizes of a volume, from the sizes along a file's axes, fastest axis first.

    Further axes of length 1 are dropped. A volume may have a single slice.

    Raises:
        InputError: "empty-axis", "two-dimensional", "several-volumes" or "absurd-size".
    """
    sizes = tuple(int(n) for n in shape)
    text = " x ".join(f"{n:g}" if n > _MAX_AXIS else str(n) for n in sizes)
    if not sizes or min(sizes) < 1:
        raise InputError(
            f"an axis has no voxels: {text or 'no axes'}",
            path=path,
            code="empty-axis",
            next_step="The header is damaged: export the scan again.",
        )
    if len(sizes) < 3:
        raise InputError(
            f"it is a {len(sizes)}-dimensional image of {text}, not a volume",
            path=path,
            code="two-dimensional",
            next_step="Store a slice as a volume with one slice, with its position in the patient.",
        )
    if any(n != 1 for n in sizes[3:]):
        raise InputError(
            f"it contains several volumes or components ({text}); only one is supported",
            path=path,
            code="several-volumes",
            next_step="Save the required volume as a separate file.",
        )
    if max(sizes) > _MAX_AXIS:
        raise InputError(
            f"the header states {text} voxels, which no file can hold",
            path=path,
            code="absurd-size",
            next_step="The header is damaged: copy or export the file again.",
        )
    return sizes[0], sizes[1], sizes[2]


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


# ---- geometry ----------------------------------------------------------------------------------


def check_spacing(
    spacing_mm: Sequence[float],
    path: Path,
    next_step: str = "Specify the correct spacing with --spacing SLICE ROW COLUMN.",
) -> None:
    """Check that the spacing is positive and finite.

    Raises:
        InputError: "bad-spacing".
    """
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise InputError(
            f"the voxel spacing is invalid: {' x '.join(f'{s:g}' for s in spacing_mm)} mm",
            path=path,
            code="bad-spacing",
            next_step=next_step,
        )


def is_invertible(mm_from_index: Tensor) -> bool:
    """Whether an affine (4, 4) has finite numbers within a kilometre and three directions."""
    linear = mm_from_index[:3, :3]
    spacing = torch.linalg.vector_norm(linear, dim=0)
    if not bool((mm_from_index.abs() <= _MAX_MM).all()):  # NaN is refused, too
        return False
    return bool((spacing > 0).all()) and float(torch.linalg.det(linear / spacing).abs()) > 1e-3


def check_matrix(mm_from_index: Tensor, path: Path) -> None:
    """Check that an affine is finite and invertible.

    Raises:
        InputError: "bad-affine" or "bad-spacing".
    """
    if is_invertible(mm_from_index):
        return
    if bool(torch.isfinite(mm_from_index).all()):
        check_spacing(torch.linalg.vector_norm(mm_from_index[:3, :3], dim=0).tolist(), path)
    raise InputError(
        "its affine is invalid: not finite, not invertible, or over a kilometre from the origin",
        path=path,
        code="bad-affine",
        next_step="The header is damaged: export the scan again.",
    )


def grid_of(shape: Sequence[int], mm_from_index: Tensor, path: Path) -> Grid:
    """The grid that a file's header describes.

    Raises:
        InputError: "bad-affine" or "bad-spacing".
    """
    check_matrix(mm_from_index, path)
    nz, ny, nx = shape
    return Grid((nz, ny, nx), mm_from_index)


def with_spacing(mm_from_index: Tensor, spacing_mm: Sequence[float], path: Path) -> Tensor:
    """Scale the axes of the matrix to `spacing_mm`; the origin stays.

    `spacing_mm` is (slice, row, column) in the file's native voxel order.

    Raises:
        InputError: "bad-spacing" if the new spacing is not positive; "bad-affine" if an axis has no
            direction.
    """
    check_spacing(spacing_mm, path)
    matrix = mm_from_index.clone()
    length = torch.linalg.vector_norm(matrix[:3, :3], dim=0)
    matrix[:3, :3] *= torch.as_tensor(spacing_mm, dtype=matrix.dtype) / length
    check_matrix(matrix, path)
    return matrix


def orthogonal_grid(grid: Grid, path: Path) -> tuple[Grid, tuple[Finding, ...]]:
    """The grid itself, or the closest one with orthogonal axes if it is slightly sheared.

    A shear of up to 1e-3 mm at every corner counts as rounding: the grid is returned unchanged. A
    shear of less than half a voxel at every corner is slight: each voxel of the orthogonal grid is
    still closest to its own voxel in the file, so resampling moves no label.

    Raises:
        InputError: "sheared": some voxel would move by half a voxel or more.

    Source: the nearest orthogonal matrix is the orthogonal factor of the polar decomposition
    (Fan and Hoffman, 1955), here of the unit axes.
    """
    spacing = grid.spacing_mm
    axes = grid.mm_from_index[:3, :3] / spacing
    left, _, right = torch.linalg.svd(axes)
    matrix = grid.mm_from_index.clone()
    matrix[:3, :3] = (left @ right) * spacing
    middle = (torch.tensor(grid.shape, dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = grid.centre_mm - matrix[:3, :3] @ middle
    orthogonal = Grid(grid.shape, matrix)
    if orthogonal.same_as(grid):
        return grid, ()
    corners = torch.tensor(list(product(*((0, n - 1) for n in grid.shape))), dtype=torch.float64)
    moved = (grid.index(orthogonal.mm(corners)) - corners).abs().max().item()
    gram = (axes.T @ axes).abs()
    angle = 90 - math.degrees(math.acos(min(1.0, float((gram - torch.diag(gram.diag())).max()))))
    if moved >= 0.5:
        raise InputError(
            f"its axes are not orthogonal ({angle:.2f} degrees off): the grid is sheared",
            path=path,
            code="sheared",
            next_step="If the gantry was tilted, read the DICOM series with --repair; "
            "otherwise resample the scan onto an orthogonal grid.",
        )
    finding = Finding(
        code="slightly-sheared",
        path=str(path),
        cause=f"its axes are {angle:.3f} degrees off orthogonal ({moved:.2f} voxels at a "
        "corner); it was resampled onto the closest orthogonal grid",
    )
    return orthogonal, (finding,)


def check_resolution(grid: Grid, path: Path) -> tuple[Finding, ...]:
    """Findings on voxels that are too coarse to show small structures, or in another unit.

    "anisotropic-voxels" if the largest spacing is over 6 times the smallest, "thick-slices" if it
    is over 5 mm; only "implausible-size" if it would be no scan of a patient: longer than the
    couch of any scanner, or, with the pixels of a whole image, smaller than a newborn.
    """
    spacing = grid.spacing_mm.reshape(-1, 3).median(dim=0).values.tolist()
    sides = sorted(n * mm for n, mm in zip(grid.shape, spacing, strict=True))
    is_small = sides[-1] < _MIN_SIDE_MM and sorted(grid.shape)[1] >= _MIN_PIXELS
    if is_small or sides[-1] > _MAX_SIDE_MM:
        size = " x ".join(f"{float(f'{side:.3g}'):g}" for side in sides)
        cause = f"it shows only {size} mm" if is_small else f"it shows {size} mm"
        step = "Its spacing is not in mm: specify the correct one with --spacing SLICE ROW COLUMN."
        code = "implausible-size"
        return (Finding(code=code, path=str(path), cause=f"{cause}, no patient", next_step=step),)
    thickest, ratio = max(spacing), max(spacing) / min(spacing)
    findings = []
    if ratio > _MAX_ANISOTROPY * (1 + _ROUNDING):
        findings.append(
            Finding(
                code="anisotropic-voxels",
                path=str(path),
                cause=f"voxels are {ratio:.1f} times longer than wide "
                f"({' x '.join(f'{s:.3g}' for s in spacing)} mm)",
                next_step="Use a reconstruction with thinner slices if there is one.",
            )
        )
    if thickest > _MAX_SLICE_MM * (1 + _ROUNDING):
        findings.append(
            Finding(
                code="thick-slices",
                path=str(path),
                cause=f"slices are {thickest:.3g} mm apart",
                next_step="Use a reconstruction with thinner slices if there is one.",
            )
        )
    return tuple(findings)


# ---- values ------------------------------------------------------------------------------------


def replace_nonfinite(
    data: Tensor,
    path: Path,
    *,
    nonfinite: Literal["refuse", "replace"],
    values: Literal["ct", "any", "labels"],
) -> tuple[Tensor, tuple[Finding, ...]]:
    """Replace NaN and Inf.

    NaN and -Inf become air (-1024) in CT and the lowest finite value otherwise; +Inf becomes the
    highest finite value. Labels are never replaced.

    Raises:
        InputError: "nonfinite-voxels": some values are not finite and `nonfinite` is "refuse", or
            they are labels, or no value is finite.
    """
    if not data.is_floating_point() or bool(torch.isfinite(torch.stack(data.aminmax())).all()):
        return data, ()
    is_finite = torch.isfinite(data)
    count, total = int((~is_finite).sum()), data.numel()
    if nonfinite == "refuse" or values == "labels" or count == total:
        raise InputError(
            f"{count} of {total} voxels are NaN or infinite",
            path=path,
            code="nonfinite-voxels",
            next_step="Find the program that wrote these values and export the scan again.",
        )
    low, high = (float(v) for v in data[is_finite].aminmax())
    low = AIR_HU if values == "ct" else low
    finding = Finding(
        code="nonfinite-voxels",
        path=str(path),
        cause=f"{count} of {total} voxels are NaN or infinite; they were replaced "
        f"(NaN and -Inf with {low:g}, +Inf with {high:g})",
    )
    return torch.nan_to_num(data, nan=low, posinf=high, neginf=low), (finding,)
