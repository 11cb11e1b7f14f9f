"""Registration of masks, by gradient descent on the pose: what the pose network is taught by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kidseg.cohort.subject import Subject
from kidseg.config import LocalizerConfig, PoseConfig
from kidseg.geometry import Grid, Slices
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.scene import masks_on
from kidseg.nets.stn import pose_from, pose_grid, pose_outputs

__all__ = ["agreement", "descended", "looked_at", "mirrored", "upright"]

Loss = Callable[[Tensor, Tensor], Tensor]

# Slices that are looked at, steps and first step length (radians, logarithms, half images alike).
_SLICES = 12
_STEPS = 60
_RATE = 0.02
# Patients registered at once: as many as spare the overhead without filling the memory.
_AT_ONCE = 8


def agreement(masks: Tensor, aim: Tensor, config: PoseConfig) -> Tensor:
    """(n,) 0..1: how well masks lie on the reference's, and how upright they lie.

    The weighted mean of the soft Dice of the body with the reference's (weight 1), of the bone with
    the reference's (`config.bone`), and of the masks with their own mirror image
    (`config.symmetry`): a trunk and its skeleton are nearly symmetric, so only an upright one
    covers it, however round the body is and however the ribs of two patients differ.

    Args:
        masks: (n, masks, rows, columns) on their pose grids.
        aim: the reference's, the same shape.
        config: of the pose.
    """
    found = soft_dice(masks, aim)
    total, weight = found[:, 0], 1.0
    if found.shape[1] > 1:
        total, weight = total + config.bone * found[:, 1], weight + config.bone
    if config.symmetry:
        total, weight = total + config.symmetry * mirrored(masks), weight + config.symmetry
    return total / weight


def mirrored(masks: Tensor) -> Tensor:
    """(n,) soft Dice of (n, masks, rows, columns) with their mirror image, mean over masks."""
    return soft_dice(masks, masks.flip(-1)).mean(1)


def looked_at(subject: Subject) -> list[int]:
    """Slices that registration looks at: evenly over the labelled ones, or over all."""
    first, last = subject.labelled_or_all
    return sorted({round(k) for k in np.linspace(first, last, _SLICES).tolist()})


def upright(subject: Subject, start: Grid, config: PoseConfig, count: int) -> Grid:
    """The grid, like `start`, turned and moved sideways to where the masks mirror themselves best.

    Args:
        subject: a patient.
        start: slice-wise.
        config: of the pose.
        count: masks that are looked at.
    """
    free = torch.zeros(pose_outputs(config.localizer), dtype=torch.float64)
    free[0], free[-2] = 1.0, 1.0
    aims = [torch.zeros(())]

    def loss(masks: Tensor, _: Tensor) -> Tensor:
        return 1.0 - mirrored(masks)

    return descended([subject], [start], aims, config.localizer, count, loss, free)[0]


def descended(
    subjects: Sequence[Subject],
    starts: Sequence[Grid],
    aims: Sequence[Tensor],
    localizer: LocalizerConfig,
    count: int,
    loss: Loss,
    free: Tensor | None = None,
) -> list[Grid]:
    """The grids, like `starts`, at the least loss that Adam finds from there: a pose per patient.

    Args:
        subjects: patients.
        starts: of each, slice-wise.
        aims: of each, (slices looked at, masks, size, size); or () if the loss needs none.
        localizer: for the size at which is looked and the limits of a pose.
        count: masks that are looked at.
        loss: ((n, masks, size, size), aims) to (n,).
        free: which of the numbers of a pose may change, 1 or 0; all by default.
    """
    grids: list[Grid] = []
    for first in range(0, len(subjects), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        found = _descended(subjects[part], starts[part], aims[part], localizer, count, loss, free)
        for start, numbers in zip(starts[part], found, strict=True):
            pose = pose_from(numbers.expand(start.shape[0], -1), localizer)
            grids.append(pose_grid(start, pose))
    return grids


def _descended(
    subjects: Sequence[Subject],
    starts: Sequence[Grid],
    aims: Sequence[Tensor],
    localizer: LocalizerConfig,
    count: int,
    loss: Loss,
    free: Tensor | None,
) -> Tensor:
    """(patients, `pose_outputs`) of the least loss; zeros if nothing is better than the start."""
    rows = [looked_at(subject) for subject in subjects]
    owner = torch.tensor([n for n, own in enumerate(rows) for _ in own])
    side = localizer.size
    pairs = [(n, k) for n, own in enumerate(rows) for k in own]
    places = torch.stack([starts[n].mm_from_index[k] for n, k in pairs])
    grid = Grid((len(pairs), *starts[0].shape[1:]), places).resized((len(pairs), side, side))
    known = [subject.masks for subject in subjects if subject.masks is not None]
    seen = Slices.of(known, pairs)
    aim = torch.cat(list(aims)) if aims[0].ndim else aims[0]
    numbers = torch.zeros(len(subjects), pose_outputs(localizer), dtype=torch.float64)
    numbers.requires_grad_()
    descent = torch.optim.Adam([numbers], lr=_RATE)
    best = numbers.detach().clone()
    least = torch.full((len(subjects),), torch.inf, dtype=torch.float64)
    slices = torch.bincount(owner, minlength=len(subjects))
    with torch.enable_grad():
        for step in range(_STEPS):
            for group in descent.param_groups:
                group["lr"] = _RATE * (1 - step / _STEPS) ** 0.9
            moved = pose_grid(grid, pose_from(numbers[owner], localizer))
            masks = masks_on(seen, moved, count)
            each = loss(masks.to(aim.device), aim).double().cpu()
            mean = torch.zeros_like(least).index_add(0, owner, each) / slices
            better = mean.detach() < least
            best = torch.where(better[:, None], numbers.detach(), best)
            least = torch.where(better, mean.detach(), least)
            descent.zero_grad()
            mean.sum().backward()  # type: ignore[no-untyped-call]
            if free is not None:
                assert numbers.grad is not None
                numbers.grad.mul_(free)
            descent.step()
    return best
