"""Options of the readers, and the scan that they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from torch import Tensor

from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume, resample
from kidseg.io import checks
from kidseg.io.hounsfield import check_intensities
from kidseg.io.orientation import canonical
from kidseg.io.structures import Annotation, StructureVolume

__all__ = ["Format", "ReadOptions", "Scan", "scan_of"]

Format = Literal["nifti", "nrrd", "metaimage", "dicom"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read ambiguous or defective files.

    Attributes:
        trust: which of a NIfTI file's two affines to use if they disagree.
        spacing_mm: (slice, row, column) in the native voxel order; overrides the header.
        series: name of the DICOM volume to read from a folder with several: the number of its
            series ("3"), the place among those with one number ("3.2"), the UID of its series or
            the start of it, or UID and place ("UID/2").
        volume: index (from 0) of the volume to read from a four-dimensional NIfTI file.
        repair: repair a DICOM series with uneven or tilted slices, or whose images differ in
            identifiers that they should share, where that is possible.
        nonfinite: refuse NaN and Inf (training) or replace them with a finding (inference).
        values: what the voxel values mean. Only "ct" is checked for plausible Hounsfield units;
            "labels" are never interpolated.
        memory_limit_bytes: memory limit for one volume; by default the available memory.
        files: of a DICOM folder, the only ones to read.
        annotation: of a DICOM series: the structures that "labels" are read from.
    """

    trust: Literal["sform", "qform"] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    series: str | None = None
    volume: int | None = None
    repair: bool = False
    nonfinite: Literal["refuse", "replace"] = "replace"
    values: Literal["ct", "any", "labels"] = "ct"
    memory_limit_bytes: int | None = None
    files: tuple[Path, ...] | None = None
    annotation: Annotation | None = None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One volume from a file or folder.

    Attributes:
        volume: canonical voxel order, (1, slices, rows, columns); HU for CT.
        native: the file's native grid, slowest axis first; labels are written on it.
        path: the file or folder that was read.
        format: file format.
        modality: "CT", "MR", ... as stated in the file, or "unknown".
        findings: problems that did not prevent reading.
        facts: other metadata of the file (DICOM: patient id, series uid, description, ...).
        structures: volumes of the structures of a DICOM annotation.
    """

    volume: Volume
    native: Grid
    path: Path
    format: Format
    modality: str = "unknown"
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    structures: tuple[StructureVolume, ...] = ()


def scan_of(
    data: Tensor,
    native: Grid,
    *,
    path: Path,
    format: Format,  # noqa: A002 - named as in Scan
    options: ReadOptions,
    stored: np.dtype | None = None,
    modality: str = "unknown",
    findings: Sequence[Finding] = (),
    facts: Mapping[str, str] = _NOTHING,
) -> Scan:
    """Check values and geometry, and put the voxels in canonical order: the end of every reader.

    Args:
        data: (1, slices, rows, columns) on `native`, after rescaling.
        native: the file's native grid.
        path: the file or folder.
        format: file format.
        options: the options of the reader.
        stored: data type in the file.
        modality: as in `Scan`.
        findings: findings so far.
        facts: as in `Scan`.

    Raises:
        InputError: values that are not finite or not Hounsfield units, or a sheared grid.
    """
    data, replaced = checks.replace_nonfinite(
        data, path, nonfinite=options.nonfinite, values=options.values
    )
    noticed = [*findings, *replaced]
    if options.values == "ct":
        noticed += check_intensities(data, path, stored)
    orthogonal, sheared = checks.orthogonal_grid(native, path)
    volume = Volume(data, native)
    if orthogonal is not native:
        if options.values == "labels":
            volume = resample(volume, orthogonal, mode="nearest")
        else:
            fill = checks.AIR_HU if options.values == "ct" else float(data.min())
            volume = resample(volume, orthogonal, fill=fill)
    noticed += [*sheared, *checks.check_resolution(native, path)]
    ordered = canonical(volume)
    return Scan(
        volume=Volume(ordered.data.contiguous(), ordered.grid),
        native=native,
        path=path,
        format=format,
        modality=modality,
        findings=tuple(noticed),
        facts=MappingProxyType(dict(facts)),
    )
