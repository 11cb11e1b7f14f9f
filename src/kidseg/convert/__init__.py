"""Write existing labels in other formats: 3D Slicer, DICOM, surfaces, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from kidseg.cases.label_names import NamedLabels, named_labels
from kidseg.cases.label_values import labels_of_file
from kidseg.cases.naming import label_name
from kidseg.cases.roi_rules import RoiRules
from kidseg.cases.segments import uncropped
from kidseg.convert.format_inputs import check_formats, check_scan, shows_scan
from kidseg.convert.measured_labels import MeasuredLabels, on_scan, on_series
from kidseg.errors import Finding, InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, kind_of, read
from kidseg.io.atomic import check_writable, json_bytes, make_folder, place_with_record, staging
from kidseg.io.content import sha256_of
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.label_formats import FORMATS, LabelFile, check_grid, label_files
from kidseg.io.label_writing import Exported, write_label_files
from kidseg.io.orientation import reorient
from kidseg.io.origin import Origin
from kidseg.io.output import check_output_folder
from kidseg.labels import LabelSchema
from kidseg.measure.annotated_labels import AnnotatedLabels, find_annotated, is_annotated
from kidseg.measure.measuring import Request
from kidseg.measure.reporting import with_report
from kidseg.provenance import RESEARCH_USE, provenance

__all__ = ["RECORD", "Conversion", "plan_conversion"]

RECORD = "_convert.json"
"""Ending of the record of a conversion, after the name of the case."""

_DEFAULT = ReadOptions()
_NOTHING = Request()
_LABELS = ReadOptions(values="labels", nonfinite="refuse")


def plan_conversion(
    labels: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str],
    ct: str | Path | None = None,
    options: ReadOptions = _DEFAULT,
    names: Mapping[int, str] | None = None,
    rules: RoiRules | None = None,
    known: Request = _NOTHING,
    overwrite: bool = False,
) -> Conversion:
    """Check a conversion as far as this needs no voxels; writes nothing.

    Args:
        labels: a label volume, a segmentation of 3D Slicer, or a DICOM Segmentation or RT
            Structure Set.
        out: folder; created if missing.
        formats: keys of `FORMATS`.
        ct: the scan that the labels belong to, for the report; for formats that refer to it, a
            DICOM series. The labels must lie on its voxels; a segmentation of 3D Slicer may be
            cropped. For a DICOM object, the folder of its series.
        options: of reading the scan.
        names: {value: name}; see `named_labels`. Not of a DICOM object.
        rules: for the structures of a DICOM object; by default their codes and names.
        known: for the report: the person, and facts for the criteria; its other entries are not
            used.
        overwrite: replace existing files.

    Raises:
        UsageError: "unknown-format", "missing-extra", "no-formats", "output-exists",
            "other-folder"; "no-probabilities"; "series-required", "scan-required", "scan-unused",
            "facts-unused"; "missing-viewer"; "bad-entered"; "output-is-input".
        InputError: see `named_labels`, `find_annotated`, `read_source`; "not-writable".
    """
    path, out = Path(labels), Path(out)
    check_formats(formats)
    if ct is not None:
        kind_of(path)  # what is there tells whether the scan is of use
    annotated = None
    if is_annotated(path):
        annotated = find_annotated(path, None if ct is None else Path(ct), rules)
        options = replace(options, files=annotated.annotation.images)
    else:
        check_scan(formats, ct)
    is_shown = shows_scan(formats, known)
    check_output_folder(out, "results")
    kind_of(path)  # is it there?
    named = named_labels(path, names) if annotated is None else _as_named(annotated)
    name = label_name(path)
    files, record = label_files(name, out, formats, named.schema), out / f"{name}{RECORD}"
    _check_free([*(file.path for file in files), record], overwrite)
    _check_not_read([file.path for file in files], [path, *([] if ct is None else [Path(ct)])])
    return Conversion(
        labels=path,
        name=name,
        named=named,
        files=files,
        record=record,
        source=_source(formats, ct, options),
        scan=Path(ct) if ct is not None and is_shown else None,
        options=options,
        known=known,
        annotated=annotated,
        overwrite=overwrite,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """A label file that is to be written in other formats.

    Attributes:
        labels: the label file.
        name: of its case.
        named: meaning of its values.
        files: to be written.
        record: that lists them, `<name>_convert.json`.
        source: the series that the labels belong to.
        scan: that the report shows; None without a report.
        options: of reading the scan.
        known: of the patient.
        annotated: where the labels are, if they are structures of a DICOM object.
        overwrite: replace existing files.
    """

    labels: Path
    name: str
    named: NamedLabels
    files: tuple[LabelFile, ...]
    record: Path
    source: SourceSeries | None
    scan: Path | None
    options: ReadOptions
    known: Request
    annotated: AnnotatedLabels | None
    overwrite: bool

    @property
    def outputs(self) -> list[Path]:
        """All files, the record last."""
        return [*(file.path for file in self.files), self.record]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON: "name" and "outputs"."""
        return {"name": self.name, "outputs": [str(file) for file in self.outputs]}

    def write(self) -> dict[str, Any]:
        """Read the labels and write all files, or none.

        Returns:
            The record: "labels", "outputs", "warnings", "surfaces", ...

        Raises:
            UsageError: "too-large-for-nifti"; "output-exists": made meanwhile.
            InputError: "grid-mismatch": the labels do not lie on the series; see `labels_of_file`,
                `read`, `labelled_on`.
            ResourceError: "disk-full", "not-enough-memory".
        """
        volume, findings = self._read_labels()
        check_grid(volume.grid, self.files)
        make_folder(self.record.parent)
        exported = Exported(
            labels=volume,
            schema=_present(self.named, volume),
            origin=_origin(self.labels, self.named),
            like=volume.grid,
            source=self.source,
        )
        measured = self._measured(exported)
        if measured is not None:
            findings = (*findings, *measured.parts.findings)
        if measured is not None and self._has_report:
            exported, found = with_report(exported, measured.labelled, measured.parts)
            findings = (*findings, *found)
        of_source = () if self.source is None else self.source.findings
        findings = tuple(dict.fromkeys((*self.named.findings, *findings, *of_source)))
        return self._write(exported, findings, measured)

    @property
    def _has_report(self) -> bool:
        """Is DICOM SR among the files?"""
        return any(FORMATS[file.format].measures for file in self.files)

    def _measured(self, exported: Exported) -> MeasuredLabels | None:
        """The labels to be measured, on the scan of the page or on the series of the SR."""
        named = replace(self.named, schema=exported.schema)
        if self.scan is not None:
            return on_scan(exported, self.labels, named, self.scan, self.options)
        if self._has_report:
            return on_series(exported, self.labels, named, self.options)
        return None

    def _read_labels(self) -> tuple[Volume, tuple[Finding, ...]]:
        """The labels in the voxel order of their file, or of the series; and findings."""
        of_labels = _LABELS
        if self.annotated is not None:
            annotation = self.annotated.annotation
            of_labels = replace(
                self.options, values="labels", files=annotation.images, annotation=annotation
            )
        scan = read(self.labels, of_labels)
        ignore = self.named.ignore
        judged = labels_of_file(scan, self.named.schema.names, ignore)
        findings = (*scan.findings, *judged.findings)
        volume = judged.volume
        if ignore is not None and (count := judged.voxels.get(ignore, 0)):
            volume = Volume(torch.where(volume.data == ignore, 0, volume.data), volume.grid)
            cause = f"{count} voxels that the data set ignores were written as background"
            finding = Finding(code="ignored-voxels", path=str(self.labels), cause=cause)
            findings = (*findings, finding)
        native = scan.native if self.source is None else self.source.native
        same = reorient(volume, native)
        if not same.grid.same_as(native):
            placed = uncropped(same, native) if self.named.said_by == "segments" else None
            if placed is None:
                raise _mismatch(self.labels, same.grid, native, self.source)
            same = placed
        return Volume(same.data.contiguous(), native), findings

    def _write(
        self, exported: Exported, findings: Sequence[Finding], measured: MeasuredLabels | None
    ) -> dict[str, Any]:
        """Write all files and the record, which comes last."""
        with staging(self.record.parent) as folder:
            written = write_label_files(exported, self.files, folder)
            pages = {folder / file.path.name: file.path for file in self.files if file.is_page}
            files = {**written.files, **pages}
            record = {
                "intended_use": RESEARCH_USE,
                "name": self.name,
                "path": str(self.labels),
                "sha256": exported.origin.labels_sha256,
                "labels": {str(number): name for number, name in exported.schema.names.items()},
                "named_by": self.named.said_by,
                "series": None if self.source is None else str(self.source.path),
                "outputs": [file.name for file in files.values()],
                **written.facts,
                "warnings": [finding.as_dict() for finding in (*findings, *written.findings)],
                **provenance(),
            }
            for page in pages:
                assert measured is not None
                record["report"] = measured.write_page(page, self.name, record, self.known)
            _check_free(self.outputs, self.overwrite)
            place_with_record(self.record, json_bytes(record), files)
        return record


def _present(named: NamedLabels, volume: Volume) -> LabelSchema:
    """The labels; of assumed names only those that occur, if any does."""
    schema = named.schema
    if named.said_by != "assumed":
        return schema
    values = set(volume.data.unique().tolist())
    present = {number: name for number, name in schema.names.items() if number in values}
    return LabelSchema.from_names(present) if present else schema


def _as_named(annotated: AnnotatedLabels) -> NamedLabels:
    return NamedLabels(schema=annotated.schema, said_by="structures", findings=annotated.findings)


def _check_free(files: Sequence[Path], overwrite: bool) -> None:
    """Check that no file is there already, or may be replaced."""
    for file in files:
        if file.parent.is_dir():
            check_writable(file, overwrite=overwrite)


def _check_not_read(files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Check that no file to write is one that is read."""
    for file, given in product(files, inputs):
        if file.exists() and file.samefile(given):
            raise UsageError(
                "it would be replaced by what is made from it",
                path=given,
                code="output-is-input",
                next_step="Give another folder with -o.",
            )


def _source(
    formats: Sequence[str], ct: str | Path | None, options: ReadOptions
) -> SourceSeries | None:
    """The series that formats refer to."""
    refers = any(FORMATS[name].needs_series for name in formats)
    return read_source(ct, options) if ct is not None and refers else None


def _mismatch(path: Path, grid: Grid, native: Grid, source: SourceSeries | None) -> InputError:
    if source is None:  # slightly sheared
        return InputError(
            "its axes are not orthogonal",
            path=path,
            code="grid-mismatch",
            next_step="Resample it onto an orthogonal grid first.",
        )
    return InputError(
        f"its grid is not that of the series {source.path}: {grid.difference(native)}",
        path=path,
        code="grid-mismatch",
        next_step="Give the series that was segmented, read as then (--series, --repair).",
    )


def _origin(path: Path, named: NamedLabels) -> Origin:
    """Where the labels come from, as `result.json` says; they may have been edited since."""
    model = named.record.get("model")
    model = model if isinstance(model, dict) else {}
    return Origin(
        method=str(model.get("method", "")),
        model_sha256=str(model.get("sha256", "")),
        scan_sha256=str(named.record.get("sha256", "")),
        labels_sha256=sha256_of(path),
        is_drawn="completed" in named.record,
    )
