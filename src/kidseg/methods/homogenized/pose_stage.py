"""The first spatial transformer: align each slice to the pose and size of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.cohort.batch import drawn_grid
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import draw, steps_per_epoch
from kidseg.cohort.subject import Subject
from kidseg.config import PoseConfig
from kidseg.distributed import shared_map
from kidseg.geometry import Grid, Slices, Volume, in_plane_pose
from kidseg.intensity import AIR_HU
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.field_of_view import cut_fields, fields_of_masks
from kidseg.methods.homogenized.reference import Reference, matched_levels, start_grid
from kidseg.methods.homogenized.registration import (
    agreement,
    best_agreement,
    minimize_pose,
    registration_slices,
)
from kidseg.methods.homogenized.scene import MASKS, Scene, masks_on, outputs_of
from kidseg.nets.stn import Pose, pose_from, pose_grid
from kidseg.stage import Stage, TrainStep

__all__ = ["PoseTransformer", "overall_agreement", "overlap", "register"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PoseTransformer:
    """The spatial transformer of the pose: localisation network, settings and reference.

    Attributes:
        net: the localisation network.
        config: of the pose.
        reference: the patient to align to.
        base: (subject) -> its base grid.
    """

    net: nn.Module
    config: PoseConfig
    reference: Reference
    base: Callable[[Subject], Grid]

    @property
    def masks(self) -> int:
        """Number of masks in the network's input, besides the image."""
        return MASKS[self.config.target]

    def start(self, subject: Subject) -> Grid:
        """The grid of a patient before the pose; see `start_grid`."""
        return start_grid(subject, self.base(subject), self.config, self.reference)

    def scene(self, subject: Subject) -> Scene:
        """The input of the transformers for a patient."""
        assert subject.masks is not None
        return Scene(
            image=subject.image,
            masks=subject.masks,
            start=self.start(subject),
            scalings=(subject.scalings,),
        )

    def locate(self, scene: Scene) -> Grid:
        """The homogenized grid: (slices, size, size), slice-wise; differentiable in the network.

        In each iteration the network predicts a correction of the grid (with `flip`, averaged
        with that of the flipped input). With `per` "volume" the correction is the median over the
        slices with a body, so that all slices of a patient move together; with `only_better`, the
        grid with the largest `overall_agreement` is returned, the start among them: exactly the
        start if no correction is better.
        """
        config, grid = self.config, scene.start
        chosen = config.only_better and config.per == "volume"
        best, most = grid, self._agreement(scene, grid) if chosen else 0.0
        for _ in range(config.iterations):
            outputs = self._outputs(scene, grid)
            grid = pose_grid(grid, pose_from(outputs, config.localizer))
            if chosen and (found := self._agreement(scene, grid)) > most:
                best, most = grid, found
        return best if chosen else grid

    def _outputs(self, scene: Scene, grid: Grid) -> Tensor:
        """(slices, `pose_outputs`) float64: the network's correction of a grid."""
        config, side = self.config, self.config.localizer.size
        device = self.reference.masks.device
        view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks).to(device)
        outputs = outputs_of(self.net, view).cpu().double()
        if config.flip:
            every = torch.ones(len(outputs), dtype=torch.bool)
            flipped = outputs_of(self.net, view.flip(-1)).cpu().double()
            outputs = (outputs + _unflip(flipped, every)) / 2
        if config.per == "volume":
            has_body = view[:, -self.masks].flatten(1).any(1).cpu()
            kept = outputs[has_body] if bool(has_body.any()) else outputs
            outputs = kept.quantile(0.5, dim=0).expand_as(outputs)
        return outputs

    def _agreement(self, scene: Scene, grid: Grid) -> float:
        assert isinstance(scene.masks, Volume), "slices of a batch are posed one by one"
        return overall_agreement(scene.masks, grid, self.config, self.reference)

    def stage(self, cohort: Cohort) -> Stage:
        """The stage that trains the pose on the overlap of masks with the reference's.

        Labels are used only to match slices with the reference's and to draw the batches;
        unlabelled cases train, too. The score
        is the mean agreement over validation slices, averaged over patients, as in inference;
        "kept" the share of the patients whose pose is not their start.
        """
        if self.config.unlabelled:
            cohort = replace(cohort, training=(*cohort.training, *cohort.unlabelled))
        starts = [self.start(subject) for subject in cohort.training]
        levels = [
            matched_levels(subject, start, self.config, self.reference)
            for subject, start in zip(cohort.training, starts, strict=True)
        ]
        targets: list[Grid] | None = None
        if self.config.teacher:
            targets = register(cohort.training, starts, self.config, self.reference)

        def batch(step: TrainStep) -> _PoseBatch:
            return self._batch(cohort, starts, levels, targets, step)

        def validate() -> dict[str, float]:
            cases = shared_map(self._case_metrics, cohort.validation)
            means = torch.tensor([list(case.values()) for case in cases]).mean(0).tolist()
            return dict(zip(cases[0], means, strict=True))

        config = self.config.stage
        return Stage(
            name="pose",
            net=self.net,
            config=config,
            steps=config.steps or steps_per_epoch(cohort.index, config.batch_size),
            batch=batch,
            loss=self._loss,
            validate=validate,
        )

    def _batch(
        self,
        cohort: Cohort,
        starts: Sequence[Grid],
        levels: Sequence[Sequence[int]],
        targets: Sequence[Grid] | None,
        step: TrainStep,
    ) -> _PoseBatch:
        config, side = self.config, self.config.localizer.size
        drawn = draw(cohort.index, step, config.stage.batch_size)
        uniform = _uniform(len(drawn), step)
        start = drawn_grid(starts, drawn).resized((len(drawn), side, side))
        fields = cut_fields(cohort, drawn, config, uniform[:, 5:9])
        masks = cohort.masks
        images = [subject.image for subject in cohort.training]
        return _PoseBatch(
            names=cohort.names(drawn),
            scene=Scene(
                image=Slices.of(images, drawn, fill=AIR_HU, fields=fields),
                masks=Slices.of(masks, drawn, fields=fields_of_masks(fields, cohort, drawn)),
                start=_jittered(start, config, uniform[:, :5]),
                scalings=[cohort.training[case].scalings for case, _ in drawn],
            ),
            masks=Slices.of(masks, drawn),
            flipped=(uniform[:, 9] > 0) & config.flip,
            levels=tuple(levels[case][k] for case, k in drawn),
            targets=None if targets is None else drawn_grid(targets, drawn),
        )

    def _loss(self, called: nn.Module, batch: _PoseBatch) -> dict[str, Tensor]:
        config, start = self.config, batch.scene.start
        view = _flip(batch.scene.view(start, self.masks), batch.flipped)
        outputs = _unflip(outputs_of(called, view), batch.flipped)
        pose = pose_from(outputs, config.localizer)
        moved = masks_on(batch.masks, pose_grid(start, pose), self.masks)
        overlaps = agreement(moved, self.reference.targets(batch.levels), config)
        loss = config.loss_scale * (1.0 - overlaps.mean())
        if batch.targets is None:
            return {"loss": loss}
        distance = _distance(pose, batch.targets, start)
        return {
            "loss": loss + config.teacher * distance,
            "overlap_loss": loss,
            "distance": distance,
        }

    def _case_metrics(self, subject: Subject) -> dict[str, float]:
        """Metrics of a validation patient."""
        scene = self.scene(subject)
        grid = self.locate(scene)
        before, after = (
            _mean_agreement(subject, place, self.config, self.reference)
            for place in (scene.start, grid)
        )
        by_mask = overlap(subject, grid, self.config, self.reference).tolist()
        return {
            "score": after,
            "start": before,
            "kept": float(not torch.equal(grid.mm_from_index, scene.start.mm_from_index)),
            **dict(zip(("body", "bone")[: self.masks], by_mask, strict=True)),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _PoseBatch:
    """A training batch of slices for the pose.

    Attributes:
        names: of the slices.
        scene: the network's input; image and masks may have a reduced field of view, and the start
            grid may be jittered.
        masks: complete masks for the loss, also outside the field of view.
        flipped: (n,) bool: whether the network's input is flipped.
        levels: matching levels of the reference; see `matched_levels`.
        targets: grids found by registration, if they supervise the network.
    """

    names: tuple[str, ...]
    scene: Scene
    masks: Slices
    flipped: Tensor
    levels: tuple[int, ...]
    targets: Grid | None

    def to(self, device: torch.device) -> _PoseBatch:
        return replace(self, scene=self.scene.to(device), masks=self.masks.to(device))


def register(
    subjects: Sequence[Subject], starts: Sequence[Grid], config: PoseConfig, reference: Reference
) -> list[Grid]:
    """Register patients' masks to the reference's; the grids with the best agreement.

    Optimises `agreement` over one pose per patient, on a subset of the labelled slices. Returns the
    start grid if no better pose is found.

    Args:
        subjects: patients; see `matched_levels`.
        starts: initial grid of each, slice-wise.
        config: of the pose.
        reference: set to a patient.
    """
    targets = []
    for subject, start in zip(subjects, starts, strict=True):
        levels = matched_levels(subject, start, config, reference)
        targets.append(reference.targets([levels[k] for k in registration_slices(subject)]))

    def loss(masks: Tensor, target: Tensor) -> Tensor:
        return 1.0 - agreement(masks, target, config)

    return minimize_pose(subjects, starts, targets, config.localizer, MASKS[config.target], loss)


@torch.no_grad()
def overall_agreement(masks: Volume, grid: Grid, config: PoseConfig, reference: Reference) -> float:
    """0..1: mean `best_agreement` over the slices with a body; needs no labels. 1 without a body.

    Args:
        masks: of a patient.
        grid: slice-wise, on the same slices.
        config: of the pose.
        reference: set to a patient.
    """
    has_body = (masks.data[0] > 0).flatten(1).any(1)
    if not bool(has_body.any()):
        return 1.0
    side, levels = config.localizer.size, reference.targets(range(len(reference.masks)))
    own = masks_on(masks, grid.resized((grid.shape[0], side, side)), levels.shape[1])
    return float(best_agreement(own[has_body].to(levels.device), levels, config).mean())


def overlap(subject: Subject, grid: Grid, config: PoseConfig, reference: Reference) -> Tensor:
    """(masks,) mean soft Dice with the reference over the labelled slices, or all if unlabelled."""
    masks, target = _labelled_masks(subject, grid, config, reference)
    return soft_dice(masks, target).mean(0).cpu()


def _mean_agreement(
    subject: Subject, grid: Grid, config: PoseConfig, reference: Reference
) -> float:
    masks, target = _labelled_masks(subject, grid, config, reference)
    return float(agreement(masks, target, config).mean())


def _labelled_masks(
    subject: Subject, grid: Grid, config: PoseConfig, reference: Reference
) -> tuple[Tensor, Tensor]:
    """Masks of the labelled slices on a grid and the reference's, (n, masks, size, size) each."""
    side, count = config.localizer.size, MASKS[config.target]
    first, last = subject.labelled_or_all
    rows = range(first, last + 1)
    input_grid = drawn_grid([grid.slicewise()], [(0, k) for k in rows])
    input_grid = input_grid.resized((len(rows), side, side))
    assert subject.masks is not None
    masks = masks_on(Slices.of([subject.masks], [(0, k) for k in rows]), input_grid, count)
    target = reference.targets([reference.level(subject, k) for k in rows])
    return masks.to(target.device), target


def _distance(pose: Pose, target: Grid, start: Grid) -> Tensor:
    """Mean absolute difference between poses and those that map `start` to `target`.

    The sum of the differences in angle (radians), scales (logarithms) and shifts (half images).
    """
    true_pose = in_plane_pose(target, start)
    half_mm = start.spacing_mm[:, 1:].flip(-1) * start.shape[2] / 2
    differences = (
        pose.angle_rad - true_pose.angle_rad.to(pose.angle_rad),
        pose.scale.log() - true_pose.scale.log().to(pose.scale),
        pose.shift - (true_pose.shift_mm / half_mm).to(pose.shift),
    )
    return torch.stack([difference.abs().mean() for difference in differences]).sum()


def _uniform(count: int, step: TrainStep) -> Tensor:
    """(count, 10) uniform in -1 .. 1: all random numbers of this process's share of a step."""
    random = np.random.default_rng([step.seed, step.epoch, step.step])
    values = random.uniform(-1, 1, (count * step.world, 10))
    return torch.from_numpy(values[step.rank :: step.world])


def _jittered(start: Grid, config: PoseConfig, uniform: Tensor) -> Grid:
    """The start grid, randomly rotated, scaled and shifted, for the network to correct."""
    if not any((config.jitter_deg, config.jitter_scale, config.jitter_shift)):
        return start
    pose = Pose(
        angle_rad=uniform[:, 0] * math.radians(config.jitter_deg),
        scale=torch.exp(uniform[:, 1:3] * config.jitter_scale),
        shift=uniform[:, 3:5] * config.jitter_shift,
    )
    return pose_grid(start, pose)


def _flip(view: Tensor, flipped: Tensor) -> Tensor:
    """Flip the selected views (n, channels, rows, columns) left to right."""
    return torch.where(flipped[:, None, None, None].to(view.device), view.flip(-1), view)


def _unflip(outputs: Tensor, flipped: Tensor) -> Tensor:
    """Convert outputs (n, `pose_outputs`) of flipped views to those of the original views.

    A flip changes the signs of the angle and of the sideways shift.
    """
    signs = torch.ones_like(outputs[0])
    signs[0], signs[-2] = -1.0, -1.0
    return torch.where(flipped[:, None].to(outputs.device), outputs * signs, outputs)
