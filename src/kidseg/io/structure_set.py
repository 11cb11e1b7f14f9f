"""Read a DICOM RT Structure Set: its structures and their contours, in patient millimetres.

Source: DICOM PS3.3, A.19 (IOD), C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour), C.8.8.8 (RT ROI
Observations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kidseg.errors import InputError, quoted
from kidseg.io.dicom_header import read_object, reading
from kidseg.io.structures import (
    AnnotationObject,
    Structure,
    codes_in,
    items_of,
    object_head,
    positive,
    side_in,
    text_of,
)

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["CLOSED", "STRUCTURE_SET", "Contour", "StructureSet", "read_structure_set"]

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class."""

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""The types of contours that enclose voxels."""

_MAX_MM = 1e5  # of a coordinate: 100 m from the origin
_MAX_ROIS = 10_000
_MAX_DIGITS = 64  # of a coordinate; DICOM allows 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """One contour.

    Attributes:
        kind: Contour Geometric Type.
        points_mm: (points, 3) LPS.
        images: SOP Instance UIDs of the images on which it was drawn.
        fault: why its points cannot be used; "" if they can.
        comma: the first coordinate with a decimal comma; "" if there is none.
    """

    kind: str
    points_mm: np.ndarray
    images: tuple[str, ...] = ()
    fault: str = ""
    comma: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class StructureSet:
    """A structure set.

    Attributes:
        head: what it says without contours.
        contours: {number of the structure: its contours}; a structure without contours has none.
    """

    head: AnnotationObject
    contours: Mapping[int, tuple[Contour, ...]]


def read_structure_set(path: Path) -> StructureSet:
    """Read an RT Structure Set.

    Raises:
        InputError: "unreadable"; "bad-dicom"; "not-a-structure-set"; "bad-structure-set": it has no
            structures, or their numbers are missing or occur twice.
        ResourceError: "not-enough-memory".
    """
    with reading(path):
        dataset = read_object(path)
        kind = text_of(dataset, "SOPClassUID")
        stated = kind or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        if stated != STRUCTURE_SET:
            raise InputError(
                f"it is not an RT Structure Set ({stated or 'no SOP class'})",
                path=path,
                code="not-a-structure-set",
                next_step="Name a file with Modality RTSTRUCT.",
            )
        structures = _structures(dataset, path)
        contours = _all_contours(dataset, {one.number for one in structures}, path)
        return StructureSet(head=_head(dataset, structures, contours, path), contours=contours)


def _head(
    dataset: Dataset,
    structures: tuple[Structure, ...],
    contours: Mapping[int, tuple[Contour, ...]],
    path: Path,
) -> AnnotationObject:
    frames, series, listed = {text_of(dataset, "FrameOfReferenceUID")}, set(), set()
    for frame in items_of(dataset, "ReferencedFrameOfReferenceSequence"):
        frames.add(text_of(frame, "FrameOfReferenceUID"))
        of_frame = ("RTReferencedStudySequence", "RTReferencedSeriesSequence")
        for one in items_of(frame, *of_frame):
            series.add(text_of(one, "SeriesInstanceUID"))
            listed |= {
                text_of(image, "ReferencedSOPInstanceUID")
                for image in items_of(one, "ContourImageSequence")
            }
    frames |= {one.frame_of_reference for one in structures}
    drawn = {uid for each in contours.values() for contour in each for uid in contour.images}
    return AnnotationObject(
        path=path,
        kind="RTSTRUCT",
        frames_of_reference=frozenset(frames - {""}),
        referenced_series=frozenset(series - {""}),
        drawn_on=frozenset(drawn),
        referenced_images=frozenset((listed | drawn) - {""}),
        structures=structures,
        **object_head(dataset),
    )


def _structures(dataset: Dataset, path: Path) -> tuple[Structure, ...]:
    observed = {
        text_of(item, "ReferencedROINumber"): item
        for item in items_of(dataset, "RTROIObservationsSequence")
    }
    found = []
    for item in items_of(dataset, "StructureSetROISequence"):
        number = text_of(item, "ROINumber")
        if not number.lstrip("-").isdecimal():
            raise _bad(f"a structure has the ROI Number {quoted(number)}", path)
        found.append(_structure(int(number), item, observed.get(number)))
    if not found:
        raise _bad("it has no structures (Structure Set ROI Sequence)", path)
    numbers = Counter(one.number for one in found)
    if (twice := numbers.most_common(1)[0])[1] > 1 or len(found) > _MAX_ROIS:
        raise _bad(f"ROI Number {twice[0]} occurs {twice[1]} times in {len(found)}", path)
    return tuple(found)


def _structure(number: int, item: Dataset, observed: Dataset | None) -> Structure:
    from pydicom import Dataset

    of_roi = observed if observed is not None else Dataset()
    codes = codes_in(of_roi, "RTROIIdentificationCodeSequence")
    kind = "RTROIIdentificationCodeSequence"
    modifiers = codes_in(of_roi, kind, "SegmentedPropertyTypeModifierCodeSequence")
    regions = codes_in(of_roi, "AnatomicRegionSequence") + codes_in(item, "AnatomicRegionSequence")
    return Structure(
        number=number,
        name=text_of(item, "ROIName"),
        codes=codes + codes_in(item, "SegmentedPropertyTypeCodeSequence"),
        regions=regions,
        coded_side=side_in(codes + modifiers),
        stored_ml=positive(text_of(item, "ROIVolume")),
        tracking_id=text_of(of_roi, "TrackingID") or text_of(item, "TrackingID"),
        tracking_uid=text_of(of_roi, "TrackingUID") or text_of(item, "TrackingUID"),
        label=text_of(of_roi, "ROIObservationLabel"),
        frame_of_reference=text_of(item, "ReferencedFrameOfReferenceUID"),
    )


def _all_contours(dataset: Dataset, known: set[int], path: Path) -> dict[int, tuple[Contour, ...]]:
    found: dict[int, tuple[Contour, ...]] = {}
    for item in items_of(dataset, "ROIContourSequence"):
        number = text_of(item, "ReferencedROINumber")
        if not number.lstrip("-").isdecimal() or int(number) not in known:
            raise _bad(f"contours refer to a structure {quoted(number)} that is not there", path)
        each = tuple(_contours(item))
        found[int(number)] = found.get(int(number), ()) + each
    return found


def _contours(item: Dataset) -> Iterator[Contour]:
    for contour in items_of(item, "ContourSequence"):
        images = tuple(
            uid
            for image in items_of(contour, "ContourImageSequence")
            if (uid := text_of(image, "ReferencedSOPInstanceUID"))
        )
        kind = text_of(contour, "ContourGeometricType").upper() or "without type"
        texts = _coordinates(contour)
        points, fault = _points(contour, texts or [])
        comma = next((one.decode("latin-1") for one in texts or () if b"," in one), "")
        fault = "it has no Contour Data" if texts is None else fault
        yield Contour(kind=kind, points_mm=points, images=images, fault=fault, comma=comma)


def _coordinates(contour: Dataset) -> list[bytes] | None:
    """The coordinates as text: pydicom would make an object of each. None: there are none."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword("ContourData")
    assert tag is not None
    if tag not in contour:
        return None
    value = contour.get_item(tag).value
    if isinstance(value, bytes):
        stripped = value.strip(b" \0\\")
        return [one.strip() for one in stripped.split(b"\\")] if stripped else []
    return [str(one).encode() for one in np.atleast_1d(value)]  # converted already


def _points(contour: Dataset, texts: Sequence[bytes]) -> tuple[np.ndarray, str]:
    """(points, 3) and what is wrong with them, if anything. A comma is a decimal point."""
    none = np.zeros((0, 3))
    if any(len(text) > _MAX_DIGITS for text in texts):
        return none, "a coordinate is not a number"
    try:
        numbers = np.array([t.replace(b",", b".") for t in texts], dtype=bytes).astype(np.float64)
    except ValueError:
        return none, f"a coordinate is not a number ({quoted(_unreadable(texts))})"
    if len(numbers) % 3:
        return none, f"it has {len(numbers)} coordinates, which are not three for each point"
    if not (np.abs(numbers) <= _MAX_MM).all():  # NaN is refused, too
        return none, "a coordinate is not finite, or over 100 m from the origin"
    points = numbers.reshape(-1, 3)
    stated = text_of(contour, "NumberOfContourPoints")
    if stated and stated != str(len(points)):
        return none, f"it states {quoted(stated)} points, but has {len(points)}"
    return points, ""


def _unreadable(texts: Sequence[bytes]) -> str:
    """The first that is not a number."""
    for text in texts:
        try:
            float(text.replace(b",", b"."))
        except ValueError:
            return text.decode("latin-1")
    return ""


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-structure-set",
        next_step="The file is damaged: export it again.",
    )
