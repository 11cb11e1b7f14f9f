"""Read the headers of DICOM files as text.

pydicom meets damaged bytes here and in `dicom_pixels` only. Whatever it raises about them becomes
an `InputError`.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidseg.errors import InputError, KidsegError, not_found
from kidseg.io import checks

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "FRAME_FIELDS",
    "Fields",
    "Header",
    "damaged",
    "derived_uid",
    "files_in",
    "find_headers",
    "is_zstd",
    "number",
    "numbers",
    "quiet",
    "read_dataset",
    "read_object",
    "reading",
]

Fields = Mapping[str, str]
"""Data elements by keyword, as text; several values are joined by backslashes."""

_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DEFLATE_RATIO = 1032  # maximum compression ratio of deflate (zlib's documentation)
_ZSTD = b"\x28\xb5\x2f\xfd"

# Namespace of the UIDs that kidseg derives.
_NAMES = uuid.UUID("5e9f7d52-6a3c-5d1e-9b64-3f0b8f6f2c11")

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced
}

# Only these elements of a header are read; those of FRAME_FIELDS from functional groups too.
_FILE_FIELDS = [
    "SOPClassUID", "SOPInstanceUID", "Modality",
    "StudyDate", "StudyDescription", "Manufacturer", "ManufacturerModelName",
    "PatientID", "PatientSex", "PatientAge", "PatientPosition", "BodyPartExamined",
    "GantryDetectorTilt", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfFrames",
    "SamplesPerPixel", "FrameIncrementPointer",
    "GridFrameOffsetVector", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence", "LossyImageCompression",
    "LossyImageCompressionRatio",
]  # fmt: skip
FRAME_FIELDS = [
    "SeriesNumber", "FrameOfReferenceUID", "Rows", "Columns", "ImageType",
    "FrameType", "SeriesDescription", "ProtocolName", "ContrastBolusAgent",
    "ContrastBolusAgentNumber", "ContrastBolusAgentAdministered", "ScanOptions", "FilterType",
    "ConvolutionKernel", "ReconstructionAlgorithm", "ReconstructionDiameter", "KVP",
    "SliceThickness", "SpacingBetweenSlices", "AcquisitionNumber", "AcquisitionDate",
    "AcquisitionTime", "AcquisitionDateTime", "ContentTime", "InstanceCreationTime",
    "InstanceNumber", "TriggerTime", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "TemporalPositionTimeOffset", "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase", "EchoNumbers", "EchoTime", "EffectiveEchoTime",
    "InversionTime", "DiffusionBValue", "DiffusionGradientOrientation", "StackID",
    "FrameAcquisitionNumber", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
    "RescaleIntercept", "RescaleType",
]  # fmt: skip
_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
_MAX_TEXT = 2**16  # characters of one element that are kept

# A decimal string (DICOM PS3.5, 6.2, DS), and the words that some programs write instead.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """A DICOM file without its pixels.

    Attributes:
        path: the file.
        size_bytes: size of the file.
        syntax: UID of the transfer syntax; "" if it is missing.
        fields: the data elements that kidseg reads.
        frames: elements of the functional groups, for each frame, with those that all frames
            share; None if the file has no functional groups.
    """

    path: Path
    size_bytes: int
    syntax: str
    fields: Fields
    frames: tuple[Fields, ...] | None


def find_headers(path: Path, only: Sequence[Path] | None = None) -> tuple[list[Header], list[Path]]:
    """Find the DICOM files in a folder (recursively) or a file; also return all other files.

    Hidden files and folders and `__MACOSX` are skipped; links to folders are not followed.

    Args:
        path: a folder or a file.
        only: files in it; the others are not looked at.

    Raises:
        InputError: "not-found", "unreadable"; "bad-dicom": a damaged DICOM file.
    """
    headers: list[Header] = []
    others: list[Path] = []
    for file in files_in(path) if only is None else only:
        header = _read_header(file)
        if header is None:
            others.append(file)
        else:
            headers.append(header)
    return headers, others


def read_object(path: Path, *, with_pixels: bool = False) -> Dataset:
    """Read a file of any class whole, such as an RT Structure Set. Call it inside `reading`.

    Raises:
        InputError: "bad-dicom": it is not DICOM.
        ResourceError: "not-enough-memory".
    """
    from pydicom import dcmread

    with path.open("rb") as file:
        start = file.read(1024)
    if start[128:132] != b"DICM" and start[:2] not in (b"\x02\0", b"\x08\0"):
        raise InputError(
            "it is not a DICOM file",
            path=path,
            code="bad-dicom",
            next_step="Check that this is the intended file.",
        )
    size = path.stat().st_size
    checks.check_memory(size * (_DEFLATE_RATIO if _DEFLATED in start else 1), path)
    return dcmread(path, stop_before_pixels=not with_pixels, force=True)


def is_zstd(path: Path) -> bool:
    """Whether the file is compressed with Zstandard."""
    with path.open("rb") as file:
        return file.read(4) == _ZSTD


def files_in(path: Path) -> Iterator[Path]:
    """The files at a path, as `find_headers` looks at them; errors as there."""
    if path.is_symlink() and not path.exists():
        raise _no_file(path)
    if not path.exists():
        raise not_found(path)
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise _no_file(path)

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or path), error)

    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = sorted(n for n in subfolders if n[0] != "." and n != "__MACOSX")
        for name in sorted(names):
            file = Path(folder) / name
            if name.startswith("."):
                continue
            if file.is_file():
                yield file
            elif name.lower().endswith(".dcm"):
                raise _no_file(file)


def _read_header(path: Path) -> Header | None:
    """The header of a file; None for a DICOMDIR or a file that is not DICOM."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    has_preamble = start[128:132] == b"DICM"
    if not has_preamble and start[:2] not in (b"\x02\0", b"\x08\0"):
        return None
    if _DEFLATED in start:
        checks.check_memory(size * _DEFLATE_RATIO, path)
    with reading(path):
        dataset = read_dataset(path, headers_only=True)
        meta = _fields(dataset.file_meta, ["MediaStorageSOPClassUID", "TransferSyntaxUID"])
        fields = _fields(dataset, _FILE_FIELDS + FRAME_FIELDS)
        frames = _frames(dataset)
    kind = fields.get("SOPClassUID", "")
    stored = meta.get("MediaStorageSOPClassUID", kind)
    if _DIRECTORY in (kind, stored):
        return None
    known = kind or fields.get("Modality")
    if not known and not has_preamble:
        return None
    if not known or ("Rows" not in fields and (kind in CT_CLASSES or kind != stored)):
        raise damaged(path, "its header is truncated")
    syntax = meta.get("TransferSyntaxUID", "")
    return Header(path=path, size_bytes=size, syntax=syntax, fields=fields, frames=frames)


def _fields(dataset: Dataset, names: Sequence[str]) -> dict[str, str]:
    """The elements that are there, as text. One that pydicom cannot convert keeps its own text."""
    from pydicom.datadict import tag_for_keyword

    found = {}
    for name in names:
        tag = tag_for_keyword(name)
        if tag is None or tag not in dataset:
            continue
        try:
            found[name] = _text(dataset[tag].value)
        except Exception:  # pydicom raises exceptions of any class on damaged values
            raw = dataset.get_item(tag).value
            is_text = isinstance(raw, bytes) and raw.strip(b" \0").decode("latin-1").isprintable()
            found[name] = _text(raw) if is_text else "damaged bytes"
    return found


def _text(value: Any) -> str:
    from pydicom.multival import MultiValue

    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return "\\".join(_printable(v) for v in values[:_MAX_TEXT])[:_MAX_TEXT]


def _printable(value: Any) -> str:
    """One value as text without control characters, which a terminal would obey."""
    if value is None:
        return ""
    text = value[:_MAX_TEXT].decode("latin-1") if isinstance(value, bytes) else str(value)
    text = text.strip(" \0\r\n\t")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _frames(dataset: Dataset) -> tuple[Fields, ...] | None:
    """The elements of the functional groups, for each frame.

    Source: DICOM PS3.3, C.7.6.16: a group is in the shared or in the per-frame sequence.
    """
    shared, frames = (dataset.get(name) for name in _GROUPS)
    if not frames:
        return None
    common: dict[str, str] = {}
    for holder in shared or []:
        common |= _group_fields(holder)
    return tuple({**common, **_group_fields(frame)} for frame in frames)


def _group_fields(holder: Dataset) -> dict[str, str]:
    found: dict[str, str] = {}
    for element in holder:
        if element.VR == "SQ" and element.value:
            found |= _fields(element.value[0], FRAME_FIELDS)
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert whatever pydicom raises on a damaged file to an `InputError`.

    Raises:
        InputError: "unreadable"; "bad-dicom": not a valid DICOM file.
    """
    try:
        with quiet():
            yield
    except KidsegError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # struct.error, zlib.error, RecursionError, ...: of any class
        reason = _printable(str(error).partition("\n")[0] or type(error).__name__)
        raise damaged(path, f"it cannot be read as DICOM ({reason[:200]})") from error


def read_dataset(path: Path, *, headers_only: bool = False) -> Dataset:
    """Read a file's data elements: all of them, or only those of the header.

    Call it inside `reading`.
    """
    from pydicom import dcmread

    if headers_only:
        tags: list[Any] = ["SpecificCharacterSet", *_FILE_FIELDS, *FRAME_FIELDS, *_GROUPS]
        return dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
    return dcmread(path, force=True)


class _Quiet:
    """Without pydicom's warnings while any thread is inside.

    Threads that each saved and restored the filters of warnings, which are the process's, would
    leave those of another thread behind, and with them lose warnings of kidseg, or raise them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module="pydicom")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


_QUIET = _Quiet()


def quiet() -> AbstractContextManager[None]:
    """Suppress pydicom's warnings about invalid values that it can still read; in any thread."""
    return _QUIET


def number(fields: Fields, name: str) -> float | None:
    """An element as one number; None if it is missing or not a single number."""
    values = numbers(fields.get(name, ""), 1)
    return None if values is None else values[0]


def numbers(text: str, count: int) -> list[float] | None:
    """`count` numbers; None if the text is anything else.

    A comma is read as a decimal point: DICOM's decimal strings cannot contain one.
    """
    parts = [part.strip().replace(",", ".") for part in text.split("\\")]
    if len(parts) != count or not all(_DECIMAL.fullmatch(part) for part in parts):
        return None
    return [float(part) for part in parts]


def derived_uid(*names: str) -> str:
    """Derive a UID from names; the same names always give the same UID.

    Source: DICOM PS3.5, B.2: "2.25." and a UUID as a decimal number; RFC 4122, 4.3 (UUID by name).
    """
    return f"2.25.{uuid.uuid5(_NAMES, '/'.join(names)).int}"


def damaged(path: Path, cause: str) -> InputError:
    """The error "bad-dicom"."""
    return InputError(
        cause,
        path=path,
        code="bad-dicom",
        next_step="The file is truncated or damaged: copy or export the series again.",
    )


def _no_file(path: Path) -> InputError:
    """The error of an image that cannot be opened at all; opening a pipe would block."""
    is_link = path.is_symlink() and not path.exists()
    return InputError(
        "it is a link to a file that is not there" if is_link else "it is not a file",
        path=path,
        code="unreadable",
        next_step="Fetch the file (git annex get, datalad get), or remove the link."
        if is_link
        else "Remove it.",
    )


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return not_found(path)
    return InputError(
        f"it cannot be read ({error.strerror or error})",
        path=path,
        code="unreadable",
        next_step="Check its permissions.",
    )
