"""The first spatial transformer: each slice brought to the reference's pose and size."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.config import PoseConfig
from kidseg.geometry import Grid, in_plane_pose, resample
from kidseg.losses import pose_loss, soft_dice
from kidseg.methods.cohort import Cohort
from kidseg.methods.reference import MASKS, Reference, start_grid
from kidseg.methods.segmentation import join, slices_of
from kidseg.methods.subject import Subject, as_input, gather, masks_at
from kidseg.nets.stn import Pose, pose_from, pose_grid
from kidseg.pipeline import AIR_HU
from kidseg.plan import Plan
from kidseg.sampling import Drawn, draw, steps_per_epoch
from kidseg.stage import Moment, Stage

__all__ = ["located", "outputs_of", "overlap", "pose_inputs", "pose_stage", "registered", "seen"]

# Registration: slices, steps and step length (radians, logarithms and half images alike).
_REGISTERED_SLICES = 12
_REGISTRATION_STEPS = 80
_REGISTRATION_RATE = 0.01


def pose_inputs(config: PoseConfig) -> int:
    """Channels that the network sees: the image and the masks."""
    return 1 + MASKS[config.target]


def pose_stage(
    net: nn.Module, config: PoseConfig, cohort: Cohort, reference: Reference, size: int
) -> Stage:
    """How the pose is learned: by the overlap of masks with the reference's, without labels.

    Labels serve to pair slices with the reference's and to draw the batches. The score is the mean
    soft Dice of the masks over validation slices, mean over patients, as at inference.

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
        pairs = zip(cohort.training, starts, strict=True)
        aims = [registered(subject, start, config, reference) for subject, start in pairs]
    side, count = config.localizer.size, MASKS[config.target]

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        drawn = draw(cohort.index, now, config.stage.batch_size)
        start = join([starts[case].slices(k, k + 1) for case, k in drawn])
        start = _jittered(start.resized((len(drawn), side, side)), config, now)
        outputs = outputs_of(called, seen(cohort, drawn, start, count))
        pose = pose_from(outputs, config.localizer)
        moved = _drawn_masks(cohort, drawn, pose_grid(start, pose), count)
        levels = [reference.level(cohort.training[case], k) for case, k in drawn]
        loss = pose_loss(moved, reference.targets(levels))
        if not config.teacher:
            return {"loss": loss}
        aim = join([aims[case].slices(k, k + 1) for case, k in drawn])
        off = _distance(pose, aim, start)
        return {"loss": loss + config.teacher * off, "overlap_loss": loss, "distance": off}

    def validate() -> dict[str, float]:
        before, after = [], []
        for subject in cohort.validation:
            start = start_grid(subject, config, reference, size)
            before.append(overlap(subject, start, config, reference))
            grid = located(net, config, reference, subject, cohort.plan, size)
            after.append(overlap(subject, grid, config, reference))
        figures = torch.stack(after).mean(0)
        names = ("body", "bone")[:count]
        return {
            "score": float(figures.mean()),
            "start": float(torch.stack(before).mean()),
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

    The network looks, the grid is corrected, and it looks again. With `per` "volume" the correction
    is the median over the slices with a body, so that a patient is moved as one.
    """
    grid = start_grid(subject, config, reference, size)
    side, count = config.localizer.size, MASKS[config.target]
    device = reference.masks.device
    for _ in range(config.iterations):
        looked = grid.resized((grid.shape[0], side, side))
        image = as_input(resample(subject.image, looked, fill=AIR_HU).data, plan)
        masks = masks_at(subject, looked).data[:count].transpose(0, 1)
        view = torch.cat([image, masks], dim=1).to(device)
        outputs = outputs_of(net, view).double().cpu()
        if config.per == "volume":
            there = masks[:, 0].flatten(1).any(1).cpu()
            kept = outputs[there] if bool(there.any()) else outputs
            outputs = kept.median(0).values.expand_as(outputs)
        grid = pose_grid(grid, pose_from(outputs, config.localizer))
    return grid


def registered(subject: Subject, start: Grid, config: PoseConfig, reference: Reference) -> Grid:
    """The grid, like `start`, on which a patient's masks overlap best with the reference's.

    One pose for all slices, by gradient descent on `pose_loss` over some of the labelled slices;
    `start` itself if nothing better is found.

    Args:
        subject: a patient; its labels tell which heights belong together.
        start: slice-wise.
        config: of the pose.
        reference: already adopted.
    """
    first, last = subject.labelled_or_all
    rows = sorted({round(k) for k in np.linspace(first, last, _REGISTERED_SLICES).tolist()})
    side, count = config.localizer.size, MASKS[config.target]
    grid = join([start.slices(k, k + 1) for k in rows]).resized((len(rows), side, side))
    sources = [subject.masks.slices(k, k + 1) for k in rows]
    aim = reference.targets([reference.level(subject, k) for k in rows])
    free = torch.zeros(2 + config.localizer.scales + 1, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([free], lr=_REGISTRATION_RATE)
    best, least = free.detach().clone(), math.inf
    with torch.enable_grad():
        for _ in range(_REGISTRATION_STEPS):
            pose = pose_from(free.expand(len(rows), -1), config.localizer)
            moved = gather(sources, pose_grid(grid, pose)).data[:count].transpose(0, 1) / 255.0
            loss = pose_loss(moved, aim)
            if float(loss.detach()) < least:
                best, least = free.detach().clone(), float(loss.detach())
            descent.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            descent.step()
    return pose_grid(start, pose_from(best.expand(start.shape[0], -1), config.localizer))


def overlap(subject: Subject, grid: Grid, config: PoseConfig, reference: Reference) -> Tensor:
    """(masks,) mean soft Dice with the reference over the labelled slices (all, if none is)."""
    side, count = config.localizer.size, MASKS[config.target]
    first, last = subject.labelled_or_all
    seen_on = grid.resized((grid.shape[0], side, side))
    masks = masks_at(subject, seen_on).data[:count].transpose(0, 1)[first : last + 1]
    levels = [reference.level(subject, k) for k in range(first, last + 1)]
    return soft_dice(masks, reference.targets(levels)).mean(0).cpu()


def outputs_of(net: nn.Module, view: Tensor) -> Tensor:
    """A localisation network's outputs, in float32: an angle needs more than bfloat16 holds."""
    with torch.autocast(view.device.type, enabled=False):
        out: Tensor = net(view)
    return out


def seen(cohort: Cohort, drawn: Drawn, grid: Grid, count: int) -> Tensor:
    """(n, 1 + count, rows, columns): drawn images and masks on a grid, as localisers take them."""
    hu = gather(slices_of(cohort.training, drawn), grid, fill=AIR_HU)
    return torch.cat([as_input(hu.data, cohort.plan), _drawn_masks(cohort, drawn, grid, count)], 1)


def _drawn_masks(cohort: Cohort, drawn: Drawn, grid: Grid, count: int) -> Tensor:
    """(n, count, rows, columns) float 0..1, differentiable in the grid."""
    sources = slices_of(cohort.training, drawn, lambda subject: subject.masks)
    return gather(sources, grid).data[:count].transpose(0, 1) / 255.0


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


def _jittered(start: Grid, config: PoseConfig, now: Moment) -> Grid:
    """The start turned, scaled and shifted at random: what the network is to correct."""
    limits = (config.jitter_deg, config.jitter_scale, config.jitter_shift)
    if not any(limits):
        return start
    count = start.shape[0] * now.world
    words = np.random.SeedSequence([now.seed, now.epoch, now.step])
    drawn = np.random.default_rng(words).uniform(-1, 1, (count, 5))[now.rank :: now.world]
    angle, size, shift = (
        torch.from_numpy(drawn[:, part]) for part in (0, slice(1, 3), slice(3, 5))
    )
    pose = Pose(
        angle_rad=angle * math.radians(config.jitter_deg),
        scale=torch.exp(size * config.jitter_scale),
        shift=shift * config.jitter_shift,
    )
    return pose_grid(start, pose)
