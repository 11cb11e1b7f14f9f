"""`kidseg demo`: train a model on digital patients and evaluate it on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.body import Moments, body_mask, normalized
from kidseg.cases import Case, open_dataset
from kidseg.check import check
from kidseg.config import METHODS, PhantomConfig, load, preset
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import evaluate
from kidseg.geometry import Grid, resample
from kidseg.intensity import AIR_HU
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import write_json, writing
from kidseg.io.output import check_output_folder
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.phantom import write_patients
from kidseg.provenance import provenance
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.segment.annotation import (
    CT_WINDOW,
    draw_found,
    draw_true,
    fit_image,
    label_handles,
    mark_scale,
    mark_sides,
    place_legend,
    window_text,
)
from kidseg.splits import Holdout, holdout
from kidseg.train import Setup, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DemoResult", "planned", "run"]

METHOD, PRESET = "homogenized", "demo"
_SLICES = 24
_SCANNED_FIELD_MM = 320.0
_FIGURE_SIDE = 256
_OUTPUTS = ("patients", "run", "result", "scores", "demo.png", "demo.json")

Progress = Callable[[str, int, int, Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results and files of the demo.

    Attributes:
        folder: output folder.
        model: file of the trained model.
        figure: image of the held-out patients.
        training: ids of the training and validation patients.
        held_out: ids of the held-out patients.
        dice: per structure the mean, SD and n over the held-out patients, as in `kidseg evaluate`.
        overlap: mean Dice of the body outlines over all pairs of held-out patients, "before" and
            "after" homogenizing pose and size.
        seconds: wall time of each part.
        record: versions, host and date; see `kidseg.provenance`.
    """

    folder: str
    model: str
    figure: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    dice: Mapping[str, Mapping[str, Any]]
    overlap: Mapping[str, float]
    seconds: Mapping[str, float]
    record: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        content = asdict(self)
        return {**content.pop("record"), **content}

    def __str__(self) -> str:
        lines = ["Dice over the held-out patients, mean (SD):"]
        for name, figures in self.dice.items():
            if figures["mean"] is not None:
                spread = "" if figures["sd"] is None else f" ({figures['sd']:.2f})"
                lines.append(f"  {name:14} {figures['mean']:.2f}{spread}, n = {figures['n']}")
        lines += [
            "Overlap (Dice) of their body outlines, mean over all pairs: "
            f"{self.overlap['before']:.2f} as scanned, {self.overlap['after']:.2f} homogenized.",
            f"Figure: {self.figure}; steps: {self.folder}/result/*_steps.png; training: "
            f"{self.folder}/run/curves.png.",
            "This model was trained for a few minutes on digital patients. It shows the procedure, "
            "not the quality reached with real data. To segment your own scan:",
            f"  kidseg segment SCAN -m {self.model} -o result --figures",
        ]
        return "\n".join(lines)


def planned(
    out: Path,
    *,
    patients: int,
    held_out: int,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `run` would do, after its checks; plain data.

    Raises:
        UsageError: as `run`.
    """
    _check_request(out, patients, held_out, overrides, overwrite)
    return {
        "folder": str(out),
        "patients": patients,
        "held_out": held_out,
        "method": METHOD,
        "preset": PRESET,
        "overrides": list(overrides),
        "outputs": list(_OUTPUTS),
    }


def run(
    out: Path,
    *,
    patients: int,
    held_out: int,
    seed: int,
    size: int = 128,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the demo into `out`: `patients/`, `run/`, `result/`, `scores/`, `demo.png`, `demo.json`.

    Args:
        out: folder; created if it is missing.
        patients: number of patients, at least 5.
        held_out: number of held-out patients among them, at least 2.
        seed: of the patients, of the split and of the training.
        size: pixels along a side of their slices.
        overrides: settings of the training, "key=value", which override the preset "demo".
        overwrite: replace an earlier demo.
        say: called with a line of text at each step.
        progress: called with (step, done, total, figures).

    Raises:
        UsageError: "output-exists": `out` contains a demo and `overwrite` is not set;
            "other-folder": it contains other things;
            "too-few-patients": fewer than 3 remain for training and validation; "bad-setting".
        InputError: "unsound-phantoms": the check found an error in the digital patients.
    """
    _check_request(out, patients, held_out, overrides, overwrite)
    say, progress = say or (lambda _: None), progress or (lambda *_: None)
    clock, folder = _Clock(), out / "patients"
    (out / "demo.json").unlink(missing_ok=True)

    say(f"Making {patients} digital patients, from birth to 16 years, in {folder}.")
    config = PhantomConfig(size=size, max_slices=_SLICES)
    _write_patients(folder, config, patients, seed, overwrite, progress)
    clock.took("patients")

    cases = open_dataset(folder).cases
    parts = holdout(cases, n_test=held_out, seed=seed)
    say(
        f"Training on {len(parts.train)} of them (method {METHOD}, preset {PRESET}): a transformer "
        "normalizes pose and size, then a U-Net segments kidneys and tumour."
    )
    model = out / "run" / "model.safetensors"
    setup = Setup(method=METHOD, preset=PRESET, overrides=overrides, cases=parts.train, seed=seed)
    train(folder, model.parent, setup, overwrite=overwrite, progress=progress)
    clock.took("training")

    say(f"Segmenting the {held_out} held-out patients and evaluating the result.")
    unseen = [case for case in cases if case.id in parts.test]
    result = out / "result"
    segment(
        [case.images[0] for case in unseen],
        model,
        result,
        figures=True,
        reference=folder,
        overwrite=overwrite,
        progress=lambda done, total: progress("segmenting", done, total, {}),
    )
    scores = evaluate(result, folder, out / "scores", cases=parts.test, overwrite=overwrite)
    clock.took("segmenting")
    return _finish(out, unseen, parts, scores, clock)


def _finish(
    out: Path, unseen: Sequence[Case], parts: Holdout, scores: Mapping[str, Any], clock: _Clock
) -> DemoResult:
    """Draw the figure and write `demo.json`."""
    model, figure = out / "run" / "model.safetensors", out / "demo.png"
    predictor = load_predictor(model)
    views = [_views(case, predictor, _FIGURE_SIDE) for case in unseen]
    _draw(views, figure)
    clock.took("drawing")
    found = DemoResult(
        folder=str(out),
        model=str(model),
        figure=str(figure),
        training=tuple(parts.train),
        held_out=tuple(parts.test),
        dice={name: figures["dice"] for name, figures in scores["structures"].items()},
        overlap={
            "before": _mean_overlap([view.scanned.body for view in views]),
            "after": _mean_overlap([view.homogenized.body for view in views]),
        },
        seconds=clock.seconds,
        record=provenance(),
    )
    write_json(out / "demo.json", found.as_dict(), overwrite=True)
    return found


def _check_request(
    out: Path, patients: int, held_out: int, overrides: Sequence[str], overwrite: bool
) -> None:
    load(METHODS[METHOD], base=preset(PRESET, METHOD), overrides=overrides)
    check_output_folder(out, "a demo")
    existing = [out / name for name in _OUTPUTS if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(
            f"the folder already contains a demo ({existing[0].name})",
            path=out,
            next_step="Choose another folder, or use --overwrite.",
            code="output-exists",
        )
    if held_out < 2 or patients - held_out < 3:
        raise UsageError(
            f"{patients} patients, {held_out} of them held out, are too few",
            code="too-few-patients",
            next_step="Hold out at least 2 and keep at least 3 for training.",
        )


def _write_patients(
    folder: Path,
    config: PhantomConfig,
    patients: int,
    seed: int,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write and check the digital patients."""
    write_patients(
        folder,
        config,
        patients=patients,
        seed=seed,
        layout="nnunet",
        overwrite=overwrite,
        progress=lambda done, total: progress("patients", done, total, {}),
    )
    report = check(folder)
    if not report.ok:
        raise InputError(
            f"the digital patients are invalid: {report.errors[0]}",
            path=folder,
            next_step="Please report this error with the seed.",
            code="unsound-phantoms",
        )


class _Clock:
    """Wall time of successive parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def took(self, part: str) -> None:
        """Record the time since the previous part for this part."""
        now = time.perf_counter()
        self.seconds[part] = round(now - self._start, 1)
        self._start = now


@dataclass(frozen=True, kw_only=True)
class _View:
    """One slice on one grid, (rows, columns) each: HU, labels and body mask.

    `pixel_mm` is the (height, width) of a pixel in the patient.
    """

    hu: np.ndarray
    reference: np.ndarray
    predicted: np.ndarray
    body: np.ndarray
    pixel_mm: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """The slice of a patient in the figure, as scanned and homogenized."""

    title: str
    scanned: _View
    homogenized: _View


def _views(case: Case, predictor: Predictor, side: int) -> _Patient:
    """The slice with most kidney and tumour, with reference and predicted labels."""
    assert case.labels is not None
    scan = read(case.images[0]).volume
    reference = read(case.labels, ReadOptions(values="labels")).volume
    result = predictor(scan, case.id)
    (posed,) = result.progress.steps["pose"]
    body = body_mask(scan)
    k = int((reference.data[0] > 0).sum((1, 2)).argmax())

    def view(grid: Grid) -> _View:
        _, height, width = grid.spacing_mm.reshape(-1, 3)[0].tolist()
        return _View(
            hu=resample(scan, grid, fill=AIR_HU).data[0, 0].numpy(),
            reference=resample(reference, grid, mode="nearest").data[0, 0].numpy(),
            predicted=resample(result.labels, grid, mode="nearest").data[0, 0].numpy(),
            body=resample(body.astype(torch.float32), grid).data[0, 0].numpy() > 0.5,
            pixel_mm=(height, width),
        )

    untouched = Moments(torch.zeros(2), torch.zeros(()), torch.ones(2))
    as_scanned = normalized(
        scan.grid, untouched, radii_mm=(1.0, 1.0), field_mm=_SCANNED_FIELD_MM, size=side
    )
    age = "age unknown" if case.age_years is None else f"{case.age_years:.1f} years"
    return _Patient(
        title=f"{case.id}, {age}",
        scanned=view(as_scanned.slices(k, k + 1)),
        homogenized=view(posed.grid.slices(k, k + 1).resized((1, side, side))),
    )


def _mean_overlap(masks: Sequence[np.ndarray]) -> float:
    """Mean Dice over all pairs of (rows, columns) masks; a pair of empty ones counts 0."""
    scores = [
        2 * np.logical_and(a, b).sum() / max(1, a.sum() + b.sum())
        for k, a in enumerate(masks)
        for b in masks[k + 1 :]
    ]
    return float(np.mean(scores))


def _draw(patients: Sequence[_Patient], path: Path) -> None:
    """Draw a column per patient, as scanned and homogenized, and all outlines overlaid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(patients) + 1
    figure = Figure(figsize=(2.4 * columns, 5.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False)
    for row, name in enumerate(("as scanned", "homogenized")):
        views = [p.scanned if row == 0 else p.homogenized for p in patients]
        for column, view in enumerate(views):
            _show(axes[row, column], view)
            axes[row, column].set_title(patients[column].title if row == 0 else "", fontsize=8)
        _show_outlines(axes[row, -1], views)
        axes[row, 0].set_ylabel(name, fontsize=9)
    axes[0, -1].set_title("all outlines", fontsize=8)
    handles = label_handles(KIDNEY_TUMOUR, found=True, true=True)
    place_legend(figure, handles, window_text([CT_WINDOW]), len(handles))
    with writing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110)


def _show(axes: Axes, view: _View) -> None:
    axes.imshow(view.hu, cmap="gray", vmin=CT_WINDOW[0], vmax=CT_WINDOW[1], aspect=1.0)
    draw_found(axes, view.predicted, KIDNEY_TUMOUR)
    draw_true(axes, view.reference, KIDNEY_TUMOUR)
    mark_sides(axes, "left")
    shape = (view.hu.shape[0], view.hu.shape[1])
    mark_scale(axes, shape, view.pixel_mm)
    fit_image(axes, shape)
    axes.set_xticks([])
    axes.set_yticks([])


def _show_outlines(axes: Axes, views: Sequence[_View]) -> None:
    axes.imshow(np.mean([view.body for view in views], axis=0), cmap="gray", vmin=0, vmax=1)
    for view in views:
        axes.contour(view.body, [0.5], colors=["#E69F00"], linewidths=0.7)
    mark_sides(axes, "left")
    axes.set_xticks([])
    axes.set_yticks([])
