"""Find the scans that a call means: files, folders of scans, data sets, DICOM studies, patterns."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kidseg.cases import Case, Dataset, survey_dataset
from kidseg.cases.naming import (
    IMAGE_FOLDERS,
    IMAGES,
    SCAN_ENDINGS,
    channel_file,
    first_channel_of,
    is_marked,
    scan_name,
    split_ending,
)
from kidseg.errors import InputError, KidsegError, KidsegWarning, UsageError
from kidseg.io import ReadOptions
from kidseg.segment.dicom_studies import find_studies

__all__ = ["Source", "find_scans"]

_VOLUMES = tuple(ending for ending in SCAN_ENDINGS if ending != ".dcm")
_NAMED = 5
_SUPPORTED = (
    "A scan is a NIfTI, NRRD or MetaImage file, a DICOM folder, or a zip of one; label files "
    "(..._seg) are left out."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One scan to segment.

    Attributes:
        path: a file or a DICOM folder; of several channels, the first.
        name: of its results, unique among the scans of a call.
        series: UID of the DICOM series to read, if the folder has those of several patients.
        files: of the DICOM study.
        case: of the data set from which it comes.
        error: why it cannot be segmented, if that is known already.
    """

    path: Path
    name: str
    series: str | None = None
    files: tuple[Path, ...] = ()
    case: Case | None = None
    error: KidsegError | None = None


def find_scans(
    inputs: Sequence[str | Path],
    channels: int,
    options: ReadOptions,
    *,
    without: Path | None = None,
) -> tuple[Source, ...]:
    """Find the scans to segment.

    A file is a scan, and so is a folder with one DICOM study. Of other folders:

    - of a data set, in any layout, the images of all cases; but one DICOM study with annotations
      is a scan;
    - otherwise all scan files and DICOM studies in it and in its subfolders, without label files.
      Each study is a scan; which of several CT series to read must be chosen with
      `ReadOptions.series`. Two scans of the same name are told apart by their folders, several
      studies in one folder by a mark of each; see `Study`.

    A path that does not exist and has `*`, `?` or `[` is a pattern.

    Args:
        inputs: paths and patterns.
        channels: that the model reads.
        options: of reading; `values` "ct" looks for CT series only.
        without: a folder to skip: that of the results.

    Raises:
        InputError: "no-scans": a folder or pattern has no scans; "wrong-channels": a data set with
            another number of channels; of the description of a data set, see `survey_dataset`.
        UsageError: "same-name": two scans would have results of the same name.
    """
    found: dict[tuple[Path, str | None, str], Source] = {}
    for given in [path for text in inputs for path in _expanded(text)]:
        if os.path.isdir(given):  # noqa: PTH112 - False for a name that is not a path at all
            sources = _in_folder(given, channels, options, without)
        else:
            sources = [_of_path(given, channels)]
        for source in sources:
            path = Path(os.path.abspath(source.path))  # noqa: PTH100 - links are not followed
            name = source.name if source.error else ""  # of studies in one folder
            found.setdefault((path, source.series, name), source)
    taken: dict[str, Path] = {}
    for source in found.values():
        if source.name in taken:
            raise UsageError(
                f"{taken[source.name]} and {source.path} would both be named '{source.name}'",
                code="same-name",
                next_step="Segment them into different folders.",
            )
        taken[source.name] = source.path
    return tuple(found.values())


def _expanded(text: str | Path) -> list[Path]:
    """The path itself, or the paths that match a pattern."""
    path = Path(text)
    if os.path.lexists(path) or not glob.has_magic(str(text)):
        return [path]
    matches = sorted(glob.glob(str(text), recursive=True))  # noqa: PTH207 - absolute ones too
    if not matches:
        raise _nothing(path, "no file matches this pattern")
    return [Path(match) for match in matches]


def _of_path(path: Path, channels: int) -> Source:
    """The source of a file, or of a path at which there is none."""
    try:
        return Source(path=path, name=scan_name(path, channels))
    except (OSError, ValueError) as error:
        wrong = InputError(
            f"this is not a possible path ({getattr(error, 'strerror', None) or error})",
            path=path,
            code="not-found",
            next_step="Check the path.",
        )
        return Source(path=path, name=path.name, error=wrong)


def _in_folder(
    folder: Path, channels: int, options: ReadOptions, without: Path | None
) -> list[Source]:
    try:
        dataset = survey_dataset(folder)
    except InputError as error:
        if error.code != "not-a-dataset":
            raise
    else:
        cases = (*dataset.dataset.cases, *dataset.incomplete, *dataset.dataset.unlabelled)
        # One DICOM series is a scan, whether annotations are beside it or not.
        if cases and not (dataset.dataset.layout == "annotated" and len(cases) == 1):
            return [_of_case(case, dataset.dataset, channels) for case in cases]
    files, others = _files(folder, without)
    sources = [_of_file(file, channels) for file in _without_channels(files, channels)]
    studies, unfit, bad = find_studies(others, options)
    if not (sources or studies):
        studies, unfit = unfit, []
    if len(studies) + len(bad) == 1 and not sources:
        files_of = studies[0].files if studies else ()
        return [Source(path=folder, name=scan_name(folder), files=files_of)]
    if unfit:
        where = ", ".join(str(study.folder) for study in unfit[:_NAMED])
        more = f" and {len(unfit) - _NAMED} more" if len(unfit) > _NAMED else ""
        cause = f"{len(unfit)} DICOM studies without a CT volume are left out: {where}{more}"
        warnings.warn(f"{folder}: {cause}", KidsegWarning, stacklevel=2)
    for study in studies:
        sources.append(
            Source(
                path=study.folder,
                name=scan_name(study.folder) + (study.mark and f"_{study.mark}"),
                series=study.series,
                files=study.files,
                error=study.error,
            )
        )
    sources += [Source(path=path, name=scan_name(path), error=error) for path, error in bad]
    if not sources:
        raise _nothing(folder, "no scan was found in this folder")
    return _named_by_folder(sources, folder)


def _of_case(case: Case, dataset: Dataset, channels: int) -> Source:
    """The source of a case; labels that are missing do not matter."""
    if len(dataset.channels) != channels:
        raise InputError(
            f"the data set has {len(dataset.channels)} channel(s), the model requires {channels}",
            path=dataset.root,
            code="wrong-channels",
            next_step="Use a model that was trained on such images.",
        )
    if len(case.images) == channels:
        if case.annotation is None:
            return Source(path=case.images[0], name=case.id, case=case)
        return Source(
            path=case.images[0],
            name=case.id,
            series=case.annotation.series or None,
            files=case.annotation.images,
            case=case,
        )
    error = InputError(
        f"case '{case.id}' has {len(case.images)} of {channels} image(s)",
        path=dataset.root,
        code="missing-image",
        next_step="Download or restore the file.",
    )
    path = case.images[0] if case.images else dataset.root / case.id
    return Source(path=path, name=case.id, error=error)


def _of_file(file: Path, channels: int) -> Source:
    name = scan_name(file, channels)
    first = first_channel_of(file)
    if channels > 1 or first is None or file.parent.name not in IMAGE_FOLDERS:
        return Source(path=file, name=name)
    second = file.with_name(channel_file(first[0], 1, first[1]))
    if not second.exists():
        return Source(path=file, name=name)
    error = InputError(
        f"the scan has several channels ({file.name}, {second.name}, ...), the model requires one",
        path=file,
        code="wrong-channels",
        next_step="Name the file to segment, or use a model that was trained on such images.",
    )
    return Source(path=file, name=name, error=error)


def _files(folder: Path, without: Path | None) -> tuple[list[Path], list[Path]]:
    """(scan files, other files) in a folder and its subfolders, without hidden ones and labels.

    A folder with a file named after its content, an image, has one scan. Links without a target,
    pipes and devices with the ending of a scan count too: reading says that they cannot be read.

    Raises:
        InputError: "unreadable": a folder cannot be listed.
    """
    skipped = None if without is None else without.resolve()
    scans: list[Path] = []
    others: list[Path] = []
    for at, subfolders, names in os.walk(folder, onerror=_refuse):
        here = Path(at)
        subfolders[:] = sorted(
            n
            for n in subfolders
            if n[0] != "." and n != "__MACOSX" and (here / n).resolve() != skipped
        )
        shown = [here / n for n in sorted(names) if not n.startswith(".")]
        volumes = [file for file in shown if file.name.lower().endswith(_VOLUMES)]
        images = [v for v in volumes if split_ending(v.name, _VOLUMES)[0].lower() in IMAGES]
        if images:
            scans += images
            subfolders.clear()
            continue
        scans += [file for file in volumes if not is_marked(file)]
        taken = set(volumes)
        others += [
            file
            for file in shown
            if file not in taken and (file.name.lower().endswith(".dcm") or file.is_file())
        ]
    return scans, others


def _refuse(error: OSError) -> None:
    raise InputError(
        f"the folder cannot be listed ({error.strerror})",
        path=error.filename,
        code="unreadable",
        next_step="Check its permissions.",
    ) from error


def _without_channels(files: Sequence[Path], channels: int) -> Iterator[Path]:
    """The files without those of the second and later channels of another."""
    known = set(files)
    for file in files:
        stem, ending = split_ending(file.name, SCAN_ENDINGS)
        case, _, number = stem.rpartition("_")
        is_later = case and len(number) == 4 and number.isdigit() and number != "0000"
        first = file.with_name(channel_file(case, 0, ending))
        counts = channels > 1 or file.parent.name in IMAGE_FOLDERS
        if not (is_later and counts and first in known):
            yield file


def _named_by_folder(sources: Sequence[Source], folder: Path) -> list[Source]:
    """Scans of the same name get the names of their folders before it."""
    counts = Counter(source.name for source in sources)
    apart = []
    for source in sources:
        if counts[source.name] > 1:
            parents = source.path.relative_to(folder).parent.parts
            source = replace(source, name="_".join((*parents, source.name)))
        apart.append(source)
    return apart


def _nothing(path: Path, cause: str) -> InputError:
    return InputError(cause, path=path, code="no-scans", next_step=_SUPPORTED)
