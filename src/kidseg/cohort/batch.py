"""Drawn slices brought together: what a training batch is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn
from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid, Volume, resample, stack

__all__ = ["Labelled", "drawn_labels", "join", "slices_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Reference labels of a batch.

    Attributes:
        labels: (1, slices, rows, columns) uint8.
        valid: (slices, rows, columns) bool; None if all pixels count.
    """

    labels: Volume
    valid: Tensor | None


def join(grids: Sequence[Grid]) -> Grid:
    """Slice-wise grids of the same size, one after the other."""
    matrices = torch.cat([grid.slicewise().mm_from_index for grid in grids])
    return Grid((len(matrices), *grids[0].shape[1:]), matrices)


def slices_of(
    subjects: Sequence[Subject],
    drawn: Drawn,
    of: Callable[[Subject], Volume] = lambda subject: subject.image,
) -> list[Volume]:
    """The drawn slices of a volume of each case, images by default."""
    return [of(subjects[case]).slices(k, k + 1) for case, k in drawn]


def drawn_labels(cohort: Cohort, drawn: Drawn, grid: Grid) -> Labelled:
    """The drawn slices' labels on a slice-wise grid: the nearest of `Subject.whole`."""

    def at(volume: Volume, row: int, k: int) -> Volume:
        return resample(volume.slices(k, k + 1), grid.slices(row, row + 1), mode="nearest")

    labels, valid = [], []
    for row, (case, k) in enumerate(drawn):
        subject = cohort.training[case]
        assert subject.labels is not None
        labels.append(at(subject.labels, row, k))
        if subject.voids is None:
            valid.append(torch.ones_like(labels[-1].data[0], dtype=torch.bool))
        else:
            valid.append(~at(subject.voids, row, k).data[0])
    all_count = all(subject.voids is None for subject in cohort.training)
    return Labelled(labels=stack(labels), valid=None if all_count else torch.cat(valid))
