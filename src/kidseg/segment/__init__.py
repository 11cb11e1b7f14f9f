"""Segment scans with a trained model; the entry point of the command line and the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kidseg.cases.naming import scan_name
from kidseg.errors import (
    BatchError,
    Finding,
    InputError,
    KidsegError,
    ResourceError,
    UsageError,
    converted,
)
from kidseg.io import ReadOptions
from kidseg.io.atomic import staging
from kidseg.io.dicom_source import read_source
from kidseg.io.label_formats import FORMATS, check_formats, check_grid
from kidseg.io.output import check_output_folder
from kidseg.measure.reporting import with_report
from kidseg.model_file import STARTER, STARTER_USE, is_starter
from kidseg.provenance import provenance
from kidseg.report.templates import check_viewer
from kidseg.segment.adaptation import Adapt
from kidseg.segment.batch_page import write_batch_page
from kidseg.segment.html_page import with_page
from kidseg.segment.identity import digest_of, done_before, is_same_call, reading_of
from kidseg.segment.index import Index, read_index, record_failure, record_scan
from kidseg.segment.outputs import (
    Outputs,
    check_outputs,
    draw_figure,
    earlier_outputs,
    exported_labels,
    outputs_of,
    prepare_folder,
    write_outputs,
)
from kidseg.segment.predictor import Predictor, Segmentation, load_predictor
from kidseg.segment.review import in_order_of
from kidseg.segment.scans import read_scan
from kidseg.segment.sources import Source, find_scans
from kidseg.segment.truth import ReferenceLabels, find_references

__all__ = ["FORMATS", "Predictor", "Segmentation", "load_predictor", "scan_name", "segment"]

_NAMED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What the scans of a call have in common."""

    predictor: Predictor
    out: Path
    options: ReadOptions
    overwrite: bool
    index: Index
    outputs: Mapping[str, Outputs]
    references: Mapping[str, ReferenceLabels]

    def facts(self) -> dict[str, Any]:
        """Model, device, versions and date, for the entry of a scan."""
        method, paths = self.predictor.method, self.predictor.paths
        return {
            "model": {
                "path": str(self.predictor.path),
                **({"paths": list(map(str, paths))} if len(paths) > 1 else {}),
                "sha256": self.predictor.sha256,
                "method": method.name,
                **(
                    {"name": STARTER, "use": STARTER_USE}
                    if any(map(is_starter, self.predictor.paths))
                    else {}
                ),
            },
            "device": str(method.device.torch),
            "precision": method.device.precision,
            **provenance(),
        }


def segment(
    scans: Sequence[str | Path],
    model: str | Path | Sequence[str | Path] | Predictor | None,
    out: str | Path,
    *,
    formats: Sequence[str] = ("nii",),
    device: str = "auto",
    adapt: Adapt | None = None,
    options: ReadOptions | None = None,
    figures: bool = False,
    reference: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment scans; the labels are on each scan's own voxels.

    Writes `<name>_seg.nii.gz` (and other formats) into `out`, and the scan's entry in
    `result.json`, after each scan; entries of other scans stay. Whatever fails in one scan, the
    others are still segmented, unless the disk is full. With several scans in the folder,
    `cohort.html` shows them all. A figure that cannot be drawn gives the
    finding "no-figure"; the labels are written.

    Args:
        scans: files, folders, data sets and patterns; see `find_scans`.
        model: a model file, a run folder, or a predictor; "starter" or None for the starter.
            Several files or folders are an ensemble, see `load_predictor`.
        out: folder; created if missing.
        formats: keys of `FORMATS`. Some need a DICOM series, some an extra of kidseg.
        device: for a model file; see `choose_device`.
        adapt: for a model file: "norm" takes the statistics of its batch norms from each scan,
            "none" from the training; None: as the model file says, or else "none".
        options: of reading.
        figures: also write `<name>_steps.png`; see `kidseg.segment.figure.draw_steps`.
        reference: labels to show in the figures and to compare with: a label volume for one scan,
            or a data set; see `find_references`.
        overwrite: replace existing results of these scans.
        resume: leave out scans that this model has segmented into `out`: those with the same
            content, read with the same options.
        dry_run: read no scan and write nothing, after the same checks.
        report: called with the entry of each scan, as in result.json; that of a failed scan has a
            "code".
        progress: called with (done, total) after each scan.

    Returns:
        An entry for each segmented scan, as in result.json; with `resume`, also of those left out.
        With `dry_run`, the name, path and output files of each scan that would be segmented.

    Raises:
        UsageError: "unknown-format", "missing-extra", "no-scans", "same-name" (two scans would
            write the same file), "output-exists" (with `resume`, also if a result is of another
            scan of the same name, another model or other options of reading), "other-folder"
            (`out` is a data set, a store, ...), "reference-unused" (without figures); see
            `find_references`, `find_model`.
        InputError: see `find_scans`, `find_references`; "not-writable".
        ModelError: see `find_model`, `load_predictor`, `read_index`.
        ResourceError: "disk-full".
        BatchError: some of several scans failed; the message names each. With a single scan, its
            error is raised instead.

    All but the last two are raised before any scan is read.
    """
    out = Path(out)
    check_output_folder(out, "results")
    _check_call(scans, formats, figures, reference)
    predictor = model if isinstance(model, Predictor) else load_predictor(model, device, adapt)
    channels = predictor.method.plan.channels
    values: Literal["ct", "any"] = "ct" if channels[0].scheme == "ct" else "any"
    options = replace(options or ReadOptions(), values=values)
    sources = find_scans(scans, len(channels), options, without=out)
    index = read_index(out)
    outputs = {
        s.name: outputs_of(s.name, out, formats, predictor.schema, figure=figures) for s in sources
    }
    known: dict[str, dict[str, Any]] = {}
    todo: Sequence[Source] = sources
    if resume:
        known, todo = done_before(sources, outputs, index, predictor, options, overwrite=overwrite)
    resumable = not resume and is_same_call(todo, index, predictor, options)
    todo = check_outputs(todo, outputs, index, overwrite=overwrite, resumable=resumable)
    references = {} if reference is None else _references(todo, Path(reference), predictor)
    if dry_run:
        return [_planned(source, outputs[source.name]) for source in todo]
    prepare_folder(out)
    run = _Run(
        predictor=predictor,
        out=out,
        options=options,
        overwrite=overwrite,
        index=index,
        outputs=outputs,
        references=references,
    )
    return _segment_all(todo, list(known.values()), run, report, progress)


def _planned(source: Source, outputs: Outputs) -> dict[str, Any]:
    """A scan that would be segmented."""
    return {
        "name": source.name,
        "scan": str(source.path),
        "outputs": [str(file) for file in outputs.all],
    }


def _segment_all(
    todo: Sequence[Source],
    done: list[dict[str, Any]],
    run: _Run,
    report: Callable[[Mapping[str, Any]], None] | None,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Segment scans one after the other; raises as `segment`.

    Args:
        todo: the scans.
        done: entries of those that were segmented before; the others are added.
        run: what they have in common.
        report: called with each entry.
        progress: called with (done, total).
    """
    failed: list[KidsegError] = []
    known = len(done)
    total = known + len(todo)
    for k, source in enumerate(todo):
        entry, failure = _attempt(source, run)
        if failure is None:
            done.append(entry)
        else:
            failed.append(failure)
        if report is not None:
            report(entry)
        if progress is not None:
            progress(known + k + 1, total)
        if failure is not None and _is_out_full(failure, run.out):
            raise _stopped(failure, len(done), total)
    write_batch_page(run.out)
    _raise_failed(failed, total, run.out)
    return done


def _check_call(
    scans: Sequence[str | Path],
    formats: Sequence[str],
    figures: bool,
    reference: str | Path | None,
) -> None:
    if reference is not None and not figures:
        raise UsageError(
            "a reference is only used in figures",
            path=Path(reference),
            code="reference-unused",
            next_step="Request figures too; to score labels, use 'kidseg evaluate'.",
        )
    check_formats(formats)
    if any(FORMATS[name].is_page for name in formats):
        check_viewer()
    if not scans or not formats:
        raise UsageError("no scans or no formats are given", code="no-scans")


def _references(
    sources: Sequence[Source], reference: Path, predictor: Predictor
) -> dict[str, ReferenceLabels]:
    """The reference labels of each scan, by its name."""
    cyst = predictor.method.config.cohort.cyst
    paths = {source.path: source.name for source in sources}
    found = find_references(paths, reference, predictor.schema, cyst)
    for source in sources:  # several DICOM series of one folder
        if paths[source.path] != source.name:
            found |= find_references(
                {Path(source.name): source.name}, reference, predictor.schema, cyst
            )
    return {s.name: found.get(Path(s.name)) or found[s.path] for s in sources}


def _attempt(source: Source, run: _Run) -> tuple[dict[str, Any], KidsegError | None]:
    """Segment a scan and record it; its entry, and the error if it failed."""
    try:
        return _segment_scan(source, run), None
    except Exception as error:  # of any kind: the other scans are segmented
        failure = _failure(error, source.path)
    entry = {
        "name": source.name,
        "scan": str(source.path),
        **failure.as_finding().as_dict(),
        **run.facts(),
    }
    try:
        record_failure(run.out, entry)
    except ResourceError:
        if not _is_out_full(failure, run.out):
            raise
    return entry, failure


def _segment_scan(source: Source, run: _Run) -> dict[str, Any]:
    """Segment a scan, write its outputs and record it."""
    if source.error is not None:
        raise source.error
    files, predictor, options = run.outputs[source.name], run.predictor, run.options
    if source.series is not None:
        options = replace(options, series=source.series)
    start = time.perf_counter()
    scan = read_scan(source.path, predictor.method.plan.channels, options, source.case)
    check_grid(scan.first.native, files.labels)
    series = read_source(source.path, options) if files.needs_series else None
    known = None
    if (labels := run.references.get(source.name)) is not None:
        known = labels.on(scan.volume.grid, replace(options, series=None, volume=None))
    read_s = time.perf_counter() - start
    result = predictor(scan.volume, str(source.path))
    digest = digest_of(source, len(predictor.method.plan.channels), run.options)
    exported = exported_labels(result, scan, predictor, options, digest, series)
    measured: tuple[Finding, ...] = ()
    if files.measures:
        exported, measured = with_report(exported, result.midline, source.path)
    draw = partial(
        draw_figure,
        name=source.name,
        scan=scan,
        result=result,
        predictor=predictor,
        known=known,
    )
    with staging(run.out) as folder:
        written = write_outputs(folder, files, exported, draw)
        outputs = list(written.files.values())
        pages = [file.path for file in files.labels if file.is_page]
        left = earlier_outputs(run.index.scans.get(source.name), [*outputs, *pages], run.out)
        of_series = [] if series is None else series.findings
        noticed = (*scan.findings, *of_series, *result.findings, *measured)
        # Scan and series have read the headers, prediction and report have told the sides apart.
        findings = (*dict.fromkeys(noticed), *written.findings, *left)
        seconds = {"read": read_s, **result.seconds, **written.seconds}
        entry = {
            "name": source.name,
            "path": str(source.path),
            **({} if source.series is None else {"series_uid": source.series}),
            "sha256": digest,
            "reading": reading_of(run.options),
            "outputs": [file.name for file in outputs],
            "formats": files.formats,
            "labels": {str(number): name for number, name in predictor.schema.names.items()},
            **run.facts(),
            **result.facts,
            "review": in_order_of(scan.first.native, result.labels.grid, result.facts["review"]),
            **written.facts,
            "warnings": [finding.as_dict() for finding in findings],
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }
        seen = (scan.volume, result, predictor)
        reported = with_page(folder, files, written, entry, seen, draw)
        record_scan(run.out, reported.entry, reported.files, overwrite=run.overwrite)
    return reported.entry


def _failure(error: Exception, path: Path) -> KidsegError:
    """Any exception as the error of a scan."""
    if isinstance(error, KidsegError):
        return error
    if (known := converted(error, path)) is not None:
        return known
    text = str(error).strip().split("\n", 1)[0]
    return InputError(
        f"it could not be segmented ({type(error).__name__}{text and f': {text}'})",
        path=path,
        code="scan-failed",
        next_step="Check it with 'kidseg check'. If it is sound, please report this error.",
    )


def _is_out_full(failure: KidsegError, out: Path) -> bool:
    """Is it the disk of the results that is full, so that every other scan would fail too?"""
    return failure.code == "disk-full" and Path(failure.path or out).is_relative_to(out)


def _stopped(failure: KidsegError, done: int, total: int) -> KidsegError:
    """The error of a full disk, with what was done before."""
    if total == 1:
        return failure
    return ResourceError(
        f"{failure.cause}; {done} of {total} scans are segmented and recorded",
        path=failure.path,
        code=failure.code,
        next_step="Free some space, then segment again with --resume.",
    )


def _raise_failed(failed: Sequence[KidsegError], total: int, out: Path) -> None:
    """Raise the error of a single scan, or a BatchError that names the failed scans."""
    if failed and total == 1:
        raise failed[0]
    if failed:
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        some = len(failed) < total
        raise BatchError(
            f"{len(failed)} of {total} scans failed: {'; '.join(map(str, failed[:_NAMED]))}{more}",
            path=out,
            code="scans-failed",
            next_step="The other scans are segmented; result.json lists both."
            if some
            else "No scan is segmented; result.json lists their errors.",
        )
