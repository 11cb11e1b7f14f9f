"""Complete labels that are drawn in a few slices of a scan.

The model is trained further on the drawn slices alone, and segments the others. This is for a scan
on which no model does well, and for labels to train one with.

Source: the use is that of OV2ASSION, Cancer Imaging 2024, s40644-024-00729-0, where a U-Net is
trained for each scan on its drawn slices, from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kidseg.complete.drawing import read_drawn
from kidseg.complete.slice_training import TrainingProgress, check_trainable, tuned
from kidseg.device import has_pytorch
from kidseg.errors import UsageError
from kidseg.io import ReadOptions
from kidseg.io.dicom_source import read_source
from kidseg.segment import FORMATS, Predictor, segment
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.outputs import prepare_folder
from kidseg.segment.scans import options_for
from kidseg.segment.sources import Source, find_scans

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
        steps: of training, for each network of the model, rounded up to a multiple of five; None:
            `STEPS`.
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
        UsageError: "several-scans"; "bad-steps"; "not-trainable": without PyTorch; see
            `check_trainable` and `segment`.
        InputError: see `read_drawn`, `read_scan`, `read_source` and `segment`.
        ModelError, ResourceError: see `load_predictor`, `fit` and `segment`.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise UsageError(
            f"{steps} steps of training", code="bad-steps", next_step="Train for at least one."
        )
    if not has_pytorch():
        raise UsageError(
            "completing labels needs PyTorch, which trains the model",
            code="not-trainable",
            next_step="Install kidseg with PyTorch.",
        )
    out, untrained = Path(out), load_predictor(model, device)
    members = check_trainable(untrained)
    options = options_for(untrained.method.plan.channels, options)
    source = _only_scan(scan, untrained, out, options)
    if source.series is not None:
        options = replace(options, series=source.series)
    run = partial(segment, [scan], out=out, formats=formats, options=options, overwrite=overwrite)
    # The trained model will have another digest: no result of the untrained one can be resumed.
    (planned,) = run(replace(untrained, sha256=""), dry_run=True)
    if any(FORMATS[name].needs_series for name in formats):
        read_source(source.path, options)
    drawing = read_drawn(source, Path(drawn), untrained, options, nothing_beyond=nothing_beyond)
    if dry_run:
        return {**planned, "completed": drawing.facts}
    prepare_folder(out)
    if within is not None:
        within("train", 0.0)
    advance = _in_training(progress, within)
    trained = tuned(untrained, members, drawing, steps, seed, device, advance)
    (entry,) = run(replace(trained, on_progress=within or untrained.on_progress))
    return entry


def _only_scan(scan: str | Path, predictor: Predictor, out: Path, options: ReadOptions) -> Source:
    """The scan of a path.

    Raises:
        UsageError: "several-scans".
        InputError: see `find_scans`.
    """
    channels = len(predictor.method.plan.channels)
    sources = find_scans([scan], channels, options, without=out)
    if len(sources) != 1:
        raise UsageError(
            f"it holds {len(sources)} scans, of which one can be completed at a time",
            path=scan,
            code="several-scans",
            next_step="Name one of them; of DICOM series, one with --series.",
        )
    if sources[0].error is not None:
        raise sources[0].error
    return sources[0]


def _in_training(progress: Progress | None, within: Within | None) -> TrainingProgress:
    """What is called after each epoch; see `complete`."""

    def advance(number: int, networks: int, done: int, total: int) -> None:
        name = "training" if networks == 1 else f"training network {number + 1} of {networks}"
        if progress is not None:
            progress(name, done, total, {})
        if within is not None:
            within("train", (number + done / total) / networks)

    return advance
