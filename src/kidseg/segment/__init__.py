"""Scans in, labels out: what the command line and the server call."""

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
from kidseg.segment.predictor import Predictor, Segmentation, load_predictor
from kidseg.segment.scans import read_scan, scan_name
from kidseg.segment.truth import ReferenceLabels, find_references

__all__ = ["FORMATS", "Predictor", "Segmentation", "load_predictor", "scan_name", "segment"]

FORMATS = {"nii": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
"""Formats of label volumes, and their endings."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What a scan writes."""

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
    """Segment scans; labels come out on each scan's own voxels.

    Writes `<name>_seg.nii.gz` (and other formats) into `out`, and `result.json`, which is up to
    date after each scan. One bad scan does not stop the others. A figure that cannot be drawn is a
    finding, "no-figure"; the labels are there.

    Args:
        scans: files or folders, as `kidseg.io.read` takes them; of a model of several channels the
            first file of each scan, see `read_scan`.
        model: a model file, or a predictor.
        out: folder; made if it is not there.
        formats: keys of `FORMATS`.
        device: for a model file; see `choose_device`.
        options: of reading.
        figures: write `<name>_steps.png` too; see `kidseg.segment.figure.draw_steps`.
        reference: labels to show in the figures and to compare with there: a label volume, for one
            scan, or a data set; see `find_references`.
        overwrite: replace results that are there.
        progress: told (done, all) after each scan.

    Returns:
        An entry per scan that was segmented, as in result.json.

    Raises:
        UsageError: "unknown-format", "no-scans", "same-name" (two scans would write the same file),
            "output-exists", "reference-unused" (without figures), and what `find_references`
            refuses; all before the work starts.
        InputError: what `find_references` refuses, before the work starts; for a scan, what
            `ReferenceLabels.on` refuses.
        BatchError: some of several scans failed; each is named. The error itself, if there was one
            scan.
    """
    out = Path(out)
    if reference is not None and not figures:
        raise UsageError(
            "a reference is only shown in figures",
            path=Path(reference),
            code="reference-unused",
            next_step="Ask for figures too; 'kidseg evaluate' scores labels.",
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
            f"cannot be made: {error.strerror}", path=out, code="not-writable"
        ) from error
    done: list[dict[str, Any]] = []
    failed: list[KidsegError] = []
    for k, (scan, files) in enumerate(targets.items()):
        try:
            shown = references.get(scan)
            done.append(_one(scan, files, predictor, options or ReadOptions(), shown, overwrite))
        except KidsegError as error:
            failed.append(error)
        _write_result(out, predictor, done, failed)
        if progress is not None:
            progress(k + 1, len(targets))
    if failed and len(targets) == 1:
        raise failed[0]
    if failed:
        raise BatchError(
            f"{len(failed)} of {len(targets)} scans failed: " + "; ".join(map(str, failed)),
            path=out,
            code="scans-failed",
            next_step="The others are done; result.json names both.",
        )
    return done


def _targets(
    scans: Sequence[Path], out: Path, formats: Sequence[str], figures: bool, overwrite: bool
) -> dict[Path, _Files]:
    """The files that each scan writes, none of them twice or there already."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"labels cannot be written as {', '.join(unknown)}",
            code="unknown-format",
            next_step=f"Choose from {', '.join(FORMATS)}.",
        )
    if not scans or not formats:
        raise UsageError("there is nothing to segment, or no format", code="no-scans")
    targets: dict[Path, _Files] = {}
    taken: dict[str, Path] = {}
    for scan in scans:
        name = scan_name(scan)
        if name in taken:
            raise UsageError(
                f"{taken[name]} and {scan} would both be called '{name}'",
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
                    "it exists already",
                    path=file,
                    code="output-exists",
                    next_step="Choose another folder, or --overwrite.",
                )
    return targets


def _one(
    path: Path,
    files: _Files,
    predictor: Predictor,
    options: ReadOptions,
    reference: ReferenceLabels | None,
    overwrite: bool,
) -> dict[str, Any]:
    start = time.perf_counter()
    scan = read_scan(path, predictor.method.plan.channels, options)
    shown = None
    if reference is not None:
        shown = reference.on(scan.volume.grid, replace(options, series=None, volume=None))
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
        trouble = _drawn(files.figure, path, scan.volume, result, predictor, shown, overwrite)
        seconds["figure"] = time.perf_counter() - start
        if trouble is None:
            outputs.append(files.figure)
        else:
            findings.append(trouble)
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


def _drawn(
    file: Path,
    path: Path,
    scan: Volume,
    result: Segmentation,
    predictor: Predictor,
    shown: tuple[Volume, Volume | None] | None,
    overwrite: bool,
) -> Finding | None:
    """The figure drawn; what went wrong, if it could not be."""
    from kidseg.segment.figure import draw_steps

    reference, ignore = shown or (None, None)
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
            cause=f"its figure could not be drawn: {error}",
            next_step="Its labels are written; see to the cause, and draw with --overwrite.",
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
