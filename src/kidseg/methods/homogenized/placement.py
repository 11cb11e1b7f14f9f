"""How a patient lies, and how well the pose brings it to the reference."""

from __future__ import annotations

import statistics

import torch

from kidseg.body import Moments, normalized
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import PoseConfig
from kidseg.geometry import Grid, Volume
from kidseg.methods.homogenized.pose_stage import overlap
from kidseg.methods.homogenized.reference import Reference, start_grid

__all__ = ["brought_to_reference"]


def brought_to_reference(
    subject: Subject, base: Grid, grid: Grid, config: PoseConfig, reference: Reference
) -> Placement:
    """How a patient lies, and how well it meets the reference.

    Which of its heights meets which of the reference's is told by its labels, as in training. Where
    they are unknown, labels that a method found stand in for them; without any, all slices count.

    Args:
        subject: with labels that are known or found.
        base: its grid before any pose.
        grid: homogenized, slice-wise.
        config: of the pose.
        reference: already adopted.
    """
    first, last = subject.labelled_or_all
    grids = {
        "before": _untouched(subject, base, config, reference),
        "start": start_grid(subject, base, config, reference),
        "after": grid,
    }
    overlaps = {}
    for name, place in grids.items():
        own = overlap(subject, place, config, reference).tolist()
        overlaps[name] = dict(zip(("body", "bone")[: len(own)], own, strict=True))
    levels = [reference.level(subject, k) for k in range(grid.shape[0])]
    side = config.localizer.size
    body = reference.targets(levels)[:, :1].transpose(0, 1).cpu()
    figures = figures_of(subject, grid, base)
    figures["overlap"] = statistics.fmean(overlaps["after"].values())
    return Placement(
        figures=figures,
        overlap=overlaps,
        compared=(first, last),
        outlines={"pose": Volume(body, grid.resized((grid.shape[0], side, side)))},
    )


def _untouched(subject: Subject, base: Grid, config: PoseConfig, reference: Reference) -> Grid:
    """The scan as it lies, centred on the body, in the field in which the reference is seen."""
    if config.start == "identity":
        return start_grid(subject, base, config, reference)
    assert subject.body is not None
    long, short = (float(radius) for radius in reference.radii_mm)
    as_it_lies = Moments(
        subject.body.whole.centre_mm,
        torch.zeros((), dtype=torch.float64),
        torch.tensor([long, short], dtype=torch.float64),
    )
    field_mm = float(reference.field_mm)
    grid = normalized(
        subject.image.grid,
        as_it_lies,
        radii_mm=(long, short),
        field_mm=field_mm,
        size=base.shape[2],
    )
    return grid.slicewise()
