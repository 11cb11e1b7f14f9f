"""Register masks by gradient descent on the pose; the result supervises the pose network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kidseg.cohort.subject import Subject
from kidseg.config import LocalizerConfig, PoseConfig
from kidseg.geometry import Grid, Slices
from kidseg.losses import SMOOTH, soft_dice
from kidseg.methods.homogenized.scene import masks_on
from kidseg.nets.stn import pose_from, pose_grid, pose_outputs

__all__ = [
    "agreement",
    "best_agreement",
    "best_levels",
    "flip_symmetry",
    "minimize_pose",
    "registration_slices",
    "upright",
]

Loss = Callable[[Tensor, Tensor], Tensor]

# Slices per patient, optimizer steps, and initial learning rate (the same for radians, logarithms
# and half images).
_SLICES = 12
_STEPS = 60
_RATE = 0.02
# Patients per batch: enough to hide the overhead, few enough for the memory.
_BATCH_SIZE = 8


def agreement(masks: Tensor, reference: Tensor, config: PoseConfig) -> Tensor:
    """(n,) 0..1: how well masks agree with the reference's, and how symmetric they are.

    The weighted mean of the soft Dice of the body with the reference's (weight 1), of the bone with
    the reference's (`config.bone`), and of the masks with their flipped image (`config.symmetry`).
    A trunk and its skeleton are nearly symmetric, so the last term is largest in an upright pose,
    however round the body is and however the ribs of two patients differ.

    Args:
        masks: (n, masks, rows, columns) on their pose grids.
        reference: masks of the reference, the same shape.
        config: of the pose.
    """
    symmetry = flip_symmetry(masks) if config.symmetry else None
    return _weighted(soft_dice(masks, reference), symmetry, config)


def best_agreement(masks: Tensor, levels: Tensor, config: PoseConfig) -> Tensor:
    """(n,) 0..1: `agreement` with that level of the reference with which it is largest.

    For slices whose height in the body is unknown, as that of every scan before its segmentation.

    Args:
        masks: (n, masks, rows, columns) on their pose grids.
        levels: (levels, masks, rows, columns) of the reference.
        config: of the pose.
    """
    return _agreements(masks, levels, config).amax(1)


def best_levels(masks: Tensor, levels: Tensor, config: PoseConfig) -> list[int]:
    """The levels with `best_agreement`; see there."""
    return [int(level) for level in _agreements(masks, levels, config).argmax(1)]


def _agreements(masks: Tensor, levels: Tensor, config: PoseConfig) -> Tensor:
    """(n, levels): `agreement` of each slice with each level."""
    symmetry = flip_symmetry(masks)[:, None] if config.symmetry else None
    own, known = masks.flatten(2), levels.to(masks).flatten(2)
    overlap = torch.einsum("nmp,lmp->nlm", own, known)
    total = own.square().sum(2)[:, None] + known.square().sum(2)
    dice = (2.0 * overlap + SMOOTH) / (total + SMOOTH)
    return _weighted(dice, symmetry, config)


def _weighted(dice: Tensor, symmetry: Tensor | None, config: PoseConfig) -> Tensor:
    """The weighted mean of the soft Dice (..., masks) with the reference's and the symmetry."""
    total, weight = dice[..., 0], 1.0
    if dice.shape[-1] > 1:
        total, weight = total + config.bone * dice[..., 1], weight + config.bone
    if symmetry is not None:
        total, weight = total + config.symmetry * symmetry, weight + config.symmetry
    return total / weight


def flip_symmetry(masks: Tensor) -> Tensor:
    """(n,) soft Dice of (n, masks, rows, columns) with their flipped image, mean over masks."""
    return soft_dice(masks, masks.flip(-1)).mean(1)


def registration_slices(subject: Subject) -> list[int]:
    """The slices used for registration: evenly spaced over the labelled ones, or over all."""
    first, last = subject.labelled_or_all
    return sorted({round(k) for k in np.linspace(first, last, _SLICES).tolist()})


def upright(subject: Subject, start: Grid, config: PoseConfig, count: int) -> Grid:
    """Rotate and shift `start` sideways to maximise the flip symmetry of the masks.

    Args:
        subject: a patient.
        start: slice-wise.
        config: of the pose.
        count: number of masks to use.
    """
    free = torch.zeros(pose_outputs(config.localizer), dtype=torch.float64)
    free[0], free[-2] = 1.0, 1.0
    targets = [torch.zeros(())]

    def loss(masks: Tensor, _: Tensor) -> Tensor:
        return 1.0 - flip_symmetry(masks)

    return minimize_pose([subject], [start], targets, config.localizer, count, loss, free)[0]


def minimize_pose(
    subjects: Sequence[Subject],
    starts: Sequence[Grid],
    targets: Sequence[Tensor],
    localizer: LocalizerConfig,
    count: int,
    loss: Loss,
    free: Tensor | None = None,
) -> list[Grid]:
    """Minimise a loss over one pose per patient with Adam; the resulting grids.

    Args:
        subjects: patients.
        starts: initial grid of each, slice-wise.
        targets: of each, (registration slices, masks, size, size); or () if the loss needs none.
        localizer: for the image size and the limits of a pose.
        count: number of masks to use.
        loss: ((n, masks, size, size), targets) -> (n,).
        free: 1 for each pose parameter to optimise, 0 for the others; all by default.
    """
    grids: list[Grid] = []
    for first in range(0, len(subjects), _BATCH_SIZE):
        part = slice(first, first + _BATCH_SIZE)
        best = _best_parameters(
            subjects[part], starts[part], targets[part], localizer, count, loss, free
        )
        for start, parameters in zip(starts[part], best, strict=True):
            pose = pose_from(parameters.expand(start.shape[0], -1), localizer)
            grids.append(pose_grid(start, pose))
    return grids


def _best_parameters(
    subjects: Sequence[Subject],
    starts: Sequence[Grid],
    targets: Sequence[Tensor],
    localizer: LocalizerConfig,
    count: int,
    loss: Loss,
    free: Tensor | None,
) -> Tensor:
    """(patients, `pose_outputs`) with the lowest loss; zeros if none is better than the start."""
    slices = [registration_slices(subject) for subject in subjects]
    patient = torch.tensor([n for n, own in enumerate(slices) for _ in own])
    side = localizer.size
    pairs = [(n, k) for n, own in enumerate(slices) for k in own]
    matrices = torch.stack([starts[n].mm_from_index[k] for n, k in pairs])
    grid = Grid((len(pairs), *starts[0].shape[1:]), matrices).resized((len(pairs), side, side))
    known = [subject.masks for subject in subjects if subject.masks is not None]
    source = Slices.of(known, pairs)
    target = torch.cat(list(targets)) if targets[0].ndim else targets[0]
    parameters = torch.zeros(len(subjects), pose_outputs(localizer), dtype=torch.float64)
    parameters.requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=_RATE)
    best = parameters.detach().clone()
    lowest = torch.full((len(subjects),), torch.inf, dtype=torch.float64)
    counts = torch.bincount(patient, minlength=len(subjects))
    with torch.enable_grad():
        for step in range(_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / _STEPS) ** 0.9
            moved = pose_grid(grid, pose_from(parameters[patient], localizer))
            masks = masks_on(source, moved, count)
            per_slice = loss(masks.to(target.device), target).double().cpu()
            mean = torch.zeros_like(lowest).index_add(0, patient, per_slice) / counts
            better = mean.detach() < lowest
            best = torch.where(better[:, None], parameters.detach(), best)
            lowest = torch.where(better, mean.detach(), lowest)
            optimizer.zero_grad()
            mean.sum().backward()
            if free is not None:
                assert parameters.grad is not None
                parameters.grad.mul_(free)
            optimizer.step()
    return best
