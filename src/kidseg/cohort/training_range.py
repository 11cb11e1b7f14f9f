"""Size, position and HU of a patient, compared with the patients that a model was trained on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid, Volume, in_plane_pose, resample
from kidseg.labels import LabelSchema, Target
from kidseg.meaning import RENAL

__all__ = [
    "FAR_SD",
    "Placement",
    "distances",
    "figures_of",
    "renal_numbers",
    "training_range",
    "values_of",
]

FAR_SD = 1.0
"""A patient farther outside the training range than this, in standard deviations, is reported.

A convention: the extremes of 40 normally distributed patients lie at 2.2 SD, so that this is more
than 3 SD from their mean.
"""

# Lower bounds of the standard deviations, by unit: identical training scans (one scanner, one slice
# distance) would make any difference infinite. A convention.
_MIN_SD = {"_deg": 1.0, "_mm": 0.1, "_hu": 5.0}
_MIN_SD_OF_RATIOS = 0.01
# A value above the training range is not a problem; nor one below it.
_ONLY_BELOW = {"overlap"}
_ONLY_ABOVE = {"bright_hu"}
# Slices and voxels that statistics of values are from: enough for a quartile.
_MAX_SLICES, _MIN_VOXELS = 16, 30
# `torch.quantile` takes at most 2^24 values, and sorts them.
_MAX_QUANTILE = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Size and position of one patient, and the agreement with the reference patient.

    Attributes:
        figures: see `figures_of`; and "overlap", the mean of `overlap["after"]`.
        overlap: soft Dice of the masks with the reference's, by mask: "before" (the scan only
            centred on the body, without rotation or scaling), at the "start" of the pose and
            "after" it. Empty without a reference.
        agreement: at the same three, the measure by which a correction is kept or discarded.
        corrected: whether the pose differs from its start.
        compared: first and last slice that were compared.
        outlines: by the name of a step, (1, slices, rows, columns) float 0..1 on the step's grid or
            a coarser one: the reference's body at each slice's height, which the image should
            match.
    """

    figures: Mapping[str, float]
    overlap: Mapping[str, Mapping[str, float]]
    agreement: Mapping[str, float] = field(default_factory=dict)
    corrected: bool = False
    compared: tuple[int, int] | None = None
    outlines: Mapping[str, Volume] = field(default_factory=dict)


def figures_of(
    subject: Subject, grid: Grid | None = None, base: Grid | None = None
) -> dict[str, float]:
    """Numbers that describe the size and position of a patient.

    "radius_long_mm" and "radius_short_mm" of the body (omitted without a body), "pixel_mm" and
    "slice_mm" of the preprocessed image. With a homogenized grid, also medians over its slices:
    "angle_deg", "scale_x" and "scale_y" (pixel size relative to the base grid), "shift_x_mm" and
    "shift_y_mm" from the scan's centre.
    """
    spacing = subject.image.grid.spacing_mm
    figures = {"pixel_mm": float(spacing[1:].prod().sqrt()), "slice_mm": float(spacing[0])}
    radii = None if subject.body is None else subject.body.whole.radii_mm
    if radii is not None and bool(radii.isfinite().all()):
        figures |= {"radius_long_mm": float(radii[0]), "radius_short_mm": float(radii[1])}
    if grid is not None and base is not None:
        pose = in_plane_pose(grid, subject.image.grid)
        pixel = grid.spacing_mm.reshape(-1, 3)[:, 1:].flip(-1)
        scale = (pixel / base.spacing_mm[1:].flip(0)).median(0).values
        shift = pose.shift_mm.reshape(-1, 2).median(0).values
        figures |= {
            "angle_deg": float(torch.rad2deg(pose.angle_rad).median()),
            "scale_x": float(scale[0]),
            "scale_y": float(scale[1]),
            "shift_x_mm": float(shift[0]),
            "shift_y_mm": float(shift[1]),
        }
    return figures


def renal_numbers(schema: LabelSchema, target: Target) -> tuple[int, ...]:
    """The labels of kidneys and masses in them; none if networks cannot tell them from the rest."""
    numbers = schema.ids_of(*RENAL)
    return numbers if target.expresses(numbers) else ()


def values_of(subject: Subject, labels: Volume | None, renal: Sequence[int]) -> dict[str, float]:
    """Numbers that describe the values of a CT; none for other images.

    "bright_hu": 90th percentile of the values above 0 HU, which is enhanced tissue or cancellous
    bone, also where fat and air were clipped; in MR the signal of the body, also where most of the
    image is noise around it. "renal_hu": 95th percentile in kidneys and renal masses, which is
    parenchyma even where most of them is tumour, urine or cyst. A number of fewer than 30 voxels is
    omitted; up to 16 slices are looked at.

    Args:
        subject: the patient.
        labels: (1, slices, rows, columns), reference or predicted, on the slices of its image.
        renal: numbers of kidneys and renal masses in them.
    """
    if subject.body is None:
        return {}
    image = subject.image
    hu = image.data[0, _spread(torch.arange(image.grid.shape[0]))].flatten()
    values = {"bright_hu": (hu[hu > 0], 0.9)}
    if labels is not None and renal:
        labelled = (labels.data[0] > 0).flatten(1).any(1).nonzero()[:, 0]
        parts = [_inside(image, labels, renal, int(k)) for k in _spread(labelled)]
        values["renal_hu"] = (torch.cat([hu[:0], *parts]), 0.95)
    return {
        name: float(torch.quantile(found[:: 1 + len(found) // _MAX_QUANTILE].float(), share))
        for name, (found, share) in values.items()
        if len(found) >= _MIN_VOXELS
    }


def _inside(image: Volume, labels: Volume, numbers: Sequence[int], k: int) -> Tensor:
    """(n,) values of a slice in these labels, which may have finer pixels."""
    here, plane = image.grid.slices(k, k + 1), labels.slices(k, k + 1)
    if plane.grid.shape != here.shape:
        plane = resample(plane, here, mode="nearest")
    chosen = torch.isin(plane.data[0, 0], torch.tensor(numbers, dtype=plane.data.dtype))
    return image.data[0, k][chosen]


def _spread(numbers: Tensor) -> Tensor:
    """At most 16 of the numbers, evenly spaced, with the first and the last."""
    count = len(numbers)
    places = torch.linspace(0, count - 1, min(count, _MAX_SLICES)).round().long()
    return numbers[places]


def training_range(patients: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """The values "n" (patients that have it), "min", "max", "mean" and "sd" of each figure.

    The standard deviation is the sample's, with n - 1; None for one patient.
    """
    names = dict.fromkeys(name for figures in patients for name in figures)
    ranges: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [figures[name] for figures in patients if name in figures]
        ranges[name] = {
            "n": len(values),
            "min": min(values),
            "max": max(values),
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
        }
    return ranges


def distances(
    figures: Mapping[str, float], ranges: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Distance of each figure from the range of the training patients.

    "distance_sd" is 0 within "min" to "max"; outside, the distance to the range in standard
    deviations, which have a lower bound by unit (1 deg, 0.1 mm, 5 HU, 0.01; a convention). If the
    range is that of a single patient, it is None outside. An overlap above the range has distance
    0, and so has "bright_hu" below it. Figures that are missing on one side are omitted.
    """
    return {
        name: {
            "value": value,
            "min": ranges[name]["min"],
            "max": ranges[name]["max"],
            "distance_sd": _distance(name, value, ranges[name]),
        }
        for name, value in figures.items()
        if name in ranges
    }


def _distance(name: str, value: float, known: Mapping[str, Any]) -> float | None:
    above = 0.0 if name in _ONLY_BELOW else value - known["max"]
    below = 0.0 if name in _ONLY_ABOVE else known["min"] - value
    beyond = max(below, above, 0.0)
    if beyond == 0.0:
        return 0.0
    if known["sd"] is None:
        return None
    min_sd = next((sd for unit, sd in _MIN_SD.items() if name.endswith(unit)), _MIN_SD_OF_RATIOS)
    return float(beyond / max(known["sd"], min_sd))
