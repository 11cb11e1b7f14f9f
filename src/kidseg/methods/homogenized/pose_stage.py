"""The first spatial transformer: each slice brought to the reference's pose and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.cohort.batch import drawn_grid
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.cohort.subject import Subject
from kidseg.config import PoseConfig
from kidseg.distributed import shared_map
from kidseg.geometry import Field, Grid, Slices, in_plane_pose
from kidseg.intensity import AIR_HU
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.reference import Reference, start_grid
from kidseg.methods.homogenized.registration import agreement, descended, looked_at
from kidseg.methods.homogenized.scene import MASKS, Scene, masks_on, outputs_of
from kidseg.nets.stn import Pose, pose_from, pose_grid
from kidseg.stage import Stage, TrainStep

__all__ = ["PoseTransformer", "overlap", "registered"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PoseTransformer:
    """The localisation network of the pose, and all that it takes to use it.

    Attributes:
        net: the network.
        config: of the pose.
        reference: whose pose and size are aimed at.
        base: (subject) -> its base grid.
    """

    net: nn.Module
    config: PoseConfig
    reference: Reference
    base: Callable[[Subject], Grid]

    @property
    def masks(self) -> int:
        """Masks that the network sees beside the image."""
        return MASKS[self.config.target]

    def start(self, subject: Subject) -> Grid:
        """Where a patient's pose is sought from; see `start_grid`."""
        return start_grid(subject, self.base(subject), self.config, self.reference)

    def scene(self, subject: Subject) -> Scene:
        """A patient, as the transformers look at it."""
        assert subject.masks is not None
        return Scene(
            image=subject.image,
            masks=subject.masks,
            start=self.start(subject),
            scalings=(subject.scalings,),
        )

    def locate(self, scene: Scene) -> Grid:
        """The homogenized grid: (slices, size, size), slice-wise; differentiable in the network.

        The network looks (with `mirrored` in a mirror, too), the grid is corrected, and it looks
        again. With `per` "volume" the correction is the median over the slices with a body, so that
        a patient is moved as one.
        """
        config, grid = self.config, scene.start
        side = config.localizer.size
        device = self.reference.masks.device
        for _ in range(config.iterations):
            view = scene.view(grid.resized((grid.shape[0], side, side)), self.masks).to(device)
            outputs = outputs_of(self.net, view).cpu().double()
            if config.mirrored:
                every = torch.ones(len(outputs), dtype=torch.bool)
                other = outputs_of(self.net, view.flip(-1)).cpu().double()
                outputs = (outputs + _mirrored_back(other, every)) / 2
            if config.per == "volume":
                there = view[:, -self.masks].flatten(1).any(1).cpu()
                kept = outputs[there] if bool(there.any()) else outputs
                outputs = kept.quantile(0.5, dim=0).expand_as(outputs)
            grid = pose_grid(grid, pose_from(outputs, config.localizer))
        return grid

    def stage(self, cohort: Cohort) -> Stage:
        """How the pose is learned: by the overlap of masks with the reference's, without labels.

        Labels serve to pair slices with the reference's and to draw the batches. The score is the
        mean agreement over validation slices, mean over patients, as at inference.
        """
        starts = [self.start(subject) for subject in cohort.training]
        aims: list[Grid] | None = None
        if self.config.teacher:
            aims = registered(cohort.training, starts, self.config, self.reference)

        def batch(step: TrainStep) -> _PoseBatch:
            return self._batch(cohort, starts, aims, step)

        def validate() -> dict[str, float]:
            found = shared_map(self._figures, cohort.validation)
            means = torch.tensor([list(one.values()) for one in found]).mean(0).tolist()
            return dict(zip(found[0], means, strict=True))

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
        self, cohort: Cohort, starts: Sequence[Grid], aims: Sequence[Grid] | None, step: TrainStep
    ) -> _PoseBatch:
        config, side = self.config, self.config.localizer.size
        drawn = draw(cohort.index, step, config.stage.batch_size)
        chance = _chance(len(drawn), step)
        start = drawn_grid(starts, drawn).resized((len(drawn), side, side))
        fields = _fields(cohort, drawn, config, chance[:, 5:9])
        masks = cohort.masks
        images = [subject.image for subject in cohort.training]
        return _PoseBatch(
            names=cohort.names(drawn),
            scene=Scene(
                image=Slices.of(images, drawn, fill=AIR_HU, fields=fields),
                masks=Slices.of(masks, drawn, fields=_coarser(fields, cohort, drawn)),
                start=_jittered(start, config, chance[:, :5]),
                scalings=[cohort.training[case].scalings for case, _ in drawn],
            ),
            masks=Slices.of(masks, drawn),
            mirrored=(chance[:, 9] > 0) & config.mirrored,
            levels=tuple(self.reference.level(cohort.training[case], k) for case, k in drawn),
            aims=None if aims is None else drawn_grid(aims, drawn),
        )

    def _loss(self, called: nn.Module, batch: _PoseBatch) -> dict[str, Tensor]:
        config, start = self.config, batch.scene.start
        view = _mirrored(batch.scene.view(start, self.masks), batch.mirrored)
        outputs = _mirrored_back(outputs_of(called, view), batch.mirrored)
        pose = pose_from(outputs, config.localizer)
        moved = masks_on(batch.masks, pose_grid(start, pose), self.masks)
        loss = 1.0 - agreement(moved, self.reference.targets(batch.levels), config).mean()
        if batch.aims is None:
            return {"loss": loss}
        off = _distance(pose, batch.aims, start)
        return {"loss": loss + config.teacher * off, "overlap_loss": loss, "distance": off}

    def _figures(self, subject: Subject) -> dict[str, float]:
        """Of a validation patient."""
        scene = self.scene(subject)
        grid = self.locate(scene)
        before, after = (
            _agreed(subject, place, self.config, self.reference) for place in (scene.start, grid)
        )
        own = overlap(subject, grid, self.config, self.reference).tolist()
        return {
            "score": after,
            "start": before,
            **dict(zip(("body", "bone")[: self.masks], own, strict=True)),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _PoseBatch:
    """Slices as the network sees them, and their masks whole for the loss.

    Attributes:
        names: of the slices.
        scene: what the network sees, from the start that it is to correct.
        masks: all of them, also outside of the field in view.
        mirrored: (n,) bool: which are seen in a mirror.
        levels: of the reference, that they meet.
        aims: the grids that registration found, if it teaches.
    """

    names: tuple[str, ...]
    scene: Scene
    masks: Slices
    mirrored: Tensor
    levels: tuple[int, ...]
    aims: Grid | None

    def to(self, device: torch.device) -> _PoseBatch:
        return replace(self, scene=self.scene.to(device), masks=self.masks.to(device))


def registered(
    subjects: Sequence[Subject], starts: Sequence[Grid], config: PoseConfig, reference: Reference
) -> list[Grid]:
    """The grids, like `starts`, on which patients' masks agree best with the reference's.

    One pose for all slices of a patient, by descent on `agreement` over some of the labelled
    slices; the start itself if nothing better is found.

    Args:
        subjects: patients; their labels tell which heights belong together.
        starts: of each, slice-wise.
        config: of the pose.
        reference: already adopted.
    """
    aims = [
        reference.targets([reference.level(subject, k) for k in looked_at(subject)])
        for subject in subjects
    ]

    def loss(masks: Tensor, aim: Tensor) -> Tensor:
        return 1.0 - agreement(masks, aim, config)

    return descended(subjects, starts, aims, config.localizer, MASKS[config.target], loss)


def overlap(subject: Subject, grid: Grid, config: PoseConfig, reference: Reference) -> Tensor:
    """(masks,) mean soft Dice with the reference over the labelled slices (all, if none is)."""
    masks, aim = _labelled_masks(subject, grid, config, reference)
    return soft_dice(masks, aim).mean(0).cpu()


def _agreed(subject: Subject, grid: Grid, config: PoseConfig, reference: Reference) -> float:
    masks, aim = _labelled_masks(subject, grid, config, reference)
    return float(agreement(masks, aim, config).mean())


def _labelled_masks(
    subject: Subject, grid: Grid, config: PoseConfig, reference: Reference
) -> tuple[Tensor, Tensor]:
    """(n, masks, size, size) of the labelled slices on a grid, and the reference's."""
    side, count = config.localizer.size, MASKS[config.target]
    first, last = subject.labelled_or_all
    rows = range(first, last + 1)
    seen_on = drawn_grid([grid.slicewise()], [(0, k) for k in rows]).resized(
        (len(rows), side, side)
    )
    assert subject.masks is not None
    masks = masks_on(Slices.of([subject.masks], [(0, k) for k in rows]), seen_on, count)
    aim = reference.targets([reference.level(subject, k) for k in rows])
    return masks.to(aim.device), aim


def _distance(pose: Pose, aim: Grid, start: Grid) -> Tensor:
    """Mean distance of poses upon `start` from those that would lead to `aim`.

    The sum of those of angle (radians), scales (logarithms) and shifts (half images).
    """
    wanted = in_plane_pose(aim, start)
    half_mm = start.spacing_mm[:, 1:].flip(-1) * start.shape[2] / 2
    parts = (
        pose.angle_rad - wanted.angle_rad.to(pose.angle_rad),
        pose.scale.log() - wanted.scale.log().to(pose.scale),
        pose.shift - (wanted.shift_mm / half_mm).to(pose.shift),
    )
    return torch.stack([part.abs().mean() for part in parts]).sum()


def _chance(count: int, step: TrainStep) -> Tensor:
    """(count, 10) uniform in -1 .. 1: all that this process's part of a step leaves to chance."""
    words = np.random.SeedSequence([step.seed, step.epoch, step.step])
    drawn = np.random.default_rng(words).uniform(-1, 1, (count * step.world, 10))
    return torch.from_numpy(drawn[step.rank :: step.world])


def _jittered(start: Grid, config: PoseConfig, chance: Tensor) -> Grid:
    """The start turned, scaled and shifted at random: what the network is to correct."""
    if not any((config.jitter_deg, config.jitter_scale, config.jitter_shift)):
        return start
    pose = Pose(
        angle_rad=chance[:, 0] * math.radians(config.jitter_deg),
        scale=torch.exp(chance[:, 1:3] * config.jitter_scale),
        shift=chance[:, 3:5] * config.jitter_shift,
    )
    return pose_grid(start, pose)


def _fields(cohort: Cohort, drawn: Drawn, config: PoseConfig, chance: Tensor) -> list[Field | None]:
    """A field of view that cuts the body on one or more sides, for a share of the slices."""
    fields: list[Field | None] = []
    for (case, k), (which, *u) in zip(drawn, chance.tolist(), strict=True):
        body = cohort.training[case].body
        assert body is not None
        own = body.per_slice
        if (which + 1) / 2 >= config.cut or not bool(own.radii_mm[k].isfinite().all()):
            fields.append(None)
            continue
        grid = cohort.training[case].image.grid
        _, rows, columns = grid.shape
        _, dy, dx = grid.spacing_mm.tolist()
        x, y = (own.centre_mm[k] / torch.tensor([dx, dy])).tolist()
        reach = (own.radii_mm[k] / torch.tensor([dx, dy])).tolist()
        # By up to a third of a half-axis on the left or right, and on the other side or in front.
        left, right, front = (
            reach[n] * (1.0 + 0.33 * v) for n, v in ((0, u[0]), (0, u[1]), (1, u[2]))
        )
        fields.append(
            (
                max(0, round(rows / 2 + y - front)),
                rows,
                max(0, round(columns / 2 + x - left)),
                min(columns, round(columns / 2 + x + right)),
            )
        )
    return fields


def _coarser(fields: Sequence[Field | None], cohort: Cohort, drawn: Drawn) -> list[Field | None]:
    """Fields of images as those of their masks, whose pixels may be larger."""
    out: list[Field | None] = []
    for field, (case, _) in zip(fields, drawn, strict=True):
        subject = cohort.training[case]
        assert subject.masks is not None
        ratio = float(subject.masks.grid.spacing_mm[2] / subject.image.grid.spacing_mm[2])
        top, bottom, left, right = (round(n / ratio) for n in field or (0, 0, 0, 0))
        if field is not None:  # the last block of pixels may reach beyond the image
            _, rows, columns = subject.image.grid.shape
            _, most_rows, most_columns = subject.masks.grid.shape
            bottom = most_rows if field[1] == rows else bottom
            right = most_columns if field[3] == columns else right
        out.append(None if field is None else (top, bottom, left, right))
    return out


def _mirrored(view: Tensor, which: Tensor) -> Tensor:
    """Some of the views (n, channels, rows, columns) as in a mirror."""
    return torch.where(which[:, None, None, None].to(view.device), view.flip(-1), view)


def _mirrored_back(outputs: Tensor, which: Tensor) -> Tensor:
    """Outputs (n, `pose_outputs`), of mirrored views, as for the views themselves.

    In a mirror the angle and the sideways shift change their signs.
    """
    signs = torch.ones_like(outputs[0])
    signs[0], signs[-2] = -1.0, -1.0
    return torch.where(which[:, None].to(outputs.device), outputs * signs, outputs)
