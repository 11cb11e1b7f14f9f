"""Draw the 3D patches (blocks) of a training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid
from kidseg.stage import TrainStep

__all__ = ["Block", "draw_blocks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A 3D patch of a training case.

    Attributes:
        case: index of the training case.
        grid: of the patch.
        label: the foreground label it is centred on; 0 if its position is uniformly random.
    """

    case: int
    grid: Grid
    label: int


def draw_blocks(
    subjects: Sequence[Subject],
    grids: Sequence[Grid],
    patch: Sequence[int],
    step: TrainStep,
    *,
    batch_size: int,
    foreground_share: float,
) -> list[Block]:
    """Draw the blocks of this process for a training step; a pure function of the step.

    Cases are drawn with replacement. The last `foreground_share` of the global batch is centred on
    a random voxel of a random label of the case, all labels with equal probability; the other
    blocks have a uniformly random position, or, in a case with slices that are ignored as a whole,
    are centred on a random position in another slice. Blocks stay inside the case's grid, or are
    centred on it along axes where it is smaller.

    Args:
        subjects: the training cases.
        grids: of each case, at the network's spacing.
        patch: size of a block in voxels, (slices, rows, columns).
        step: seed, epoch and step determine the batch; `rank` selects this process's share.
        batch_size: over all processes.
        foreground_share: see above.

    Raises:
        UsageError: "bad-batch-size": see `TrainStep.positions`.

    Source: nnU-Net v2.8.1, `nnUNetDataLoader`; there the upper bound of a block is exclusive.
    """
    first_foreground = round(batch_size * (1 - foreground_share))
    blocks = []
    for position in step.positions(batch_size):
        random = np.random.default_rng([step.seed, step.epoch, step.step, position])
        case = int(random.integers(len(subjects)))
        label, centre = 0, None
        if position >= first_foreground:
            label, centre = _foreground_voxel(subjects[case], random)
        if centre is None:
            centre = _counted_position(subjects[case], random)
        grid = grids[case]
        room = [n - w for n, w in zip(grid.shape, patch, strict=True)]
        uniform = random.random(3)
        start = [
            -(-r // 2) if r < 0 else int(u * (r + 1)) for r, u in zip(room, uniform, strict=True)
        ]
        if centre is not None:
            at = grid.index(subjects[case].image.grid.mm(centre)).tolist()
            start = [
                s if r < 0 else min(max(round(a - (w - 1) / 2), 0), r)
                for s, a, w, r in zip(start, at, patch, room, strict=True)
            ]
        blocks.append(Block(case=case, grid=grid.crop(start, patch), label=label))
    return blocks


def _counted_position(subject: Subject, random: np.random.Generator) -> list[float] | None:
    """Draw a position, (slice, row, column), in a slice that counts; None if all or none do."""
    counted = np.flatnonzero(subject.counted)
    if len(counted) in (0, subject.slices):
        return None
    sides = subject.image.grid.shape[1:]
    return [float(random.choice(counted)), *(random.random(2) * sides - 0.5).tolist()]


def _foreground_voxel(
    subject: Subject, random: np.random.Generator
) -> tuple[int, list[float] | None]:
    """Draw a label of the subject and one of its voxels; 0 and None without foreground."""
    present = np.flatnonzero(subject.counts[:, 1:].any(0)) + 1
    if subject.labels is None or not len(present):
        return 0, None
    label = int(random.choice(present))
    counts = subject.counts[:, label]
    number = int(random.integers(counts.sum()))
    k = int(np.searchsorted(np.cumsum(counts), number, side="right"))
    within = number - int(counts[:k].sum())
    row, column = torch.nonzero(subject.labels.data[0, k] == label)[within].tolist()
    return label, [float(k), float(row), float(column)]
