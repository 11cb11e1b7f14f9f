"""Check what pixel data hold before they are decoded: number and size of the frames."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from kidseg.errors import InputError
from kidseg.io.dicom_frames import Image
from kidseg.io.dicom_header import number, reading

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_frames"]

_RLE = "1.2.840.10008.1.2.5"
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_END, _TRAILING = b"\xff\xd9", 64  # the last marker, and how many bytes may be padding
# Start-of-frame markers of JPEG and JPEG-LS.
# Source: ITU-T T.81, table B.1; ITU-T T.87, C.1.1.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_frames(dataset: Dataset, image: Image, shape: tuple[int, ...]) -> None:
    """Check that the pixel data hold the stated number of frames, of the stated size.

    Decoders allocate what a codestream states: a damaged one may state any size.

    Args:
        dataset: the whole file.
        image: its header.
        shape: (rows, columns).

    Raises:
        InputError: "frame-count", "bad-pixels"; "bad-dicom": the pixel data cannot be taken apart.
    """
    stated = int(number(image.fields, "NumberOfFrames") or 1)
    with reading(image.path):
        if dataset.get("PixelData") is None:
            raise _bad_pixels("it has no pixel data", image.path)
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            frame_bytes = shape[0] * shape[1] * int(image.text("BitsAllocated")) // 8
            held: int | None = len(dataset.PixelData) // frame_bytes
        else:
            held = _encapsulated(dataset.PixelData, image, shape)
    if held is not None and held != stated and max(held, stated) > 1:
        raise InputError(
            f"its pixel data hold {held} frames, but Number of Frames is "
            f"{image.text('NumberOfFrames') or 'missing'}",
            path=image.path,
            code="frame-count",
            next_step="The file is truncated or its header is damaged: export it again.",
        )


def _encapsulated(data: bytes, image: Image, shape: tuple[int, ...]) -> int | None:
    """The number of frames; None if it cannot be told without decoding them."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    stream = io.BytesIO(data)
    offsets = parse_basic_offsets(stream)
    fragments = list(generate_fragments(stream))
    starts = _codestreams(fragments)
    for start in starts:
        if _END not in start[-_TRAILING:]:
            raise _bad_pixels("its compressed pixels are truncated", image.path)
        size = _size_2000(start) if start.startswith(_JPEG_2000) else _size_jpeg(start)
        if size is not None and size != (*shape, 1):
            raise _bad_pixels(
                f"its compressed pixels are {size[0]} x {size[1]} with {size[2]} channels, not "
                f"{shape[0]} x {shape[1]}",
                image.path,
            )
    if image.syntax == _RLE:
        return len(fragments)
    return max(len(offsets), len(starts)) or None


def _codestreams(fragments: list[bytes]) -> list[bytes]:
    """The JPEG or JPEG 2000 codestreams; each may be split over several fragments."""
    found: list[bytes] = []
    for fragment in fragments:
        if fragment.startswith((_JPEG, _JPEG_2000)):
            found.append(fragment)
        elif found:
            found[-1] += fragment
    return found


def _size_2000(start: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) of a JPEG 2000 codestream.

    Source: ITU-T T.800, A.5.1 (SIZ marker).
    """
    if len(start) < 42:
        return None
    columns, rows, left, top = struct.unpack_from(">4I", start, 8)
    (channels,) = struct.unpack_from(">H", start, 40)
    return rows - top, columns - left, channels


def _size_jpeg(start: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) of a JPEG or JPEG-LS codestream.

    Source: ITU-T T.81, B.2.2 (frame header).
    """
    at = 2
    while at + 10 <= len(start) and start[at] == 0xFF:
        if start[at + 1] in _START_OF_FRAME:
            rows, columns, channels = struct.unpack_from(">HHB", start, at + 5)
            return rows, columns, channels
        if start[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(start[at + 2 : at + 4], "big")
    return None


def _bad_pixels(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-pixels",
        next_step="The file is truncated or damaged: copy or export the series again.",
    )
