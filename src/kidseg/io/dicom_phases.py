"""Whether the interleaved parts of a DICOM series look like one anatomy or like several phases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from kidseg.errors import InputError
from kidseg.io.dicom_continuity import unlikeness
from kidseg.io.dicom_frames import Image, Plane
from kidseg.io.dicom_header import number
from kidseg.io.dicom_pixels import decode
from kidseg.io.scan import ReadOptions

__all__ = ["compare_parts"]

_WINDOW = 16  # slices; they bound memory and time
_SOFT_TISSUE_HU = (-200.0, 300.0)
_RAW = ReadOptions(values="any")


def compare_parts(
    images: Sequence[Image], planes: Sequence[Plane], part_of: Sequence[int]
) -> float:
    """How much more neighbouring slices of different parts differ than those of one part.

    Decodes at most 16 slices, where the parts alternate most.

    Args:
        images: the files of the series.
        planes: in order of position.
        part_of: the part of each plane.

    Returns:
        As `dicom_continuity.unlikeness`; 1 if the pixels cannot be decoded.
    """
    seams = [a != b for a, b in pairwise(part_of)]
    starts = range(max(1, len(planes) - _WINDOW + 1))
    middle = len(starts) // 2
    start = max(starts, key=lambda k: (sum(seams[k : k + _WINDOW - 1]), -abs(k - middle)))
    window = planes[start : start + _WINDOW]
    rows, columns = (number(window[0].fields, name) for name in ("Rows", "Columns"))
    sizes = {(p.fields.get("Rows"), p.fields.get("Columns")) for p in window}
    if not rows or not columns or len(sizes) > 1:
        return 1.0
    path: Path = window[0].path
    try:
        values, _, _ = decode(window, images, (int(rows), int(columns)), path, _RAW)
    except InputError:
        return 1.0  # whoever reads the volume is told why
    if images[0].modality == "CT":
        values = values.clamp(*_SOFT_TISSUE_HU)
    return unlikeness(values, part_of[start : start + _WINDOW])
