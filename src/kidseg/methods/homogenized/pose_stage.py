"""The first spatial transformer: each slice brought to the reference's pose and size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.cohort.subject import Field, Subject, masks_at, sampled
from kidseg.config import PoseConfig
from kidseg.geometry import Grid, in_plane_pose, resample
from kidseg.intensity import AIR_HU, as_input
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.reference import MASKS, Reference, start_grid
from kidseg.methods.homogenized.registration import agreement, descended, looked_at
from kidseg.nets.stn import Pose, pose_from, pose_grid
from kidseg.plan import Plan
from kidseg.stage import Moment, Stage

__all__ = ["located", "outputs_of", "overlap", "pose_inputs", "pose_stage", "registered", "seen"]


def pose_inputs(config: PoseConfig) -> int:
    """Channels that the network sees: the image and the masks."""
    return 1 + MASKS[config.target]


def pose_stage(
    net: nn.Module, config: PoseConfig, cohort: Cohort, reference: Reference, size: int
) -> Stage:
    """How the pose is learned: by the overlap of masks with the reference's, without labels.

    Labels serve to pair slices with the reference's and to draw the batches. The score is the mean
    agreement over validation slices, mean over patients, as at inference.

    Args:
        net: the localisation network.
        config: of this stage.
        cohort: the cases.
        reference: already adopted.
        size: of the base grid.
    """
    starts = [start_grid(subject, config, reference, size) for subject in cohort.training]
    aims: list[Grid] = []
    if config.teacher:
        aims = registered(cohort.training, starts, config, reference)
    side, count = config.localizer.size, MASKS[config.target]

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        drawn = draw(cohort.index, now, config.stage.batch_size)
        chance = _chance(len(drawn), now)
        start = _picked(starts, drawn).resized((len(drawn), side, side))
        start = _jittered(start, config, chance[:, :5])
        view = seen(cohort, drawn, start, count, _fields(cohort, drawn, config, chance[:, 5:9]))
        flipped = chance[:, 9] > 0 if config.mirrored else torch.zeros(len(drawn)).bool()
        outputs = _turned_back(outputs_of(called, _flipped(view, flipped)), flipped)
        pose = pose_from(outputs, config.localizer)
        moved = _drawn_masks(cohort, drawn, pose_grid(start, pose), count)
        levels = [reference.level(cohort.training[case], k) for case, k in drawn]
        loss = 1.0 - agreement(moved, reference.targets(levels), config).mean()
        if not config.teacher:
            return {"loss": loss}
        off = _distance(pose, _picked(aims, drawn), start)
        return {"loss": loss + config.teacher * off, "overlap_loss": loss, "distance": off}

    def validate() -> dict[str, float]:
        found, overlaps = [], []
        for subject in cohort.validation:
            start = start_grid(subject, config, reference, size)
            grid = located(net, config, reference, subject, cohort.plan, size)
            overlaps.append(overlap(subject, grid, config, reference))
            found.append([_agreed(subject, g, config, reference) for g in (start, grid)])
        before, after = torch.tensor(found).mean(0).tolist()
        names = ("body", "bone")[:count]
        figures = torch.stack(overlaps).mean(0)
        return {
            "score": after,
            "start": before,
            **{name: float(value) for name, value in zip(names, figures, strict=True)},
        }

    return Stage(
        name="pose",
        net=net,
        config=config.stage,
        steps=config.stage.steps or steps_per_epoch(cohort.index, config.stage.batch_size),
        loss=loss,
        validate=validate,
    )


@torch.no_grad()
def located(
    net: nn.Module,
    config: PoseConfig,
    reference: Reference,
    subject: Subject,
    plan: Plan,
    size: int,
) -> Grid:
    """The homogenized grid of a scan: (slices, size, size), slice-wise.

    The network looks (with `mirrored` in a mirror, too), the grid is corrected, and it looks again.
    With `per` "volume" the correction is the median over the slices with a body, so that a patient
    is moved as one.
    """
    grid = start_grid(subject, config, reference, size)
    side, count = config.localizer.size, MASKS[config.target]
    device = reference.masks.device
    for _ in range(config.iterations):
        looked = grid.resized((grid.shape[0], side, side))
        image = as_input(resample(subject.image, looked, fill=AIR_HU).data, plan.channels)
        masks = masks_at(subject, looked).data[:count].transpose(0, 1)
        view = torch.cat([image, masks], dim=1).to(device)
        outputs = outputs_of(net, view).double().cpu()
        if config.mirrored:
            every = torch.ones(len(outputs), dtype=torch.bool)
            other = outputs_of(net, view.flip(-1)).double().cpu()
            outputs = (outputs + _turned_back(other, every)) / 2
        if config.per == "volume":
            there = masks[:, 0].flatten(1).any(1).cpu()
            kept = outputs[there] if bool(there.any()) else outputs
            outputs = kept.quantile(0.5, dim=0).expand_as(outputs)
        grid = pose_grid(grid, pose_from(outputs, config.localizer))
    return grid


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
    seen_on = grid.resized((grid.shape[0], side, side))
    masks = masks_at(subject, seen_on).data[:count].transpose(0, 1)[first : last + 1]
    return masks, reference.targets([reference.level(subject, k) for k in range(first, last + 1)])


def outputs_of(net: nn.Module, view: Tensor) -> Tensor:
    """A localisation network's outputs, in float32: an angle needs more than bfloat16 holds."""
    with torch.autocast(view.device.type, enabled=False):
        out: Tensor = net(view)
    return out


def seen(
    cohort: Cohort, drawn: Drawn, grid: Grid, count: int, fields: Sequence[Field | None] = ()
) -> Tensor:
    """(n, 1 + count, rows, columns): drawn images and masks on a grid, as localisers take them.

    `fields` are the parts of the slices that are in view, if not all is.
    """
    images = [subject.image for subject in cohort.training]
    hu = sampled(images, drawn, grid, fill=AIR_HU, fields=fields)
    found = _drawn_masks(cohort, drawn, grid, count, fields)
    return torch.cat([as_input(hu.data, cohort.plan.channels), found], 1)


def _drawn_masks(
    cohort: Cohort, drawn: Drawn, grid: Grid, count: int, fields: Sequence[Field | None] = ()
) -> Tensor:
    """(n, count, rows, columns) float 0..1, differentiable in the grid."""
    masks = [subject.masks for subject in cohort.training]
    return sampled(masks, drawn, grid, fields=fields).data[:count].transpose(0, 1) / 255.0


def _picked(grids: Sequence[Grid], drawn: Drawn) -> Grid:
    """The drawn slices of slice-wise grids, one of each case, all of one size."""
    matrices = torch.stack([grids[case].mm_from_index[k] for case, k in drawn])
    return Grid((len(drawn), *grids[0].shape[1:]), matrices)


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


def _chance(count: int, now: Moment) -> Tensor:
    """(count, 10) uniform in -1 .. 1: all that this process's part of a step leaves to chance."""
    words = np.random.SeedSequence([now.seed, now.epoch, now.step])
    drawn = np.random.default_rng(words).uniform(-1, 1, (count * now.world, 10))
    return torch.from_numpy(drawn[now.rank :: now.world])


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
        own = cohort.training[case].body_per_slice
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


def _flipped(view: Tensor, which: Tensor) -> Tensor:
    """Some of the views (n, channels, rows, columns) as in a mirror."""
    return torch.where(which[:, None, None, None].to(view.device), view.flip(-1), view)


def _turned_back(outputs: Tensor, which: Tensor) -> Tensor:
    """Outputs (n, `pose_outputs`), of mirrored views, as for the views themselves.

    In a mirror the angle and the sideways shift change their signs.
    """
    signs = torch.ones_like(outputs[0])
    signs[0], signs[-2] = -1.0, -1.0
    return torch.where(which[:, None].to(outputs.device), outputs * signs, outputs)
