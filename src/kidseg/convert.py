"""Write existing labels in other formats: 3D Slicer, DICOM, surfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kidseg.cases.label_names import NamedLabels, named_labels
from kidseg.cases.label_values import known_labels
from kidseg.cases.naming import label_name
from kidseg.cases.segments import uncropped
from kidseg.errors import Finding, InputError, KidsegError, UsageError, renamed
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, kind_of, read
from kidseg.io.atomic import (
    check_writable,
    json_bytes,
    make_folder,
    place_with_record,
    staging,
    writing,
)
from kidseg.io.content import sha256_of, sha256_of_all
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.label_formats import (
    FORMATS,
    Exported,
    LabelFile,
    check_formats,
    check_grid,
    label_files,
    write_label_files,
)
from kidseg.io.orientation import reorient
from kidseg.io.origin import Origin
from kidseg.io.output import check_output_folder
from kidseg.measure.criteria import entered_facts, read_criteria
from kidseg.measure.label_reading import body_midline, labelled_on
from kidseg.measure.measuring import Request, measure_labelled, parts_of
from kidseg.measure.midline import estimated_midline
from kidseg.measure.parts import Labelled, Parts, tracked_lesions
from kidseg.measure.person import Patient
from kidseg.measure.reporting import with_report
from kidseg.provenance import RESEARCH_USE, provenance
from kidseg.report.scan_page import Content, write_report
from kidseg.report.templates import check_viewer

__all__ = ["RECORD", "convert"]

RECORD = "_convert.json"
"""Ending of the record of a conversion, after the name of the case."""

_DEFAULT = ReadOptions()
_NOTHING = Request()
_LABELS = ReadOptions(values="labels", nonfinite="refuse")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is to be written: the files, and the record that lists them."""

    labels: Path
    name: str
    files: tuple[LabelFile, ...]
    record: Path
    named: NamedLabels

    @property
    def all(self) -> list[Path]:
        return [*(file.path for file in self.files), self.record]


def convert(
    labels: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str],
    series: str | Path | None = None,
    ct: str | Path | None = None,
    options: ReadOptions = _DEFAULT,
    names: Mapping[int, str] | None = None,
    known: Request = _NOTHING,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write a label file in other formats into a folder, all files or none.

    Args:
        labels: a label volume, or a segmentation of 3D Slicer.
        out: folder; created if missing.
        formats: keys of `FORMATS`.
        series: the DICOM series that the labels belong to, for formats that refer to it. The labels
            must lie on its voxels; a segmentation of 3D Slicer may be cropped.
        ct: the scan that the labels belong to, for the report; by default the series.
        options: of reading the series and the scan.
        names: {value: name}; see `named_labels`.
        known: for the report: the person, and facts for the criteria; its other entries are not
            used.
        overwrite: replace existing files.
        dry_run: read no voxels and write nothing, after the same checks.

    Returns:
        The record, as in `<name>_convert.json`: "labels", "outputs", "warnings", "surfaces", ...
        With `dry_run`, "name" and "outputs".

    Raises:
        UsageError: "unknown-format", "missing-extra", "no-formats", "output-exists",
            "other-folder", "too-large-for-nifti"; "no-probabilities"; "series-required",
            "series-unused", "scan-required", "scan-unused", "facts-unused"; "missing-viewer";
            "bad-entered".
        InputError: "grid-mismatch": the labels do not lie on the series; see `named_labels`,
            `known_labels`, `read`, `read_source`; "not-writable".
        ResourceError: "disk-full", "not-enough-memory".
    """
    path, out = Path(labels), Path(out)
    _check_call(formats, series)
    shown = _scan(formats, series, ct, known)
    check_output_folder(out, "results")
    job = _planned(path, out, formats, names)
    _check_free(job, overwrite)
    source = None if series is None else _source(Path(series), options)
    if dry_run:
        return {"name": job.name, "outputs": [str(file) for file in job.all]}
    volume, findings = _labels_on(path, job, source)
    check_grid(volume.grid, job.files)
    make_folder(out)
    exported = Exported(
        labels=volume,
        schema=job.named.schema,
        origin=_origin(path, job.named),
        like=volume.grid,
        source=source,
    )
    measured = _Measured.of(exported, job, shown, options, known)
    if any(FORMATS[name].measures for name in formats):
        assert measured is not None
        exported, found = with_report(exported, measured.labelled, measured.parts)
        said = set(measured.labelled.findings)  # of a scan that only the page shows
        findings = (*findings, *(each for each in found if each not in said))
    findings = (*job.named.findings, *findings, *(() if source is None else source.findings))
    findings = tuple(dict.fromkeys(findings))
    return _write(job, exported, findings, None if shown is None else measured, overwrite=overwrite)


def _check_call(formats: Sequence[str], series: str | Path | None) -> None:
    if not formats:
        raise UsageError("no formats are given", code="no-formats")
    check_formats(formats)
    if unknown := [name for name in formats if FORMATS[name].needs_entropy]:
        raise UsageError(
            f"{', '.join(unknown)} shows probabilities, which labels do not have",
            code="no-probabilities",
            next_step="Request it when the scan is segmented: kidseg segment --formats.",
        )
    wanting = [name for name in formats if FORMATS[name].needs_series]
    if wanting and series is None:
        raise UsageError(
            f"{', '.join(wanting)} refers to the images of a DICOM series, and none is given",
            code="series-required",
            next_step="Give its folder: --series DICOM",
        )
    if series is not None and not any(
        FORMATS[n].needs_series or FORMATS[n].is_page for n in formats
    ):
        raise UsageError(
            "none of the formats refers to a DICOM series",
            path=series,
            code="series-unused",
            next_step="Leave --series out, or request dicomseg, labelmap or rtstruct.",
        )


def _scan(
    formats: Sequence[str], series: str | Path | None, ct: str | Path | None, known: Request
) -> Path | None:
    """The scan that a report shows; None without a report.

    Raises:
        UsageError: "scan-required", "scan-unused", "facts-unused", "bad-entered"; see
            `kidseg.report.templates.check_viewer`.
    """
    found = ct or series
    if not any(FORMATS[name].is_page for name in formats):
        if known.person != Patient() or known.entered:
            raise UsageError(
                "none of the formats says what is known of the patient",
                code="facts-unused",
                next_step="Leave these facts out, or request html.",
            )
        if ct is None:
            return None
        raise UsageError(
            "none of the formats shows the scan",
            path=ct,
            code="scan-unused",
            next_step="Leave --ct out, or request html.",
        )
    if found is None:
        raise UsageError(
            "html shows the scan with its labels, and no scan is given",
            code="scan-required",
            next_step="Give it: --ct SCAN",
        )
    entered_facts(known.entered, read_criteria(known.criteria))
    check_viewer()
    return Path(found)


def _planned(
    path: Path, out: Path, formats: Sequence[str], names: Mapping[int, str] | None
) -> _Job:
    kind_of(path)  # is it there?
    named, name = named_labels(path, names), label_name(path)
    return _Job(
        labels=path,
        name=name,
        files=label_files(name, out, formats, named.schema),
        record=out / f"{name}{RECORD}",
        named=named,
    )


def _check_free(job: _Job, overwrite: bool) -> None:
    """Check that no file is there already, or may be replaced."""
    for file in job.all:
        if file.parent.is_dir():
            check_writable(file, overwrite=overwrite)


def _source(series: Path, options: ReadOptions) -> SourceSeries:
    """The series; errors name the options of `kidseg convert`."""
    try:
        return read_source(series, options)
    except KidsegError as error:
        raise renamed(error, "--series ", "--number ") from error


def _labels_on(
    path: Path, job: _Job, source: SourceSeries | None
) -> tuple[Volume, tuple[Finding, ...]]:
    """The labels in the voxel order of their file, or of the series; and findings.

    Raises:
        InputError: "grid-mismatch".
    """
    scan = read(path, _LABELS)
    ignore = job.named.ignore
    judged = known_labels(scan, job.named.schema.names, ignore)
    findings = (*scan.findings, *judged.findings)
    volume, native = judged.volume, scan.native if source is None else source.native
    if ignore is not None and (count := judged.voxels.get(ignore, 0)):
        volume = Volume(torch.where(volume.data == ignore, 0, volume.data), volume.grid)
        cause = f"{count} voxels that the data set ignores were written as background"
        findings = (*findings, Finding(code="ignored-voxels", path=str(path), cause=cause))
    same = reorient(volume, native)
    if not same.grid.same_as(native):
        placed = uncropped(same, native) if job.named.said_by == "segments" else None
        if placed is None:
            raise _mismatch(path, same.grid, native, source)
        same = placed
    return Volume(same.data.contiguous(), native), findings


def _mismatch(path: Path, grid: Grid, native: Grid, source: SourceSeries | None) -> InputError:
    if source is None:  # slightly sheared
        return InputError(
            "its axes are not orthogonal",
            path=path,
            code="grid-mismatch",
            next_step="Resample it onto an orthogonal grid first.",
        )
    cause = f"its grid is {grid}, but that of the series {source.path} is {native}"
    if grid.shape == native.shape:
        apart = float((grid.centre_mm - native.centre_mm).norm())
        cause = f"its voxels are not those of the series {source.path}: same size, "
        cause += f"but the centres are {apart:.4g} mm apart"
        if apart < 1e-3:
            cause += " and the axes differ"
    return InputError(
        cause,
        path=path,
        code="grid-mismatch",
        next_step="Give the series that was segmented, read as then (--number, --repair).",
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
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """The labels, to be measured for SR and page.

    Attributes:
        labelled: the labels.
        parts: their structures.
        known: of the patient.
        scan: that was read, if any.
        path: of the scan.
    """

    labelled: Labelled
    parts: Parts
    known: Request
    scan: Volume | None
    path: Path

    @classmethod
    def of(
        cls,
        exported: Exported,
        job: _Job,
        shown: Path | None,
        options: ReadOptions,
        known: Request,
    ) -> _Measured | None:
        """The labels on their scan, which is read once; None if no format has measures.

        Args:
            exported: the labels.
            job: names and formats.
            shown: the scan of a page; None: the measures are those of the series.
            options: of reading the scan.
            known: of the patient.

        Raises:
            InputError: see `kidseg.measure.label_reading.labelled_on`.
        """
        schema, source = exported.schema, exported.source
        if shown is not None:
            scan = read(shown, replace(options, values="ct"))
            labelled = labelled_on(scan, job.labels, exported.labels, job.named)
            return cls(labelled, parts_of(labelled), known, scan.volume, shown)
        if not any(FORMATS[file.format].measures for file in job.files):
            return None
        assert source is not None
        midline = estimated_midline(exported.labels, schema, is_cropped=False)
        if source.headers[0].get("Modality") == "CT":
            midline = body_midline(read(source.path, options).volume, exported.labels, schema)
        labelled = Labelled(
            labels=exported.labels,
            schema=schema,
            midline=midline,
            path=job.labels,
            tracking=tracked_lesions(schema, job.named.numbered),
        )
        return cls(labelled, parts_of(labelled), known, None, source.path)

    def write_page(self, path: Path, job: _Job, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the page; how its view differs from the data."""
        assert self.scan is not None
        _, measurement = measure_labelled(self.labelled, self.known, parts=self.parts)
        segmented = job.named.record
        both = {
            **segmented,
            **record,
            "path": str(self.path),
            "scan_sha256": _digest(self.path),
            "labels_sha256": record["sha256"],
            "warnings": [*segmented.get("warnings", ()), *record["warnings"]],
        }
        content = Content(
            name=job.name,
            scan=self.scan,
            labels=self.labelled.labels,
            schema=self.labelled.schema,
            record=both,
            measured=measurement.as_dict(),
        )
        with writing(path) as file:
            return write_report(content, file)


def _digest(scan: Path) -> str:
    return sha256_of_all([scan]) if scan.is_dir() else sha256_of(scan)


def _write(
    job: _Job,
    exported: Exported,
    findings: Sequence[Finding],
    page: _Measured | None,
    *,
    overwrite: bool,
) -> dict[str, Any]:
    """Write all files and the record, which comes last."""
    with staging(job.record.parent) as folder:
        written = write_label_files(exported, job.files, folder)
        pages = {folder / file.path.name: file.path for file in job.files if file.is_page}
        files = {**written.files, **pages}
        record = {
            "intended_use": RESEARCH_USE,
            "name": job.name,
            "path": str(job.labels),
            "sha256": exported.origin.labels_sha256,
            "labels": {str(number): name for number, name in exported.schema.names.items()},
            "named_by": job.named.said_by,
            "series": None if exported.source is None else str(exported.source.path),
            "outputs": [file.name for file in files.values()],
            **written.facts,
            "warnings": [finding.as_dict() for finding in (*findings, *written.findings)],
            **provenance(),
        }
        if page is not None:
            for temporary in pages:
                record["report"] = page.write_page(temporary, job, record)
        _check_free(job, overwrite)
        place_with_record(job.record, json_bytes(record), files)
    return record
