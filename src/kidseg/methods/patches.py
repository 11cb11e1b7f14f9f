"""Training on patches: slices or blocks of the scans at a network's spacing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kidseg.augment import Augmentation
from kidseg.cohort.batch import Patches
from kidseg.cohort.block import Block
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject
from kidseg.config import StageConfig
from kidseg.distributed import all_gather
from kidseg.geometry import Grid, resample
from kidseg.losses import segmentation_loss
from kidseg.methods.method import Method
from kidseg.methods.segmentation import validation
from kidseg.pipeline import Region, advance
from kidseg.stage import Stage, TrainStep

__all__ = ["drawn_patches", "patch_stage"]


def patch_stage(
    method: Method,
    config: StageConfig,
    cohort: Cohort,
    batch: Callable[[TrainStep], Patches],
    over: Literal["batch", "sample"],
) -> Stage:
    """The stage "segment" of a method whose only network is trained on patches.

    The score is the mean Dice per patient, computed on the slices of the stored scans.

    Args:
        method: its part "segment" is trained.
        config: of the stage.
        cohort: the cases.
        batch: creates the batch of a step.
        over: see `segmentation_loss`.
    """

    def loss(called: nn.Module, batch: Patches) -> dict[str, Tensor]:
        levels = [all_gather(level) for level in called(batch.image)]
        labels = all_gather(batch.labels)
        valid = None if batch.valid is None else all_gather(batch.valid)
        value = segmentation_loss(levels, labels, target=method.target, valid=valid, over=over)
        return {"loss": value}

    def predict(case: int) -> Sequence[Region]:
        subject = cohort.validation[case]
        return advance(subject.image, method.steps(subject)).found

    return Stage(
        name="segment",
        net=method.parts["segment"],
        config=config,
        steps=config.steps or max(1, len(cohort.training) // config.batch_size),
        batch=batch,
        loss=loss,
        validate=validation(cohort, predict, method.target),
    )


def drawn_patches(
    cohort: Cohort,
    drawn: Sequence[Block],
    image: Callable[[Subject, Grid], Tensor],
    augmentation: Augmentation | None,
    step: TrainStep,
    *,
    flat: bool = False,
) -> Patches:
    """The batch of the drawn blocks, each interpolated once; augmented.

    Args:
        cohort: the cases.
        drawn: their blocks.
        image: (subject, grid) -> (channels, *grid.shape) float32, normalised.
        augmentation: of blocks; or of slices, if it has two sides.
        step: seeds the augmentation.
        flat: the blocks are single slices, and the patches have two dimensions.
    """
    images, masks = [], []
    for block in drawn:
        subject, grid = cohort.training[block.case], block.grid
        if augmentation is not None:
            size = (*grid.shape[: 3 - len(augmentation.size)], *augmentation.source_size)
            before = [(s - n) // 2 for s, n in zip(size, grid.shape, strict=True)]
            grid = grid.crop([-n for n in before], size)
        images.append(image(subject, grid))
        masks.append(_masks(cohort, subject, grid))
    pictures, labels = torch.stack(images), torch.stack(masks)
    if flat:
        pictures, labels = pictures[:, :, 0], labels[:, :, 0]
    if augmentation is not None:
        pictures, labels = augmentation(
            pictures,
            labels,
            seed=(step.seed, step.epoch, step.step),
            first=step.rank,
            stride=step.world,
        )
    return Patches(
        names=tuple(cohort.training[block.case].id for block in drawn),
        image=pictures,
        labels=labels[:, 0],
        valid=labels[:, 1] > 0 if labels.shape[1] > 1 else None,
    )


def _masks(cohort: Cohort, subject: Subject, grid: Grid) -> Tensor:
    """(1 or 2, *grid.shape) uint8: labels, and whether they count if any case has an ignore."""
    assert subject.labels is not None
    labels = resample(subject.labels, grid, mode="nearest").data
    if all(each.ignore is None for each in cohort.training):
        return labels
    valid = torch.ones_like(labels)
    if subject.ignore is not None:
        valid -= resample(subject.ignore, grid, mode="nearest").data.to(torch.uint8)
    return torch.cat([labels, valid])
