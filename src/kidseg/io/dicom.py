"""DICOM series: files to one volume in Hounsfield units, or a reason why not.

A series is read only if its planes make one even, upright grid. Broken ones are refused with
numbers; `ReadOptions.repair` mends what can be mended without inventing anatomy: identical
duplicates, gaps of up to 15 mm, and gantry tilt.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import checks
from kidseg.io.dicom_header import Image, find_images, is_zstd, number
from kidseg.io.dicom_pixels import check_pixels, decode
from kidseg.io.dicom_series import Series, check_alike, choose, grouped, identity, series_facts
from kidseg.io.dicom_stack import (
    Stack,
    arrange,
    check_line,
    coincident,
    gap_error,
    made_even,
    native_grid,
)
from kidseg.io.dicom_write import write_series
from kidseg.io.scan import ReadOptions, Scan, scan_of

__all__ = ["Series", "list_series", "read_series", "write_series"]

_DEFAULT = ReadOptions()
_NAMED = 5


def list_series(path: str | Path) -> tuple[Series, ...]:
    """The series in a folder (with all folders in it) or a file, volumes or not, by number.

    Empty where there is no DICOM.

    Raises:
        InputError: "not-found", "unreadable", "bad-dicom", "bad-orientation".
    """
    return grouped(find_images(Path(path))[0])


def read_series(path: str | Path, options: ReadOptions = _DEFAULT) -> Scan:
    """The one CT volume in a folder (with all folders in it), or in one file.

    Localisers, dose reports, segmentations, secondary captures and files that are no DICOM are left
    aside, with a finding. `native` is the grid of the acquired slices, sorted along their normal;
    of a repaired series it is the repaired grid.

    Raises:
        InputError: "no-dicom", "zstd-packed", "bad-dicom", "empty-file"; which series: see
            `dicom_series.choose`; images that differ: `dicom_series.check_alike`; where they lie:
            `dicom_stack.arrange`, `check_line` and `gap_error`, "duplicate-slices",
            "same-position", "several-volumes", "gantry-tilt"; pixels: `dicom_pixels`; values:
            `scan.scan_of`.
        ResourceError: "not-enough-memory".
    """
    path = Path(path)
    images, others = find_images(path)
    if not images:
        raise _no_dicom(path, others)
    series, findings = choose(grouped(images), path, options)
    _check_whole(series, others, path, options)
    shape = check_alike(series, path)
    found, identified = identity(series, path)
    noticed = [*_ignored_files(path, others), *findings, *identified]
    noticed += check_pixels(series, shape, path, options)
    planes = sorted(
        (plane for image in series.images for plane in image.planes),
        key=lambda plane: (str(plane.path), plane.frame),
    )
    stack = arrange(planes, shape, path, options.spacing_mm)
    stack, dropped = _without_duplicates(stack, series, path, options)
    check_line(stack, path)
    uneven = gap_error(stack, path)
    if uneven is not None and not options.repair:
        raise uneven
    native = native_grid(stack, path)
    tilted = _is_tilted(stack, native, path, options) if uneven is None else stack.tilt_deg > 0
    values, stored, padded = decode(stack.planes, series.images, shape, path, options)
    noticed += [*dropped, *_tilt_tag(stack, series, path), *_single(stack, native, path), *padded]
    if uneven is not None or tilted:
        values, native, repaired = _repaired(values, stack, path, options, uneven)
        noticed += repaired
    if options.spacing_mm is not None:
        matrix = checks.with_spacing(native.mm_from_index, options.spacing_mm, path)
        native = Grid(native.shape, matrix)
    return scan_of(
        values,
        native,
        path=path,
        format="dicom",
        options=options,
        stored=stored,
        modality=series.modality or "unknown",
        findings=noticed,
        facts={**series_facts(series), **found},
    )


def _no_dicom(path: Path, others: list[Path]) -> InputError:
    packed = [file for file in others if is_zstd(file)]
    if path.is_file() and packed:
        return InputError(
            "it is packed with Zstandard",
            path=path,
            code="zstd-packed",
            next_step="Unpack it first: zstd -d FILE.",
        )
    what = "it is no DICOM file" if path.is_file() else f"none of its {len(others)} files is DICOM"
    return InputError(
        what + (f" ({len(packed)} are packed with Zstandard)" if packed else ""),
        path=path,
        code="no-dicom",
        next_step="Give a folder of DICOM files.",
    )


def _ignored_files(path: Path, others: list[Path]) -> tuple[Finding, ...]:
    if not others:
        return ()
    names = ", ".join(str(file.relative_to(path)) for file in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    cause = f"{len(others)} files are no DICOM images and were ignored: {names}{more}"
    return (Finding(code="ignored-files", path=str(path), cause=cause),)


def _check_whole(series: Series, others: list[Path], path: Path, options: ReadOptions) -> None:
    """Refuse an empty file among the slices: at either end of a stack it would leave no gap."""
    kinds = {(image.path.parent, image.path.suffix) for image in series.images}
    lost = [f for f in others if (f.parent, f.suffix) in kinds and f.stat().st_size == 0]
    if lost and not options.repair:
        raise InputError(
            f"{len(lost)} files among its images are empty, first {lost[0].name}",
            path=path,
            code="empty-file",
            next_step="Export the whole series again, or read what is left with --repair.",
        )


# ---- duplicates --------------------------------------------------------------------------------


def _without_duplicates(
    stack: Stack, series: Series, path: Path, options: ReadOptions
) -> tuple[Stack, tuple[Finding, ...]]:
    """The stack with one plane at each place.

    Raises:
        InputError: "same-position": all are at one; "several-volumes": several at each;
            "duplicate-slices": at some, and no repair is wanted or they are not identical.
    """
    groups = coincident(stack)
    doubled = [group for group in groups if len(group) > 1]
    if not doubled:
        return stack, ()
    same = all(_identical(stack.kept(group), series, path, options) for group in doubled)
    if same and options.repair:
        extra = sum(len(group) - 1 for group in doubled)
        cause = f"{extra} images were dropped that are identical to others at the same position"
        dropped = Finding(code="dropped-duplicates", path=str(path), cause=cause)
        return stack.kept([group[0] for group in groups]), (dropped,)
    first = doubled[0]
    names = ", ".join(stack.planes[k].path.name for k in first[:_NAMED])
    at = f"at {stack.depth_mm[first[0]]:.2f} mm ({names})"
    code, next_step = "duplicate-slices", "Remove one of each, or put each in a folder of its own."
    if len(groups) == 1:
        cause = f"all {len(first)} images lie at one position, {at}: no volume"
        code, next_step = "same-position", "Give a series of slices side by side."
    elif len({len(group) for group in groups}) == 1 and not same:
        cause = f"each of {len(groups)} positions has {len(first)} different images, as {at}"
        code, next_step = "several-volumes", "Put each phase or reconstruction in its own folder."
    else:
        kind = "identical" if same else "different"
        cause = f"{len(doubled)} positions have several {kind} images, first {at}"
        next_step = "Drop the copies with --repair." if same else next_step
    raise InputError(cause, path=path, code=code, next_step=next_step)


def _identical(stack: Stack, series: Series, path: Path, options: ReadOptions) -> bool:
    """Do these planes show the same, at the same place?"""
    images: list[Image] = list(series.images)
    values, _, _ = decode(stack.planes, images, stack.shape, path, options)
    apart = abs(stack.positions_mm - stack.positions_mm[0]).max()
    return bool((values == values[:, :1]).all()) and float(apart) < 0.01


# ---- tilt and repair ---------------------------------------------------------------------------


def _is_tilted(stack: Stack, native: Grid, path: Path, options: ReadOptions) -> bool:
    """Is the shear too large for `scan_of`, so that it has to be repaired?

    Raises:
        InputError: "gantry-tilt", without repair.
    """
    try:
        checks.upright(native, path)
    except InputError as error:
        if options.repair:
            return True
        raise InputError(
            f"the gantry was tilted: slices stand {stack.tilt_deg:.2f} degrees off the direction "
            "in which they follow each other",
            path=path,
            code="gantry-tilt",
            next_step="Resample it onto upright slices with --repair.",
        ) from error
    return False


def _tilt_tag(stack: Stack, series: Series, path: Path) -> tuple[Finding, ...]:
    """A finding where the header claims a tilt that the positions do not show."""
    claimed = number(series.images[0].header, "GantryDetectorTilt")
    if len(stack.planes) < 2 or not claimed or not math.isfinite(claimed) or abs(claimed) < 0.5:
        return ()
    if abs(abs(claimed) - stack.tilt_deg) < 1.0:
        return ()
    cause = (
        f"its header states a gantry tilt of {claimed:g} degrees, its positions show "
        f"{stack.tilt_deg:.2f}; the positions were taken"
    )
    return (Finding(code="tilt-disagrees", path=str(path), cause=cause),)


def _single(stack: Stack, native: Grid, path: Path) -> tuple[Finding, ...]:
    if len(stack.planes) > 1:
        return ()
    thickness = float(native.spacing_mm[0])
    cause = f"it is one slice; its thickness of {thickness:g} mm was taken from the header"
    return (Finding(code="single-slice", path=str(path), cause=cause),)


def _repaired(
    values: Tensor, stack: Stack, path: Path, options: ReadOptions, uneven: InputError | None
) -> tuple[Tensor, Grid, tuple[Finding, ...]]:
    """Values and grid, even and upright, and what was done."""
    labels = options.values == "labels"
    fill = checks.AIR_HU if options.values == "ct" else float(values.min())
    volume: Volume = made_even(values, stack, path, labels=labels, fill=fill)
    onto = f"an even grid of {volume.grid.shape[0]} slices, which labels go back to"
    findings = []
    if uneven is not None:
        cause = f"{uneven.cause}; the series was interpolated onto {onto}"
        findings.append(Finding(code=f"repaired-{uneven.code}", path=str(path), cause=cause))
    if stack.tilt_deg > 0:
        cause = (
            f"the gantry was tilted by {stack.tilt_deg:.2f} degrees; slices were moved within "
            f"their planes, onto {onto}"
        )
        findings.append(Finding(code="repaired-gantry-tilt", path=str(path), cause=cause))
    data = volume.data if labels else volume.data.to(torch.float32)
    return data, volume.grid, tuple(findings)
