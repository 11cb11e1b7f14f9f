"""The segmentation stage of slice-wise methods: batches, loss and validation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kidseg.augment import Augmentation
from kidseg.cohort.batch import Labelled, drawn_grid, drawn_labels
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.config import HomogenizedConfig, PlainConfig, StageConfig, StyleConfig
from kidseg.distributed import all_gather, shared_map
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Slices, Volume, posed, sampled
from kidseg.intensity import Scaling, as_input
from kidseg.labels import Target
from kidseg.losses import Over, Supervision, restored_segmentation_loss, segmentation_loss
from kidseg.methods.method import Method
from kidseg.methods.mining import HardSlices
from kidseg.pipeline import Planes, Progress, Region, advance, restore
from kidseg.plan import Plan
from kidseg.stage import Stage, TrainStep
from kidseg.style import draw_styles, restyled, styled_grid

__all__ = [
    "StageGrids",
    "augmentation_of",
    "gathered_restored_loss",
    "segmentation_stage",
    "validated_steps",
    "validation",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class StageGrids:
    """The grids of a segmentation stage, one per case.

    Attributes:
        training: input grids of the network for the training cases.
        validation: input grids of the network for the validation cases.
        original: grids of the training cases on which the loss is computed, after the inverse warp;
            None computes it on the input grids.
        supervision: of the loss on the original grids; see `restored_segmentation_loss`.
        dice_over: the sums in the loss's Dice.
    """

    training: Sequence[Grid]
    validation: Sequence[Grid]
    original: Sequence[Grid] | None = None
    supervision: Supervision = "normalised"
    dice_over: Over = "batch"


def augmentation_of(
    config: HomogenizedConfig | PlainConfig, plan: Plan, side: int
) -> Augmentation | StyleConfig | None:
    """The augmentation of a method's network.

    Args:
        config: of the method.
        plan: of the data set.
        side: of the network's input in pixels.

    Raises:
        UsageError: "style-not-ct": "style" changes Hounsfield units; see also `Augmentation`.
    """
    if config.augment == "nnunet":
        return Augmentation(side)
    if config.augment == "none":
        return None
    if any(channel.scheme != "ct" for channel in plan.channels):
        raise UsageError(
            'augment "style" changes Hounsfield units, and the data set is not CT',
            code="style-not-ct",
            next_step='Train with augment "nnunet" or "none".',
        )
    return config.style


def segmentation_stage(
    net: nn.Module,
    config: StageConfig,
    cohort: Cohort,
    grids: StageGrids,
    *,
    target: Target,
    view: Callable[[Sequence[Sequence[Scaling]]], Planes],
    augmentation: Augmentation | StyleConfig | None = None,
) -> Stage:
    """A stage that trains a 2D segmentation network on given grids.

    Args:
        net: the network.
        config: of its training.
        cohort: the cases.
        grids: of each case.
        target: meaning of the network's output channels.
        view: (scalings of one or all slices) -> view of the network.
        augmentation: of the network's input; with `grids.original`, the inverse warp undoes it.

    The score is the mean Dice per patient, computed on the slices of the stored scans.
    """
    slicewise = [grid.slicewise() for grid in grids.training]
    original = None if grids.original is None else [grid.slicewise() for grid in grids.original]

    hard = HardSlices(net=net, cohort=cohort, grids=slicewise, view=view, target=target)

    def batch(step: TrainStep) -> _SliceBatch:
        drawn = draw(cohort.index, step, config.batch_size, hard.rows)
        grid = drawn_grid(slicewise, drawn)
        names = cohort.names(drawn)
        base = None if original is None else drawn_grid(original, drawn)
        if augmentation is not None:
            if isinstance(augmentation, StyleConfig):
                image, grid, reference = _restyled(cohort, view, drawn, grid, augmentation, step)
            elif base is None:
                image, reference = _augmented(cohort, view, drawn, grid, augmentation, step)
            else:
                image, grid = _posed(cohort, view, drawn, grid, augmentation, step)
            if base is not None:
                reference = drawn_labels(cohort.training, drawn, base)
            return _SliceBatch(names=names, image=image, grid=grid, reference=reference)
        return _SliceBatch(
            names=names,
            image=view(()).slices([case.image for case in cohort.training], drawn),
            grid=grid,
            reference=drawn_labels(cohort.training, drawn, grid if base is None else base),
            scalings=cohort.scalings(drawn),
        )

    def loss(called: nn.Module, batch: _SliceBatch) -> dict[str, Tensor]:
        image = batch.image
        if isinstance(image, Slices):
            image = view(batch.scalings).image(image, batch.grid)
        levels = called(image.contiguous(memory_format=torch.channels_last))
        reference = batch.reference
        if original is not None:
            value = gathered_restored_loss(
                levels, batch.grid, reference, target, grids.supervision, grids.dice_over
            )
            return {"loss": value}
        labels, valid = all_gather(reference.labels.data[0]), reference.valid
        valid = None if valid is None else all_gather(valid)
        levels = [all_gather(level) for level in levels]
        over = grids.dice_over
        return {"loss": segmentation_loss(levels, labels, target=target, valid=valid, over=over)}

    def predict(case: int) -> list[Region]:
        subject, region = cohort.validation[case], Region(grid=grids.validation[case])
        progress = Progress(image=subject.image)
        found = view([subject.scalings]).predict(net, target, progress, region)
        return [replace(region, found=found)]

    return Stage(
        name="segment",
        net=net,
        config=config,
        steps=config.steps or steps_per_epoch(cohort.index, config.batch_size),
        batch=batch,
        loss=loss,
        validate=validation(cohort, predict, target),
        prepare=hard.find if cohort.config.hard_share else None,
    )


def validation(
    cohort: Cohort, predict: Callable[[int], Sequence[Region]], target: Target
) -> Callable[[], dict[str, float]]:
    """The `validate` of a stage: metrics of `Cohort.score`, cases distributed over the processes.

    Args:
        cohort: the cases.
        predict: index of a validation case -> regions with probabilities.
        target: meaning of their channels.
    """

    def dice(case: int) -> dict[str, float | None]:
        grid = cohort.validation[case].image.grid
        return cohort.dice(case, restore(predict(case), grid, target))

    return lambda: cohort.score(shared_map(dice, range(len(cohort.validation))))


@torch.no_grad()
def validated_steps(method: Method, cohort: Cohort) -> dict[str, dict[str, dict[str, Any]]]:
    """Dice of the validation cases after each step that segments, as if the method ended there.

    Args:
        method: trained.
        cohort: the cases; distributed over the processes.

    Returns:
        {step: {region: {"mean", "sd" (None for one case), "n" (cases where the region is not empty
        in both labels and prediction)}}} with the regions that the step distinguishes; {} if a
        single step segments, whose figures are those of its training.
    """

    def dice(case: int) -> dict[str, dict[str, float | None]]:
        subject = cohort.validation[case]
        steps = list(method.steps(subject))
        progress, found = Progress(image=subject.image), {}
        for step in steps:
            progress = advance(progress, [step])
            if step.segment is not None:
                regions = progress.found
                target = regions[0].target if regions else step.target
                labels = restore(regions, subject.image.grid, target or method.target)
                each = cohort.dice(case, labels)
                known = cohort.schema.regions
                found[step.name] = {
                    name: value
                    for name, value in each.items()
                    if (target or method.target).expresses(known[name])
                }
        return found

    for part in method.parts.values():
        part.eval()
    segmenting = [s for s in method.steps(cohort.validation[0]) if s.segment is not None]
    if len(segmenting) < 2:
        return {}
    cases = shared_map(dice, range(len(cohort.validation)))
    return {step.name: _spread([case[step.name] for case in cases]) for step in segmenting}


def _spread(cases: Sequence[dict[str, float | None]]) -> dict[str, dict[str, Any]]:
    figures = {}
    for name in dict.fromkeys(name for case in cases for name in case):
        known = [value for case in cases if (value := case.get(name)) is not None]
        if known:
            sd = statistics.stdev(known) if len(known) > 1 else None
            figures[name] = {"mean": statistics.fmean(known), "sd": sd, "n": len(known)}
    return figures


@dataclass(frozen=True, kw_only=True, eq=False)
class _SliceBatch:
    """A training batch of slices.

    Attributes:
        names: of the slices.
        image: slices of the scan; or the network's input, if it is augmented.
        grid: slice-wise input grid of the network.
        reference: labels on `grid`, or on the original grid.
        scalings: of the slices' cases, if `image` holds slices of the scan.
    """

    names: tuple[str, ...]
    image: Slices | Tensor
    grid: Grid
    reference: Labelled
    scalings: Sequence[Sequence[Scaling]] = ()

    def to(self, device: torch.device) -> _SliceBatch:
        return replace(self, image=self.image.to(device), reference=self.reference.to(device))


def gathered_restored_loss(
    levels: Sequence[Tensor],
    grid: Grid,
    reference: Labelled,
    target: Target,
    supervision: Supervision = "normalised",
    over: Over = "batch",
) -> Tensor:
    """`restored_segmentation_loss` of the global batch, gathered from all processes."""
    input_grid, original = _gathered_grid(grid), _gathered_grid(reference.labels.grid)
    labels = Volume(all_gather(reference.labels.data[0])[None], original)
    valid = None if reference.valid is None else all_gather(reference.valid)
    levels = [all_gather(level) for level in levels]
    return restored_segmentation_loss(
        levels,
        input_grid,
        labels,
        target=target,
        valid=valid,
        over=over,
        supervision=supervision,
    )


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
    """Sample image and labels on a larger grid, so that rotations need no padding; augment."""
    rows, columns = augmentation.source_size
    top, left = (rows - grid.shape[1]) // 2, (columns - grid.shape[2]) // 2
    larger = grid.crop((0, -top, -left), (grid.shape[0], rows, columns))
    images = view(()).slices([case.image for case in cohort.training], drawn)
    reference = drawn_labels(cohort.training, drawn, larger)
    channels = [reference.labels.data[0]]
    if reference.valid is not None:
        channels.append(reference.valid.to(torch.uint8))
    image, masks = augmentation(
        view(cohort.scalings(drawn)).image(images, larger),
        torch.stack(channels, dim=1),
        seed=(step.seed, step.epoch, step.step),
        first=step.rank,
        stride=step.world,
    )
    valid = masks[:, 1] > 0 if reference.valid is not None else None
    return image, Labelled(labels=Volume(masks[:, 0][None], grid), valid=valid)


def _posed(
    cohort: Cohort,
    view: Callable[[Sequence[Sequence[Scaling]]], Planes],
    drawn: Drawn,
    grid: Grid,
    augmentation: Augmentation,
    step: TrainStep,
) -> tuple[Tensor, Grid]:
    """Augment by posing the grid, on which the image is sampled, and by its appearance."""
    words, share = (step.seed, step.epoch, step.step), {"first": step.rank, "stride": step.world}
    angle_rad, scale = augmentation.poses(len(drawn), seed=words, **share)
    grid = posed(grid, angle_rad=angle_rad, scale=scale)
    images = view(()).slices([case.image for case in cohort.training], drawn)
    image = view(cohort.scalings(drawn)).image(images, grid)
    return augmentation.appearance(image, seed=words, **share), grid


def _restyled(
    cohort: Cohort,
    view: Callable[[Sequence[Sequence[Scaling]]], Planes],
    drawn: Drawn,
    grid: Grid,
    config: StyleConfig,
    step: TrainStep,
) -> tuple[Tensor, Grid, Labelled]:
    """Sample image and labels in a random pose; change the appearance in HU, then normalise."""
    style = draw_styles(config, step, len(drawn), len(cohort.schema.labels))
    grid = styled_grid(grid, style)
    planes = view(cohort.scalings(drawn))
    images = planes.slices([case.image for case in cohort.training], drawn)
    reference = drawn_labels(cohort.training, drawn, grid)
    shown = reference.labels
    if planes.reach:
        known = [case.labels for case in cohort.training if case.labels is not None]
        shown = sampled(planes.slices(known, drawn), grid, mode="nearest")
    hu = restyled(planes.sample(images, grid), shown.data, style)
    count = 2 * planes.reach + 1
    image = as_input(hu, [tuple(each) * count for each in planes.scalings])
    return image, grid, reference
