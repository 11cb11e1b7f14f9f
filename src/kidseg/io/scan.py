"""What a reader is asked, and what it gives back."""

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
from kidseg.io.orientation import canonical

__all__ = ["Format", "ReadOptions", "Scan", "scan_of"]

Format = Literal["nifti", "nrrd", "metaimage", "dicom"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read what a file leaves open.

    Attributes:
        trust: which of a NIfTI file's two affines to take where they disagree.
        spacing_mm: (slice, row, column) of the file's own voxel order, instead of the header's.
        series: UID or number of the DICOM series to take from a folder that holds several.
        volume: which of the volumes of a four-dimensional NIfTI file to take, from 0 on.
        repair: mend a DICOM series that is no even stack, where that can be done.
        nonfinite: NaN and Inf are refused (training) or replaced with a finding (inference).
        values: what the voxel values mean. Only "ct" is checked for plausible Hounsfield units;
            "labels" are never interpolated.
        memory_limit_bytes: the most one volume may take; what is available by default.
    """

    trust: Literal["sform", "qform"] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    series: str | None = None
    volume: int | None = None
    repair: bool = False
    nonfinite: Literal["refuse", "replace"] = "replace"
    values: Literal["ct", "any", "labels"] = "ct"
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One volume out of a file or folder.

    Attributes:
        volume: canonical voxel order, (1, slices, rows, columns); HU for CT.
        native: the file's own voxels, slowest axis first: where labels go back to.
        path: where it was read from.
        format: of the file.
        modality: "CT", "MR", ... as the file says, or "unknown".
        findings: what was noticed without refusing.
        facts: what else the file says (DICOM: patient id, series uid, description, ...).
    """

    volume: Volume
    native: Grid
    path: Path
    format: Format
    modality: str = "unknown"
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


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
    """The last step of every reader: values and positions checked, voxels in canonical order.

    Args:
        data: (1, slices, rows, columns) on `native`, values scaled as the file says.
        native: the file's own grid.
        path: of the file or folder.
        format: of the file.
        options: as given to the reader.
        stored: type in which the file keeps its values.
        modality: as in `Scan`.
        findings: noticed so far.
        facts: as in `Scan`.

    Raises:
        InputError: voxels that are not finite, no Hounsfield units, or a sheared grid.
    """
    data, replaced = checks.finite(data, path, nonfinite=options.nonfinite, values=options.values)
    noticed = [*findings, *replaced]
    if options.values == "ct":
        noticed += checks.check_intensities(data, path, stored)
    straight, sheared = checks.upright(native, path)
    volume = Volume(data, native)
    if straight is not native:
        if options.values == "labels":
            volume = resample(volume, straight, mode="nearest")
        else:
            fill = checks.AIR_HU if options.values == "ct" else float(data.min())
            volume = resample(volume, straight, fill=fill)
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
