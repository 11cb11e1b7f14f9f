"""Examine one case: read its files, compare them with one another and with the schema."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kidseg.cases import Case, Dataset
from kidseg.cases.air import air_findings
from kidseg.cases.label_values import judge_labels
from kidseg.cases.same_images import voxels_sha256
from kidseg.check.anomalies import body_midline, kidney_findings, kidney_slices
from kidseg.errors import Finding, InputError, ResourceError, Severity
from kidseg.geometry import Grid
from kidseg.io import ReadOptions, Scan, read
from kidseg.io.content import joint_sha256
from kidseg.io.structures import StructureVolume

__all__ = ["Examined", "examine"]

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
        labels_digest: of the labels; None without any.
        has_labels: its labels were read.
        voxels: {label: number of voxels}, of the labels that occur.
        ml: {label: volume}.
        structures: volumes of the structures of a DICOM annotation.
    """

    case: Case
    findings: list[Finding] = field(default_factory=list)
    grid: Grid | None = None
    native: Grid | None = None
    digest: str | None = None
    labels_digest: str | None = None
    has_labels: bool = False
    voxels: dict[int, int] = field(default_factory=dict)
    ml: dict[int, float] = field(default_factory=dict)
    structures: tuple[StructureVolume, ...] = ()

    def note(
        self, code: str, path: Path, cause: str, next_step: str, severity: Severity = "error"
    ) -> None:
        """Add an error, or a warning."""
        self.findings.append(
            Finding(code=code, path=str(path), cause=cause, next_step=next_step, severity=severity)
        )


def examine(
    case: Case, dataset: Dataset, options: ReadOptions, *, anatomy: bool = True
) -> Examined:
    """Read a case and report every problem.

    Every file is read whole, which verifies its checksum. The labels and one image are in memory at
    a time.

    Findings: those of the readers; errors "grid-mismatch" (the grid of the labels, or of a channel,
    differs from that of the first image); those of `judge_labels`; warnings "voxel-order-differs",
    "empty-labels", and with `anatomy` those of `kidney_findings` and
    `kidseg.cases.air.air_findings`.
    """
    found = Examined(case)
    labels = _labels(found, dataset, options) if case.labels is not None else None
    slices = None
    if labels is not None and anatomy:
        slices = kidney_slices(labels.volume, dataset.schema)
    middle = None
    digests: list[str] = []
    for channel, path in enumerate(case.images):
        # Training uses these voxels, so NaN and infinity are errors.
        is_ct = dataset.holds_ct(min(channel, len(dataset.channels) - 1))
        asked = replace(options, values="ct" if is_ct else "any", nonfinite="refuse")
        asked = case.reading(asked, channel)
        if (scan := _read(found, path, asked, first=found.grid is None)) is None:
            continue
        digests.append(voxels_sha256(scan.volume))
        if found.grid is None:
            found.grid, found.native = scan.volume.grid, scan.native
            if slices is not None and labels is not None and is_ct:
                middle = body_midline(scan.volume, slices)
                found.findings += _in_air(labels, scan, dataset)
        else:
            _compare(found, scan, "this channel has")
    if digests and len(digests) == len(case.images):
        found.digest = joint_sha256(digests)
    if labels is not None and case.labels is not None:
        if found.grid is not None:
            _compare(found, labels, "the labels have")
        if found.voxels and anatomy:
            middle = (labels.volume.grid.shape[2] - 1) / 2 if middle is None else middle
            found.findings += kidney_findings(labels.volume, dataset.schema, case.labels, middle)
    return found


def _in_air(labels: Scan, scan: Scan, dataset: Dataset) -> tuple[Finding, ...]:
    if not labels.volume.grid.same_as(scan.volume.grid):
        return ()
    return air_findings(labels.volume, scan.volume, dataset.schema, labels.path, scan.path)


def _read(found: Examined, path: Path, options: ReadOptions, *, first: bool) -> Scan | None:
    try:
        scan = read(path, options)
    except (InputError, ResourceError) as error:
        found.findings.append(error.as_finding())
        return None
    found.findings += [f for f in scan.findings if first or f.code not in _GRID_FINDINGS]
    return scan


def _labels(found: Examined, dataset: Dataset, options: ReadOptions) -> Scan | None:
    """Read the label scan as uint8 and report problems; values that are not labels become 0."""
    path = found.case.labels
    assert path is not None
    asked = found.case.reading(replace(options, values="labels"))
    scan = _read(found, path, asked, first=not found.case.images)
    if scan is None:
        return None
    found.has_labels = True
    found.structures = scan.structures
    judged = judge_labels(scan, dataset.schema.names, dataset.ignore_label)
    found.findings += judged.findings
    found.voxels = {i: n for i, n in judged.voxels.items() if i != dataset.ignore_label}
    voxel_ml = float(scan.volume.grid.voxel_ml)
    found.ml = {label: n * voxel_ml for label, n in found.voxels.items()}
    if judged.voxels:
        found.labels_digest = voxels_sha256(judged.volume)
    if not judged.voxels and not any(f.severity == "error" for f in judged.findings):
        step = "Check that it is the right file; a case without any structure may stay."
        found.note("empty-labels", path, "no voxel has a label", step, "warning")
    return replace(scan, volume=judged.volume)


def _compare(found: Examined, scan: Scan, what: str) -> None:
    """Report a scan whose grid or voxel order differs from the first image's."""
    assert found.grid is not None and found.native is not None
    grid, image = scan.volume.grid, found.grid
    if not grid.same_as(image):
        found.note(
            "grid-mismatch",
            scan.path,
            f"{what} another grid than the image {found.case.images[0].name}: "
            + grid.difference(image),
            "Resample it to the grid of the image.",
        )
    elif not scan.native.same_as(found.native):
        found.note(
            "voxel-order-differs",
            scan.path,
            f"{what} the same grid as the image, but another voxel order; other programs may "
            "report a mismatch",
            "Export the data set, which stores both in the same order.",
            "warning",
        )
