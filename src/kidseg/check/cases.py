"""Examine one case: read its files, compare them with one another and with the schema."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kidseg.cases import Case, Dataset
from kidseg.check.anomalies import body_midline, kidney_findings, kidney_slices
from kidseg.errors import Finding, InputError, ResourceError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan, read
from kidseg.labels import LabelSchema

__all__ = ["Examined", "examine", "values_and_counts"]

_NAMED = 6
# Findings about the grid, reported for the first image only.
_GRID_FINDINGS = {"anisotropic-voxels", "thick-slices"}


@dataclass
class Examined:
    """The examination of one case; filled in as its files are read.

    Attributes:
        case: the case.
        findings: in order of detection.
        grid: of the first readable image, in canonical order.
        native: the same grid in the voxel order of the file.
        digest: of the voxel values of all channels; None unless all were readable.
        voxels: {label: number of voxels}, of the labels that occur.
        ml: {label: volume}.
    """

    case: Case
    findings: list[Finding] = field(default_factory=list)
    grid: Grid | None = None
    native: Grid | None = None
    digest: str | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    ml: dict[int, float] = field(default_factory=dict)

    def note(
        self, code: str, path: Path, cause: str, next_step: str = "", *, warning: bool = False
    ) -> None:
        """Add an error, or a warning if `warning` is set."""
        self.findings.append(
            Finding(
                code=code,
                path=str(path),
                cause=cause,
                next_step=next_step,
                severity="warning" if warning else "error",
            )
        )


def examine(case: Case, dataset: Dataset, options: ReadOptions) -> Examined:
    """Read a case and report every problem.

    The labels and one image are in memory at a time.

    Findings: those of the readers; errors "grid-mismatch" (the grid of the labels, or of a channel,
    differs from that of the first image), "unexpected-labels", "fractional-labels"; warnings
    "voxel-order-differs", "float-labels", "empty-labels", and those of `kidney_findings`.
    """
    found = Examined(case)
    labels = _labels(found, dataset, options) if case.labels is not None else None
    slices = None if labels is None else kidney_slices(labels.volume, dataset.schema)
    middle = None
    digests: list[bytes] = []
    for channel, path in enumerate(case.images):
        # Training uses these voxels, so NaN and infinity are errors.
        is_ct = dataset.holds_ct(min(channel, len(dataset.channels) - 1))
        asked = replace(
            options,
            values="ct" if is_ct else "any",
            nonfinite="refuse",
            volume=case.volume_of(channel),
        )
        if (scan := _read(found, path, asked, first=found.grid is None)) is None:
            continue
        digests.append(_digest(scan.volume))
        if found.grid is None:
            found.grid, found.native = scan.volume.grid, scan.native
            if slices is not None and is_ct:
                middle = body_midline(scan.volume, slices)
        else:
            _compare(found, scan, "this channel has")
    if digests and len(digests) == len(case.images):
        found.digest = hashlib.sha256(b"".join(digests)).hexdigest()
    if labels is not None and case.labels is not None:
        if found.grid is not None:
            _compare(found, labels, "the labels have")
        if found.voxels:
            middle = (labels.volume.grid.shape[2] - 1) / 2 if middle is None else middle
            found.findings += kidney_findings(labels.volume, dataset.schema, case.labels, middle)
    return found


def values_and_counts(data: Tensor) -> dict[float, int]:
    """{value: number of voxels}, in ascending order."""
    low, high = (float(value) for value in data.aminmax())
    if data.is_floating_point() or low < 0 or high > 255:
        values, counts = torch.unique(data, return_counts=True)
        return dict(zip(values.to(torch.float64).tolist(), counts.tolist(), strict=True))
    # Slice by slice: `bincount` converts its input to 64-bit integers.
    total = np.zeros(256, dtype=np.int64)
    for part in data.to(torch.uint8).flatten(0, 1):
        total += np.bincount(part.numpy().ravel(), minlength=256)
    return {float(value): int(total[value]) for value in np.flatnonzero(total)}


def _read(found: Examined, path: Path, options: ReadOptions, *, first: bool) -> Scan | None:
    try:
        scan = read(path, options)
    except (InputError, ResourceError) as error:
        found.findings.append(error.as_finding())
        return None
    found.findings += [f for f in scan.findings if first or f.code not in _GRID_FINDINGS]
    return scan


def _labels(found: Examined, dataset: Dataset, options: ReadOptions) -> Scan | None:
    """Read the label scan as uint8 and report problems; unexpected values become background."""
    path = found.case.labels
    assert path is not None
    scan = _read(found, path, replace(options, values="labels"), first=not found.case.images)
    if scan is None:
        return None
    data, grid = scan.volume.data, scan.volume.grid
    counts = values_and_counts(data)
    known = {0, *dataset.schema.ids, dataset.ignore_label}
    unexpected = {value: n for value, n in counts.items() if value not in known}
    _note_values(found, path, unexpected, dataset.schema)
    if not unexpected and data.is_floating_point():
        cause = "the labels are integers but stored as floating-point numbers"
        found.note("float-labels", path, cause, warning=True)
    found.voxels = {int(v): n for v, n in counts.items() if v in dataset.schema.ids}
    voxel_ml = float(grid.voxel_ml)
    found.ml = {label: n * voxel_ml for label, n in found.voxels.items()}
    if set(counts) == {0.0}:
        found.note("empty-labels", path, "no voxel has a label", warning=True)
    valid = torch.where(_known(data, known), data, 0) if unexpected else data
    return replace(scan, volume=Volume(valid.to(torch.uint8), grid))


def _known(data: Tensor, known: set[int | None]) -> Tensor:
    numbers = torch.tensor(sorted(n for n in known if n is not None), dtype=data.dtype)
    return torch.isin(data, numbers)


def _note_values(
    found: Examined, path: Path, unexpected: dict[float, int], schema: LabelSchema
) -> None:
    fractional = {value: n for value, n in unexpected.items() if not value.is_integer()}
    integers = {value: n for value, n in unexpected.items() if value.is_integer()}
    names = ", ".join(f"{i} {name}" for i, name in schema.names.items())
    if fractional:
        found.note(
            "fractional-labels",
            path,
            f"{sum(fractional.values())} voxels have fractional values: {_counted(fractional)}",
            "The labels were interpolated; resample them with nearest-neighbour interpolation.",
        )
    if integers:
        found.note(
            "unexpected-labels",
            path,
            f"{sum(integers.values())} voxels have values that are not labels: "
            f"{_counted(integers)}; the labels are 0 background, {names}",
            "Fix the file, or define the label in the data set's description.",
        )


def _counted(counts: dict[float, int]) -> str:
    named = [f"{value:g} ({n} voxels)" for value, n in list(counts.items())[:_NAMED]]
    return ", ".join(named) + (f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else "")


def _compare(found: Examined, scan: Scan, what: str) -> None:
    """Report a scan whose grid or voxel order differs from the first image's."""
    assert found.grid is not None and found.native is not None
    grid, image = scan.volume.grid, found.grid
    if not grid.same_as(image):
        found.note(
            "grid-mismatch",
            scan.path,
            f"{what} {_difference(grid, image)} the image {found.case.images[0].name}",
            "Resample it to the grid of the image.",
        )
    elif not scan.native.same_as(found.native):
        found.note(
            "voxel-order-differs",
            scan.path,
            f"{what} the same grid as the image, but another voxel order; other programs may "
            "report a mismatch",
            "Export the data set, which stores both in the same order.",
            warning=True,
        )


def _difference(grid: Grid, image: Grid) -> str:
    if grid.shape != image.shape:
        mine, theirs = (" x ".join(map(str, g.shape)) for g in (grid, image))
        return f"{mine} voxels, not the {theirs} of"
    corners = torch.tensor(list(product(*((0.0, n - 1.0) for n in grid.shape))))
    gap = torch.linalg.vector_norm(grid.mm(corners) - image.mm(corners), dim=-1).max()
    return f"corners up to {float(gap):.3g} mm away from those of"


def _digest(volume: Volume) -> bytes:
    """Digest of shape and values, independent of the data type."""
    digest = hashlib.sha256(repr(volume.grid.shape).encode())
    for part in volume.data[0]:
        digest.update(np.ascontiguousarray(part.numpy(), dtype=np.float32).data)
    return digest.digest()
