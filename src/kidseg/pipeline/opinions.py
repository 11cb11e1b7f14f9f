"""Opinions: predictions whose mean decides, and what volumes each of them would give alone.

Opinions are predictions of mirrored images, of several networks, and of several models. Only the
mean of those of a network is kept, voxel by voxel; of each opinion no more than a few volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume
from kidseg.labels import Target
from kidseg.pipeline.deciding import channels_written, with_weights
from kidseg.pipeline.steps import Region

__all__ = ["Predicted", "Row", "Tally", "opinions_of", "rows_of"]

Row = tuple[float, ...]
"""Of one opinion: the volume in ml in which each channel that writes a label decides."""


@dataclass(frozen=True, eq=False)
class Predicted(Volume):
    """The mean probabilities of several opinions.

    Attributes:
        rows: of the opinions, always in the same order; () if there is only one.
    """

    rows: tuple[Row, ...] = ()

    @classmethod
    def mean_of(cls, opinions: Sequence[Tensor], grid: Grid, target: Target) -> Self:
        """The mean of one or two opinions, and the rows of two.

        Args:
            opinions: (channels, *grid.shape) probabilities each, float; the first is overwritten.
            grid: of the probabilities.
            target: meaning of the channels.
        """
        if len(opinions) == 1:
            return cls(opinions[0].contiguous(), grid)
        rows = tuple(_row(opinion, grid, target) for opinion in opinions)
        first, second = opinions
        return cls(first.add_(second).div_(2).contiguous(), grid, rows)


class Tally:
    """Adds up the volumes of one opinion.

    Args:
        target: meaning of the channels.
        grid: of the probabilities.
    """

    def __init__(self, target: Target, grid: Grid) -> None:
        self._target = target
        self._voxel_ml = grid.voxel_ml.cpu().expand(grid.shape[0])
        self._total_ml = torch.zeros(len(target.writes), dtype=torch.float64)

    def add(self, values: Tensor, start: int, share: Tensor | None = None) -> None:
        """Count the voxels of further slices.

        Args:
            values: (channels, slices, rows, columns) probabilities.
            start: the first of the slices; outside the grid, the volume of a voxel is that of the
                nearest slice.
            share: (slices, rows, columns) how much each voxel counts; None: once.
        """
        # In single precision: it is twice as fast, and only ties differ.
        weighted = with_weights(values, self._target, values.dtype)
        decided = channels_written(weighted, self._target.exclusive)
        slices = torch.arange(start, start + values.shape[1])
        voxel_ml = self._voxel_ml[slices.clamp(0, len(self._voxel_ml) - 1)]
        for number in range(len(self._total_ml)):
            here = decided == number + 1
            if share is None:
                count = torch.count_nonzero(here, dim=(1, 2)).double()
            else:
                count = (here * share).sum((1, 2), dtype=torch.float64)
            self._total_ml[number] += (count.cpu() * voxel_ml).sum()

    @property
    def row(self) -> Row:
        """The volumes so far."""
        return tuple(self._total_ml.tolist())


def rows_of(found: Volume, target: Target) -> tuple[Row, ...]:
    """The rows of the opinions in probabilities; those of a single opinion are counted here."""
    if isinstance(found, Predicted) and found.rows:
        return found.rows
    return (_row(found.data, found.grid, target),)


def _row(values: Tensor, grid: Grid, target: Target) -> Row:
    """The row of (channels, *grid.shape) probabilities; slice by slice, for the memory."""
    tally = Tally(target, grid)
    for k in range(grid.shape[0]):
        tally.add(values[:, k : k + 1], k)
    return tally.row


def opinions_of(regions: Sequence[Region], target: Target) -> tuple[Row, ...]:
    """The opinions in regions with probabilities, of all places together.

    Regions with the same name, an ensemble, have opinions of their own; those of different places
    are the same opinions, whose volumes are added. Volumes in which places overlap count in each.
    Opinions that agree in every volume are one: a model that is asked twice knows no more. The
    result does not depend on the order of opinions.

    Args:
        regions: as for `kidseg.pipeline.restore`.
        target: meaning of their channels.

    Returns:
        A row for each opinion, in ascending order; () without regions.

    Raises:
        ValueError: the places do not have the same number of opinions.
    """
    places: dict[str, list[Row]] = {}
    for region in regions:
        assert region.found is not None
        places.setdefault(region.name, []).extend(rows_of(region.found, target))
    counts = {len(rows) for rows in places.values()}
    if len(counts) > 1:
        raise ValueError(f"places have {sorted(counts)} opinions, not the same number")
    summed = [
        tuple(map(sum, zip(*of_places, strict=True)))
        for of_places in zip(*places.values(), strict=True)
    ]
    return tuple(sorted(set(summed)))
