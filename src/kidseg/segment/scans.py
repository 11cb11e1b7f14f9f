"""Read the files of a scan: one, or one per channel for models with several channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kidseg.cases import Case
from kidseg.cases.naming import channel_file, first_channel_of
from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume, join_channels
from kidseg.intensity import Normalisation
from kidseg.io import ReadOptions, Scan, read

__all__ = ["ScanFiles", "paths_of", "read_scan"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanFiles:
    """A scan read from one or more files.

    Attributes:
        volume: (channels, slices, rows, columns).
        first: the scan in the first file.
        paths: of all files.
        findings: of the readers.
    """

    volume: Volume
    first: Scan
    paths: tuple[Path, ...]
    findings: tuple[Finding, ...]


def options_for(channels: Sequence[Normalisation], options: ReadOptions | None) -> ReadOptions:
    """The options of reading, by which values are HU if a model expects CT."""
    values: Literal["ct", "any"] = "ct" if channels[0].scheme == "ct" else "any"
    return replace(options or ReadOptions(), values=values)


def read_scan(
    path: Path,
    channels: Sequence[Normalisation],
    options: ReadOptions,
    case: Case | None = None,
) -> ScanFiles:
    """Read a scan with the channels that a model requires.

    Args:
        path: of the only channel; or of the first of several, named as in nnU-Net:
            "case_0000.nii.gz", with "case_0001.nii.gz" and so on in the same folder.
        channels: of the model's plan; they determine whether values are HU.
        options: of reading.
        case: of a data set, whose images are the channels, whatever their names.

    Raises:
        InputError: see `kidseg.io.read`; "missing-channel"; "channels-differ": the files have
            different grids.
    """
    paths = paths_of(path, len(channels), case)
    scans = []
    for k, (file, channel) in enumerate(zip(paths, channels, strict=True)):
        values: Literal["ct", "any"] = "ct" if channel.scheme == "ct" else "any"
        asked = replace(options, values=values)
        if case is not None:
            asked = case.reading(asked, k)
        scans.append(read(file, asked))
        if not scans[-1].volume.grid.same_as(scans[0].volume.grid):
            raise InputError(
                f"its grid is not that of {paths[0].name}: "
                + scans[-1].volume.grid.difference(scans[0].volume.grid),
                path=file,
                code="channels-differ",
                next_step="Resample all channels of a scan to the same grid.",
            )
    return ScanFiles(
        volume=join_channels([scan.volume for scan in scans]),
        first=scans[0],
        paths=paths,
        findings=tuple(finding for scan in scans for finding in scan.findings),
    )


def paths_of(path: Path, count: int, case: Case | None = None) -> tuple[Path, ...]:
    """The files of the channels of a scan; see `read_scan`.

    Raises:
        InputError: "missing-channel".
    """
    if case is not None:
        return case.images
    if count == 1:
        return (path,)
    first = first_channel_of(path)
    if first is None:
        raise InputError(
            f"the model requires {count} channels, and the file name does not end in _0000, as"
            " that of the first channel",
            path=path,
            code="missing-channel",
            next_step="Name the files of a scan NAME_0000, NAME_0001, ... and give the first.",
        )
    stem, ending = first
    paths = tuple(path.with_name(channel_file(stem, k, ending)) for k in range(count))
    if missing := [file.name for file in paths if not file.exists()]:
        raise InputError(
            f"the model requires {count} channels; {', '.join(missing)} not found in the folder",
            path=path,
            code="missing-channel",
            next_step="Put the files of all channels into one folder.",
        )
    return paths
