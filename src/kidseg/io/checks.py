"""Is what a reader found a scan at all? The checks that every format shares.

Each check raises `InputError` where the answer is a sure no, and returns findings where it is
doubtful. Nothing here opens a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError, ResourceError
from kidseg.geometry import Grid

__all__ = [
    "AIR_HU",
    "available_memory_bytes",
    "check_intensities",
    "check_matrix",
    "check_memory",
    "check_resolution",
    "check_spacing",
    "finite",
    "grid_of",
    "three_dimensional",
    "upright",
    "with_spacing",
]

AIR_HU = -1024.0
"""What a missing CT value becomes: the lowest value of most scanners, at or below air."""

# Row 16 of the robustness table.
_MAX_ANISOTROPY = 6.0
_MAX_SLICE_MM = 5.0
# Rounding in a header, as 5.0000002 mm, is not a thicker slice.
_ROUNDING = 1e-4

_VOXELS_LOOKED_AT = 2**20


# ---- size and shape ----------------------------------------------------------------------------


def available_memory_bytes() -> int | None:
    """Memory that can be had now, within the limit of a container; None where none can say."""
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
    """Refuse before allocation what cannot be true or does not fit.

    Args:
        asked_bytes: what the header says its voxels need.
        path: the file, for the message.
        held_bytes: the most that the file can hold once unpacked, if known.
        limit_bytes: the most that may be allocated; the memory available now by default.

    Raises:
        InputError: "absurd-size": the file cannot hold what its header asks for.
        ResourceError: "not-enough-memory": it may, but the memory does not suffice.
    """
    if held_bytes is not None and asked_bytes > held_bytes:
        raise InputError(
            f"the header asks for {_size(asked_bytes)} of voxels, but the file cannot hold more "
            f"than {_size(held_bytes)}",
            path=path,
            code="absurd-size",
            next_step="The file is truncated or its header is damaged: copy or export it again.",
        )
    limit = available_memory_bytes() if limit_bytes is None else limit_bytes
    if limit is not None and asked_bytes > limit:
        raise ResourceError(
            f"reading it needs {_size(asked_bytes)}, and {_size(limit)} of memory may be used",
            path=path,
            code="not-enough-memory",
            next_step="Use a machine with more memory, or crop the scan.",
        )


def three_dimensional(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    """The three sizes of a volume, from the sizes along a file's axes, fastest axis first.

    Further axes of length 1 are dropped. A volume with a single slice is fine.

    Raises:
        InputError: "empty-axis", "two-dimensional" or "several-volumes".
    """
    sizes = tuple(int(n) for n in shape)
    text = " x ".join(map(str, sizes))
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
            f"it holds several volumes or components ({text}); one is wanted",
            path=path,
            code="several-volumes",
            next_step="Save the volume to use as a file of its own.",
        )
    return sizes[0], sizes[1], sizes[2]


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


# ---- positions ---------------------------------------------------------------------------------


def check_spacing(spacing_mm: Sequence[float], path: Path) -> None:
    """Spacing must be positive and finite.

    Raises:
        InputError: "bad-spacing".
    """
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise InputError(
            f"the voxel spacing is {' x '.join(f'{s:g}' for s in spacing_mm)} mm",
            path=path,
            code="bad-spacing",
            next_step="State the true spacing with --spacing SLICE ROW COLUMN.",
        )


def check_matrix(mm_from_index: Tensor, path: Path) -> None:
    """A position for every voxel: finite, and no two axes along one line.

    Raises:
        InputError: "bad-affine" or "bad-spacing".
    """
    linear = mm_from_index[:3, :3]
    if bool(torch.isfinite(mm_from_index).all()):
        spacing = torch.linalg.vector_norm(linear, dim=0)
        check_spacing(spacing.tolist(), path)
        if float(torch.linalg.det(linear / spacing).abs()) > 1e-3:
            return
    raise InputError(
        "the header gives voxels no sound position: its affine is not finite or not invertible",
        path=path,
        code="bad-affine",
        next_step="Export the scan again, or use --trust to choose the sound one of two.",
    )


def grid_of(shape: Sequence[int], mm_from_index: Tensor, path: Path) -> Grid:
    """The grid of a file's header.

    Raises:
        InputError: "bad-affine" or "bad-spacing".
    """
    check_matrix(mm_from_index, path)
    nz, ny, nx = shape
    return Grid((nz, ny, nx), mm_from_index)


def with_spacing(mm_from_index: Tensor, spacing_mm: Sequence[float], path: Path) -> Tensor:
    """The matrix with its axes stretched to `spacing_mm` (slice, row, column), origin kept.

    `spacing_mm` is along the axes as they come: (slice, row, column) of the file's own voxel order.

    Raises:
        InputError: "bad-spacing" if the new one is not positive; "bad-affine" if the axes have no
            directions.
    """
    check_spacing(spacing_mm, path)
    matrix = mm_from_index.clone()
    length = torch.linalg.vector_norm(matrix[:3, :3], dim=0)
    matrix[:3, :3] *= torch.as_tensor(spacing_mm, dtype=matrix.dtype) / length
    check_matrix(matrix, path)
    return matrix


def upright(grid: Grid, path: Path) -> tuple[Grid, tuple[Finding, ...]]:
    """The grid itself, or the nearest one with axes at right angles if it is a little sheared.

    Up to 1e-3 mm at a corner is rounding, and the grid comes back untouched. Less than half a voxel
    at every corner is little: each voxel of the upright grid is still nearest to its own voxel in
    the file, so that resampling moves no label.

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
    straight = Grid(grid.shape, matrix)
    if straight.same_as(grid):
        return grid, ()
    corners = torch.tensor(list(product(*((0, n - 1) for n in grid.shape))), dtype=torch.float64)
    moved = (grid.index(straight.mm(corners)) - corners).abs().max().item()
    gram = (axes.T @ axes).abs()
    angle = 90 - math.degrees(math.acos(min(1.0, float((gram - torch.diag(gram.diag())).max()))))
    if moved >= 0.5:
        raise InputError(
            f"its axes are not at right angles ({angle:.2f} degrees off: a sheared grid)",
            path=path,
            code="sheared",
            next_step="If the gantry was tilted, read the DICOM series with --repair; "
            "else resample the scan onto an upright grid.",
        )
    finding = Finding(
        code="slightly-sheared",
        path=str(path),
        cause=f"its axes are {angle:.3f} degrees off right angles ({moved:.2f} voxels at a "
        "corner); it was resampled onto the nearest upright grid",
    )
    return straight, (finding,)


def check_resolution(grid: Grid, path: Path) -> tuple[Finding, ...]:
    """Findings on voxels too coarse to see small structures in all directions.

    "anisotropic-voxels" if the longest side is over 6 times the shortest, "thick-slices" if it is
    over 5 mm.
    """
    spacing = grid.spacing_mm.reshape(-1, 3).median(dim=0).values.tolist()
    thickest, ratio = max(spacing), max(spacing) / min(spacing)
    findings = []
    if ratio > _MAX_ANISOTROPY * (1 + _ROUNDING):
        findings.append(
            Finding(
                code="anisotropic-voxels",
                path=str(path),
                cause=f"voxels are {ratio:.1f} times longer than wide "
                f"({' x '.join(f'{s:.3g}' for s in spacing)} mm)",
                next_step="Prefer a thinner reconstruction where there is one.",
            )
        )
    if thickest > _MAX_SLICE_MM * (1 + _ROUNDING):
        findings.append(
            Finding(
                code="thick-slices",
                path=str(path),
                cause=f"slices are {thickest:.3g} mm apart",
                next_step="Prefer a thinner reconstruction where there is one.",
            )
        )
    return tuple(findings)


# ---- values ------------------------------------------------------------------------------------


def finite(
    data: Tensor,
    path: Path,
    *,
    nonfinite: Literal["refuse", "replace"],
    values: Literal["ct", "any", "labels"],
) -> tuple[Tensor, tuple[Finding, ...]]:
    """The data without NaN and Inf.

    Replaced, NaN and -Inf become air (-1024) in CT and the lowest finite value elsewhere; +Inf the
    highest finite value. Labels are never replaced.

    Raises:
        InputError: "nonfinite-voxels": there are some and `nonfinite` is "refuse", or these are
            labels, or nothing else is left.
    """
    if not data.is_floating_point() or bool(torch.isfinite(torch.stack(data.aminmax())).all()):
        return data, ()
    sound = torch.isfinite(data)
    count, total = int((~sound).sum()), data.numel()
    if nonfinite == "refuse" or values == "labels" or count == total:
        raise InputError(
            f"{count} of {total} voxels are NaN or infinite",
            path=path,
            code="nonfinite-voxels",
            next_step="Find out what wrote them and export the scan again.",
        )
    low, high = (float(v) for v in data[sound].aminmax())
    low = AIR_HU if values == "ct" else low
    finding = Finding(
        code="nonfinite-voxels",
        path=str(path),
        cause=f"{count} of {total} voxels are NaN or infinite; they were replaced "
        f"(NaN and -Inf by {low:g}, +Inf by {high:g})",
    )
    return torch.nan_to_num(data, nan=low, posinf=high, neginf=low), (finding,)


def check_intensities(
    data: Tensor, path: Path, stored: np.dtype | None = None
) -> tuple[Finding, ...]:
    """Can these be Hounsfield units? Findings where doubtful.

    Air is about -1000 HU, fat -100, soft tissue 0 to 100, bone up to some 2000 by the definition of
    the scale (air -1000, water 0); anything lower than air is padding.

    Args:
        data: finite values, after scaling; any shape.
        path: the file, for messages.
        stored: type in which the file keeps them, if known.

    Raises:
        InputError: surely not HU. "constant-image": one value everywhere; "label-map": small whole
            numbers from 0 on; "normalised-intensities": a range of under 50 units with fractions;
            "eight-bit-intensities": 0..255 kept in eight bits; "shifted-hu": soft tissue at about
            1000, so that air is at 0; "absurd-intensities": beyond 100 000.
    """
    low, high = (float(v) for v in data.aminmax())
    flat = data.flatten() if data.is_contiguous() else data.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _VOXELS_LOOKED_AT)].to(torch.float32)
    _refuse_no_hu(sample, low, high, path, stored)
    findings: list[tuple[str, str]] = []
    if stored is not None and stored.itemsize == 1:
        findings.append(("eight-bit-intensities", "it is stored in eight bits: at most 256 levels"))
    if low >= 0 and high <= 255:
        findings.append(
            ("windowed-intensities", f"values lie in {low:g}..{high:g}: a window, fat and air lost")
        )
    elif low > -300:
        findings.append(
            ("no-air", f"the lowest value is {low:g} HU: no air, so a crop, a window or no HU")
        )
    elif low > -900 and float((sample == low).float().mean()) > 0.01:
        findings.append(("windowed-intensities", f"values were cut off below {low:g} HU"))
    if _share(sample, -200, 300) < 0.005:
        findings.append(
            ("no-soft-tissue", "hardly a voxel lies between -200 and 300 HU, where tissue is")
        )
    step = "Check the export: kidseg expects Hounsfield units, unclipped."
    return tuple(Finding(code=c, path=str(path), cause=t, next_step=step) for c, t in findings)


def _refuse_no_hu(
    sample: Tensor, low: float, high: float, path: Path, stored: np.dtype | None
) -> None:
    whole = bool((sample == sample.round()).all())
    dense = sample > 300
    cause, code = "", ""
    if low == high:
        cause, code = f"every voxel is {low:g}", "constant-image"
    elif whole and low >= 0 and high <= 40:
        cause = f"values are whole numbers in {low:g}..{high:g}: this looks like a label map"
        code = "label-map"
    elif not whole and high - low < 50 and max(-low, high) < 50:
        cause = f"values lie in {low:.3g}..{high:.3g}: normalised, not Hounsfield units"
        code = "normalised-intensities"
    elif low >= 0 and high <= 255 and stored is not None and stored.itemsize == 1:
        cause = f"values are {low:g}..{high:g} in eight bits: a windowed picture, not HU"
        code = "eight-bit-intensities"
    elif max(-low, high) > 100_000:
        cause, code = f"values reach {low:g}..{high:g}: not Hounsfield units", "absurd-intensities"
    # In HU what exceeds 300 is bone and contrast, most of it below 850. If most of it lies at
    # 850..1200 instead, that is soft tissue, and 1000 or 1024 was never subtracted.
    elif float(dense.float().mean()) >= 0.02 and _share(sample[dense], 850, 1200) >= 0.6:
        cause = "soft tissue lies at about 1000: values are shifted by 1000 or 1024 from HU"
        code = "shifted-hu"
    if code:
        raise InputError(
            cause,
            path=path,
            code=code,
            next_step="Export the scan again in Hounsfield units (rescale slope and intercept "
            "applied, no window).",
        )


def _share(values: Tensor, low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).float().mean())
