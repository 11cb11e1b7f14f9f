"""Draw the slices of a training batch, as a pure function of the training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kidseg.stage import TrainStep

__all__ = ["Drawn", "SliceIndex", "draw", "steps_per_epoch"]

Drawn = list[tuple[int, int]]
"""(case, slice) pairs."""


@dataclass(frozen=True, eq=False)
class SliceIndex:
    """The slices of a cohort.

    Attributes:
        every: (n, 2) integers: case, slice.
        groups: for each group, the rows of `every` that belong to it, ascending; a slice may belong
            to several groups, or to none.
        shares: minimum fraction of a batch that is drawn from each group.
        hard_share: fraction of a batch with hard slices, if there are any.
    """

    every: np.ndarray
    groups: tuple[np.ndarray, ...]
    shares: tuple[float, ...]
    hard_share: float = 0.0

    @classmethod
    def of_cases(
        cls, present: Sequence[np.ndarray], label_share: float, hard_share: float = 0.0
    ) -> SliceIndex:
        """Index the slices of cases, with one group per label.

        Args:
            present: for each case (slices, labels) bool: which labels each slice contains.
            label_share: minimum fraction of a batch with each label.
            hard_share: see the class.

        Raises:
            ValueError: there are no slices.
        """
        labels = present[0].shape[1] if present else 0
        return cls.of_groups(present, [label_share] * labels, hard_share=hard_share)

    @classmethod
    def of_groups(
        cls,
        member: Sequence[np.ndarray],
        shares: Sequence[float],
        *,
        members_only: bool = False,
        counted: Sequence[np.ndarray] | None = None,
        hard_share: float = 0.0,
    ) -> SliceIndex:
        """Index the slices of cases, with any groups.

        Args:
            member: for each case (slices, groups) bool: which groups each slice belongs to.
            shares: see the class.
            members_only: leave out slices that belong to no group with a share.
            counted: for each case (slices,) bool: leave out the others; None: leave out none.
            hard_share: see the class.

        Raises:
            ValueError: there are no slices.
        """
        every = [(c, k) for c, case in enumerate(member) for k in range(len(case))]
        groups = np.concatenate(list(member)).astype(bool) if every else np.zeros((0, 0), bool)
        kept = np.ones(len(every), dtype=bool) if counted is None else np.concatenate(counted)
        if members_only and every:
            kept = kept & groups[:, np.array(shares) > 0].any(1)
        if not kept.all():
            every, groups = [every[row] for row in np.flatnonzero(kept)], groups[kept]
        if not every:
            raise ValueError("no slices to draw from")
        rows = tuple(np.flatnonzero(groups[:, j]) for j in range(groups.shape[1]))
        return cls(np.array(every, dtype=np.int64), rows, tuple(shares), hard_share)

    def __len__(self) -> int:
        return len(self.every)


def draw(
    index: SliceIndex, step: TrainStep, batch_size: int, hard: np.ndarray | None = None
) -> Drawn:
    """Draw the slices of this process for a training step.

    Of the global batch, `ceil(share * batch_size)` samples are drawn from each group (fewer if
    these are more than the batch); up to `hard_share * batch_size` are hard slices; the others are
    drawn from all slices. Each of these groups is drawn without replacement, in a new random order
    in each epoch, and again once all its slices have been drawn. The samples of an empty group are
    drawn from all slices.

    Args:
        index: the slices to draw from.
        step: seed, epoch and step determine the batch; `rank` selects this process's share.
        batch_size: over all processes.
        hard: rows of the hard slices; None or empty: there are none.

    Raises:
        UsageError: "bad-batch-size": see `TrainStep.positions`.
    """
    own = step.positions(batch_size)
    rows: list[int] = []
    counts = _counts(index.shares, batch_size)
    for number, (group, count) in enumerate(zip(index.groups, counts, strict=True)):
        if len(group):
            rows += _without_replacement(group, step, count, number + 1)
    if hard is not None and len(hard):
        count = min(round(index.hard_share * batch_size), batch_size - len(rows))
        rows += _without_replacement(hard, step, count, len(index.groups) + 2)
    rows += _without_replacement(np.arange(len(index)), step, batch_size - len(rows), 0)
    shuffled = _random(step, step.step, len(index.groups) + 1).permutation(rows)
    return [(int(case), int(k)) for case, k in index.every[shuffled[own]]]


def steps_per_epoch(index: SliceIndex, batch_size: int) -> int:
    """Steps per epoch such that at least as many samples are drawn as there are slices.

    Without shares, each slice is drawn. With them, a group that is smaller than its share is drawn
    more than once, and some of the other slices are not.
    """
    return math.ceil(len(index) / batch_size)


def _counts(shares: Sequence[float], batch_size: int) -> list[int]:
    """Samples of each group: rounded up, or down if these would be more than the batch."""
    total = max(1.0, sum(shares))
    wanted = [share / total * batch_size for share in shares]
    counts = [math.ceil(count - 1e-9) for count in wanted]
    return counts if sum(counts) <= batch_size else [math.floor(n + 1e-9) for n in wanted]


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
    return np.random.default_rng([step.seed, step.epoch, *stream])
