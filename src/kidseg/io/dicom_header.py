"""Read the headers of DICOM files, and the image planes that they describe.

A file contains one plane (CT Image) or many (Enhanced CT Image, in functional groups). Both become
a tuple of `Plane`s, so the other modules need no distinction.
"""

from __future__ import annotations

import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kidseg.errors import InputError
from kidseg.io import checks

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "Image",
    "Plane",
    "derived_uid",
    "find_images",
    "is_zstd",
    "number",
    "quiet",
    "read_dataset",
]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"
_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DEFLATE_RATIO = 1032  # maximum compression ratio of deflate (zlib's documentation)
_ZSTD = b"\x28\xb5\x2f\xfd"

# Namespace of the UIDs that kidseg derives.
_NAMES = uuid.UUID("5e9f7d52-6a3c-5d1e-9b64-3f0b8f6f2c11")

_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced
}

# Only these elements of a header are parsed.
_TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality",
    "StudyDate", "StudyDescription", "SeriesDescription", "Manufacturer", "ManufacturerModelName",
    "PatientID", "PatientSex", "PatientAge", "PatientPosition", "BodyPartExamined",
    "ContrastBolusAgent", "ConvolutionKernel", "KVP", "GantryDetectorTilt",
    "SliceThickness", "SpacingBetweenSlices", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "LossyImageCompression", "LossyImageCompressionRatio", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A DICOM file without its pixels.

    Attributes:
        path: the file.
        header: the data elements that kidseg reads.
        planes: its image planes; one for a single-frame file.
    """

    path: Path
    header: Dataset
    planes: tuple[Plane, ...]

    def text(self, name: str) -> str:
        """A data element as text; "" if it is missing, empty or unreadable."""
        return text(self.header, name)

    @property
    def modality(self) -> str:
        """The stated modality; otherwise that of the SOP class; otherwise ""."""
        return self.text("Modality") or ("CT" if self.text("SOPClassUID") in _CT_CLASSES else "")

    @property
    def syntax(self) -> str:
        """UID of the transfer syntax; "" if it is missing."""
        return text(self.header.file_meta, "TransferSyntaxUID")

    @property
    def excluded_kind(self) -> str:
        """The kind of an image that cannot belong to a volume ("localiser", ...); otherwise ""."""
        from pydicom.uid import UID

        kind, name = self.text("SOPClassUID"), UID(self.text("SOPClassUID")).name
        if kind.startswith(_SECONDARY_CAPTURE):
            return "secondary capture"
        if kind.startswith(_SEGMENTATION) or self.modality == "SEG":
            return "segmentation"
        if "LOCALIZER" in self.text("ImageType").upper().split("\\"):
            return "localiser"
        if "Rows" not in self.header or self.modality in ("RTDOSE", "PR", "SR", "KO", "REG"):
            return name or self.modality
        if number(self.header, "SamplesPerPixel") not in (None, 1.0):
            return "colour image"
        return ""


def find_images(path: Path) -> tuple[list[Image], list[Path]]:
    """Find the DICOM images in a folder (recursively) or a file; also return all other files.

    Hidden files and folders and `__MACOSX` are skipped; links to folders are not followed.

    Raises:
        InputError: "not-found", "unreadable"; "bad-dicom": a damaged DICOM file.
    """
    images: list[Image] = []
    others: list[Path] = []
    for file in _files(path):
        image = _read_header(file)
        if image is None:
            others.append(file)
        else:
            images.append(image)
    return images, others


def is_zstd(path: Path) -> bool:
    """Whether the file is compressed with Zstandard."""
    with path.open("rb") as file:
        return file.read(4) == _ZSTD


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise InputError(
            "no such file or folder",
            path=path,
            code="not-found",
            next_step="Check the path.",
        )
    if path.is_file():
        yield path
        return

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or path), error)

    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = sorted(n for n in subfolders if n[0] != "." and n != "__MACOSX")
        for name in sorted(names):
            file = Path(folder) / name
            if not name.startswith(".") and file.is_file():
                yield file


def _read_header(path: Path) -> Image | None:
    """The image in a file; None for a DICOMDIR or a file that is not DICOM."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise _unreadable(path, error) from error
    has_preamble = start[128:132] == b"DICM"
    if not has_preamble and start[:2] not in (b"\x02\0", b"\x08\0"):
        return None
    if _DEFLATED in start:
        checks.check_memory(path.stat().st_size * _DEFLATE_RATIO, path)
    header = read_dataset(path, headers_only=True)
    if text(header, "SOPClassUID") == _DIRECTORY or (
        text(header.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY
    ):
        return None
    known = text(header, "SOPClassUID") or text(header, "Modality")
    if not known and not has_preamble:
        return None
    if not known or (text(header, "SOPClassUID") in _CT_CLASSES and "Rows" not in header):
        raise _damaged(path, "its header is truncated")
    with quiet():
        return Image(path=path, header=header, planes=_planes(path, header))


def read_dataset(path: Path, *, headers_only: bool = False) -> Dataset:
    """Read a file's data elements: all of them, or only those of the header.

    Raises:
        InputError: "unreadable"; "bad-dicom": not a valid DICOM file.
    """
    import struct
    import zlib

    from pydicom import dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError

    invalid = (InvalidDicomError, BytesLengthException, EOFError, struct.error, zlib.error)
    try:
        with quiet():
            if headers_only:
                return dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*_TAGS])
            return dcmread(path, force=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (
        *invalid, ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise _damaged(path, f"it cannot be read as DICOM ({error})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's warnings about invalid values that it can still read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def text(dataset: Dataset, name: str) -> str:
    """A data element as text; several values are joined by backslashes; "" if it is missing."""
    from pydicom.multival import MultiValue

    try:
        with quiet():
            value = dataset.get(name)
    except (ValueError, TypeError, NotImplementedError):
        return ""
    if value is None:
        return ""
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(v).strip(" \0") for v in values)


def number(dataset: Dataset, name: str) -> float | None:
    """A data element as one number; None if it is missing or not a single number."""
    values = _numbers(dataset, name, 1)
    return None if values is None else values[0]


def _numbers(dataset: Dataset, name: str, count: int) -> list[float] | None:
    parts = text(dataset, name).split("\\")
    if len(parts) != count:
        return None
    try:
        return [float(part) for part in parts]
    except ValueError:
        return None


def derived_uid(*names: str) -> str:
    """Derive a UID from names; the same names always give the same UID.

    Source: DICOM PS3.5, B.2: "2.25." and a UUID as a decimal number; RFC 4122, 4.3 (UUID by name).
    """
    return f"2.25.{uuid.uuid5(_NAMES, '/'.join(names)).int}"


# ---- planes ------------------------------------------------------------------------------------


def _planes(path: Path, header: Dataset) -> tuple[Plane, ...]:
    """The plane of a single-frame image, or the planes of a multi-frame image."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return (_plane(path, 0, lambda _sequence: header),)
    shared = header.get("SharedFunctionalGroupsSequence") or []

    def group(frame: Dataset) -> Callable[[str], Dataset]:
        def find(sequence: str) -> Dataset:
            for holder in (frame, *shared):
                items = holder.get(sequence)
                if items:
                    found: Dataset = items[0]
                    return found
            return header

        return find

    return tuple(_plane(path, k, group(frame)) for k, frame in enumerate(frames))


def _plane(path: Path, frame: int, group: Callable[[str], Dataset]) -> Plane:
    """A plane from the data sets with its position, orientation, pixel measures and rescaling.

    Source: DICOM PS3.3, C.7.6.2 (image plane), C.7.6.16.2 (functional groups), C.11.1.
    """
    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    cosines = _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    position = _numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    spacing = _numbers(measures, "PixelSpacing", 2)
    apart = number(measures, "SpacingBetweenSlices")
    thick = number(measures, "SliceThickness")
    return Plane(
        path=path,
        frame=frame,
        position_mm=_finite(position),
        directions=None if cosines is None else _orthonormal(cosines, path),
        spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        thickness_mm=next((abs(v) for v in (apart, thick) if v and math.isfinite(v)), None),
        slope=number(values, "RescaleSlope"),
        intercept=number(values, "RescaleIntercept"),
        rescale_type=text(values, "RescaleType").upper(),
    )


def _finite(values: Sequence[float] | None) -> np.ndarray | None:
    return None if values is None or not np.isfinite(values).all() else np.array(values)


def _orthonormal(cosines: list[float], path: Path) -> np.ndarray:
    """(2, 3) row and column direction, orthonormalised to remove the rounding of decimals.

    Raises:
        InputError: "bad-orientation": they are not orthogonal unit vectors.
    """
    along, down = np.array(cosines).reshape(2, 3)
    lengths = np.linalg.norm([along, down], axis=1)
    if not (np.abs(lengths - 1) < 1e-2).all() or abs(float(along @ down)) > 1e-2:
        raise InputError(
            f"its image orientation {cosines} is invalid: not two orthogonal unit vectors",
            path=path,
            code="bad-orientation",
            next_step="The header is damaged: export the series again.",
        )
    along = along / np.linalg.norm(along)
    down = down - (down @ along) * along
    return np.array([along, down / np.linalg.norm(down)])


def _damaged(path: Path, cause: str) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-dicom",
        next_step="The file is truncated or damaged: copy or export the series again.",
    )


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"it cannot be read ({error.strerror})",
        path=path,
        code="unreadable",
        next_step="Check its permissions.",
    )
