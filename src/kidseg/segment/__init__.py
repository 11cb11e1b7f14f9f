"""Segment scans with a trained model; the entry point of the command line and the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kidseg.cases.naming import scan_name
from kidseg.cluster import Workers, check_workers
from kidseg.errors import UsageError
from kidseg.io import ReadOptions
from kidseg.io.label_formats import FORMATS, check_formats
from kidseg.io.output import check_output_folder
from kidseg.report.templates import check_pages
from kidseg.segment.adaptation import Adapt
from kidseg.segment.claim import RUN_DIED, claimed, remove_unfinished
from kidseg.segment.identity import done_before, is_same_call
from kidseg.segment.index import Index, read_index
from kidseg.segment.many_scans import Batch, segment_all
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.outputs import Outputs, check_outputs, outputs_of, prepare_folder
from kidseg.segment.predictor import Predictor, Segmentation
from kidseg.segment.scan_task import ScanTask
from kidseg.segment.scans import options_for
from kidseg.segment.sources import Source, find_scans
from kidseg.segment.truth import ReferenceLabels, find_references

__all__ = [
    "FORMATS",
    "Predictor",
    "Segmentation",
    "Workers",
    "load_predictor",
    "scan_name",
    "segment",
]


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
    workers: Workers | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    within: Callable[[str, float], None] | None = None,
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
        workers: processes, here or on other machines, that segment one scan each at a time; the
            labels are the same. One that is killed costs only its scan: "worker-killed". None: this
            process, which a crash would end.
        report: called with the entry of each scan, as in result.json; that of a failed scan has a
            "code".
        progress: called with (done, total) after each scan.
        within: called within each scan; see `Predictor.on_progress`. Not with workers.

    Returns:
        An entry for each segmented scan, as in result.json; with `resume`, also of those left out.
        With `dry_run`, the name, path and output files of each scan that would be segmented.

    Raises:
        UsageError: "unknown-format", "missing-extra", "no-scans", "same-name" (two scans would
            write the same file), "output-exists" (with `resume`, also if a result is of another
            scan of the same name, another model or other options of reading), "other-folder"
            (`out` is a data set, a store, ...), "in-use" (another run segments these scans into
            `out`), "reference-unused" (without figures); see `find_references`, `find_model`,
            `check_workers`.
        InputError: see `find_scans`, `find_references`; "not-writable".
        ModelError: see `find_model`, `load_predictor`, `read_index`.
        ResourceError: "disk-full"; of workers see `over_cluster`. Done scans are recorded.
        BatchError: some of several scans failed; the message names each. With a single scan, its
            error is raised instead.

    All but the last two are raised before any scan is read.
    """
    out = Path(out)
    check_output_folder(out, "results")
    _check_call(scans, formats, figures, reference)
    if workers is not None:
        check_workers(workers)
    predictor = model if isinstance(model, Predictor) else load_predictor(model, device, adapt)
    predictor = predictor if within is None else replace(predictor, on_progress=within)
    channels = predictor.method.plan.channels
    options = options_for(channels, options)
    sources = find_scans(scans, len(channels), options, without=out)
    if not dry_run:
        remove_unfinished(out)
    index = read_index(out)
    outputs = {
        s.name: outputs_of(s.name, out, formats, predictor.schema, figure=figures) for s in sources
    }
    known: dict[str, dict[str, Any]] = {}
    todo: Sequence[Source] = sources
    if resume:
        known, todo = done_before(sources, outputs, index, predictor, options, overwrite=overwrite)
    resumable = not resume and is_same_call(todo, index, predictor, options)
    todo = sorted(todo, key=lambda source: _ended_a_run(source, index))
    todo = check_outputs(todo, outputs, index, overwrite=overwrite, resumable=resumable)
    references = {} if reference is None else _references(todo, Path(reference), predictor)
    if dry_run:
        return [_planned(source, outputs[source.name]) for source in todo]
    prepare_folder(out)
    tasks = [
        ScanTask(
            source=source,
            outputs=outputs[source.name],
            out=out,
            options=options,
            reference=references.get(source.name),
            earlier=index.scans.get(source.name),
            pictured=len(todo) > 1,
        )
        for source in todo
    ]
    with claimed(out, [source.name for source in todo]) as claim:
        batch = Batch(
            predictor=predictor, out=out, claim=claim, overwrite=overwrite, workers=workers
        )
        return segment_all(tasks, list(known.values()), batch, report, progress)


def _ended_a_run(source: Source, index: Index) -> bool:
    """Did a run end while it was segmented? It comes last, so that it cannot stop the others."""
    return index.failed.get(source.name, {}).get("code") == RUN_DIED


def _planned(source: Source, outputs: Outputs) -> dict[str, Any]:
    """A scan that would be segmented."""
    return {
        "name": source.name,
        "scan": str(source.path),
        "outputs": [str(file) for file in outputs.all],
    }


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
    check_pages(formats)
    if not scans or not formats:
        raise UsageError(
            "no scans or no formats are given",
            code="no-scans",
            next_step="Name at least one of each.",
        )


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
