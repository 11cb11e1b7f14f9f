"""The second spatial transformer: the square around kidneys and tumour, after the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kidseg.cohort.batch import drawn_grid
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import draw, steps_per_epoch
from kidseg.cohort.subject import Subject
from kidseg.config import CropConfig
from kidseg.distributed import all_gather, shared_map
from kidseg.geometry import Grid, Slices, resample, sampled
from kidseg.intensity import AIR_HU, as_input
from kidseg.losses import crop_loss
from kidseg.methods.homogenized.scene import Scene, outputs_of
from kidseg.nets.stn import Crop, crop_around, crop_from, crop_grid, widened
from kidseg.stage import Stage, TrainStep

__all__ = ["CropTransformer", "boxes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CropTransformer:
    """The localisation network of the crop, and all that it takes to use it.

    Attributes:
        net: the network.
        config: of the crop.
        masks: how many masks the network sees beside the image.
        size: pixels along each side of the crop.
    """

    net: nn.Module
    config: CropConfig
    masks: int
    size: int

    def boxes(self, scene: Scene, grid: Grid) -> Crop:
        """The box in each slice of a grid; with `per` "volume" the median for all."""
        side = self.config.localizer.size
        view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks)
        device = next(self.net.parameters()).device
        outputs = outputs_of(self.net, view.to(device)).cpu().double()
        crop = crop_from(outputs, self.config.localizer)
        if self.config.per == "slice":
            return crop
        centre, half = (
            values.median(0).values.expand_as(values) for values in (crop.centre, crop.half)
        )
        return Crop(centre, half)

    def locate(self, scene: Scene, grid: Grid) -> Grid:
        """The grid that the U-Net sees: the boxes, with the safety margin, in `size` pixels."""
        return crop_grid(grid, widened(self.boxes(scene, grid), self.config.localizer), self.size)

    def stage(
        self,
        cohort: Cohort,
        training: Sequence[Grid],
        validation: Sequence[tuple[Scene, Grid]],
    ) -> Stage:
        """How the crop is learned on homogenized grids.

        The score is the mean overlap (intersection over union) of the boxes with those aimed at,
        over slices and patients; "covered" is the part of the labelled pixels that the widened
        boxes hold.

        Args:
            cohort: the cases.
            training: homogenized grids of the training cases, slice-wise.
            validation: the validation cases as they are looked at, and their homogenized grids.
        """
        config, side = self.config, self.config.localizer.size
        aims = [
            boxes(subject, grid, config)
            for subject, grid in zip(cohort.training, training, strict=True)
        ]
        pairs = list(zip(cohort.validation, validation, strict=True))

        def batch(step: TrainStep) -> _CropBatch:
            drawn = draw(cohort.index, step, config.stage.batch_size)
            grid = drawn_grid(training, drawn)
            images = Slices.of([subject.image for subject in cohort.training], drawn)
            aim = Crop(
                torch.stack([aims[case].centre[k] for case, k in drawn]),
                torch.stack([aims[case].half[k] for case, k in drawn]),
            )
            scene = Scene(
                image=images,
                masks=Slices.of(cohort.masks, drawn),
                start=grid,
                scalings=[cohort.training[case].scalings for case, _ in drawn],
            )
            return _CropBatch(names=cohort.names(drawn), scene=scene, aim=aim)

        def loss(called: nn.Module, batch: _CropBatch) -> dict[str, Tensor]:
            scene, grid = batch.scene, batch.scene.start
            view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks)
            crop = crop_from(outputs_of(called, view), config.localizer)
            aim = Crop(batch.aim.centre.to(crop.centre), batch.aim.half.to(crop.half))
            parts = [
                as_input(
                    sampled(scene.image, crop_grid(grid, box, side), fill=AIR_HU).data,
                    scene.scalings,
                )
                for box in (crop, aim)
            ]
            whole = [all_gather(values) for values in (*parts, crop.theta, aim.theta)]
            return {"loss": crop_loss(*whole)}

        def figures(pair: tuple[Subject, tuple[Scene, Grid]]) -> tuple[float, float]:
            subject, (scene, grid) = pair
            crop = self.boxes(scene, grid)
            overlap = float(_overlap(crop, boxes(subject, grid, config)).mean())
            return overlap, _covered(subject, grid, widened(crop, config.localizer), side)

        def validate() -> dict[str, float]:
            overlaps, covers = zip(*shared_map(figures, pairs), strict=True)
            return {
                "score": sum(overlaps) / len(overlaps),
                "covered": sum(covers) / len(covers),
            }

        return Stage(
            name="crop",
            net=self.net,
            config=config.stage,
            steps=config.stage.steps or steps_per_epoch(cohort.index, config.stage.batch_size),
            batch=batch,
            loss=loss,
            validate=validate,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _CropBatch:
    """Slices on their homogenized grids (`scene.start`), and the boxes to aim at."""

    names: tuple[str, ...]
    scene: Scene
    aim: Crop

    def to(self, device: torch.device) -> _CropBatch:
        return replace(self, scene=self.scene.to(device))


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
