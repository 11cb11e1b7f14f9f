"""Read a DICOM series as one volume in Hounsfield units.

A series must form one orthogonal grid of evenly spaced slices. Others are refused with the
measured deviations. `ReadOptions.repair` repairs what can be repaired without inventing anatomy:
identical duplicates, gaps of up to 15 mm, and gantry tilt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import checks
from kidseg.io.dicom_choice import choose
from kidseg.io.dicom_continuity import alternates, jumps
from kidseg.io.dicom_frames import Plane, check_readable, find_images
from kidseg.io.dicom_grids import native_grid, resample_evenly
from kidseg.io.dicom_header import is_zstd, number
from kidseg.io.dicom_pixels import check_pixels, decode
from kidseg.io.dicom_rescale import check_mixed
from kidseg.io.dicom_series import Series, check_consistent, group_series, identity, series_facts
from kidseg.io.dicom_stack import (
    Stack,
    arrange,
    check_line,
    gap_error,
    group_coincident,
)
from kidseg.io.dicom_write import write_series
from kidseg.io.scan import ReadOptions, Scan, scan_of

__all__ = [
    "Acquired",
    "Series",
    "acquired",
    "list_series",
    "read_series",
    "with_options",
    "write_series",
]

_DEFAULT = ReadOptions()
_NAMED = 5
_JOINED = {"repaired-series", "repaired-frame-of-reference"}


def list_series(path: str | Path) -> tuple[Series, ...]:
    """List the volumes of all series in a folder (recursively) or a file, sorted by number.

    Includes series that are not volumes. Empty if there are no DICOM files.

    Raises:
        InputError: "not-found", "unreadable", "bad-dicom".
    """
    return group_series(find_images(Path(path))[0])


def read_series(path: str | Path, options: ReadOptions = _DEFAULT) -> Scan:
    """Read the only CT volume in a folder (recursively) or a file.

    Localisers, dose reports, segmentations, secondary captures and files that are not DICOM are
    ignored, with a finding. `native` is the grid of the acquired slices, sorted along their normal;
    for a repaired series it is the repaired grid.

    Raises:
        InputError: "no-dicom", "zstd-packed", "bad-dicom", "empty-file"; choice of series: see
            `dicom_choice.choose`; numbers: `dicom_frames.check_readable`; inconsistent images:
            `dicom_series.check_consistent`; geometry: `dicom_stack.arrange`, `check_line` and
            `gap_error`, "duplicate-slices", "same-position", "several-volumes", "gantry-tilt";
            pixels: `dicom_pixels`, "not-one-stack"; values: `scan.scan_of`.
        ResourceError: "not-enough-memory".
    """
    path = Path(path)
    found = acquired(path, options)
    stack, native, uneven = found.stack, found.native, found.uneven
    findings = list(found.findings)
    values, stored, padded = decode(stack.planes, found.series.images, stack.shape, path, options)
    findings += [*_tilt_tag(stack, found.series, path), *_single(stack, native, path), *padded]
    if options.values == "ct":
        findings += check_mixed(values, stack.planes, path)
    is_joined = any(f.code in _JOINED for f in findings)
    findings += _unlike_neighbours(values, stack, path, is_joined=is_joined)
    if found.is_repaired:
        values, native, repaired = _repaired(values, stack, path, options, uneven)
        findings += repaired
    return scan_of(
        values,
        with_options(native, path, options),
        path=path,
        format="dicom",
        options=options,
        stored=stored,
        modality=found.series.modality or "unknown",
        findings=findings,
        facts={**series_facts(found.series), **found.identifiers},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Acquired:
    """The planes of a series, checked and sorted, without their pixels.

    Attributes:
        series: that was chosen.
        stack: its planes, one at each position.
        native: the grid of an even stack, sheared if the gantry was tilted.
        uneven: what is repaired if the stack is not even; otherwise None.
        is_repaired: the values are resampled onto `dicom_grids.even_grid`.
        identifiers: see `dicom_series.identity`.
        findings: so far.
    """

    series: Series
    stack: Stack
    native: Grid
    uneven: InputError | None
    is_repaired: bool
    identifiers: Mapping[str, str]
    findings: tuple[Finding, ...]


def acquired(path: Path, options: ReadOptions) -> Acquired:
    """Choose, check and sort the planes that `read_series` reads; errors as there."""
    apart_mm = None if options.spacing_mm is None else options.spacing_mm[0]
    images, others = find_images(path, apart_mm, options.files)
    if not images:
        raise _no_dicom(path, others)
    series, chosen = choose(group_series(images), path, options)
    _check_complete(series, others, path, options)
    odd = check_readable(series.images, path, spacing_given=options.spacing_mm is not None)
    shape, mixed = check_consistent(series, path, repair=options.repair)
    identifiers, made_up = identity(series, path)
    findings = [*_ignored_files(path, others), *chosen, *odd, *_placed(series, path), *mixed]
    findings += [*made_up, *check_pixels(series, shape, path, options)]
    stack = arrange(series.planes, shape, path, options.spacing_mm)
    stack, dropped = _without_duplicates(stack, series, path, options)
    check_line(stack, path)
    uneven = gap_error(stack, path)
    if uneven is not None and (any(f.code in _JOINED for f in findings) or not options.repair):
        raise uneven
    native = native_grid(stack, path)
    tilted = _is_tilted(stack, native, path, options) if uneven is None else stack.tilt_deg > 0
    return Acquired(
        series=series,
        stack=stack,
        native=native,
        uneven=uneven,
        is_repaired=uneven is not None or tilted,
        identifiers=identifiers,
        findings=(*findings, *dropped),
    )


def with_options(native: Grid, path: Path, options: ReadOptions) -> Grid:
    """The native grid with the requested spacing, if there is one."""
    if options.spacing_mm is None:
        return native
    return Grid(native.shape, checks.with_spacing(native.mm_from_index, options.spacing_mm, path))


def _no_dicom(path: Path, others: list[Path]) -> InputError:
    compressed = [file for file in others if is_zstd(file)]
    if path.is_file() and compressed:
        return InputError(
            "it is compressed with Zstandard",
            path=path,
            code="zstd-packed",
            next_step="Decompress it first: zstd -d FILE.",
        )
    cause = (
        "it is not a DICOM file"
        if path.is_file()
        else f"none of its {len(others)} files is a DICOM file"
    )
    return InputError(
        cause + (f" ({len(compressed)} are compressed with Zstandard)" if compressed else ""),
        path=path,
        code="no-dicom",
        next_step="Use a folder of DICOM files.",
    )


def _ignored_files(path: Path, others: list[Path]) -> tuple[Finding, ...]:
    if not others:
        return ()
    names = ", ".join(str(file.relative_to(path)) for file in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    cause = f"{len(others)} files are not DICOM images and were ignored: {names}{more}"
    return (Finding(code="ignored-files", path=str(path), cause=cause),)


def _check_complete(series: Series, others: list[Path], path: Path, options: ReadOptions) -> None:
    """Refuse empty files among the slices. At either end of a stack they would leave no gap."""
    kinds = {(image.path.parent, image.path.suffix) for image in series.images}
    empty = [f for f in others if (f.parent, f.suffix) in kinds and f.stat().st_size == 0]
    if empty and not options.repair:
        raise InputError(
            f"{len(empty)} files among its images are empty, first {empty[0].name}",
            path=path,
            code="empty-file",
            next_step="Export the complete series again, or read the other files with --repair.",
        )


def _placed(series: Series, path: Path) -> tuple[Finding, ...]:
    """A finding if frames were placed by anything but their own positions."""
    placed = [image for image in series.images if image.placed]
    if not placed:
        return ()
    first, *others = placed
    more = f" (and those of {len(others)} more)" if others else ""
    cause = (
        f"the {len(first.planes)} frames of {first.path.name}{more} have no positions of their "
        f"own; they were placed along the normal from the first, {first.placed}"
    )
    step = "Check that the patient is not upside down."
    return (Finding(code="placed-frames", path=str(path), cause=cause, next_step=step),)


def _unlike_neighbours(
    values: Tensor, stack: Stack, path: Path, *, is_joined: bool
) -> tuple[Finding, ...]:
    """A finding if the pixels look like two interleaved stacks.

    Raises:
        InputError: "not-one-stack": the images do not state that they are one stack either.
    """
    frames = [plane.fields.get("FrameOfReferenceUID", "") for plane in stack.planes]
    seams = [before != after for before, after in pairwise(frames)]
    step = "Compare neighbouring slices in a viewer; export each phase as a separate series."
    cause = (
        "neighbouring slices differ more than every second slice: it may contain two interleaved "
        "volumes, such as contrast phases"
    )
    if is_joined and jumps(values, seams):
        cause = "slices with different frames of reference differ too much to be neighbours"
    elif not alternates(values):
        return ()
    if is_joined:
        raise InputError(cause, path=path, code="not-one-stack", next_step=step)
    return (Finding(code="alternating-slices", path=str(path), cause=cause, next_step=step),)


# ---- duplicates --------------------------------------------------------------------------------


def _without_duplicates(
    stack: Stack, series: Series, path: Path, options: ReadOptions
) -> tuple[Stack, tuple[Finding, ...]]:
    """The stack with one plane at each position.

    Raises:
        InputError: "same-position": all planes share one position; "several-volumes": every
            position has several; "duplicate-slices": some positions have several, and repair is
            off or the planes are not identical.
    """
    groups = group_coincident(stack)
    duplicates = [group for group in groups if len(group) > 1]
    if not duplicates:
        return stack, ()
    same = all(_identical(stack.select(group), series, path, options) for group in duplicates)
    if same and options.repair:
        extra = sum(len(group) - 1 for group in duplicates)
        cause = f"{extra} images that are identical to others at the same position were dropped"
        dropped = Finding(code="dropped-duplicates", path=str(path), cause=cause)
        return stack.select([group[0] for group in groups]), (dropped,)
    first = duplicates[0]
    names = ", ".join(_named(stack.planes[k], path) for k in first[:_NAMED])
    at = f"at {stack.depth_mm[first[0]]:.2f} mm ({names})"
    if len(groups) == 1:
        cause = f"all {len(first)} images have the same position, {at}: they form no volume"
        step = "Use a series of adjacent slices."
        raise InputError(cause, path=path, code="same-position", next_step=step)
    if len({len(group) for group in groups}) == 1 and not same:
        cause = f"each of {len(groups)} positions has {len(first)} different images, first {at}"
        step = "Put each phase or reconstruction in its own folder."
        raise InputError(cause, path=path, code="several-volumes", next_step=step)
    kind = "identical" if same else "different"
    raise InputError(
        f"{len(duplicates)} positions have several {kind} images, first {at}",
        path=path,
        code="duplicate-slices",
        next_step="Drop the copies with --repair."
        if same
        else "Remove the extra images, or put them in another folder.",
    )


def _named(plane: Plane, path: Path) -> str:
    """A plane's file below the series' folder; of a multi-frame file, the frame, from 1."""
    if plane.path == path:
        return f"frame {plane.frame + 1}"
    file = plane.path.relative_to(path) if plane.path.is_relative_to(path) else plane.path.name
    return f"{file}, frame {plane.frame + 1}" if plane.frame else str(file)


def _identical(stack: Stack, series: Series, path: Path, options: ReadOptions) -> bool:
    """Whether these planes have the same values and the same position."""
    values, _, _ = decode(stack.planes, series.images, stack.shape, path, options)
    apart = abs(stack.positions_mm - stack.positions_mm[0]).max()
    return bool((values == values[:, :1]).all()) and float(apart) < 0.01


# ---- tilt and repair ---------------------------------------------------------------------------


def _is_tilted(stack: Stack, native: Grid, path: Path, options: ReadOptions) -> bool:
    """Whether the shear is too large for `scan_of`, so that it must be repaired.

    Raises:
        InputError: "gantry-tilt", if repair is off.
    """
    try:
        checks.orthogonal_grid(native, path)
    except InputError as error:
        if options.repair:
            return True
        raise InputError(
            f"the gantry was tilted: the slice normal is {stack.tilt_deg:.2f} degrees off the "
            "direction of the stack",
            path=path,
            code="gantry-tilt",
            next_step="Resample it onto an orthogonal grid with --repair.",
        ) from error
    return False


def _tilt_tag(stack: Stack, series: Series, path: Path) -> tuple[Finding, ...]:
    """A finding if the header states a tilt that contradicts the positions."""
    claimed = number(series.images[0].fields, "GantryDetectorTilt")
    if len(stack.planes) < 2 or not claimed or not math.isfinite(claimed) or abs(claimed) < 0.5:
        return ()
    if abs(abs(claimed) - stack.tilt_deg) < 1.0:
        return ()
    cause = (
        f"its header states a gantry tilt of {claimed:g} degrees, but its positions show "
        f"{stack.tilt_deg:.2f}; the positions were used"
    )
    return (Finding(code="tilt-disagrees", path=str(path), cause=cause),)


def _single(stack: Stack, native: Grid, path: Path) -> tuple[Finding, ...]:
    if len(stack.planes) > 1:
        return ()
    thickness = float(native.spacing_mm[0])
    cause = f"it is a single slice; its thickness of {thickness:g} mm was taken from the header"
    return (Finding(code="single-slice", path=str(path), cause=cause),)


def _repaired(
    values: Tensor, stack: Stack, path: Path, options: ReadOptions, uneven: InputError | None
) -> tuple[Tensor, Grid, tuple[Finding, ...]]:
    """Values on an evenly spaced orthogonal grid, the grid, and findings on the repairs."""
    labels = options.values == "labels"
    fill = checks.AIR_HU if options.values == "ct" else float(values.min())
    volume: Volume = resample_evenly(values, stack, path, labels=labels, fill=fill)
    target = f"{volume.grid.shape[0]} evenly spaced slices; labels are written on this grid"
    findings = []
    if uneven is not None:
        are_missing = uneven.code == "missing-slices"
        code = "repaired-missing-slices" if are_missing else "repaired-uneven-slices"
        cause = f"{uneven.cause}; the series was interpolated onto {target}"
        findings.append(Finding(code=code, path=str(path), cause=cause))
    if stack.tilt_deg > 0:
        cause = (
            f"the gantry was tilted by {stack.tilt_deg:.2f} degrees; slices were shifted within "
            f"their planes, onto {target}"
        )
        findings.append(Finding(code="repaired-gantry-tilt", path=str(path), cause=cause))
    data = volume.data if labels else volume.data.to(torch.float32)
    return data, volume.grid, tuple(findings)
