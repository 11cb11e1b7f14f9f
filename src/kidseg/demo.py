"""`kidseg demo`: a model trained on digital patients, tried on others, and what came of it."""

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
from kidseg.config import PhantomConfig
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import evaluate
from kidseg.geometry import Grid, resample
from kidseg.intensity import AIR_HU
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import write_json, writing
from kidseg.labels import KIDNEY_TUMOUR, Label
from kidseg.phantom import write_patients
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.splits import holdout
from kidseg.train import Setup, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DemoResult", "run"]

METHOD, PRESET = "homogenized", "demo"
_SLICES = 24
_SCANNED_FIELD_MM = 320.0
_FIGURE_SIDE = 256
_WINDOW_HU = (-160.0, 240.0)
"""Abdominal soft-tissue window, level 40, width 400."""
_OUTPUTS = ("patients", "run", "result", "scores", "demo.png", "demo.json")

Progress = Callable[[str, int, int, Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found, and where its files are.

    Attributes:
        folder: of everything below.
        model: file of the trained model.
        figure: the picture of the held-out patients.
        training: ids of the patients that were trained or validated on.
        held_out: ids of those the model never saw.
        dice: per structure the mean, SD and n over the held-out patients, as `kidseg evaluate`.
        overlap: mean Dice of the body outlines over all pairs of held-out patients, "before" and
            "after" pose and size were homogenized.
        seconds: wall time of each part.
    """

    folder: str
    model: str
    figure: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    dice: Mapping[str, Mapping[str, Any]]
    overlap: Mapping[str, float]
    seconds: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = ["What it found, mean (SD) of Dice over the held-out patients:"]
        for name, figures in self.dice.items():
            if figures["mean"] is not None:
                spread = "" if figures["sd"] is None else f" ({figures['sd']:.2f})"
                lines.append(f"  {name:14} {figures['mean']:.2f}{spread}, n = {figures['n']}")
        lines += [
            "Overlap (Dice) of their body outlines, mean over all pairs: "
            f"{self.overlap['before']:.2f} as scanned, {self.overlap['after']:.2f} homogenized.",
            f"Pictures: {self.figure}; each step: {self.folder}/result/*_steps.png; the training: "
            f"{self.folder}/run/curves.png.",
            "A model of a few minutes, from digital patients: it shows the way, not the quality "
            "that real data give. Your own scan:",
            f"  kidseg segment SCAN -m {self.model} -o result --figures",
        ]
        return "\n".join(lines)


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
        out: folder; made if it is not there.
        patients: how many in all, at least 5.
        held_out: how many of them the model never sees, at least 2.
        seed: of the patients, of the split and of the training.
        size: pixels along a side of their slices.
        overrides: of the training's settings, "key=value", over the preset "demo".
        overwrite: replace an earlier demo.
        say: told in words what is done, line by line.
        progress: told (what is under way, done, in all, figures).

    Raises:
        UsageError: "output-exists": `out` has a demo already and `overwrite` is not set;
            "too-few-patients": fewer than 3 are left to train and validate on.
        InputError: "unsound-phantoms": the check found an error in the digital patients.
    """
    there = [out / name for name in _OUTPUTS if (out / name).exists()]
    if there and not overwrite:
        raise UsageError(
            f"it holds a demo already ({there[0].name})",
            path=out,
            next_step="Choose another folder, or replace it: --overwrite.",
            code="output-exists",
        )
    if held_out < 2 or patients - held_out < 3:
        raise UsageError(
            f"{patients} patients, {held_out} of them held out, are too few",
            code="too-few-patients",
            next_step="Hold out at least 2 and leave at least 3.",
        )
    tell, show = say or (lambda _: None), progress or (lambda *_: None)
    clock, folder = _Clock(), out / "patients"
    (out / "demo.json").unlink(missing_ok=True)

    tell(f"Making {patients} digital patients, from birth to 16 years, in {folder}.")
    write_patients(
        folder,
        PhantomConfig(size=size, max_slices=_SLICES),
        patients=patients,
        seed=seed,
        layout="nnunet",
        overwrite=overwrite,
        progress=lambda done, total: show("patients", done, total, {}),
    )
    report = check(folder)
    if not report.ok:
        raise InputError(
            f"the digital patients are not sound: {report.errors[0]}",
            path=folder,
            next_step="Please report this with the seed.",
            code="unsound-phantoms",
        )
    clock.took("patients")

    cases = open_dataset(folder).cases
    parts = holdout(cases, n_test=held_out, seed=seed)
    tell(
        f"Training on {len(parts.train)} of them (method {METHOD}, preset {PRESET}): a transformer "
        "that brings each to the pose and size of one, then a U-Net that finds kidneys and tumour."
    )
    model = out / "run" / "model.safetensors"
    train(
        folder,
        model.parent,
        Setup(method=METHOD, preset=PRESET, overrides=overrides, cases=parts.train, seed=seed),
        overwrite=overwrite,
        progress=show,
    )
    clock.took("training")

    tell(f"Segmenting the {held_out} that it has not seen, and comparing with the truth.")
    unseen = [case for case in cases if case.id in parts.test]
    result = out / "result"
    segment(
        [case.images[0] for case in unseen],
        model,
        result,
        figures=True,
        reference=folder,
        overwrite=overwrite,
        progress=lambda done, total: show("segmenting", done, total, {}),
    )
    scores = evaluate(result, folder, out / "scores", cases=parts.test, overwrite=overwrite)
    clock.took("segmenting")

    predictor = load_predictor(model)
    views = [_views(case, predictor, _FIGURE_SIDE) for case in unseen]
    _draw(views, out / "demo.png")
    clock.took("drawing")
    found = DemoResult(
        folder=str(out),
        model=str(model),
        figure=str(out / "demo.png"),
        training=tuple(parts.train),
        held_out=tuple(parts.test),
        dice={name: figures["dice"] for name, figures in scores["structures"].items()},
        overlap={
            "before": _mean_overlap([view.scanned.body for view in views]),
            "after": _mean_overlap([view.homogenized.body for view in views]),
        },
        seconds=clock.seconds,
    )
    write_json(out / "demo.json", found.as_dict(), overwrite=True)
    return found


class _Clock:
    """Wall time of one part after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def took(self, part: str) -> None:
        """The time since the part before belongs to this one."""
        now = time.perf_counter()
        self.seconds[part] = round(now - self._start, 1)
        self._start = now


@dataclass(frozen=True, kw_only=True)
class _View:
    """One slice on one grid, (rows, columns) each: HU, labels known and found, body mask."""

    hu: np.ndarray
    known: np.ndarray
    found: np.ndarray
    body: np.ndarray
    side_mm: float


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """What the figure shows of a patient: the same slice as scanned and homogenized."""

    title: str
    scanned: _View
    homogenized: _View


def _views(case: Case, predictor: Predictor, side: int) -> _Patient:
    """The slice with most kidney and tumour, with what is known and what the model found."""
    assert case.labels is not None
    scan = read(case.images[0]).volume
    known = read(case.labels, ReadOptions(values="labels")).volume
    result = predictor(scan, case.id)
    (posed,) = result.progress.steps["pose"]
    body = body_mask(scan)
    k = int((known.data[0] > 0).sum((1, 2)).argmax())

    def view(grid: Grid) -> _View:
        return _View(
            hu=resample(scan, grid, fill=AIR_HU).data[0, 0].numpy(),
            known=resample(known, grid, mode="nearest").data[0, 0].numpy(),
            found=resample(result.labels, grid, mode="nearest").data[0, 0].numpy(),
            body=resample(body.astype(torch.float32), grid).data[0, 0].numpy() > 0.5,
            side_mm=float(grid.spacing_mm.reshape(-1, 3)[0, 2]) * grid.shape[2],
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
    """A column per patient, as scanned and homogenized; then all outlines on each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = len(patients) + 1
    figure = Figure(figsize=(2.4 * columns, 5.4), facecolor="white", layout="constrained")
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
    lines = []
    for label in KIDNEY_TUMOUR.labels:
        colour = _colour(label)
        lines.append(Line2D([], [], color=colour, label=f"{label.name}, found"))
        lines.append(Line2D([], [], color=colour, label=f"{label.name}, true", linestyle=":"))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False
    )
    with writing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110)


def _show(axes: Axes, view: _View) -> None:
    axes.imshow(view.hu, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1])
    for label in KIDNEY_TUMOUR.labels:
        for labels, style in ((view.found, "solid"), (view.known, "dotted")):
            if (labels == label.id).any():
                axes.contour(
                    labels == label.id,
                    [0.5],
                    colors=[_colour(label)],
                    linewidths=1.0,
                    linestyles=style,
                )
    axes.set_xticks([])
    axes.set_yticks([])


def _show_outlines(axes: Axes, views: Sequence[_View]) -> None:
    axes.imshow(np.mean([view.body for view in views], axis=0), cmap="gray", vmin=0, vmax=1)
    for view in views:
        axes.contour(view.body, [0.5], colors=["#E69F00"], linewidths=0.7)
    axes.set_xticks([])
    axes.set_yticks([])


def _colour(label: Label) -> tuple[float, float, float]:
    red, green, blue = (channel / 255 for channel in label.rgb)
    return red, green, blue
