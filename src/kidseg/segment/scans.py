"""The files of a scan: one, or one per channel where a model takes several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.intensity import Normalisation
from kidseg.io import ReadOptions, Scan, read

__all__ = ["ScanFiles", "read_scan", "scan_name"]

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".zip", ".dcm")
_FIRST = "_0000"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanFiles:
    """A scan as it was read.

    Attributes:
        volume: (channels, slices, rows, columns).
        first: what was read from the first file.
        paths: of all files.
        findings: of the readers.
    """

    volume: Volume
    first: Scan
    paths: tuple[Path, ...]
    findings: tuple[Finding, ...]


def read_scan(path: Path, channels: Sequence[Normalisation], options: ReadOptions) -> ScanFiles:
    """Read a scan with the channels that a model takes.

    Args:
        path: of the only channel; or of the first of several, named as nnU-Net does:
            "case_0000.nii.gz", with "case_0001.nii.gz" and so on beside it.
        channels: of the model's plan.
        options: of reading; whether values are HU is told by the channels.

    Raises:
        InputError: what `kidseg.io.read` refuses; "missing-channel"; "channels-differ": the files
            do not lie on the same voxels.
    """
    paths = _paths(path, len(channels))
    scans = []
    for file, channel in zip(paths, channels, strict=True):
        values: Literal["ct", "any"] = "ct" if channel.scheme == "ct" else "any"
        scans.append(read(file, replace(options, values=values)))
        if not scans[-1].volume.grid.same_as(scans[0].volume.grid):
            raise InputError(
                f"its voxels ({scans[-1].volume.grid}) are not those of {paths[0].name}"
                f" ({scans[0].volume.grid})",
                path=file,
                code="channels-differ",
                next_step="Resample all channels of a scan to the same voxels.",
            )
    volume = scans[0].volume
    if len(scans) > 1:
        kind = volume.data.dtype
        for scan in scans[1:]:
            kind = torch.promote_types(kind, scan.volume.data.dtype)
        data = torch.cat([scan.volume.data.to(kind) for scan in scans])
        volume = Volume(data, volume.grid)
    return ScanFiles(
        volume=volume,
        first=scans[0],
        paths=paths,
        findings=tuple(finding for scan in scans for finding in scan.findings),
    )


def scan_name(path: Path) -> str:
    """What a scan's results are called: its file or folder, without endings and channel number.

    "imaging" (as KiTS names all files) and "ct" (a DICOM case) are called like their folder.
    """
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    name = name.removesuffix(_ending(name))
    if name in ("imaging", "ct"):
        name = path.resolve().parent.name
    return name.removesuffix(_FIRST)


def _ending(name: str) -> str:
    """The part of a file's name that says its format; "" if none does."""
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return name[-len(ending) :]
    return ""


def _paths(path: Path, count: int) -> tuple[Path, ...]:
    if count == 1:
        return (path,)
    ending = _ending(path.name)
    stem = path.name.removesuffix(ending)
    if not stem.endswith(_FIRST):
        raise InputError(
            f"the model takes {count} channels, and the file's name does not say that it is the"
            " first",
            path=path,
            code="missing-channel",
            next_step="Name the files of a scan NAME_0000, NAME_0001, ... and give the first.",
        )
    case = stem.removesuffix(_FIRST)
    paths = tuple(path.with_name(f"{case}_{k:04d}{ending}") for k in range(count))
    if missing := [file.name for file in paths if not file.exists()]:
        raise InputError(
            f"the model takes {count} channels, and {', '.join(missing)} is missing beside it",
            path=path,
            code="missing-channel",
            next_step="Put the files of all channels into one folder.",
        )
    return paths
