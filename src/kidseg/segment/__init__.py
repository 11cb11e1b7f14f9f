"""Segment scans with a trained model; the entry point of the command line and the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.checkpoint import INTENDED_USE
from kidseg.errors import BatchError, Finding, InputError, KidsegError, UsageError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, save
from kidseg.io.atomic import write_json
from kidseg.io.content import sha256_of, sha256_of_all
from kidseg.io.output import check_output_folder
from kidseg.segment.predictor import Predictor, Segmentation, load_predictor
from kidseg.segment.scans import read_scan, scan_name
from kidseg.segment.truth import ReferenceLabels, find_references

__all__ = ["FORMATS", "Predictor", "Segmentation", "load_predictor", "scan_name", "segment"]

FORMATS = {"nii": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
"""File extensions of the label volume formats."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The output files of a scan."""

    labels: Sequence[Path]
    figure: Path | None

    @property
    def all(self) -> list[Path]:
        return [*self.labels, *([] if self.figure is None else [self.figure])]


def segment(
    scans: Sequence[str | Path],
    model: str | Path | Predictor,
    out: str | Path,
    *,
    formats: Sequence[str] = ("nii",),
    device: str = "auto",
    options: ReadOptions | None = None,
    figures: bool = False,
    reference: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment scans; the labels are on each scan's own voxels.

    Writes `<name>_seg.nii.gz` (and other formats) into `out`, and `result.json`, which is updated
    after each scan. If a scan fails, the others are still segmented. A figure that cannot be drawn
    gives the finding "no-figure"; the labels are written.

    Args:
        scans: files or folders that `kidseg.io.read` accepts; for a model with several channels the
            first file of each scan, see `read_scan`.
        model: a model file, or a predictor.
        out: folder; created if missing.
        formats: keys of `FORMATS`.
        device: for a model file; see `choose_device`.
        options: of reading.
        figures: also write `<name>_steps.png`; see `kidseg.segment.figure.draw_steps`.
        reference: labels to show in the figures and to compare with: a label volume for one scan,
            or a data set; see `find_references`.
        overwrite: replace existing results.
        progress: called with (done, total) after each scan.

    Returns:
        An entry for each segmented scan, as in result.json.

    Raises:
        UsageError: "unknown-format", "no-scans", "same-name" (two scans would write the same file),
            "output-exists", "other-folder" (`out` is a data set, a store, ...), "reference-unused"
            (without figures); see `find_references`; all raised
            before any scan is read.
        InputError: see `find_references`, before any scan is read; for a single scan, see
            `ReferenceLabels.on`.
        BatchError: some of several scans failed; the message names each. With a single scan, its
            error is raised instead.
    """
    out = Path(out)
    check_output_folder(out, "results")
    if reference is not None and not figures:
        raise UsageError(
            "a reference is only used in figures",
            path=Path(reference),
            code="reference-unused",
            next_step="Request figures too; to score labels, use 'kidseg evaluate'.",
        )
    targets = _targets([Path(scan) for scan in scans], out, formats, figures, overwrite)
    predictor = model if isinstance(model, Predictor) else load_predictor(model, device)
    references: dict[Path, ReferenceLabels] = {}
    if reference is not None:
        names = {scan: scan_name(scan) for scan in targets}
        cyst = predictor.method.config.cohort.cyst
        references = find_references(names, Path(reference), predictor.schema, cyst)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be created: {error.strerror}", path=out, code="not-writable"
        ) from error
    done: list[dict[str, Any]] = []
    failed: list[KidsegError] = []
    for k, (scan, files) in enumerate(targets.items()):
        try:
            labels = references.get(scan)
            entry = _segment_scan(
                scan, files, predictor, options or ReadOptions(), labels, overwrite
            )
            done.append(entry)
        except KidsegError as error:
            failed.append(error)
        _write_result(out, predictor, done, failed)
        if progress is not None:
            progress(k + 1, len(targets))
    _raise_failed(failed, len(targets), out)
    return done


def _raise_failed(failed: Sequence[KidsegError], total: int, out: Path) -> None:
    """Raise the error of a single scan, or a BatchError that names the failed scans."""
    if failed and total == 1:
        raise failed[0]
    if failed:
        raise BatchError(
            f"{len(failed)} of {total} scans failed: " + "; ".join(map(str, failed)),
            path=out,
            code="scans-failed",
            next_step="The other scans are segmented; result.json lists both.",
        )


def _targets(
    scans: Sequence[Path], out: Path, formats: Sequence[str], figures: bool, overwrite: bool
) -> dict[Path, _Files]:
    """The output files of each scan, after checking that none exists or is written twice."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"labels cannot be written as {', '.join(unknown)}",
            code="unknown-format",
            next_step=f"Choose among {', '.join(FORMATS)}.",
        )
    if not scans or not formats:
        raise UsageError("no scans or no formats are given", code="no-scans")
    targets: dict[Path, _Files] = {}
    taken: dict[str, Path] = {}
    for scan in scans:
        name = scan_name(scan)
        if name in taken:
            raise UsageError(
                f"{taken[name]} and {scan} would both be named '{name}'",
                code="same-name",
                next_step="Segment them into different folders.",
            )
        taken[name] = scan
        targets[scan] = _Files(
            labels=[out / f"{name}_seg{FORMATS[kind]}" for kind in dict.fromkeys(formats)],
            figure=out / f"{name}_steps.png" if figures else None,
        )
    for files in targets.values():
        for file in files.all:
            if file.exists() and not overwrite:
                raise UsageError(
                    "the file already exists",
                    path=file,
                    code="output-exists",
                    next_step="Choose another folder, or use --overwrite.",
                )
    return targets


def _segment_scan(
    path: Path,
    files: _Files,
    predictor: Predictor,
    options: ReadOptions,
    reference: ReferenceLabels | None,
    overwrite: bool,
) -> dict[str, Any]:
    start = time.perf_counter()
    scan = read_scan(path, predictor.method.plan.channels, options)
    known = None
    if reference is not None:
        known = reference.on(scan.volume.grid, replace(options, series=None, volume=None))
    read_s = time.perf_counter() - start
    result = predictor(scan.volume, str(path))
    start = time.perf_counter()
    for file in files.labels:
        like = path if scan.first.format == "nifti" and path.suffix != ".zip" else scan.first.native
        save(result.labels, file, like=like, overwrite=overwrite)
    seconds = {"read": read_s, **result.seconds, "write": time.perf_counter() - start}
    outputs, findings = list(files.labels), [*scan.findings, *result.findings]
    if files.figure is not None:
        start = time.perf_counter()
        finding = _draw(files.figure, path, scan.volume, result, predictor, known, overwrite)
        seconds["figure"] = time.perf_counter() - start
        if finding is None:
            outputs.append(files.figure)
        else:
            findings.append(finding)
    return {
        "name": scan_name(path),
        "path": str(path),
        "sha256": sha256_of(path)
        if path.is_file() and len(scan.paths) == 1
        else sha256_of_all(scan.paths),
        "outputs": [file.name for file in outputs],
        **result.facts,
        "warnings": [finding.as_dict() for finding in findings],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _draw(
    file: Path,
    path: Path,
    scan: Volume,
    result: Segmentation,
    predictor: Predictor,
    known: tuple[Volume, Volume | None] | None,
    overwrite: bool,
) -> Finding | None:
    """Draw the figure of a scan; a finding if it fails."""
    from kidseg.segment.figure import draw_steps

    reference, ignore = known or (None, None)
    try:
        draw_steps(
            file,
            scan_name(path),
            scan,
            result,
            predictor.schema,
            reference=reference,
            ignore=ignore,
            overwrite=overwrite,
        )
    except (KidsegError, OSError, ValueError, RuntimeError, MemoryError) as error:
        return Finding(
            code="no-figure",
            path=str(path),
            cause=f"the figure could not be drawn: {error}",
            next_step="The labels are written. Fix the cause, and segment again with --overwrite.",
        )
    return None


def _write_result(
    out: Path,
    predictor: Predictor,
    done: Sequence[Mapping[str, Any]],
    failed: Sequence[KidsegError],
) -> None:
    from importlib.metadata import version

    content = {
        "intended_use": INTENDED_USE,
        "kidseg": version("kidseg"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(predictor.method.device.torch),
        "precision": predictor.method.device.precision,
        "model": {
            "path": str(predictor.path),
            "sha256": predictor.sha256,
            "method": predictor.method.name,
        },
        "scans": list(done),
        "failed": [error.as_finding().as_dict() for error in failed],
    }
    write_json(out / "result.json", content, overwrite=True)
