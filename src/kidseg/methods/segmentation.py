"""The segmentation stage that methods share: its batches, its loss, its validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kidseg.augment import Augmentation
from kidseg.cohort.batch import Labelled, drawn_grid, drawn_labels
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.config import StageConfig
from kidseg.distributed import all_gather, shared_map
from kidseg.geometry import Grid, Slices, Volume
from kidseg.intensity import Scaling
from kidseg.labels import Target
from kidseg.losses import restored_segmentation_loss, segmentation_loss
from kidseg.pipeline import Planes, Progress, Region, restore
from kidseg.stage import Stage, TrainStep

__all__ = ["segmentation_stage", "validation", "whole_restored_loss"]


def segmentation_stage(
    net: nn.Module,
    config: StageConfig,
    cohort: Cohort,
    *,
    target: Target,
    view: Callable[[Sequence[Sequence[Scaling]]], Planes],
    training: Sequence[Grid],
    validation_grids: Sequence[Grid],
    original: Sequence[Grid] | None = None,
    augmentation: Augmentation | None = None,
) -> Stage:
    """How a network is trained on given grids.

    Args:
        net: the network.
        config: its training.
        cohort: the cases.
        target: what the network's channels mean.
        view: (scalings of one or all slices) -> how the network sees them.
        training: the network's grid for each training case.
        validation_grids: the same for the validation cases.
        original: for each training case the grid on which labels are compared, after the inverse
            warp; None compares them where the network sees them.
        augmentation: of what the network sees; without `original`.

    The score is the mean Dice of whole patients on their scans' slices, as they are stored.
    """
    slicewise = [grid.slicewise() for grid in training]
    base = None if original is None else [grid.slicewise() for grid in original]

    def batch(step: TrainStep) -> _SliceBatch:
        drawn = draw(cohort.index, step, config.batch_size)
        grid = drawn_grid(slicewise, drawn)
        names, scalings = cohort.names(drawn), cohort.scalings(drawn)
        if augmentation is not None:
            image, reference = _augmented(cohort, view, drawn, grid, augmentation, step)
            return _SliceBatch(names=names, image=image, grid=grid, reference=reference)
        images = Slices.of([subject.image for subject in cohort.training], drawn)
        seen = grid if base is None else drawn_grid(base, drawn)
        reference = drawn_labels(cohort.training, drawn, seen)
        return _SliceBatch(
            names=names, image=images, grid=grid, reference=reference, scalings=scalings
        )

    def loss(called: nn.Module, batch: _SliceBatch) -> dict[str, Tensor]:
        image = batch.image
        if isinstance(image, Slices):
            image = view(batch.scalings).image(image, batch.grid)
        levels = called(image.contiguous(memory_format=torch.channels_last))
        reference = batch.reference
        if base is not None:
            return {"loss": whole_restored_loss(levels, batch.grid, reference, target)}
        labels, valid = all_gather(reference.labels.data[0]), reference.valid
        valid = None if valid is None else all_gather(valid)
        whole = [all_gather(level) for level in levels]
        return {"loss": segmentation_loss(whole, labels, target=target, valid=valid)}

    def found(case: int) -> list[Region]:
        subject = cohort.validation[case]
        region, seen = Region(grid=validation_grids[case]), view([subject.scalings])
        answer = seen.predict(net, target, Progress(image=subject.image), region)
        return [replace(region, found=answer)]

    return Stage(
        name="segment",
        net=net,
        config=config,
        steps=config.steps or steps_per_epoch(cohort.index, config.batch_size),
        batch=batch,
        loss=loss,
        validate=validation(cohort, found, target),
    )


def validation(
    cohort: Cohort, found: Callable[[int], Sequence[Region]], target: Target
) -> Callable[[], dict[str, float]]:
    """How a network is validated: the figures of `Cohort.score`, cases shared by the processes.

    Args:
        cohort: the cases.
        found: regions with what was found in the validation case of a number.
        target: what its channels mean.
    """

    def dice(case: int) -> dict[str, float | None]:
        grid = cohort.validation[case].image.grid
        return cohort.dice(case, restore(found(case), grid, target))

    return lambda: cohort.score(shared_map(dice, range(len(cohort.validation))))


@dataclass(frozen=True, kw_only=True, eq=False)
class _SliceBatch:
    """Slices that a network learns from.

    Attributes:
        names: of the slices.
        image: as scanned; or what the network sees, where that was made already.
        grid: slice-wise, what the network sees.
        reference: on `grid`, or on the original grid.
        scalings: of the slices' cases, if the image is as scanned.
    """

    names: tuple[str, ...]
    image: Slices | Tensor
    grid: Grid
    reference: Labelled
    scalings: Sequence[Sequence[Scaling]] = ()

    def to(self, device: torch.device) -> _SliceBatch:
        return replace(self, image=self.image.to(device), reference=self.reference.to(device))


def whole_restored_loss(
    levels: Sequence[Tensor], grid: Grid, reference: Labelled, target: Target
) -> Tensor:
    """`restored_segmentation_loss` of the batch of all processes, which each has a part of."""
    seen_on, base = _gathered_grid(grid), _gathered_grid(reference.labels.grid)
    labels = Volume(all_gather(reference.labels.data[0])[None], base)
    valid = None if reference.valid is None else all_gather(reference.valid)
    whole = [all_gather(level) for level in levels]
    return restored_segmentation_loss(whole, seen_on, labels, target=target, valid=valid)


def _gathered_grid(grid: Grid) -> Grid:
    matrices = all_gather(grid.mm_from_index)
    return Grid((len(matrices), *grid.shape[1:]), matrices)


def _augmented(
    cohort: Cohort,
    view: Callable[[Sequence[Sequence[Scaling]]], Planes],
    drawn: Drawn,
    grid: Grid,
    augmentation: Augmentation,
    step: TrainStep,
) -> tuple[Tensor, Labelled]:
    """Image and labels on a larger grid, so that turned corners are filled; then augmented."""
    rows, columns = augmentation.source_size
    top, left = (rows - grid.shape[1]) // 2, (columns - grid.shape[2]) // 2
    wide = grid.crop((0, -top, -left), (grid.shape[0], rows, columns))
    images = Slices.of([subject.image for subject in cohort.training], drawn)
    reference = drawn_labels(cohort.training, drawn, wide)
    channels = [reference.labels.data[0]]
    if reference.valid is not None:
        channels.append(reference.valid.to(torch.uint8))
    image, masks = augmentation(
        view(cohort.scalings(drawn)).image(images, wide),
        torch.stack(channels, dim=1),
        seed=(step.seed, step.epoch, step.step),
        first=step.rank,
        stride=step.world,
    )
    valid = masks[:, 1] > 0 if reference.valid is not None else None
    return image, Labelled(labels=Volume(masks[:, 0][None], grid), valid=valid)
