"""The second spatial transformer: the square around kidneys and tumour, after the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kidseg.cohort.batch import join, slices_of
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import draw, steps_per_epoch
from kidseg.cohort.subject import Subject, gather, masks_at
from kidseg.config import CropConfig
from kidseg.distributed import gathered
from kidseg.geometry import Grid, resample
from kidseg.intensity import AIR_HU, as_input
from kidseg.losses import crop_loss
from kidseg.methods.homogenized.pose_stage import outputs_of, seen
from kidseg.nets.stn import Crop, crop_around, crop_from, crop_grid, widened
from kidseg.plan import Plan
from kidseg.stage import Moment, Stage

__all__ = ["boxes", "crop_stage", "cropped", "found_boxes"]


def crop_stage(
    net: nn.Module,
    config: CropConfig,
    cohort: Cohort,
    training: Sequence[Grid],
    validation: Sequence[Grid],
    masks: int,
) -> Stage:
    """How the crop is learned on homogenized grids.

    The score is the mean overlap (intersection over union) of the boxes with those aimed at, over
    slices and patients; "covered" is the part of the labelled pixels that the widened boxes hold.

    Args:
        net: the localisation network.
        config: of this stage.
        cohort: the cases.
        training: homogenized grids of the training cases, slice-wise.
        validation: and of the validation cases.
        masks: how many masks the network sees beside the image.
    """
    side = config.localizer.size
    aims = [boxes(subject, grid, config) for subject, grid in _pairs(cohort.training, training)]

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        drawn = draw(cohort.index, now, config.stage.batch_size)
        grid = join([training[case].slices(k, k + 1) for case, k in drawn])
        looked = grid.resized((len(drawn), side, side))
        view = seen(cohort, drawn, looked, masks)
        crop = crop_from(outputs_of(called, view), config.localizer)
        aim = Crop(
            torch.stack([aims[case].centre[k] for case, k in drawn]).to(crop.centre),
            torch.stack([aims[case].half[k] for case, k in drawn]).to(crop.half),
        )
        sources = slices_of(cohort.training, drawn)
        parts = [
            as_input(
                gather(sources, crop_grid(grid, box, side), fill=AIR_HU).data, cohort.plan.channels
            )
            for box in (crop, aim)
        ]
        whole = [gathered(values) for values in (*parts, crop.theta, aim.theta)]
        return {"loss": crop_loss(*whole)}

    def validate() -> dict[str, float]:
        overlaps, covers = [], []
        for subject, grid in _pairs(cohort.validation, validation):
            crop = found_boxes(net, config, subject, grid, cohort.plan, masks)
            overlaps.append(float(_overlap(crop, boxes(subject, grid, config)).mean()))
            covers.append(_covered(subject, grid, widened(crop, config.localizer), side))
        return {
            "score": sum(overlaps) / len(overlaps),
            "covered": sum(covers) / len(covers),
        }

    return Stage(
        name="crop",
        net=net,
        config=config.stage,
        steps=config.stage.steps or steps_per_epoch(cohort.index, config.stage.batch_size),
        loss=loss,
        validate=validate,
    )


def boxes(subject: Subject, grid: Grid, config: CropConfig) -> Crop:
    """The boxes to aim at in each slice of a homogenized grid; the whole image without labels."""
    labels = _labels_on(subject, grid, config.localizer.size)
    whole = crop_around(labels.any(0)[None], config.localizer)
    patient = Crop(whole.centre.expand(len(labels), 2), whole.half.expand(len(labels), 2))
    if config.target == "patient":
        return patient
    own = crop_around(labels, config.localizer)
    if config.empty == "identity":
        return own
    there = labels.flatten(1).any(1)[:, None]
    return Crop(
        torch.where(there, own.centre, patient.centre), torch.where(there, own.half, patient.half)
    )


@torch.no_grad()
def found_boxes(
    net: nn.Module, config: CropConfig, subject: Subject, grid: Grid, plan: Plan, masks: int
) -> Crop:
    """The boxes that the network finds in each slice; with `per` "volume" the median for all."""
    side = config.localizer.size
    looked = grid.resized((grid.shape[0], side, side))
    image = as_input(resample(subject.image, looked, fill=AIR_HU).data, plan.channels)
    parts = [image, masks_at(subject, looked).data[:masks].transpose(0, 1)]
    device = next(net.parameters()).device
    crop = crop_from(
        outputs_of(net, torch.cat(parts, dim=1).to(device)).double().cpu(), config.localizer
    )
    if config.per == "slice":
        return crop
    centre, half = (
        values.median(0).values.expand_as(values) for values in (crop.centre, crop.half)
    )
    return Crop(centre, half)


def cropped(
    net: nn.Module,
    config: CropConfig,
    subject: Subject,
    grid: Grid,
    plan: Plan,
    masks: int,
    size: int,
) -> Grid:
    """The grid that the U-Net sees: the boxes found, with the safety margin, in `size` pixels."""
    crop = found_boxes(net, config, subject, grid, plan, masks)
    return crop_grid(grid, widened(crop, config.localizer), size)


def _labels_on(subject: Subject, grid: Grid, side: int) -> Tensor:
    """(slices, side, side) bool: any label."""
    looked = grid.resized((grid.shape[0], side, side))
    assert subject.labels is not None
    return resample(subject.labels, looked, mode="nearest").data[0].cpu() > 0


def _covered(subject: Subject, grid: Grid, crop: Crop, side: int) -> float:
    """Part of the labelled pixels that lie in the boxes; 1 if there are none."""
    labels = _labels_on(subject, grid, side)
    if not bool(labels.any()):
        return 1.0
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    across, down = (
        (at[None] - crop.centre[:, axis, None]).abs() <= crop.half[:, axis, None] for axis in (0, 1)
    )
    inside = labels & down[:, :, None] & across[:, None, :]
    return float(inside.sum() / labels.sum())


def _overlap(a: Crop, b: Crop) -> Tensor:
    """(slices,) intersection over union."""
    low = torch.maximum(a.centre - a.half, b.centre - b.half)
    high = torch.minimum(a.centre + a.half, b.centre + b.half)
    shared = (high - low).clamp(min=0).prod(-1)
    both = (2 * a.half).prod(-1) + (2 * b.half).prod(-1) - shared
    return shared / both


def _pairs(subjects: Sequence[Subject], grids: Sequence[Grid]) -> list[tuple[Subject, Grid]]:
    return list(zip(subjects, grids, strict=True))
