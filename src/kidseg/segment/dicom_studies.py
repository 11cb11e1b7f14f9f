"""Group the DICOM files of a folder by patient and study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidseg.errors import InputError, KidsegError
from kidseg.io import ReadOptions
from kidseg.io.dicom_choice import choose
from kidseg.io.dicom_frames import find_images
from kidseg.io.dicom_series import group_series

__all__ = ["Study", "find_studies"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A DICOM study with a volume.

    Attributes:
        folder: the smallest that contains all its images.
        series: UID of the series to read, with "/2" for its second volume; None if the folder has
            no images of other studies.
        number: from 1, if several studies have the same folder; else 0.
        error: why no series could be chosen.
    """

    folder: Path
    series: str | None = None
    number: int = 0
    error: KidsegError | None = None


@dataclass
class _Group:
    """The files of a study, and whether some form a volume of the kind that is looked for."""

    files: list[Path]
    has_volume: bool = False


def find_studies(
    files: Sequence[Path], options: ReadOptions
) -> tuple[list[Study], list[Study], list[tuple[Path, KidsegError]]]:
    """Find the studies with a volume, of CT if the values are to be CT.

    Files that are not DICOM are ignored.

    Args:
        files: of a folder and its subfolders.
        options: of reading.

    Returns:
        The studies; studies without such a volume; and folders of damaged DICOM files in which
        there is no study, each with the error.
    """
    groups: dict[tuple[str, str], _Group] = {}
    damaged: dict[Path, KidsegError] = {}
    for file in files:
        try:
            images, _ = find_images(file)
        except InputError as error:
            damaged.setdefault(file.parent, error)
            continue
        for image in images:
            patient, study = image.text("PatientID"), image.text("StudyInstanceUID")
            key = (patient, study) if patient or study else ("", str(file.parent))
            group = groups.setdefault(key, _Group([]))
            group.files.append(file)
            is_kind = options.values != "ct" or image.modality == "CT"
            placed = any(plane.position_mm is not None for plane in image.planes)
            group.has_volume |= is_kind and placed and not image.excluded_kind
    fit = [group for group in groups.values() if group.has_volume]
    unfit = [Study(folder=_common(g.files)) for g in groups.values() if not g.has_volume]
    folders = [_common(group.files) for group in fit]
    studies = []
    for k, (group, folder) in enumerate(zip(fit, folders, strict=True)):
        if any(_is_in(other, folder) for n, other in enumerate(folders) if n != k):
            number = folders[: k + 1].count(folder) if folders.count(folder) > 1 else 0
            studies.append(_chosen(group, folder, number, options))
        else:
            studies.append(Study(folder=folder))
    known = [*folders, *(study.folder for study in unfit)]
    bad = [
        (folder, error)
        for folder, error in damaged.items()
        if not any(_is_in(folder, other) for other in known)
    ]
    return studies, unfit, bad


def _chosen(group: _Group, folder: Path, number: int, options: ReadOptions) -> Study:
    """The study whose images must be told from those of others in its folder by their series."""
    try:
        every = group_series([image for file in group.files for image in find_images(file)[0]])
        chosen, _ = choose(every, folder, options)
    except KidsegError as error:
        return Study(folder=folder, number=number, error=error)
    alike = [s for s in every if s.uid == chosen.uid and s.kind == "volume"]
    is_part = len(alike) > 1 and chosen in alike
    series = f"{chosen.uid}/{alike.index(chosen) + 1}" if is_part else chosen.uid
    return Study(folder=folder, series=series or None, number=number)


def _common(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
