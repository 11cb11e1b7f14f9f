"""The second spatial transformer: crop homogenized slices around kidneys and tumour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

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
from kidseg.labels import Target
from kidseg.losses import crop_loss
from kidseg.methods.homogenized.scene import Scene, outputs_of
from kidseg.nets.stn import Crop, crop_around, crop_from, crop_grid, widened
from kidseg.stage import Stage, TrainStep

__all__ = ["CropTransformer", "target_boxes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CropTransformer:
    """The spatial transformer of the crop: localisation network and settings.

    Attributes:
        net: the localisation network.
        config: of the crop.
        masks: number of masks in the network's input, besides the image.
        size: pixels along each side of the crop.
        device: of the network.
    """

    net: nn.Module
    config: CropConfig
    masks: int
    size: int
    device: torch.device

    def boxes(self, scene: Scene, grid: Grid) -> Crop:
        """The predicted box in each slice of a grid; with `per` "volume" the median of all."""
        side = self.config.localizer.size
        view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks)
        outputs = outputs_of(self.net, view.to(self.device)).cpu().double()
        crop = crop_from(outputs, self.config.localizer)
        if self.config.per == "slice":
            return crop
        centre, half = (
            values.median(0).values.expand_as(values) for values in (crop.centre, crop.half)
        )
        return Crop(centre, half)

    def locate(self, scene: Scene, grid: Grid) -> Grid:
        """The input grid of the U-Net: the boxes with the safety margin, in `size` pixels."""
        return crop_grid(grid, widened(self.boxes(scene, grid), self.config.localizer), self.size)

    def stage(
        self,
        cohort: Cohort,
        training: Sequence[Grid],
        validation: Sequence[tuple[Scene, Grid]],
    ) -> Stage:
        """The stage that trains the crop on homogenized grids.

        The score is the mean intersection over union of the predicted boxes with the target boxes,
        over slices and patients; "covered" is the fraction of labelled pixels inside the widened
        boxes.

        Args:
            cohort: the cases.
            training: homogenized grids of the training cases, slice-wise.
            validation: network inputs and homogenized grids of the validation cases.
        """
        config = self.config
        targets = [
            target_boxes(subject, grid, config, cohort.target)
            for subject, grid in zip(cohort.training, training, strict=True)
        ]
        pairs = list(zip(cohort.validation, validation, strict=True))
        metrics = partial(self._case_metrics, cohort.target)

        def batch(step: TrainStep) -> _CropBatch:
            return self._batch(cohort, training, targets, step)

        def validate() -> dict[str, float]:
            overlaps, covered = zip(*shared_map(metrics, pairs), strict=True)
            return {
                "score": sum(overlaps) / len(overlaps),
                "covered": sum(covered) / len(covered),
            }

        return Stage(
            name="crop",
            net=self.net,
            config=config.stage,
            steps=config.stage.steps or steps_per_epoch(cohort.index, config.stage.batch_size),
            batch=batch,
            loss=self._loss,
            validate=validate,
        )

    def _batch(
        self, cohort: Cohort, grids: Sequence[Grid], targets: Sequence[Crop], step: TrainStep
    ) -> _CropBatch:
        drawn = draw(cohort.index, step, self.config.stage.batch_size)
        target = Crop(
            torch.stack([targets[case].centre[k] for case, k in drawn]),
            torch.stack([targets[case].half[k] for case, k in drawn]),
        )
        scene = Scene(
            image=Slices.of([subject.image for subject in cohort.training], drawn),
            masks=Slices.of(cohort.masks, drawn),
            start=drawn_grid(grids, drawn),
            scalings=cohort.scalings(drawn),
        )
        return _CropBatch(names=cohort.names(drawn), scene=scene, target=target)

    def _loss(self, called: nn.Module, batch: _CropBatch) -> dict[str, Tensor]:
        side = self.config.localizer.size
        scene, grid = batch.scene, batch.scene.start
        view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks)
        crop = crop_from(outputs_of(called, view), self.config.localizer)
        target = Crop(batch.target.centre.to(crop.centre), batch.target.half.to(crop.half))
        images = [
            as_input(
                sampled(scene.image, crop_grid(grid, box, side), fill=AIR_HU).data,
                scene.scalings,
            )
            for box in (crop, target)
        ]
        gathered = [all_gather(values) for values in (*images, crop.theta, target.theta)]
        return {"loss": crop_loss(*gathered)}

    def _case_metrics(
        self, target: Target, pair: tuple[Subject, tuple[Scene, Grid]]
    ) -> tuple[float, float]:
        """Overlap and covered fraction of a validation patient."""
        subject, (scene, grid) = pair
        config = self.config
        crop = self.boxes(scene, grid)
        overlap = float(_overlap(crop, target_boxes(subject, grid, config, target)).mean())
        wide = widened(crop, config.localizer)
        return overlap, _covered(subject, grid, wide, config.localizer.size, target)


@dataclass(frozen=True, kw_only=True, eq=False)
class _CropBatch:
    """A training batch of slices on their homogenized grids (`scene.start`), and target boxes."""

    names: tuple[str, ...]
    scene: Scene
    target: Crop

    def to(self, device: torch.device) -> _CropBatch:
        return replace(self, scene=self.scene.to(device))


def target_boxes(subject: Subject, grid: Grid, config: CropConfig, target: Target) -> Crop:
    """The target box in each slice of a homogenized grid; the full image without labels.

    Args:
        subject: a patient, with labels.
        grid: slice-wise.
        config: of the crop.
        target: whose labels count; others are background to the U-Net.
    """
    labels = _labels_on(subject, grid, config.localizer.size, target)
    union = crop_around(labels.any(0)[None], config.localizer)
    patient = Crop(union.centre.expand(len(labels), 2), union.half.expand(len(labels), 2))
    if config.target == "patient":
        return patient
    per_slice = crop_around(labels, config.localizer)
    if config.empty == "identity":
        return per_slice
    labelled = labels.flatten(1).any(1)[:, None]
    return Crop(
        torch.where(labelled, per_slice.centre, patient.centre),
        torch.where(labelled, per_slice.half, patient.half),
    )


def _labels_on(subject: Subject, grid: Grid, side: int, target: Target) -> Tensor:
    """(slices, side, side) bool: any label of the target."""
    resized = grid.resized((grid.shape[0], side, side))
    assert subject.labels is not None
    labels = resample(subject.labels, resized, mode="nearest").data[0].cpu()
    return torch.isin(labels, torch.tensor(target.learned, dtype=labels.dtype))


def _covered(subject: Subject, grid: Grid, crop: Crop, side: int, target: Target) -> float:
    """Fraction of the labelled pixels inside the boxes; 1 without labelled pixels."""
    labels = _labels_on(subject, grid, side, target)
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
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (2 * a.half).prod(-1) + (2 * b.half).prod(-1) - intersection
    return intersection / union
