"""Grids and reference labels of the slices drawn for a training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kidseg.cohort.items import Drawn
from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid, Slices, Volume, resample, sampled

__all__ = ["Labelled", "Patches", "drawn_grid", "drawn_labels", "join"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Reference labels of a batch.

    Attributes:
        labels: (1, slices, rows, columns) uint8.
        valid: (slices, rows, columns) bool, False for ignored pixels; None if all are valid.
    """

    labels: Volume
    valid: Tensor | None

    def to(self, device: torch.device) -> Labelled:
        """A copy on the device; the grid stays on the CPU."""
        labels = Volume(self.labels.data.to(device), self.labels.grid)
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, labels=labels, valid=valid)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """A training batch of patches: slices or blocks of one size.

    Attributes:
        names: of the patches.
        image: (n, channels, *size), normalised.
        labels: (n, *size) uint8.
        valid: (n, *size) bool, False for ignored voxels; None if all are valid.
    """

    names: tuple[str, ...]
    image: Tensor
    labels: Tensor
    valid: Tensor | None

    def to(self, device: torch.device) -> Patches:
        """A copy on the device."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(
            self, image=self.image.to(device), labels=self.labels.to(device), valid=valid
        )


def drawn_labels(subjects: Sequence[Subject], drawn: Drawn, grid: Grid) -> Labelled:
    """Labels of the drawn slices, resampled to a slice-wise grid (nearest neighbour)."""
    known = [subject.labels for subject in subjects if subject.labels is not None]
    assert len(known) == len(subjects)
    labels = sampled(Slices.of(known, drawn), grid, mode="nearest")
    if all(subject.ignore is None for subject in subjects):
        return Labelled(labels=labels, valid=None)
    valid = torch.ones(labels.data.shape[1:], dtype=torch.bool)
    for row, (case, k) in enumerate(drawn):
        if (ignore := subjects[case].ignore) is not None:
            at = grid.slices(row, row + 1)
            valid[row] = ~resample(ignore.slices(k, k + 1), at, mode="nearest").data[0, 0]
    return Labelled(labels=labels, valid=valid)


def join(grids: Sequence[Grid]) -> Grid:
    """Concatenate grids of the same size into one slice-wise grid."""
    matrices = torch.cat([grid.slicewise().mm_from_index for grid in grids])
    return Grid((len(matrices), *grids[0].shape[1:]), matrices)


def drawn_grid(grids: Sequence[Grid], drawn: Drawn) -> Grid:
    """One slice-wise grid of the drawn slices.

    Args:
        grids: of each case, slice-wise, all of the same size.
        drawn: (case, slice) pairs.
    """
    matrices = torch.stack([grids[case].mm_from_index[k] for case, k in drawn])
    return Grid((len(drawn), *grids[0].shape[1:]), matrices)
