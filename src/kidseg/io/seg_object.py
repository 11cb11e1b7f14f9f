"""Read a DICOM Segmentation, binary or label map: its segments, and their voxels on a series.

Frames are placed by their positions, not by their order or their references.

Source: DICOM PS3.3, A.51 (IOD), C.8.20 (Segmentation), C.7.6.16.2 (plane position, orientation,
measures); Supplement 243 (Label Map).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kidseg.errors import InputError, quoted
from kidseg.geometry import Grid
from kidseg.io import checks
from kidseg.io.dicom_header import numbers, read_object, reading
from kidseg.io.orientation import ras_from_lps
from kidseg.io.structures import (
    AnnotationObject,
    Structure,
    codes_in,
    items_of,
    object_head,
    side_in,
    text_of,
)

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SEGMENTATIONS", "read_segmentation", "segment_voxels"]

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes: Segmentation, Label Map Segmentation."""

_OFF_GRID = 0.02  # of a voxel: rounding of positions and of cosines with few decimals
_MAX_FRAMES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    """Where a frame is: lps_from_pixel (4, 3) of (1, row, column, 1), and its segment."""

    first_mm: np.ndarray
    down_mm: np.ndarray
    along_mm: np.ndarray
    segment: int


def read_segmentation(path: Path) -> AnnotationObject:
    """The segments of a Segmentation, without voxels.

    Raises:
        InputError: "unreadable"; "bad-dicom"; "not-a-segmentation"; "bad-segmentation": it has no
            segments, or their numbers are missing or occur twice.
        ResourceError: "not-enough-memory".
    """
    with reading(path):
        return _head(read_object(path), path)


def _head(dataset: Dataset, path: Path) -> AnnotationObject:
    kind = text_of(dataset, "SOPClassUID")
    if kind not in SEGMENTATIONS:
        raise InputError(
            f"it is not a Segmentation ({kind or 'no SOP class'})",
            path=path,
            code="not-a-segmentation",
            next_step="Name a file with Modality SEG.",
        )
    segments = tuple(_segment(item, path) for item in items_of(dataset, "SegmentSequence"))
    segments = tuple(one for one in segments if one.number)  # 0 is the background of label maps
    counts = Counter(one.number for one in segments)
    if not segments or max(counts.values()) > 1:
        raise _bad("it has no segments" if not segments else "two segments share a number", path)
    series, listed, drawn = set(), set(), set()
    for one in items_of(dataset, "ReferencedSeriesSequence"):
        series.add(text_of(one, "SeriesInstanceUID"))
        listed |= {
            text_of(image, "ReferencedSOPInstanceUID")
            for image in items_of(one, "ReferencedInstanceSequence")
        }
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    for name in groups:
        of_frame = (name, "DerivationImageSequence", "SourceImageSequence")
        drawn |= {
            text_of(image, "ReferencedSOPInstanceUID") for image in items_of(dataset, *of_frame)
        }
    return AnnotationObject(
        path=path,
        kind="SEG",
        frames_of_reference=frozenset({text_of(dataset, "FrameOfReferenceUID")} - {""}),
        referenced_series=frozenset(series - {""}),
        drawn_on=frozenset(drawn - {""}),
        referenced_images=frozenset((listed | drawn) - {""}),
        structures=segments,
        **object_head(dataset),
    )


def _segment(item: Dataset, path: Path) -> Structure:
    number = text_of(item, "SegmentNumber")
    if not number.isdecimal():
        raise _bad(f"a segment has the number {quoted(number)}", path)
    kind = "SegmentedPropertyTypeCodeSequence"
    modifiers = codes_in(item, kind, "SegmentedPropertyTypeModifierCodeSequence")
    codes, region = codes_in(item, kind), "AnatomicRegionSequence"
    modifiers += codes_in(item, region, "AnatomicRegionModifierSequence")
    return Structure(
        number=int(number),
        name=text_of(item, "SegmentLabel", "SegmentDescription"),
        codes=codes,
        regions=codes_in(item, region),
        coded_side=side_in(codes + modifiers),
        tracking_id=text_of(item, "TrackingID"),
        tracking_uid=text_of(item, "TrackingUID"),
    )


def segment_voxels(path: Path, wanted: Sequence[int], grid: Grid) -> dict[int, np.ndarray]:
    """The voxels of segments on the grid of their series.

    Args:
        path: of the Segmentation.
        wanted: numbers of segments.
        grid: of the series.

    Returns:
        {segment: (slices, rows, columns) bool}.

    Raises:
        InputError: as `read_segmentation`; "fractional-segmentation": voxels are partly in a
            segment; "bad-segmentation": its frames are not described, or its pixels are missing or
            damaged; "other-grid": its voxels are not voxels of the series.
        ResourceError: "not-enough-memory".
    """
    with reading(path):
        dataset = read_object(path, with_pixels=True)
        _head(dataset, path)
        kind, whole = _kind(dataset, path)
        is_map = kind == "LABELMAP"
        frames = _frames(dataset, is_map, path)
        pixels = _pixels(dataset, len(frames), path)
        found = {number: np.zeros(grid.shape, bool) for number in wanted}
        index_from_lps = np.linalg.inv(grid.mm_from_index.numpy()) @ ras_from_lps
        for frame, values in zip(frames, pixels, strict=True):
            if not is_map and frame.segment not in found:
                continue
            if kind == "FRACTIONAL" and not ((values == 0) | (values == whole)).all():
                raise _fractional(f"it is fractional: some voxels are neither 0 nor {whole}", path)
            where, placed = _placed(frame, values, index_from_lps, grid, path)
            for number in found if is_map else [frame.segment]:
                is_in = placed == number if is_map else placed != 0
                found[number][where] |= is_in
        return found


def _kind(dataset: Dataset, path: Path) -> tuple[str, int]:
    """BINARY, LABELMAP or FRACTIONAL, and of the last the value of voxels wholly in a segment.

    Raises:
        InputError: "fractional-segmentation": another type, or this value is not stated.
    """
    kind = text_of(dataset, "SegmentationType").upper()
    whole = text_of(dataset, "MaximumFractionalValue")
    if kind in ("BINARY", "LABELMAP"):
        return kind, 0
    if kind == "FRACTIONAL" and whole.isdecimal() and int(whole):
        return kind, int(whole)
    cause = f"its segmentation type is {quoted(kind)}: only binary ones and label maps have one"
    raise _fractional(f"{cause} answer for each voxel", path)


def _fractional(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="fractional-segmentation",
        next_step="Export it as a binary segmentation, with a threshold of your choice.",
    )


def _frames(dataset: Dataset, is_map: bool, path: Path) -> list[_Frame]:
    count = text_of(dataset, "NumberOfFrames") or "1"
    each = list(items_of(dataset, "PerFrameFunctionalGroupsSequence"))
    if not count.isdecimal() or int(count) != len(each) or len(each) > _MAX_FRAMES:
        raise _bad(f"it states {quoted(count)} frames, but describes {len(each)}", path)
    shared = list(items_of(dataset, "SharedFunctionalGroupsSequence"))
    return [_frame([own, *shared], is_map, path) for own in each]


def _frame(groups: Sequence[Dataset], is_map: bool, path: Path) -> _Frame:
    def element(sequence: str, name: str, count: int) -> np.ndarray:
        for item in (one for group in groups for one in items_of(group, sequence)):
            text = "\\".join(map(str, np.atleast_1d(item.get(name, ""))))
            found = numbers(text, count)
            if found is not None and np.isfinite(found).all() and max(map(abs, found)) < 1e5:
                return np.array(found)
        raise _bad(f"{name} of a frame is missing or invalid", path)

    cosines = element("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = element("PixelMeasuresSequence", "PixelSpacing", 2)
    number = 0.0
    if not is_map:
        number = float(element("SegmentIdentificationSequence", "ReferencedSegmentNumber", 1)[0])
    return _Frame(
        first_mm=element("PlanePositionSequence", "ImagePositionPatient", 3),
        down_mm=cosines[3:] * spacing[0],
        along_mm=cosines[:3] * spacing[1],
        segment=int(number),
    )


def _pixels(dataset: Dataset, count: int, path: Path) -> np.ndarray:
    """(frames, rows, columns); errors of decoders become "bad-dicom" around this."""
    rows, columns = (text_of(dataset, name) for name in ("Rows", "Columns"))
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise _bad(f"it has {rows or 'no'} rows and {columns or 'no'} columns", path)
    asked = count * int(rows) * int(columns)
    bits = text_of(dataset, "BitsAllocated")
    stored = len(dataset.get("PixelData") or b"") if "PixelData" in dataset else 0
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_compressed and bits.isdecimal():
        checks.check_memory(asked * int(bits) // 8, path, held_bytes=stored + 1)
    checks.check_memory(2 * asked * max(1, int(bits or 8) // 8), path)
    values: np.ndarray = dataset.pixel_array
    if values.size != asked:
        raise _bad(f"it has {values.size} pixels, not {asked}", path)
    return values.reshape(count, int(rows), int(columns))


def _placed(
    frame: _Frame, values: np.ndarray, index_from_lps: np.ndarray, grid: Grid, path: Path
) -> tuple[tuple[slice | int, ...], np.ndarray]:
    """Where in the grid a frame is, and its values in that order.

    Raises:
        InputError: "other-grid".
    """
    linear = index_from_lps[:3, :3]
    first = linear @ frame.first_mm + index_from_lps[:3, 3]
    steps = np.column_stack([linear @ frame.down_mm, linear @ frame.along_mm])
    turned = np.rint(steps).astype(int)
    last = first + steps @ (np.array(values.shape) - 1)
    whole = first.round() + turned @ (np.array(values.shape) - 1)
    far = max(float(np.abs(first - first.round()).max()), float(np.abs(last - whole).max()))
    permutes = (np.abs(turned).sum(axis=0) == 1).all() and not (turned[0] != 0).any()
    if far > _OFF_GRID * max(1.0, *np.array(values.shape) / 100) or not permutes:
        raise InputError(
            "its voxels are not those of the series: other spacing, orientation or position",
            path=path,
            code="other-grid",
            next_step="Resample it onto the series, or use the series on which it was made.",
        )
    if abs(turned[1, 0]) == 0:  # its rows are the columns of the series
        values, turned = values.T, turned[:, ::-1]
    values = values[:: turned[1, 0], :: turned[2, 1]]
    low = np.minimum(first.round(), whole)[1:].astype(int)
    k = int(first.round()[0])
    high = low + values.shape
    inside_low, inside_high = np.maximum(low, 0), np.minimum(high, grid.shape[1:])
    if not 0 <= k < grid.shape[0] or (inside_low >= inside_high).any():
        if values.any():
            raise InputError(
                "a frame is beyond the series",
                path=path,
                code="other-grid",
                next_step="Check that the series is complete.",
            )
        k, inside_low, inside_high = 0, low * 0, low * 0
    cut = values[
        tuple(slice(a, b) for a, b in zip(inside_low - low, inside_high - low, strict=True))
    ]
    rows, columns = (slice(int(a), int(b)) for a, b in zip(inside_low, inside_high, strict=True))
    return (k, rows, columns), cut


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-segmentation",
        next_step="The file is damaged: export it again.",
    )
