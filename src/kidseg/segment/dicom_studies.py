"""Group the DICOM files of a folder by patient and study."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kidseg.errors import InputError, KidsegError
from kidseg.io import ReadOptions
from kidseg.io.dicom_choice import choose
from kidseg.io.dicom_frames import find_images
from kidseg.io.dicom_series import group_series

__all__ = ["Study", "find_studies"]

_MARK_DIGITS = 8  # two of a thousand studies are alike in one of 10,000 folders


@dataclass(frozen=True, kw_only=True)
class Study:
    """A DICOM study with a volume.

    Attributes:
        folder: the smallest that contains all its images.
        series: UID of the series to read, with "/2" for its second volume; None if the folder has
            no images of other studies.
        files: of its images.
        mark: short digest of its UID, if several studies have the same folder; else empty. It stays
            when others are added or files renamed.
        error: why no series could be chosen.
    """

    folder: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    mark: str = ""
    error: KidsegError | None = None


@dataclass
class _Group:
    """The files of a study, and whether some form a volume of the kind that is looked for."""

    study_uid: str
    files: list[Path] = field(default_factory=list)
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
            group = groups.setdefault(key, _Group(study))
            if file not in group.files[-1:]:
                group.files.append(file)
            is_kind = options.values != "ct" or image.modality == "CT"
            placed = any(plane.position_mm is not None for plane in image.planes)
            group.has_volume |= is_kind and placed and not image.excluded_kind
    fit = [group for group in groups.values() if group.has_volume]
    unfit = [Study(folder=_common(g.files)) for g in groups.values() if not g.has_volume]
    folders = [_common(group.files) for group in fit]
    marks = _marks(fit, folders)
    studies = []
    for k, (group, folder) in enumerate(zip(fit, folders, strict=True)):
        if any(_is_in(other, folder) for n, other in enumerate(folders) if n != k):
            studies.append(_chosen(group, folder, marks[k], options))
        else:
            studies.append(Study(folder=folder, files=tuple(sorted(group.files))))
    known = [*folders, *(study.folder for study in unfit)]
    bad = [
        (folder, error)
        for folder, error in damaged.items()
        if not any(_is_in(folder, other) for other in known)
    ]
    return studies, unfit, bad


def _marks(groups: Sequence[_Group], folders: Sequence[Path]) -> list[str]:
    """The marks of studies; see `Study`. Those without a UID of their own have that of a file."""
    marks = [_short_digest(group.study_uid) for group in groups]
    counts = Counter(zip(folders, marks, strict=True))
    several = Counter(folders)
    found = []
    for group, folder, mark in zip(groups, folders, marks, strict=True):
        if counts[folder, mark] > 1:
            first = min(file.relative_to(folder).as_posix() for file in group.files)
            mark = _short_digest(f"{group.study_uid} {first}")
        found.append(mark if several[folder] > 1 else "")
    return found


def _short_digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:_MARK_DIGITS]


def _chosen(group: _Group, folder: Path, mark: str, options: ReadOptions) -> Study:
    """The study whose images must be told from those of others in its folder by their series."""
    files = tuple(sorted(group.files))
    try:
        every = group_series([image for file in group.files for image in find_images(file)[0]])
        chosen, _ = choose(every, folder, options)
    except KidsegError as error:
        return Study(folder=folder, files=files, mark=mark, error=error)
    alike = [s for s in every if s.uid == chosen.uid and s.kind == "volume"]
    is_part = len(alike) > 1 and chosen in alike
    series = f"{chosen.uid}/{alike.index(chosen) + 1}" if is_part else chosen.uid
    return Study(folder=folder, series=series or None, files=files, mark=mark)


def _common(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
