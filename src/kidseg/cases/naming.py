"""Names of files and cases: one rule for segmenting, for evaluating and for the data sets.

A file is named after its case, except where it is named after its content (`imaging.nii.gz`, `ct/`,
`segmentation.nii.gz`), in a folder named after the case. Label files may have a mark, `_seg`.

nnU-Net's image files also have a channel number, `case_0000.nii.gz`. A case may itself end in a
number, `kid_0000`. The number of a folder or of a label file always belongs to the case; that of an
image file (not a zip or DICOM file) is its channel only

- in nnU-Net's image folders (`imagesTr`, `imagesTs`), unless a Decathlon dataset.json lists the
  whole name;
- elsewhere, if the model reads several channels.

So the name does not depend on the other files of a folder. Where names are compared, `kid_0000`
also matches `kid`, if nothing else does (`matching_names`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PureWindowsPath

from kidseg.cases.persons import load_json
from kidseg.errors import InputError

__all__ = [
    "DATASET_JSON",
    "IMAGES",
    "IMAGE_FOLDERS",
    "LABEL_ENDINGS",
    "SCAN_ENDINGS",
    "SLICER_ENDING",
    "channel_file",
    "first_channel_of",
    "is_marked",
    "label_name",
    "matching_names",
    "scan_name",
    "split_ending",
]

DATASET_JSON = "dataset.json"
SLICER_ENDING = ".seg.nrrd"
"""Ending of 3D Slicer's segmentations."""

_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
LABEL_ENDINGS = (SLICER_ENDING, *_VOLUMES)
"""Endings of label volumes."""

SCAN_ENDINGS = (*_VOLUMES, ".zip", ".dcm")
"""Endings of the files of a scan."""

IMAGE_FOLDERS = ("imagesTr", "imagesTs", "imagesVa", "imagesVal")
"""nnU-Net's folders, where the number of an image file is always its channel."""

IMAGES = frozenset({"imaging", "image", "ct"})
"""Names of images after their content, in the folder of a case."""

_FIRST = "_0000"
_NUMBERED = re.compile(r"(.+)_\d{4}")
_MARK = re.compile(r"(.+)[_-](?:seg|segmentation|labels|label)", re.IGNORECASE)
# Names of label files after their content.
_LABELS = frozenset({"segmentation", "seg", "labels", "label", "prediction", "aggregated_maj"})


def scan_name(path: Path, channels: int = 1) -> str:
    """The name of a scan and of its results; see the module docstring.

    Args:
        path: a file or a DICOM folder.
        channels: that the model reads; `path` is the first of them.
    """
    name = _whole(path).name
    if path.is_dir():
        return _case(path) if name.lower() in IMAGES else name
    stem, ending = split_ending(name, SCAN_ENDINGS)
    if stem.lower() in IMAGES:
        return _case(path)
    case = stem.removesuffix(_FIRST)
    if not case or case == stem:
        return stem
    # nnU-Net's images are never archives or DICOM files.
    is_channel = channels > 1 or (ending.lower() in _VOLUMES and _is_channel(path))
    return case if is_channel else stem


def label_name(path: Path) -> str:
    """The case of a label file; its number, if it has one, belongs to the case."""
    stem, _ = split_ending(path.name, (*LABEL_ENDINGS, ".dcm"))
    while match := _MARK.fullmatch(stem):
        stem = match[1]
    return _case(path) if stem.lower() in _LABELS | IMAGES else stem


def is_marked(path: Path) -> bool:
    """Does the name of a file state that it contains labels, not an image?"""
    stem, ending = split_ending(path.name, LABEL_ENDINGS)
    return ending.lower() == SLICER_ENDING or stem.lower() in _LABELS or bool(_MARK.fullmatch(stem))


def channel_file(case: str, channel: int, ending: str) -> str:
    """nnU-Net's name of the image file of a channel."""
    return f"{case}_{channel:04d}{ending}"


def first_channel_of(path: Path) -> tuple[str, str] | None:
    """(case, ending) of the image file of a first channel; None if it is not named like one."""
    stem, ending = split_ending(path.name, SCAN_ENDINGS)
    case = stem.removesuffix(_FIRST)
    return None if case in ("", stem) else (case, ending)


def split_ending(name: str, endings: Iterable[str]) -> tuple[str, str]:
    """(name without a known ending, the ending); upper and lower case count as equal."""
    for ending in endings:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def matching_names(found: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """{found name: wanted name}: equal names, or equal but for `_0000` where that is a channel.

    `_0000` can only be a channel if no name on either side is equal but for another number. Found
    names that match nothing, or of which several match the same name, are left out.
    """
    same = {name: name for name in found if name in wanted}
    numbered = _numbered([*found, *wanted])
    others: dict[str, list[str]] = {}
    for name in found:
        short, long = name.removesuffix(_FIRST), name + _FIRST
        for other, case in ((short, short), (long, name)):
            if name not in wanted and other in wanted and case not in numbered:
                others.setdefault(other, []).append(name)
    for other, names in others.items():
        if other not in same and len(names) == 1:
            same[names[0]] = other
    return same


def _numbered(names: Iterable[str]) -> set[str]:
    """The names that occur with a number other than 0: `kid` if there is `kid_0001`."""
    matches = (_NUMBERED.fullmatch(name) for name in names)
    return {match[1] for match in matches if match and not match[0].endswith(_FIRST)}


def _is_channel(path: Path) -> bool:
    """Is `_0000` of an image file a channel, as nnU-Net's folders have it?"""
    folder = _whole(path).parent
    return folder.name in IMAGE_FOLDERS and not _is_listed(path.name, folder.parent / DATASET_JSON)


def _is_listed(name: str, described: Path) -> bool:
    """Does the dataset.json of a Decathlon data set list a file of this name?"""
    try:
        content = load_json(described)
    except InputError:
        return False
    if not isinstance(content, dict) or "channel_names" in content or "file_ending" in content:
        return False
    listed: list[object] = []
    for field in ("training", "test"):
        entries = content.get(field)
        listed += entries if isinstance(entries, list) else []
    images = [entry.get("image") if isinstance(entry, dict) else entry for entry in listed]
    return any(isinstance(i, str) and PureWindowsPath(i).name == name for i in images)


def _case(path: Path) -> str:
    """The name of the folder around a file or folder that is named after its content."""
    return _whole(path).parent.name or split_ending(path.name, SCAN_ENDINGS)[0]


def _whole(path: Path) -> Path:
    """The absolute path, without `.` and `..`; symbolic links (DataLad) are not followed."""
    return Path(os.path.normpath(path.absolute()))
