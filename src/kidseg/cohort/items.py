"""Draw the slices of a training batch, as a pure function of the training step."""

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
        every: (n, 2) integers: case, slice.
        by_label: for each label, the rows of `every` that contain it, ascending.
        label_share: minimum fraction of a batch with each label.
        hard_share: fraction of a batch with hard slices, if there are any.
    """

    every: np.ndarray
    by_label: tuple[np.ndarray, ...]
    label_share: float
    hard_share: float = 0.0

    @classmethod
    def of_cases(
        cls, present: Sequence[np.ndarray], label_share: float, hard_share: float = 0.0
    ) -> SliceIndex:
        """Index the slices of cases.

        Args:
            present: for each case (slices, labels) bool: which labels each slice contains.
            label_share: see the class.
            hard_share: see the class.

        Raises:
            ValueError: there are no slices.
        """
        if not sum(len(case) for case in present):
            raise ValueError("no slices to draw from")
        every = [(c, k) for c, case in enumerate(present) for k in range(len(case))]
        labels = np.concatenate(list(present)).astype(bool)
        by_label = tuple(np.flatnonzero(labels[:, j]) for j in range(labels.shape[1]))
        return cls(np.array(every, dtype=np.int64), by_label, label_share, hard_share)

    def __len__(self) -> int:
        return len(self.every)


def draw(
    index: SliceIndex, step: TrainStep, batch_size: int, hard: np.ndarray | None = None
) -> Drawn:
    """Draw the slices of this process for a training step.

    Of the global batch, `ceil(label_share * batch_size)` samples contain each label (fewer if there
    are too many labels for the batch size); up to `hard_share * batch_size` are hard slices; the
    others are drawn from all slices. Each of these groups is drawn without replacement, in a new
    random order in each epoch, and again once all its slices have been drawn. If no slice contains
    a label, its samples are drawn from all slices.

    Args:
        index: the slices to draw from.
        step: seed, epoch and step determine the batch; `rank` selects this process's share.
        batch_size: over all processes.
        hard: rows of the hard slices; None or empty: there are none.

    Raises:
        UsageError: "bad-batch-size": the batch size is not divisible by the number of processes.
    """
    if batch_size % step.world:
        raise UsageError(
            f"a batch size of {batch_size} is not divisible by {step.world} processes",
            code="bad-batch-size",
            next_step="Set batch_size to a multiple of the number of processes.",
        )
    per_label = min(
        math.ceil(index.label_share * batch_size - 1e-9),
        batch_size // max(1, len(index.by_label)),
    )
    rows: list[int] = []
    for number, group in enumerate(index.by_label):
        if len(group):
            rows += _without_replacement(group, step, per_label, number + 1)
    if hard is not None and len(hard):
        count = min(round(index.hard_share * batch_size), batch_size - len(rows))
        rows += _without_replacement(hard, step, count, len(index.by_label) + 2)
    rows += _without_replacement(np.arange(len(index)), step, batch_size - len(rows), 0)
    shuffled = _random(step, step.step, len(index.by_label) + 1).permutation(rows)
    own = index.every[shuffled[step.rank :: step.world]]
    return [(int(case), int(k)) for case, k in own]


def steps_per_epoch(index: SliceIndex, batch_size: int) -> int:
    """Steps per epoch such that as many samples are drawn as there are slices."""
    return math.ceil(len(index) / batch_size)


def _without_replacement(group: np.ndarray, step: TrainStep, count: int, stream: int) -> list[int]:
    """The step's `count` rows of a group, in this epoch's order; reshuffled after each pass."""
    out: list[int] = []
    first = step.step * count
    while len(out) < count:
        shuffle, offset = divmod(first + len(out), len(group))
        order = _random(step, shuffle, stream).permutation(group)
        out += order[offset : offset + count - len(out)].tolist()
    return out


def _random(step: TrainStep, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([step.seed, step.epoch, *stream]))
