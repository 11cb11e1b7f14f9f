"""Size and position of a patient, and its agreement with the reference patient."""

from __future__ import annotations

import statistics

import torch

from kidseg.body import Moments, normalized
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import PoseConfig
from kidseg.geometry import Grid, Volume
from kidseg.methods.homogenized.pose_stage import overall_agreement, overlap
from kidseg.methods.homogenized.reference import Reference, start_grid

__all__ = ["reference_placement"]


def reference_placement(
    subject: Subject, base: Grid, grid: Grid, config: PoseConfig, reference: Reference
) -> Placement:
    """Size and position of a patient, and the overlap of its masks with the reference's.

    Slices are matched to levels of the reference by their relative height in the labelled region,
    as in training. The labels may be predicted; without labels, all slices are used. The agreement
    needs no labels: it is what the pose was chosen by.

    Args:
        subject: with reference or predicted labels.
        base: its base grid.
        grid: homogenized, slice-wise.
        config: of the pose.
        reference: set to a patient.
    """
    first, last = subject.labelled_or_all
    grids = {
        "before": _centred_grid(subject, base, config, reference),
        "start": start_grid(subject, base, config, reference),
        "after": grid,
    }
    assert subject.masks is not None
    overlaps, agreements = {}, {}
    for name, place in grids.items():
        by_mask = overlap(subject, place, config, reference).tolist()
        overlaps[name] = dict(zip(("body", "bone")[: len(by_mask)], by_mask, strict=True))
        agreements[name] = overall_agreement(subject.masks, place, config, reference)
    levels = [reference.level(subject, k) for k in range(grid.shape[0])]
    side = config.localizer.size
    body = reference.targets(levels)[:, :1].transpose(0, 1).cpu()
    figures = figures_of(subject, grid, base)
    figures["overlap"] = statistics.fmean(overlaps["after"].values())
    return Placement(
        figures=figures,
        overlap=overlaps,
        agreement=agreements,
        corrected=not torch.equal(grid.mm_from_index, grids["start"].mm_from_index),
        compared=(first, last),
        outlines={"pose": Volume(body, grid.resized((grid.shape[0], side, side)))},
    )


def _centred_grid(subject: Subject, base: Grid, config: PoseConfig, reference: Reference) -> Grid:
    """The grid centred on the body, without rotation or scaling, in the reference's field."""
    if config.start == "identity":
        return start_grid(subject, base, config, reference)
    assert subject.body is not None
    long, short = (float(radius) for radius in reference.radii_mm)
    translation_only = Moments(
        subject.body.whole.centre_mm,
        torch.zeros((), dtype=torch.float64),
        torch.tensor([long, short], dtype=torch.float64),
    )
    field_mm = float(reference.field_mm)
    grid = normalized(
        subject.image.grid,
        translation_only,
        radii_mm=(long, short),
        field_mm=field_mm,
        size=base.shape[2],
    )
    return grid.slicewise()
