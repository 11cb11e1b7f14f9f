"""The files that are written for a scan: all of them, or none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, InputError, ResourceError, UsageError
from kidseg.geometry import Grid, Volume, resample
from kidseg.io import ReadOptions, read_grid
from kidseg.io.atomic import check_writable, make_folder
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.label_formats import FORMATS, LabelFile, label_files
from kidseg.io.label_writing import Exported, write_label_files
from kidseg.io.orientation import reorient
from kidseg.io.origin import Origin
from kidseg.labels import LabelSchema
from kidseg.segment.index import RESULT, Index
from kidseg.segment.predictor import Predictor, Segmentation
from kidseg.segment.review import ENTROPY_STEP
from kidseg.segment.scans import ScanFiles
from kidseg.segment.sources import Source

__all__ = [
    "Outputs",
    "Written",
    "check_outputs",
    "draw_figure",
    "earlier_outputs",
    "exported_labels",
    "outputs_of",
    "prepare_folder",
    "write_outputs",
]

_NAME_BYTES = 255  # limit of a file name on all common file systems


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The output files of a scan.

    Attributes:
        labels: the files of each format.
        figure: of the steps; None if not requested.
    """

    labels: tuple[LabelFile, ...]
    figure: Path | None

    @property
    def all(self) -> list[Path]:
        """All files."""
        figure = [] if self.figure is None else [self.figure]
        return [*(file.path for file in self.labels), *figure]

    @property
    def formats(self) -> list[str]:
        """The formats of the labels."""
        return list(dict.fromkeys(file.format for file in self.labels))

    @property
    def needs_series(self) -> bool:
        """Does a format refer to a DICOM series?"""
        return any(FORMATS[name].needs_series for name in self.formats)

    @property
    def measures(self) -> bool:
        """Does a format have what is measured of the labels?"""
        return any(FORMATS[name].measures for name in self.formats)

    def are_there(self, entry: Mapping[str, Any]) -> bool:
        """Are all files there that the result with this entry has?

        A surface may be missing if the result was written in its format.
        """

        def is_there(file: LabelFile) -> bool:
            is_empty = file.format in entry.get("formats", ()) and file.may_be_missing
            return file.path.is_file() or (is_empty and file.path.name not in entry["outputs"])

        figure = self.figure is None or self.figure.is_file()
        return figure and all(map(is_there, self.labels))


@dataclass(frozen=True, kw_only=True)
class Written:
    """Outputs that are complete, but not in place yet.

    Attributes:
        files: {temporary file: output}.
        findings: "no-figure", and those of `write_label_files`.
        seconds: wall time of each kind of output.
        facts: see `kidseg.io.label_writing.WrittenLabels`.
    """

    files: Mapping[Path, Path]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    facts: Mapping[str, Any]


def outputs_of(
    name: str, out: Path, formats: Sequence[str], schema: LabelSchema, *, figure: bool
) -> Outputs:
    """The output files of a scan of this name, whose labels have this schema."""
    return Outputs(
        labels=label_files(name, out, formats, schema),
        figure=out / f"{name}_steps.png" if figure else None,
    )


def check_outputs(
    sources: Sequence[Source],
    outputs: Mapping[str, Outputs],
    index: Index,
    *,
    overwrite: bool,
    resumable: bool,
) -> tuple[Source, ...]:
    """Check that no output exists; names too long are errors of their scans, "name-too-long".

    Scans with an error have no outputs.

    Args:
        sources: the scans.
        outputs: of each, by name.
        index: of the folder.
        overwrite: replace files, but no folders.
        resumable: existing results may be those of a stopped run.

    Raises:
        UsageError: "output-exists".
    """
    checked, taken = [], []
    for source in sources:
        if source.error is not None:
            checked.append(source)
            continue
        files = outputs[source.name].all
        longest = max(files, key=lambda file: len(os.fsencode(file.name)))
        if len(os.fsencode(longest.name)) > _NAME_BYTES:
            checked.append(replace(source, error=_too_long(source, longest)))
            continue
        checked.append(source)
        taken += [f for f in files if f.is_dir() or (not overwrite and os.path.lexists(f))]
        if source.name in index.scans and not overwrite:
            taken.append(files[0].with_name(RESULT))
    if taken:
        first = taken[0]
        kind = "a folder of this name" if first.is_dir() else "the file"
        if first.name == RESULT:
            kind = "a result of this scan"
        more = f", and so do {len(taken) - 1} others" if len(taken) > 1 else ""
        step = (
            ", use --overwrite, or --resume after a stopped run."
            if resumable
            else (", or use --overwrite.")
        )
        if first.is_dir():
            step = "."
        raise UsageError(
            f"{kind} already exists{more}",
            path=first,
            code="output-exists",
            next_step=f"Choose another folder{step}",
        )
    return tuple(checked)


def prepare_folder(out: Path) -> None:
    """Create the folder of the results, and check that it can be written to.

    Raises:
        InputError: "not-writable".
        UsageError: "output-exists": result.json is a folder.
        ResourceError: "disk-full".
    """
    make_folder(out)
    check_writable(out / RESULT, overwrite=True)


def exported_labels(
    result: Segmentation,
    scan: ScanFiles,
    predictor: Predictor,
    options: ReadOptions,
    scan_sha256: str,
    source: SourceSeries | None,
) -> Exported:
    """Labels with all that their files say of them, on the scan's own voxels.

    Args:
        result: of the segmentation, on the grid of the scan.
        scan: as read.
        predictor: that segmented it.
        options: of reading.
        scan_sha256: its digest.
        source: its DICOM series, if an output refers to it.
    """
    native = scan.first.native
    return Exported(
        labels=_on_voxels_of(native, result.labels),
        schema=predictor.schema,
        origin=Origin(
            method=predictor.method.name,
            model_sha256=predictor.sha256,
            scan_sha256=scan_sha256,
            is_drawn=predictor.drawn is not None,
        ),
        like=_like(scan, options),
        source=source,
        entropy=(_on_voxels_of(native, result.review.doubt.entropy), ENTROPY_STEP),
    )


def _on_voxels_of(native: Grid, values: Volume) -> Volume:
    """Labels or other integers in the voxel order of the scan."""
    if not reorient(values, native).grid.same_as(native):  # slightly sheared
        values = resample(values, native, mode="nearest")
    return Volume(reorient(values, native).data.contiguous(), native)


def write_outputs(
    folder: Path, outputs: Outputs, exported: Exported, draw: Callable[[Path], Finding | None]
) -> Written:
    """Write labels and figure into a temporary folder.

    Args:
        folder: see `kidseg.io.atomic.staging`.
        outputs: where they belong.
        exported: the labels.
        draw: writes the figure; see `draw_figure`.

    Raises:
        InputError, ResourceError: see `write_label_files`.
    """
    start = time.perf_counter()
    written = write_label_files(exported, outputs.labels, folder)
    files, findings = dict(written.files), list(written.findings)
    seconds = {"write": time.perf_counter() - start}
    if outputs.figure is not None:
        start = time.perf_counter()
        drawn = folder / outputs.figure.name
        finding = draw(drawn)
        seconds["figure"] = time.perf_counter() - start
        if finding is None:
            files[drawn] = outputs.figure
        else:
            findings.append(finding)
    return Written(files=files, findings=tuple(findings), seconds=seconds, facts=written.facts)


def earlier_outputs(
    old: Mapping[str, Any] | None, written: Sequence[Path], out: Path
) -> tuple[Finding, ...]:
    """A finding about files of an earlier result that the new one does not replace."""
    new = {file.name for file in written}
    names = [] if old is None else [n for n in old["outputs"] if n not in new]
    left = [name for name in names if (out / name).exists()]
    if not left:
        return ()
    return (
        Finding(
            code="earlier-output",
            path=str(out),
            cause=f"{', '.join(left)} is of an earlier segmentation of this scan",
            next_step="Remove it, or request the same outputs again.",
        ),
    )


def _like(scan: ScanFiles, options: ReadOptions) -> Path | Grid:
    """The NIfTI file whose affines are copied, or else the grid."""
    first, native = scan.first, scan.first.native
    if first.format != "nifti" or first.path.suffix.lower() == ".zip":
        return native
    if options.trust is not None or options.spacing_mm is not None:
        return native
    same = read_grid(first.path, ReadOptions(values="any")).same_as(native)
    return first.path if same else native


def draw_figure(
    file: Path,
    *,
    name: str,
    scan: ScanFiles,
    result: Segmentation,
    predictor: Predictor,
    known: tuple[Volume, Volume | None] | None,
) -> Finding | None:
    """Draw the figure of a scan; a finding if it fails.

    Args:
        file: to write.
        name: of the scan.
        scan: as read.
        result: of its segmentation.
        predictor: that segmented it.
        known: reference labels and voxels to ignore.
    """
    from kidseg.segment.figure import draw_steps

    reference, ignore = known or (None, None)
    try:
        draw_steps(
            file, name, scan.volume, result, predictor.schema, reference=reference, ignore=ignore
        )
    except ResourceError:
        raise
    except Exception as error:  # whatever fails in a picture, the labels are right
        return Finding(
            code="no-figure",
            path=str(scan.paths[0]),
            cause=f"the figure could not be drawn: {_first_line(error)}",
            next_step="The labels are written. Fix the cause, and segment again with --overwrite.",
        )
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _too_long(source: Source, file: Path) -> InputError:
    return InputError(
        f"its name is too long for the file of its results, {len(os.fsencode(file.name))} bytes",
        path=source.path,
        code="name-too-long",
        next_step="Give the scan a shorter name.",
    )
