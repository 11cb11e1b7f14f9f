"""Segment one scan, in this process or by a worker: its files are complete, but not in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, InputError, KidsegError, ModelError, converted, renamed
from kidseg.io import ReadOptions
from kidseg.io.dicom_source import read_source
from kidseg.io.label_formats import check_grid
from kidseg.labels import LabelSchema
from kidseg.measure.measuring import parts_of
from kidseg.measure.reporting import with_report
from kidseg.model_file import STARTER, STARTER_USE, is_starter
from kidseg.provenance import provenance
from kidseg.report.cohort_page import Picture
from kidseg.segment.adaptation import Adapt
from kidseg.segment.batch_page import draw_result
from kidseg.segment.html_page import Seen, labelled_of, with_page
from kidseg.segment.identity import digest_of, reading_of
from kidseg.segment.index import Entry
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.outputs import (
    Outputs,
    draw_figure,
    earlier_outputs,
    exported_labels,
    write_outputs,
)
from kidseg.segment.predictor import Predictor
from kidseg.segment.review import in_order_of
from kidseg.segment.scans import read_scan
from kidseg.segment.sources import Source
from kidseg.segment.truth import ReferenceLabels

__all__ = ["Attempt", "ScanTask", "WorkerModel", "attempt_scan", "failed_attempt"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanTask:
    """A scan to segment.

    Attributes:
        source: where it is.
        outputs: the files to be.
        out: their folder.
        options: of reading.
        reference: labels to show in the figure.
        earlier: the entry of an earlier result of its name.
        pictured: draw its picture for the page of all scans, too.
    """

    source: Source
    outputs: Outputs
    out: Path
    options: ReadOptions
    reference: ReferenceLabels | None = None
    earlier: Entry | None = None
    pictured: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """What came of a scan.

    Attributes:
        entry: for the index; that of a failure has a "code".
        written: {complete file: output to be}.
        failure: None if it was segmented.
        picture: for the page of all scans, if asked for.
    """

    entry: dict[str, Any]
    written: Mapping[Path, Path] = field(default_factory=dict)
    failure: KidsegError | None = None
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerModel:
    """Segments scans in a worker process, which loads the model once.

    Attributes:
        paths: of the model files; "starter" for the one that comes with kidseg.
        sha256: of the model.
        device: see `choose_device`.
        adapt: see `load_predictor`.
    """

    paths: tuple[str, ...]
    sha256: str
    device: str
    adapt: Adapt

    @classmethod
    def of(cls, predictor: Predictor) -> WorkerModel:
        """That loads the model of a predictor again."""
        paths = tuple(
            STARTER if is_starter(path) else str(path.absolute()) for path in predictor.paths
        )
        device = str(predictor.method.device.torch)
        return cls(paths=paths, sha256=predictor.sha256, device=device, adapt=predictor.adapt)

    def __call__(self, task: ScanTask, folder: Path) -> Attempt:
        """Segment a scan; see `attempt_scan`.

        Raises:
            ModelError: "another-model": the file is not that of the main process; see
                `load_predictor`.
            ResourceError: see `load_predictor`.
        """
        return attempt_scan(task, _loaded(self), folder)


@lru_cache(maxsize=1)
def _loaded(model: WorkerModel) -> Predictor:
    predictor = load_predictor(model.paths, model.device, model.adapt)
    if predictor.sha256 != model.sha256:
        raise ModelError(
            "the worker finds another model at this path",
            path=predictor.path,
            code="another-model",
            next_step="Use the same model file and version of kidseg on all machines.",
        )
    return predictor


def attempt_scan(task: ScanTask, predictor: Predictor, folder: Path) -> Attempt:
    """Segment a scan; an error of any kind is that of the scan.

    Args:
        task: the scan.
        predictor: that segments it.
        folder: for its files, on the file system of the results.
    """
    try:
        return _segmented(task, predictor, folder)
    except Exception as error:  # of any kind: the other scans are segmented
        failure = renamed(_failure(error, task.source.path), str(folder), str(task.out))
        return failed_attempt(task, failure, predictor)


def failed_attempt(task: ScanTask, failure: KidsegError, predictor: Predictor) -> Attempt:
    """A scan that could not be segmented."""
    entry = {
        "name": task.source.name,
        "scan": str(task.source.path),
        **failure.as_finding().as_dict(),
        **_facts(predictor),
    }
    return Attempt(entry=entry, failure=failure)


def _segmented(task: ScanTask, predictor: Predictor, folder: Path) -> Attempt:
    source, files, options = task.source, task.outputs, task.options
    if source.error is not None:
        raise source.error
    if source.series is not None:
        options = replace(options, series=source.series)
    start = time.perf_counter()
    scan = read_scan(source.path, predictor.method.plan.channels, options, source.case)
    check_grid(scan.first.native, files.labels)
    series = read_source(source.path, options) if files.needs_series else None
    known = None
    if task.reference is not None:
        known = task.reference.on(scan.volume.grid, replace(options, series=None, volume=None))
    read_s = time.perf_counter() - start
    result = predictor(scan.volume, str(source.path))
    digest = digest_of(source, len(predictor.method.plan.channels), task.options)
    exported = exported_labels(result, scan, predictor, options, digest, series)
    labelled = labelled_of(result, predictor.schema, source.path)
    parts = cache(partial(parts_of, labelled))  # for SR and page
    measured: tuple[Finding, ...] = ()
    if files.measures:
        exported, measured = with_report(exported, labelled, parts())
    draw = partial(
        draw_figure,
        name=source.name,
        scan=scan,
        result=result,
        predictor=predictor,
        known=known,
    )
    try:
        written = write_outputs(folder, files, exported, draw)
    except OSError as error:
        raise converted(error, task.out) or error from error
    outputs = list(written.files.values())
    pages = [file.path for file in files.labels if file.is_page]
    left = earlier_outputs(task.earlier, [*outputs, *pages], task.out)
    of_series = [] if series is None else series.findings
    noticed = (*scan.findings, *of_series, *result.findings, *measured)
    # Scan and series have read the headers, prediction and report have told the sides apart.
    findings = (*dict.fromkeys(noticed), *written.findings, *left)
    seconds = {"read": read_s, **result.seconds, **written.seconds}
    facts = {
        **_facts(predictor),
        **result.facts,
        "review": in_order_of(scan.first.native, result.labels.grid, result.facts["review"]),
        **written.facts,
    }
    entry = _entry(task, outputs, predictor.schema, digest, facts, findings, seconds)
    seen = Seen(
        scan=scan.volume, result=result, predictor=predictor, labelled=labelled, parts=parts
    )
    reported = with_page(folder, files, written, entry, seen, draw)
    picture = None
    if task.pictured:
        picture = draw_result(entry, result.labels, scan.volume, predictor.schema)
    return Attempt(entry=reported.entry, written=reported.files, picture=picture)


def _entry(
    task: ScanTask,
    outputs: Sequence[Path],
    schema: LabelSchema,
    digest: str,
    facts: Mapping[str, Any],
    findings: Sequence[Finding],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The entry of a scan in `result.json`."""
    source = task.source
    return {
        "name": source.name,
        "path": str(source.path),
        **({} if source.series is None else {"series_uid": source.series}),
        "sha256": digest,
        "reading": reading_of(task.options),
        "outputs": [file.name for file in outputs],
        "formats": task.outputs.formats,
        "labels": {str(number): name for number, name in schema.names.items()},
        **facts,
        "warnings": [finding.as_dict() for finding in findings],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _facts(predictor: Predictor) -> dict[str, Any]:
    """Model, device, versions and date, for the entry of a scan."""
    method, paths = predictor.method, predictor.paths
    starters = {"name": STARTER, "use": STARTER_USE} if any(map(is_starter, paths)) else {}
    return {
        "model": {
            "path": str(predictor.path),
            **({"paths": list(map(str, paths))} if len(paths) > 1 else {}),
            "sha256": predictor.sha256,
            "method": method.name,
            **starters,
        },
        "device": str(method.device.torch),
        "precision": method.device.precision,
        **provenance(),
    }


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
