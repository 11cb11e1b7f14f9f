"""Read a label file to measure: the names of its labels, the border of its scan, the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from kidseg.body import body_mask, moments
from kidseg.cases.air import air_findings
from kidseg.cases.label_names import NamedLabels, named_labels
from kidseg.cases.label_values import labels_of_file
from kidseg.cases.roi_rules import RoiRules
from kidseg.cases.segments import segments_of
from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan, read
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema, Meaning
from kidseg.measure.annotated_labels import find_annotated, is_annotated
from kidseg.measure.mask import bounds
from kidseg.measure.midline import Midline, estimated_midline, midline_of
from kidseg.measure.parts import Labelled, tracked_lesions

__all__ = ["body_midline", "labelled_on", "read_labelled", "read_opinion"]

_DEFAULT = ReadOptions()
_SAME_GRID_MM = 1e-3
# Findings of readers that matter for images only.
_HARMLESS = {"float-labels", "anisotropic-voxels"}


def read_labelled(
    path: Path,
    *,
    ct: Path | None = None,
    names: Mapping[int, str] | None = None,
    rules: RoiRules | None = None,
    options: ReadOptions = _DEFAULT,
) -> Labelled:
    """Read labels, and the scan if it is known.

    Args:
        path: of a label volume; for the names of its labels, see `named_labels`; or of a DICOM
            Segmentation or RT Structure Set.
        ct: of its scan, for the midline and the border; of a DICOM object, the folder of its
            series.
        names: {number: name}; not of a DICOM object.
        rules: for the structures of DICOM objects.
        options: of reading the scan.

    Raises:
        InputError: "label-grid-mismatch": labels and scan have different grids; see
            `kidseg.io.read`, `labels_of_file`, `named_labels`, `find_annotated`.
    """
    if is_annotated(path):
        return _read_annotated(path, ct, rules, options)
    known = named_labels(path, names)
    volume, findings = _read_labels(path, known.schema, known.ignore)
    if ct is not None:
        scan = read(ct, replace(options, values="ct"))
        return labelled_on(scan, path, volume, known, findings)
    is_cropped = bool(segments_of(path))
    midline = estimated_midline(volume, known.schema, is_cropped=is_cropped)
    labelled = _labelled(path, volume, known, midline, findings)
    return replace(labelled, is_cropped=is_cropped)


def _read_annotated(
    path: Path, ct: Path | None, rules: RoiRules | None, options: ReadOptions
) -> Labelled:
    """Structures of a DICOM object on their series, each lesion with its tracking identifiers."""
    found = find_annotated(path, ct, rules, by_side=True)
    images = replace(options, files=found.annotation.images)
    of_labels = replace(images, annotation=found.annotation)
    volume, findings = _read_labels(path, found.schema, None, of_labels)
    scan = read(found.annotation.folder, replace(images, values="ct"))
    known = NamedLabels(schema=found.schema, said_by="structures")
    labelled = labelled_on(scan, path, volume, known, (*found.findings, *findings))
    return replace(labelled, tracking=found.tracking, tracking_uids=found.tracking_uids)


def labelled_on(
    scan: Scan,
    path: Path,
    labels: Volume,
    known: NamedLabels,
    findings: tuple[Finding, ...] = (),
) -> Labelled:
    """Labels on the voxels of their scan.

    Args:
        scan: a CT, as read.
        path: of the labels.
        labels: (1, slices, rows, columns) uint8, in any voxel order; they may be a part of it.
        known: meaning of their values.
        findings: of reading them.

    Raises:
        InputError: "label-grid-mismatch".
    """
    volume = _on_scan(canonical(labels), scan.volume.grid, path, scan.path)
    midline = body_midline(scan.volume, volume, known.schema)
    noticed = (*scan.findings, *air_findings(volume, scan.volume, known.schema, path, scan.path))
    labelled = _labelled(path, volume, known, midline, (*findings, *noticed))
    return replace(labelled, facts=scan.facts)


def _labelled(
    path: Path,
    labels: Volume,
    known: NamedLabels,
    midline: Midline,
    findings: tuple[Finding, ...],
) -> Labelled:
    return Labelled(
        labels=labels,
        schema=known.schema,
        midline=midline,
        path=path,
        tracking=tracked_lesions(known.schema, known.numbered),
        record=known.record,
        findings=(*findings, *known.findings, *_unclear(known, path)),
    )


def body_midline(scan: Volume, labels: Volume, schema: LabelSchema) -> Midline:
    """The midline of the body in a CT; an estimate from the labels if no body is found in it.

    Args:
        scan: (1, slices, rows, columns) HU, canonical.
        labels: (1, slices, rows, columns) uint8 on its voxels, in any order.
        schema: of the labels.
    """
    return midline_of(scan.grid, moments(body_mask(scan)), labels, schema)


def read_opinion(
    path: Path,
    labelled: Labelled,
    names: Mapping[int, str] | None = None,
    *,
    ct: Path | None = None,
    rules: RoiRules | None = None,
) -> Labelled:
    """Read another segmentation of the same scan, whose labels may have other numbers and names.

    The scan is needed for DICOM objects only.

    Raises:
        InputError: "label-grid-mismatch"; as `read_labelled`.
    """
    series = ct if is_annotated(path) else None
    other = read_labelled(path, ct=series, names=names, rules=rules)
    try:
        volume = _on_scan(other.labels, labelled.labels.grid, path, labelled.path)
    except InputError as error:
        step = "Give a segmentation of the same scan, on its voxels."
        raise InputError(error.cause, path=path, code=error.code, next_step=step) from error
    return replace(other, labels=volume, midline=labelled.midline)


def _read_labels(
    path: Path, schema: LabelSchema, ignore: int | None, options: ReadOptions = _DEFAULT
) -> tuple[Volume, tuple[Finding, ...]]:
    scan = read(path, replace(options, values="labels", nonfinite="refuse"))
    judged = labels_of_file(scan, schema.names, ignore)
    volume = judged.volume
    if ignore is not None:
        data = volume.data.masked_fill(volume.data == ignore, 0)
        volume = Volume(data, volume.grid)
    findings = (*scan.findings, *judged.findings)
    return volume, tuple(found for found in findings if found.code not in _HARMLESS)


def _on_scan(labels: Volume, grid: Grid, path: Path, scan: Path) -> Volume:
    """The labels on the voxels of the scan, of which they may be a part.

    Raises:
        InputError: "label-grid-mismatch".
    """
    if labels.grid.same_as(grid, _SAME_GRID_MM):
        return labels
    start = grid.index(labels.grid.mm([0.0, 0.0, 0.0])).round().long().tolist()
    shape = labels.grid.shape
    inside = all(
        low >= 0 and low + n <= total
        for low, n, total in zip(start, shape, grid.shape, strict=True)
    )
    if not inside or not grid.crop(start, shape).same_as(labels.grid, _SAME_GRID_MM):
        raise InputError(
            f"its grid is not that of {scan}, nor a part of it: {labels.grid.difference(grid)}",
            path=path,
            code="label-grid-mismatch",
            next_step="Name the scan of these labels.",
        )
    back = [-low for low in start]
    data = bounds(labels.data[0].numpy(), back, list(grid.shape))
    return Volume(torch.from_numpy(data)[None], grid)


def _unclear(known: NamedLabels, path: Path) -> tuple[Finding, ...]:
    """Labels that are not recognized, and structures without a label."""
    found = []
    schema, is_dicom = known.schema, known.said_by == "structures"
    unknown = [f"{n} ({name})" for n, name in schema.names.items() if schema.meaning[n] is None]
    if unknown:
        found.append(
            Finding(
                code="label-not-understood",
                path=str(path),
                cause=f"not recognized as kidney, tumour or cyst: {', '.join(unknown)}; only their"
                " volumes were measured",
                next_step="If one of them is, say so: --label NUMBER=kidney.",
            )
        )
    codes: dict[Meaning, str] = {"kidney": "no-kidney-label", "tumour": "no-tumour-label"}
    for meaning in codes:
        if not schema.ids_of(meaning):
            found.append(
                Finding(
                    code=codes[meaning],
                    path=str(path),
                    cause=f"no label is recognized as {meaning}, so nothing can be said about it",
                    next_step="If there is one, say which structure it is, in a rule file:"
                    " --roi-rules."
                    if is_dicom
                    else f"If there is one, say so: --label NUMBER={meaning}.",
                )
            )
    return tuple(found)
