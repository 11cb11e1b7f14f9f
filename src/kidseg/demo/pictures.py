"""The figure of the demo: held-out patients as scanned and homogenized, and all outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kidseg.body import Moments, body_mask, normalized
from kidseg.cases import Case
from kidseg.geometry import Grid, resample
from kidseg.intensity import AIR_HU
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import writing
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.report.annotation import (
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
from kidseg.segment import Predictor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ShownPatient", "draw_patients", "mean_overlap", "shown_patient"]

_SCANNED_FIELD_MM = 320.0
_FIGURE_SIDE = 256


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
class ShownPatient:
    """The slice of a patient in the figure, as scanned and homogenized."""

    title: str
    scanned: _View
    homogenized: _View


def shown_patient(case: Case, predictor: Predictor) -> ShownPatient:
    """The slice with most kidney and tumour, with reference and predicted labels."""
    assert case.labels is not None
    side = _FIGURE_SIDE
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
    return ShownPatient(
        title=f"{case.id}, {age}",
        scanned=view(as_scanned.slices(k, k + 1)),
        homogenized=view(posed.grid.slices(k, k + 1).resized((1, side, side))),
    )


def mean_overlap(masks: Sequence[np.ndarray]) -> float:
    """Mean Dice over all pairs of (rows, columns) masks; a pair of empty ones counts 0."""
    scores = [
        2 * np.logical_and(a, b).sum() / max(1, a.sum() + b.sum())
        for k, a in enumerate(masks)
        for b in masks[k + 1 :]
    ]
    return float(np.mean(scores))


def draw_patients(patients: Sequence[ShownPatient], path: Path) -> None:
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
