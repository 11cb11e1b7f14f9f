"""The image planes that DICOM headers describe.

A file contains one plane (CT Image), or many: Enhanced CT states the position of each in functional
groups, other multi-frame files only that of the first. All become a tuple of `Plane`s, so the other
modules need no distinction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kidseg.errors import Finding, InputError
from kidseg.io.dicom_header import (
    CT_CLASSES,
    FRAME_FIELDS,
    Fields,
    Header,
    find_headers,
    number,
    numbers,
)
from kidseg.io.dicom_image_type import excluded_by

__all__ = ["Image", "Plane", "check_readable", "find_images"]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"
_OFFSETS_TAG = "(3004,000c)"  # Grid Frame Offset Vector
_FRAME_BYTES = 8  # the least that a frame of compressed pixels occupies: the head of its item

# What must be numbers: how many, and the name in messages.
_NUMERIC = {
    "ImagePositionPatient": (3, "Image Position (Patient)"),
    "ImageOrientationPatient": (6, "Image Orientation (Patient)"),
    "PixelSpacing": (2, "Pixel Spacing"),
    "SpacingBetweenSlices": (1, "Spacing Between Slices"),
    "SliceThickness": (1, "Slice Thickness"),
    "RescaleSlope": (1, "Rescale Slope"),
    "RescaleIntercept": (1, "Rescale Intercept"),
    "NumberOfFrames": (1, "Number of Frames"),
    "PixelPaddingValue": (1, "Pixel Padding Value"),
    "PixelPaddingRangeLimit": (1, "Pixel Padding Range Limit"),
}
_THICKNESS = {"SpacingBetweenSlices", "SliceThickness"}  # needed for a single slice only


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """Geometry and rescaling of one image plane. None means that the file does not state it.

    Attributes:
        path: its file.
        frame: frame index in the file, from 0.
        position_mm: (3,) LPS, centre of the first voxel.
        directions: (2, 3) unit vectors LPS: along a row (growing column index), then down a column.
        spacing_mm: between (rows, columns).
        thickness_mm: distance between slices if stated, otherwise slice thickness.
        slope: rescale slope.
        intercept: rescale intercept.
        rescale_type: unit of the rescaled values, usually "HU".
        fields: the elements of the header that can differ between planes.
    """

    path: Path
    frame: int
    position_mm: np.ndarray | None
    directions: np.ndarray | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    fields: Fields


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A DICOM file without its pixels.

    Attributes:
        path: the file.
        syntax: UID of the transfer syntax; "" if it is missing.
        fields: the data elements that kidseg reads, as text.
        planes: its image planes; one for a single-frame file.
        odd: numeric elements that are not written as DICOM demands, with their text.
        placed: how its frames were placed, if they have no positions of their own; otherwise "".
        fault: why its planes cannot be used.
    """

    path: Path
    syntax: str
    fields: Fields
    planes: tuple[Plane, ...]
    odd: Mapping[str, str]
    placed: str = ""
    fault: InputError | None = None

    def text(self, name: str) -> str:
        """A data element as text; "" if it is missing or empty."""
        return self.fields.get(name, "")

    @property
    def modality(self) -> str:
        """The stated modality; otherwise that of the SOP class; otherwise ""."""
        return self.text("Modality").upper() or (
            "CT" if self.text("SOPClassUID") in CT_CLASSES else ""
        )

    @property
    def image_type(self) -> str:
        """Image Type; of a multi-frame file the Frame Type of its first plane, if it is stated."""
        first = self.planes[0].fields if self.planes else self.fields
        return first.get("FrameType") or self.text("ImageType")

    @property
    def is_unplaced(self) -> bool:
        """Whether the file states no position at all, and no unreadable one either."""
        stated = self.fault is not None or "ImagePositionPatient" in self.odd
        return not stated and all(plane.position_mm is None for plane in self.planes)

    @property
    def excluded_kind(self) -> str:
        """The kind of an image that cannot belong to a volume ("localiser", ...); otherwise ""."""
        from pydicom._uid_dict import UID_dictionary

        kind = self.text("SOPClassUID")
        if kind.startswith(_SECONDARY_CAPTURE):
            return "secondary capture"
        if kind.startswith(_SEGMENTATION) or self.modality == "SEG":
            return "segmentation"
        if computed := excluded_by(self.image_type, self.modality):
            return computed
        if "Rows" not in self.fields or self.modality in ("RTDOSE", "PR", "SR", "KO", "REG"):
            return UID_dictionary[kind][0] if kind in UID_dictionary else self.modality or "object"
        # Values of a palette are indices of colours.
        is_gray = self.text("PhotometricInterpretation")[:10] in ("", "MONOCHROME")
        if not is_gray or number(self.fields, "SamplesPerPixel") not in (None, 1.0):
            return "colour image"
        return ""


def find_images(
    path: Path, slice_spacing_mm: float | None = None, only: Sequence[Path] | None = None
) -> tuple[list[Image], list[Path]]:
    """Find the DICOM images in a folder (recursively) or a file; also return all other files.

    Args:
        path: a folder or a file.
        slice_spacing_mm: places the frames that have no positions; overrides the header.
        only: files in the folder; the others are not looked at.

    Raises:
        InputError: as `dicom_header.find_headers`.
    """
    headers, others = find_headers(path, only)
    return [_image(header, slice_spacing_mm) for header in headers], others


def _image(header: Header, slice_spacing_mm: float | None) -> Image:
    fault, placed = None, ""
    try:
        frames, placed = _frames(header, slice_spacing_mm)
        planes = tuple(_plane(header.path, k, fields) for k, fields in enumerate(frames))
    except InputError as error:
        fault, planes = error, ()
    return Image(
        path=header.path,
        syntax=header.syntax,
        fields=header.fields,
        planes=planes,
        odd=_odd_numbers(header),
        placed=placed,
        fault=fault,
    )


def _plane(path: Path, frame: int, fields: Fields) -> Plane:
    """A plane from its data elements.

    Source: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16.2 (functional groups), C.11.1.

    Raises:
        InputError: "bad-orientation".
    """
    cosines = numbers(fields.get("ImageOrientationPatient", ""), 6)
    position = numbers(fields.get("ImagePositionPatient", ""), 3)
    spacing = numbers(fields.get("PixelSpacing", ""), 2)
    apart, thick = number(fields, "SpacingBetweenSlices"), number(fields, "SliceThickness")
    return Plane(
        path=path,
        frame=frame,
        position_mm=_finite(position),
        directions=None if cosines is None else _orthonormal(cosines, path),
        spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        thickness_mm=next((abs(v) for v in (apart, thick) if v and math.isfinite(v)), None),
        slope=number(fields, "RescaleSlope"),
        intercept=number(fields, "RescaleIntercept"),
        rescale_type=fields.get("RescaleType", "").upper(),
        fields=fields,
    )


def _finite(values: Sequence[float] | None) -> np.ndarray | None:
    return None if values is None or not np.isfinite(values).all() else np.array(values)


def _orthonormal(cosines: list[float], path: Path) -> np.ndarray:
    """(2, 3) row and column direction, orthonormalised to remove the rounding of decimals.

    Raises:
        InputError: "bad-orientation": they are not orthogonal unit vectors.
    """
    along, down = np.array(cosines).reshape(2, 3)
    if np.isfinite(cosines).all() and max(map(abs, cosines)) < 2:
        lengths = np.linalg.norm([along, down], axis=1)
        if (np.abs(lengths - 1) < 1e-2).all() and abs(float(along @ down)) < 1e-2:
            along = along / np.linalg.norm(along)
            down = down - (down @ along) * along
            return np.array([along, down / np.linalg.norm(down)])
    raise InputError(
        f"its image orientation {cosines} is invalid: not two orthogonal unit vectors",
        path=path,
        code="bad-orientation",
        next_step="The header is damaged: export the series again.",
    )


# ---- frames ------------------------------------------------------------------------------------


def _frames(header: Header, slice_spacing_mm: float | None) -> tuple[list[Fields], str]:
    """The data elements of each frame, and how frames without positions were placed.

    Raises:
        InputError: "frame-count", "no-frame-positions", "bad-orientation".
    """
    count = _count(header)
    own = {name: header.fields[name] for name in FRAME_FIELDS if name in header.fields}
    if header.frames is not None:
        if len(header.frames) != count and "NumberOfFrames" in header.fields:
            raise _frame_error(
                f"it states {count} frames, but describes {len(header.frames)} of them", header
            )
        return [{**own, **frame} for frame in header.frames], ""
    if count == 1:
        return [own], ""
    position = _finite(numbers(own.get("ImagePositionPatient", ""), 3))
    cosines = numbers(own.get("ImageOrientationPatient", ""), 6)
    if position is None or cosines is None:
        own.pop("ImagePositionPatient", None)
        return [own] * count, ""
    along, down = _orthonormal(cosines, header.path)
    offsets_mm, how = _offsets(header, count, float(position[2]), slice_spacing_mm)
    places = position + np.outer(offsets_mm, np.cross(along, down))
    texts = ("\\".join(f"{v:.10g}" for v in place) for place in places)
    return [{**own, "ImagePositionPatient": text} for text in texts], how


def _count(header: Header) -> int:
    """The stated number of frames.

    Raises:
        InputError: "frame-count": it is not a number, or more than the file can hold.
    """
    text = header.fields.get("NumberOfFrames", "")
    stated = numbers(text or "1", 1)
    count = stated[0] if stated else math.nan
    if not (count >= 1 and count == round(count)):
        raise _frame_error(f"its Number of Frames is '{text[:40]}'", header)
    if count > max(1, header.size_bytes // _FRAME_BYTES):
        raise _frame_error(f"it states {count:.0f} frames: more than a file of its size", header)
    return int(count)


def _offsets(
    header: Header, count: int, first_mm: float, slice_spacing_mm: float | None
) -> tuple[np.ndarray, str]:
    """Distance of each frame from the first along the normal, and where it was found.

    Source: DICOM PS3.3, C.8.8.3.2 (Grid Frame Offset Vector: relative to the position if it starts
    with 0, otherwise z coordinates of axial frames); C.7.6.6 (Frame Increment Pointer).
    """
    from pydicom.datadict import dictionary_description, dictionary_has_tag

    pointer = header.fields.get("FrameIncrementPointer", "").lower()
    text = header.fields.get("GridFrameOffsetVector", "")
    if text and pointer in ("", _OFFSETS_TAG):
        offsets = numbers(text, count)
        if offsets is None or not np.isfinite(offsets).all():
            raise _unplaced(f"its Grid Frame Offset Vector is not {count} numbers", header)
        axial = numbers(header.fields["ImageOrientationPatient"], 6)
        if offsets[0] != 0:
            if abs(offsets[0] - first_mm) > 0.01 or axial != [1, 0, 0, 0, 1, 0]:
                raise _unplaced("its Grid Frame Offset Vector contradicts its position", header)
            offsets = [offset - offsets[0] for offset in offsets]
        return np.array(offsets), "by its Grid Frame Offset Vector"
    if slice_spacing_mm is not None:
        return np.arange(count) * slice_spacing_mm, f"{slice_spacing_mm:g} mm apart as requested"
    if pointer:
        tag = int("".join(c for c in pointer if c in "0123456789abcdef")[:8] or "0", 16)
        name = dictionary_description(tag) if dictionary_has_tag(tag) else pointer[:40]
        raise _unplaced(f"they follow one another by {name}, not by position", header)
    apart = number(header.fields, "SpacingBetweenSlices")
    if apart is None or not 0 < apart < math.inf:
        stated = header.fields.get("SpacingBetweenSlices")
        raise _unplaced(
            f"Spacing Between Slices is {f'{stated[:40]!r}' if stated else 'missing'}", header
        )
    return np.arange(count) * apart, f"{apart:g} mm apart (Spacing Between Slices)"


def _frame_error(cause: str, header: Header) -> InputError:
    return InputError(
        cause,
        path=header.path,
        code="frame-count",
        next_step="The file is truncated or its header is damaged: export it again.",
    )


def _unplaced(cause: str, header: Header) -> InputError:
    return InputError(
        f"its frames have no positions of their own, and {cause}",
        path=header.path,
        code="no-frame-positions",
        next_step="If they are evenly spaced slices, specify their distance with "
        "--spacing SLICE ROW COLUMN; otherwise export the series as single images.",
    )


# ---- numbers that are not written as they should be ---------------------------------------------


def _odd_numbers(header: Header) -> dict[str, str]:
    """Numeric elements with a decimal comma, or that are not numbers, with their text."""
    odd: dict[str, str] = {}
    for fields in [header.fields, *(header.frames or ())]:
        for name, (count, _) in _NUMERIC.items():
            text = fields.get(name, "")
            if text and name not in odd and ("," in text or _values(text, count) is None):
                odd[name] = text
    return odd


def check_readable(
    images: Sequence[Image], path: Path, *, spacing_given: bool
) -> tuple[Finding, ...]:
    """Check that each stated number can be read; findings on decimal commas.

    Args:
        images: the files of a series.
        path: the series, for messages.
        spacing_given: the spacings in the header are not needed.

    Raises:
        InputError: "bad-position", "bad-orientation", "bad-spacing", "bad-rescale", "frame-count",
            "bad-padding": an element is there, but it cannot be read; any `Image.fault`.
    """
    spacings = () if spacing_given else ("PixelSpacing", *sorted(_THICKNESS))
    findings = [
        *_check_numbers("bad-position", ("ImagePositionPatient",), images, path),
        *_check_numbers("bad-orientation", ("ImageOrientationPatient",), images, path),
        *_check_numbers("bad-spacing", spacings, images, path),
        *_check_numbers("bad-rescale", ("RescaleSlope", "RescaleIntercept"), images, path),
        *_check_numbers("frame-count", ("NumberOfFrames",), images, path),
        *_check_numbers(
            "bad-padding", ("PixelPaddingValue", "PixelPaddingRangeLimit"), images, path
        ),
    ]
    faults = [image.fault for image in images if image.fault is not None]
    if faults:
        raise faults[0]
    return tuple(findings)


def _check_numbers(
    code: str, names: Sequence[str], images: Sequence[Image], path: Path
) -> Iterator[Finding]:
    for name in names:
        found = [image for image in images if name in image.odd]
        if not found:
            continue
        count, label = _NUMERIC[name]
        bad = [image for image in found if _is_unclear(name, image.odd[name], count)]
        shown = (bad or found)[0]
        where = f"in {len(bad or found)} of {len(images)} files, first {shown.path.name}"
        text = f"'{shown.odd[name][:60]}'"
        if not bad:
            cause = (
                f"{label} is written with a decimal comma ({text}) {where}; it was read as a point"
            )
            yield Finding(code="decimal-comma", path=str(path), cause=cause)
            continue
        cause = f"{label} is {text} {where}: not {_counted(count)}"
        if name in _THICKNESS and sum(len(image.planes) for image in images) > 1:
            yield Finding(code="unreadable-number", path=str(path), cause=cause)
            continue
        raise InputError(
            cause,
            path=path,
            code=code,
            next_step="The header is damaged: export the series again.",
        )


def _is_unclear(name: str, text: str, count: int) -> bool:
    """Whether the text is not `count` numbers; 1,024 may be a thousand where that is plausible."""
    digits, _, thousands = text.strip("+- ").partition(",")
    is_thousand = digits.isdigit() and digits[0] != "0" and len(thousands) == 3
    return _values(text, count) is None or (name == "RescaleIntercept" and is_thousand)


def _values(text: str, count: int) -> list[float] | None:
    """`count` finite numbers, or None."""
    values = numbers(text, count)
    return values if values is not None and np.isfinite(values).all() else None


def _counted(count: int) -> str:
    return "a number" if count == 1 else f"{count} numbers"
