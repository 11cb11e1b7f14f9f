"""How a patient lies, how large it is, and how far that is from the patients of the training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kidseg.body import Moments, normalized
from kidseg.cohort.batch import join
from kidseg.cohort.subject import Subject, gather
from kidseg.config import PoseConfig
from kidseg.geometry import Grid, Volume, in_plane_pose
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.reference import MASKS, Reference, start_grid

__all__ = [
    "Placement",
    "brought_to_reference",
    "figures_of",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """One patient before a method.

    Attributes:
        figures: see `figures_of`; and "overlap", the mean of `overlap["after"]`.
        overlap: soft Dice of the masks with the reference's, by mask: "before" (the scan as it
            lies, only centred on the body, millimetre for millimetre), at the "start" of the pose
            and "after" it. Empty without a reference.
        compared: first and last slice that were compared.
        reference_body: (1, slices, rows, columns) float 0..1: the reference's body on the
            homogenized grid, at each slice's height. None without a reference.
    """

    figures: Mapping[str, float]
    overlap: Mapping[str, Mapping[str, float]]
    compared: tuple[int, int] | None = None
    reference_body: Volume | None = None


def figures_of(subject: Subject, grid: Grid | None = None) -> dict[str, float]:
    """What places a patient among others, a number each.

    "radius_long_mm" and "radius_short_mm" of the body (left out if there is none), "pixel_mm" and
    "slice_mm" of the image as it is sampled. With a homogenized grid, its medians over the slices:
    "angle_deg", "scale_x" and "scale_y" (its pixel in those of the base grid), "shift_x_mm" and
    "shift_y_mm" from the scan's middle.
    """
    spacing = subject.image.grid.spacing_mm
    figures = {"pixel_mm": float(spacing[1:].prod().sqrt()), "slice_mm": float(spacing[0])}
    radii = subject.body.radii_mm
    if bool(radii.isfinite().all()):
        figures |= {"radius_long_mm": float(radii[0]), "radius_short_mm": float(radii[1])}
    if grid is not None:
        pose = in_plane_pose(grid, subject.image.grid)
        pixel = grid.spacing_mm.reshape(-1, 3)[:, 1:].flip(-1)
        scale = (pixel / subject.base.spacing_mm[1:].flip(0)).median(0).values
        shift = pose.shift_mm.reshape(-1, 2).median(0).values
        figures |= {
            "angle_deg": float(torch.rad2deg(pose.angle_rad).median()),
            "scale_x": float(scale[0]),
            "scale_y": float(scale[1]),
            "shift_x_mm": float(shift[0]),
            "shift_y_mm": float(shift[1]),
        }
    return figures


def brought_to_reference(
    subject: Subject, grid: Grid, config: PoseConfig, reference: Reference, size: int
) -> Placement:
    """How a patient lies, and how well it meets the reference.

    Which of its heights meets which of the reference's is told by its labels, as in training. Where
    they are unknown, labels that a method found stand in for them; without any, all slices count.

    Args:
        subject: with labels that are known or found.
        grid: homogenized, slice-wise.
        config: of the pose.
        reference: already adopted.
        size: of the base grid.
    """
    first, last = subject.labelled_or_all
    grids = {
        "before": _untouched(subject, config, reference, size),
        "start": start_grid(subject, config, reference, size),
        "after": grid,
    }
    overlap = {name: _overlap(subject, place, config, reference) for name, place in grids.items()}
    levels = [reference.level(subject, k) for k in range(grid.shape[0])]
    side = config.localizer.size
    body = reference.targets(levels)[:, :1].transpose(0, 1).cpu()
    figures = figures_of(subject, grid)
    figures["overlap"] = statistics.fmean(overlap["after"].values())
    return Placement(
        figures=figures,
        overlap=overlap,
        compared=(first, last),
        reference_body=Volume(body, grid.resized((grid.shape[0], side, side))),
    )


def _untouched(subject: Subject, config: PoseConfig, reference: Reference, size: int) -> Grid:
    """The scan as it lies, centred on the body, in the field in which the reference is seen."""
    if config.start == "identity":
        return start_grid(subject, config, reference, size)
    long, short = (float(radius) for radius in reference.radii_mm)
    as_it_lies = Moments(
        subject.body.centre_mm,
        torch.zeros((), dtype=torch.float64),
        torch.tensor([long, short], dtype=torch.float64),
    )
    field_mm = float(reference.field_mm)
    grid = normalized(
        subject.image.grid, as_it_lies, radii_mm=(long, short), field_mm=field_mm, size=size
    )
    return grid.slicewise()


def _overlap(
    subject: Subject, grid: Grid, config: PoseConfig, reference: Reference
) -> dict[str, float]:
    """As `pose_stage.overlap`, but only the slices that count are looked at."""
    first, last = subject.labelled_or_all
    rows = range(first, last + 1)
    count, side = MASKS[config.target], config.localizer.size
    looked = join([grid.slices(k, k + 1) for k in rows]).resized((len(rows), side, side))
    masks = gather([subject.masks.slices(k, k + 1) for k in rows], looked).data[:count] / 255.0
    aims = reference.targets([reference.level(subject, k) for k in rows])
    means = soft_dice(masks.transpose(0, 1), aims).mean(0)
    return dict(zip(("body", "bone")[:count], means.tolist(), strict=True))
