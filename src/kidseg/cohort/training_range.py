"""How a patient lies, and how far that is from the patients that a model was trained on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid, Volume, in_plane_pose

__all__ = ["FAR_SD", "Placement", "distances", "figures_of", "training_range"]

FAR_SD = 1.0
"""Beyond the training range by more standard deviations than this, a patient is far from it.

A convention: of 40 normally distributed patients the outermost lie at 2.2 SD, so that this is more
than 3 SD from their mean.
"""

# Standard deviations count as no less than these, or training scans that are all alike (one
# scanner, one slice distance) would make any difference an infinite one. By unit; a convention.
_LEAST_SD = {"_deg": 1.0, "_mm": 0.1}
_LEAST_SD_OF_RATIOS = 0.01
# More than in training is no trouble.
_ONLY_BELOW = {"overlap"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """How one patient lies before a method.

    Attributes:
        figures: see `figures_of`; and "overlap", the mean of `overlap["after"]`.
        overlap: soft Dice of the masks with the reference's, by mask: "before" (the scan as it
            lies, only centred on the body, millimetre for millimetre), at the "start" of the pose
            and "after" it. Empty without a reference.
        compared: first and last slice that were compared.
        outlines: by the name of a step, (1, slices, rows, columns) float 0..1 on the step's grid
            or a coarser one: what its image should cover, the reference's body at each slice's
            height.
    """

    figures: Mapping[str, float]
    overlap: Mapping[str, Mapping[str, float]]
    compared: tuple[int, int] | None = None
    outlines: Mapping[str, Volume] = field(default_factory=dict)


def figures_of(
    subject: Subject, grid: Grid | None = None, base: Grid | None = None
) -> dict[str, float]:
    """What places a patient among others, a number each.

    "radius_long_mm" and "radius_short_mm" of the body (left out if there is none), "pixel_mm" and
    "slice_mm" of the image as it is sampled. With a homogenized grid, its medians over the slices:
    "angle_deg", "scale_x" and "scale_y" (its pixel in those of the base grid), "shift_x_mm" and
    "shift_y_mm" from the scan's middle.
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


def training_range(patients: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of each figure: "n" patients who have it, "min", "max", "mean" and "sd".

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
    """How far each figure lies from the training patients'.

    "distance_sd" is 0 from "min" to "max", else the way beyond, in their standard deviations, these
    counted as no less than a convention by unit (1 deg, 0.1 mm, 0.01). Outside the range of a
    single patient it is None: what is usual there cannot be told. An overlap is only ever too low.
    A figure that one side does not have is left out.
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
    beyond = max(known["min"] - value, above, 0.0)
    if beyond == 0.0:
        return 0.0
    if known["sd"] is None:
        return None
    least = next((sd for unit, sd in _LEAST_SD.items() if name.endswith(unit)), _LEAST_SD_OF_RATIOS)
    return float(beyond / max(known["sd"], least))
