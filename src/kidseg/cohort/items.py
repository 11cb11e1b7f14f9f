"""Which slices make a training batch: a pure function of the training step, so that a batch never
depends on what ran before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kidseg.errors import UsageError
from kidseg.stage import TrainStep

__all__ = ["Drawn", "SliceIndex", "draw", "steps_per_epoch"]

Drawn = list[tuple[int, int]]
"""(case, slice) pairs."""


@dataclass(frozen=True, eq=False)
class SliceIndex:
    """The slices of a cohort.

    Attributes:
        every: (n, 2) whole numbers: case, slice.
        by_label: per label the rows of `every` that show it, ascending.
        label_share: at least this part of a batch shows each label.
    """

    every: np.ndarray
    by_label: tuple[np.ndarray, ...]
    label_share: float

    @classmethod
    def of_cases(cls, shown: Sequence[np.ndarray], label_share: float) -> SliceIndex:
        """From one (slices, labels) bool array per case: which labels its slices show.

        Raises:
            ValueError: no slice at all.
        """
        if not sum(len(case) for case in shown):
            raise ValueError("no slices to draw from")
        every = [(c, k) for c, case in enumerate(shown) for k in range(len(case))]
        labels = np.concatenate(list(shown)).astype(bool)
        by_label = tuple(np.flatnonzero(labels[:, j]) for j in range(labels.shape[1]))
        return cls(np.array(every, dtype=np.int64), by_label, label_share)

    def __len__(self) -> int:
        return len(self.every)


def draw(index: SliceIndex, step: TrainStep, batch_size: int) -> Drawn:
    """The slices that this process trains on at this step.

    Of the whole batch, `ceil(label_share * batch_size)` places go to each label in turn (fewer
    where labels would not leave room for one another), the rest to any slice. Within an epoch each
    of these groups is dealt out in an order of its own, so that no slice of a group comes again
    before all have come. A label that no slice shows leaves its places to any slice.

    Args:
        index: what to draw from.
        step: seed, epoch and step decide; `rank` takes its share of the batch.
        batch_size: over all processes.

    Raises:
        UsageError: "bad-batch-size": the processes cannot share the batch evenly.
    """
    if batch_size % step.world:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {step.world} processes",
            code="bad-batch-size",
            next_step="Choose a multiple.",
        )
    places = min(
        math.ceil(index.label_share * batch_size - 1e-9),
        batch_size // max(1, len(index.by_label)),
    )
    rows: list[int] = []
    for number, group in enumerate(index.by_label):
        if len(group):
            rows += _dealt(group, step, places, number + 1)
    rows += _dealt(np.arange(len(index)), step, batch_size - len(rows), 0)
    mixed = _random(step, step.step, len(index.by_label) + 1).permutation(rows)
    chosen = index.every[mixed[step.rank :: step.world]]
    return [(int(case), int(k)) for case, k in chosen]


def steps_per_epoch(index: SliceIndex, batch_size: int) -> int:
    """As many batches as there are slices."""
    return math.ceil(len(index) / batch_size)


def _dealt(group: np.ndarray, step: TrainStep, count: int, stream: int) -> list[int]:
    """The next `count` of the group, in this epoch's order; a new order after each round."""
    out: list[int] = []
    first = step.step * count
    while len(out) < count:
        turn, offset = divmod(first + len(out), len(group))
        order = _random(step, turn, stream).permutation(group)
        out += order[offset : offset + count - len(out)].tolist()
    return out


def _random(step: TrainStep, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([step.seed, step.epoch, *stream]))
