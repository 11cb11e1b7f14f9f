"""Complete labels that are drawn in a few slices of a scan.

The model is trained further on the drawn slices alone, and segments the others. This is for a scan
on which no model does well, and for labels to train one with.

Source: the use is that of OV2ASSION, Cancer Imaging 2024, s40644-024-00729-0, where a U-Net is
trained for each scan on its drawn slices, from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kidseg.complete.drawing import read_drawn
from kidseg.complete.slice_training import TrainingProgress, check_trainable, tuned
from kidseg.errors import UsageError
from kidseg.io import ReadOptions
from kidseg.segment import segment
from kidseg.segment.model_loading import load_predictor

__all__ = ["STEPS", "complete"]

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
Within = Callable[[str, float], None]

STEPS = 100
"""Steps for which each network is trained further. Source: chosen on digital patients of seed 9191,
see docs/complete.md."""


def complete(
    scan: str | Path,
    drawn: str | Path,
    out: str | Path,
    *,
    model: str | Path | Sequence[str | Path] | None = None,
    nothing_beyond: bool = False,
    steps: int | None = None,
    seed: int = 0,
    formats: Sequence[str] = ("nii",),
    device: str = "auto",
    options: ReadOptions | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    within: Within | None = None,
) -> dict[str, Any]:
    """Complete the labels of a scan; the drawn slices stay as they are.

    Writes what `kidseg.segment.segment` writes. The trained model is not kept: it has learned from
    this scan alone.

    Args:
        scan: file, DICOM folder or zip.
        drawn: a label volume of the scan, with the model's labels, or named segments of 3D Slicer.
            A slice with any label counts as drawn, and must be complete.
        out: folder; created if missing.
        model: see `load_predictor`; with `plain`, `homogenized`, `plain3d` or nnU-Net's networks.
        nothing_beyond: there is no kidney or tumour below the lowest and above the uppermost drawn
            slice.
        steps: of training, for each network of the model; None: `STEPS`.
        seed: of what is drawn at random in training.
        formats: keys of `kidseg.segment.FORMATS`.
        device: see `choose_device`.
        options: of reading the scan.
        overwrite: replace an existing result of this scan.
        dry_run: train nothing and write nothing, after the same checks.
        progress: called in training with (network, epochs done, total epochs, log line).
        within: called with ("train", how much of it is done, 0 to 1) in training, and while the
            scan is segmented; see `Predictor.on_progress`.

    Returns:
        The entry of the scan, as in result.json, with "completed". With `dry_run`, the name, path
        and output files of the scan, and "completed".

    Raises:
        UsageError: "several-scans"; "bad-steps"; see `check_trainable` and `segment`.
        InputError: see `read_drawn`, `read_scan` and `segment`.
        ModelError, ResourceError: see `load_predictor`, `fit` and `segment`.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise UsageError(
            f"{steps} steps of training", code="bad-steps", next_step="Train for at least one."
        )
    untrained = load_predictor(model, device)
    check_trainable(untrained)
    planned = segment(
        [scan], untrained, out, formats=formats, options=options, overwrite=overwrite, dry_run=True
    )
    if len(planned) != 1:
        raise UsageError(
            f"it holds {len(planned)} scans, of which one can be completed at a time",
            path=scan,
            code="several-scans",
            next_step="Name one of them; of DICOM series, one with --series.",
        )
    found = Path(planned[0]["scan"])
    drawing = read_drawn(found, Path(drawn), untrained, options, nothing_beyond=nothing_beyond)
    if dry_run:
        return {**planned[0], "completed": drawing.facts}
    if within is not None:
        within("train", 0.0)
    trained = tuned(untrained, drawing, steps, seed, device, _in_training(progress, within))
    trained = replace(trained, on_progress=within or untrained.on_progress)
    [entry] = segment([scan], trained, out, formats=formats, options=options, overwrite=overwrite)
    return entry


def _in_training(progress: Progress | None, within: Within | None) -> TrainingProgress:
    """What is called after each epoch; see `complete`."""

    def advance(number: int, networks: int, done: int, total: int) -> None:
        name = "training" if networks == 1 else f"training network {number + 1} of {networks}"
        if progress is not None:
            progress(name, done, total, {})
        if within is not None:
            within("train", (number + done / total) / networks)

    return advance
