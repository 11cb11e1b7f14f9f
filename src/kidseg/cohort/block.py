"""Which blocks make a training batch of a three-dimensional network, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kidseg.cohort.subject import Subject
from kidseg.errors import UsageError
from kidseg.geometry import Grid
from kidseg.stage import TrainStep

__all__ = ["Block", "draw_blocks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A block to learn from.

    Attributes:
        case: number of the training case.
        grid: its voxels.
        label: that it was centred on; 0 if it lies anywhere.
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
    """The blocks that this process trains on at this step: a pure function of the step.

    Each is of a case drawn with replacement. The last `foreground_share` of the whole batch are
    centred on a voxel of one of the labels that their case shows, each label as likely as the
    others; the rest lie anywhere. Blocks stay inside the case's grid, or centred on it where it is
    smaller.

    Args:
        subjects: the training cases.
        grids: of each case, at the network's spacing.
        patch: voxels of a block, (slices, rows, columns).
        step: seed, epoch and step decide; `rank` takes its share of the batch.
        batch_size: over all processes.
        foreground_share: see above.

    Raises:
        UsageError: "bad-batch-size": the processes cannot share the batch evenly.

    Source: nnU-Net v2.8.1, `nnUNetDataLoader`; there the upper bound of a block is left open.
    """
    if batch_size % step.world:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {step.world} processes",
            code="bad-batch-size",
            next_step="Choose a multiple.",
        )
    anywhere = round(batch_size * (1 - foreground_share))
    blocks = []
    for place in range(step.rank, batch_size, step.world):
        words = np.random.SeedSequence([step.seed, step.epoch, step.step, place])
        random = np.random.default_rng(words)
        case = int(random.integers(len(subjects)))
        label, centre = 0, None
        if place >= anywhere:
            label, centre = _voxel(subjects[case], random)
        grid = grids[case]
        room = [n - w for n, w in zip(grid.shape, patch, strict=True)]
        chance = random.random(3)
        start = [
            -(-r // 2) if r < 0 else int(u * (r + 1)) for r, u in zip(room, chance, strict=True)
        ]
        if centre is not None:
            at = grid.index(subjects[case].image.grid.mm(centre)).tolist()
            start = [
                s if r < 0 else min(max(round(a - (w - 1) / 2), 0), r)
                for s, a, w, r in zip(start, at, patch, room, strict=True)
            ]
        blocks.append(Block(case=case, grid=grid.crop(start, patch), label=label))
    return blocks


def _voxel(subject: Subject, random: np.random.Generator) -> tuple[int, list[float] | None]:
    """A label that the subject shows, and one of its voxels; 0 and None without labels."""
    shown = np.flatnonzero(subject.counts[:, 1:].any(0)) + 1
    if subject.labels is None or not len(shown):
        return 0, None
    label = int(random.choice(shown))
    counts = subject.counts[:, label]
    number = int(random.integers(counts.sum()))
    k = int(np.searchsorted(np.cumsum(counts), number, side="right"))
    within = number - int(counts[:k].sum())
    row, column = torch.nonzero(subject.labels.data[0, k] == label)[within].tolist()
    return label, [float(k), float(row), float(column)]
