"""The U-Net's part in every method of System A: its batches, its loss, its validation, its use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kidseg.augment import Augmentation
from kidseg.cohort.batch import Labelled, drawn_labels, join, slices_of
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.cohort.subject import gather
from kidseg.config import StageConfig
from kidseg.device import Device
from kidseg.distributed import gathered
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import AIR_HU, as_input
from kidseg.losses import restored_segmentation_loss, segmentation_loss
from kidseg.pipeline import Segment, restore
from kidseg.plan import Plan
from kidseg.stage import Moment, Stage

__all__ = [
    "segmentation_stage",
    "segmenter",
    "whole_restored_loss",
]

_SLICES_AT_ONCE = 16


def segmentation_stage(
    net: nn.Module,
    config: StageConfig,
    cohort: Cohort,
    *,
    training: Sequence[Grid],
    validation: Sequence[Grid],
    device: Device,
    loss_space: Literal["original", "network"] = "network",
    augmentation: Augmentation | None = None,
) -> Stage:
    """How the U-Net is trained on given grids.

    Args:
        net: the U-Net.
        config: its training.
        cohort: the cases.
        training: the network's grid for each training case, one grid per slice.
        validation: the same for the validation cases.
        device: for validation.
        loss_space: labels are compared on the "network" grid, or on the "original" base grid after
            the inverse warp.
        augmentation: of what the network sees; with `loss_space` "network".

    The score is the mean Dice of whole patients on `Subject.whole`: the original space, at the
    network's resolution.
    """

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        drawn = draw(cohort.index, now, config.batch_size)
        grid = join([training[case].slices(k, k + 1) for case, k in drawn])
        if augmentation is not None:
            image, reference = _augmented(cohort, drawn, grid, augmentation, now)
        else:
            hu = gather(slices_of(cohort.training, drawn), grid, fill=AIR_HU)
            image = as_input(hu.data, cohort.plan.channels)
            seen = grid if loss_space == "network" else _base(cohort, drawn)
            reference = drawn_labels(cohort, drawn, seen)
        levels = called(image.contiguous(memory_format=torch.channels_last))
        if loss_space == "original":
            return {"loss": whole_restored_loss(levels, grid, reference)}
        labels, valid = gathered(reference.labels.data[0]), reference.valid
        valid = None if valid is None else gathered(valid)
        whole = [gathered(level) for level in levels]
        return {"loss": segmentation_loss(whole, labels, valid=valid)}

    def validate() -> dict[str, float]:
        segment = segmenter(net, cohort.plan, device)
        found = []
        for subject, grid in zip(cohort.validation, validation, strict=True):
            probabilities = segment(resample(subject.image, grid, fill=AIR_HU))
            found.append(restore(probabilities, subject.whole))
        return cohort.score(found)

    return Stage(
        name="segment",
        net=net,
        config=config,
        steps=config.steps or steps_per_epoch(cohort.index, config.batch_size),
        loss=loss,
        validate=validate,
    )


def whole_restored_loss(levels: Sequence[Tensor], grid: Grid, reference: Labelled) -> Tensor:
    """`restored_segmentation_loss` of the batch of all processes, which each has a part of."""
    seen_on, base = _gathered_grid(grid), _gathered_grid(reference.labels.grid)
    labels = Volume(gathered(reference.labels.data[0])[None], base)
    valid = None if reference.valid is None else gathered(reference.valid)
    whole = [gathered(level) for level in levels]
    return restored_segmentation_loss(whole, seen_on, labels, valid=valid)


def segmenter(net: nn.Module, plan: Plan, device: Device) -> Segment:
    """HU on a grid -> (classes, slices, rows, columns) float32 probabilities on it, on the CPU."""

    @torch.no_grad()
    def segment(image: Volume) -> Volume:
        parts = []
        for start in range(0, image.grid.shape[0], _SLICES_AT_ONCE):
            hu = image.data[:, start : start + _SLICES_AT_ONCE].to(device.torch)
            seen = as_input(hu, plan.channels).contiguous(memory_format=torch.channels_last)
            with device.autocast():
                (logits,) = net(seen)
            parts.append(torch.softmax(logits.float(), dim=1).transpose(0, 1).cpu())
        return Volume(torch.cat(parts, dim=1), image.grid)

    return segment


def _gathered_grid(grid: Grid) -> Grid:
    matrices = gathered(grid.mm_from_index)
    return Grid((len(matrices), *grid.shape[1:]), matrices)


def _base(cohort: Cohort, drawn: Drawn) -> Grid:
    return join([cohort.training[case].base.slices(k, k + 1) for case, k in drawn])


def _augmented(
    cohort: Cohort, drawn: Drawn, grid: Grid, augmentation: Augmentation, now: Moment
) -> tuple[Tensor, Labelled]:
    """Image and labels on a larger grid, so that turned corners are filled; then augmented."""
    rows, columns = augmentation.source_size
    top, left = (rows - grid.shape[1]) // 2, (columns - grid.shape[2]) // 2
    wide = grid.crop((0, -top, -left), (grid.shape[0], rows, columns))
    hu = gather(slices_of(cohort.training, drawn), wide, fill=AIR_HU)
    reference = drawn_labels(cohort, drawn, wide)
    channels = [reference.labels.data[0]]
    if reference.valid is not None:
        channels.append(reference.valid.to(torch.uint8))
    image, masks = augmentation(
        as_input(hu.data, cohort.plan.channels),
        torch.stack(channels, dim=1),
        seed=(now.seed, now.epoch, now.step),
        first=now.rank,
        stride=now.world,
    )
    valid = masks[:, 1] > 0 if reference.valid is not None else None
    return image, Labelled(labels=Volume(masks[:, 0][None], grid), valid=valid)
