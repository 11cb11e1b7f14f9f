"""`kidseg demo`: digital patients made, checked, brought to one pose and size, and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.body import Moments, body_mask, moments, normalized
from kidseg.cases import Case, open_dataset
from kidseg.check import check
from kidseg.config import PhantomConfig
from kidseg.errors import InputError, UsageError
from kidseg.geometry import resample
from kidseg.io import ReadOptions, read
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.phantom import write_patients

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DemoResult", "run"]

# What every body is brought to: the trunk of a child of about two years, in a field that holds it.
# Source: effective diameter of about 14 cm between the formulas' 11 cm at birth and 17 cm at 5
# years; a trunk lying on its back is about 1.3 times as wide as deep.
_REFERENCE_RADII_MM = (80.0, 61.0)
_FIELD_MM = 220.0
_SCANNED_FIELD_MM = 320.0
_SIZE = 256
_SLICES = 32
_WINDOW_HU = (-160.0, 240.0)
"""Abdominal soft-tissue window, level 40, width 400."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found, and where its files are."""

    folder: str
    figure: str
    patients: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    overlap_before: float
    overlap_after: float

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {**vars(self), "patients": list(self.patients), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        ages = [patient["age_years"] for patient in self.patients]
        widths = [2 * patient["radii_mm"][0] for patient in self.patients]
        angles = [abs(patient["angle_deg"]) for patient in self.patients]
        return (
            f"{len(self.patients)} digital patients, {min(ages):.1f} to {max(ages):.1f} years old, "
            f"written as an nnU-Net data set to {self.folder}/patients.\n"
            f"Checked: no errors, {len(self.warnings)} warning(s).\n"
            f"As scanned: trunks {min(widths):.0f} to {max(widths):.0f} mm wide, turned by up to "
            f"{max(angles):.0f} degrees.\n"
            f"Overlap (Dice) of the body outlines, mean over all pairs: {self.overlap_before:.2f} "
            f"as scanned, {self.overlap_after:.2f} after pose and size were normalised by image "
            f"moments.\nPicture: {self.figure}"
        )


@dataclass(frozen=True, kw_only=True)
class _View:
    """One slice on one grid: HU, labels and body mask, (rows, columns) each."""

    hu: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    side_mm: float


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """What the figure shows of a patient: the same slice as scanned and normalised."""

    title: str
    scanned: _View
    homogenized: _View


def run(
    out: Path,
    *,
    patients: int,
    seed: int,
    size: int = 256,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DemoResult:
    """Run the demo into `out`: `patients/`, `demo.png`, `demo.json`.

    Args:
        out: folder; made if it is not there.
        patients: how many, at least 2.
        seed: of the patients.
        size: pixels along a side of their slices.
        overwrite: replace an earlier demo.
        progress: called with (steps done, all steps).

    Raises:
        UsageError: "output-exists": `out` has a demo already and `overwrite` is not set.
        InputError: the check found an error in the digital patients.
    """
    folder, figure, summary = out / "patients", out / "demo.png", out / "demo.json"
    if (figure.exists() or summary.exists()) and not overwrite:
        raise UsageError(
            "it holds a demo already",
            path=out,
            next_step="Choose another folder, or replace it: --overwrite.",
            code="output-exists",
        )
    config = PhantomConfig(size=size, max_slices=_SLICES)
    steps = 2 * patients + 2

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, steps)

    write_patients(
        folder,
        config,
        patients=patients,
        seed=seed,
        layout="nnunet",
        overwrite=overwrite,
        progress=lambda done, _: advance(done),
    )
    report = check(folder)
    if not report.ok:
        raise InputError(
            f"the digital patients are not sound: {report.errors[0]}",
            path=folder,
            next_step="Please report this with the seed.",
            code="unsound-phantoms",
        )
    advance(patients + 1)

    shown, found = [], []
    for k, case in enumerate(open_dataset(folder).cases):
        patient, facts = _normalize(case)
        shown.append(patient)
        found.append(facts)
        advance(patients + 2 + k)
    _draw(shown, figure)
    result = DemoResult(
        folder=str(out),
        figure=str(figure),
        patients=tuple(found),
        warnings=tuple(str(finding) for finding in report.findings),
        overlap_before=_mean_overlap([patient.scanned.body for patient in shown]),
        overlap_after=_mean_overlap([patient.homogenized.body for patient in shown]),
    )
    summary.write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    advance(steps)
    return result


def _normalize(case: Case) -> tuple[_Patient, dict[str, Any]]:
    """One case: the slice with most kidney and tumour, before and after, and the pose found."""
    assert case.labels is not None
    scan = read(case.images[0]).volume
    labels = read(case.labels, ReadOptions(values="labels")).volume
    middle = int((labels.data[0] > 0).sum((1, 2)).argmax())
    body = body_mask(scan)
    own = moments(body, per="volume")
    untouched = Moments(torch.zeros(2), torch.zeros(()), torch.tensor(_REFERENCE_RADII_MM))
    age = "age unknown" if case.age_years is None else f"{case.age_years:.1f} years"
    facts = {
        "case": case.id,
        "age_years": case.age_years,
        "angle_deg": float(torch.rad2deg(own.angle_rad)),
        "shift_mm": own.centre_mm.tolist(),
        "radii_mm": own.radii_mm.tolist(),
        "scale": (own.radii_mm / torch.tensor(_REFERENCE_RADII_MM)).tolist(),
    }

    def view(pose: Moments, field_mm: float) -> _View:
        grid = normalized(
            scan.grid, pose, radii_mm=_REFERENCE_RADII_MM, field_mm=field_mm, size=_SIZE
        ).slices(middle, middle + 1)
        return _View(
            hu=resample(scan, grid, fill=-1024.0).data[0, 0].numpy(),
            labels=resample(labels, grid, mode="nearest").data[0, 0].numpy(),
            body=resample(body.astype(torch.float32), grid).data[0, 0].numpy() > 0.5,
            side_mm=field_mm,
        )

    return _Patient(
        title=f"{case.id}, {age}",
        scanned=view(untouched, _SCANNED_FIELD_MM),
        homogenized=view(own, _FIELD_MM),
    ), facts


def _mean_overlap(masks: list[np.ndarray]) -> float:
    """Mean Dice over all pairs of (rows, columns) masks; a pair of empty ones counts 0."""
    scores = [
        2 * np.logical_and(a, b).sum() / max(1, a.sum() + b.sum())
        for k, a in enumerate(masks)
        for b in masks[k + 1 :]
    ]
    return float(np.mean(scores))


def _draw(patients: list[_Patient], path: Path) -> None:
    """A column per patient, as scanned and normalised; then all outlines on each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(patients) + 1
    figure = Figure(figsize=(2.1 * columns, 4.3), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False)
    for row, name in enumerate(("as scanned", "pose and size normalised")):
        views = [p.scanned if row == 0 else p.homogenized for p in patients]
        for column, view in enumerate(views):
            _show(axes[row, column], view)
            axes[row, column].set_title(patients[column].title if row == 0 else "", fontsize=8)
        _show_outlines(axes[row, -1], views)
        axes[row, 0].set_ylabel(f"{name}\n{views[0].side_mm:.0f} mm field", fontsize=9)
    axes[0, -1].set_title("all outlines", fontsize=8)
    figure.savefig(path, dpi=130)


def _show(axes: Axes, view: _View) -> None:
    axes.imshow(view.hu, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1])
    for label in KIDNEY_TUMOUR.labels:
        if (view.labels == label.id).any():
            colour = tuple(channel / 255 for channel in label.rgb)
            axes.contour(view.labels == label.id, [0.5], colors=[colour], linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])


def _show_outlines(axes: Axes, views: list[_View]) -> None:
    axes.imshow(np.mean([view.body for view in views], axis=0), cmap="gray", vmin=0, vmax=1)
    for view in views:
        axes.contour(view.body, [0.5], colors=["#E69F00"], linewidths=0.7)
    axes.set_xticks([])
    axes.set_yticks([])
