"""Voxel values on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from kidseg.geometry.grid import Grid

__all__ = ["Volume", "join_channels", "stack"]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values and their positions.

    Attributes:
        data: (channels, slices, rows, columns), any dtype and device.
        grid: their positions; `grid.shape` equals `data.shape[1:]`.

    Raises:
        ValueError: the shapes disagree.
    """

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or tuple(self.data.shape[1:]) != self.grid.shape:
            raise ValueError(
                f"data (channels, slices, rows, columns) = {tuple(self.data.shape)} "
                f"does not match a grid of {self.grid.shape}"
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.data.shape[0]

    def slices(self, start: int, stop: int) -> Volume:
        """The sub-volume of slices start .. stop - 1; shares memory."""
        return Volume(self.data[:, start:stop], self.grid.slices(start, stop))

    def astype(self, dtype: torch.dtype) -> Volume:
        """The same volume with its values as `dtype`."""
        return Volume(self.data.to(dtype), self.grid)

    def to(self, device: torch.device | str) -> Volume:
        """The same volume on `device`."""
        return Volume(self.data.to(device), self.grid.to(device))


def stack(volumes: Sequence[Volume]) -> Volume:
    """Stack slices of different volumes into one slice-wise volume: a training batch.

    Args:
        volumes: at least one; equal channels, rows and columns; any number of slices each.

    Raises:
        ValueError: nothing to stack, or sizes differ.
    """
    if not volumes:
        raise ValueError("nothing to stack")
    if len({(v.channels, *v.grid.shape[1:]) for v in volumes}) != 1:
        raise ValueError("volumes to stack differ in channels, rows or columns")
    data = torch.cat([v.data for v in volumes], dim=1)
    matrices = torch.cat([v.grid.slicewise().mm_from_index for v in volumes])
    return Volume(data, Grid((data.shape[1], data.shape[2], data.shape[3]), matrices))


def join_channels(volumes: Sequence[Volume]) -> Volume:
    """Join the channels of volumes on the same grid, in the smallest dtype that holds all values.

    Args:
        volumes: at least one, on the grid of the first; a single one is returned as it is.

    Raises:
        ValueError: nothing to join, or sizes differ.
    """
    if not volumes:
        raise ValueError("nothing to join")
    if len(volumes) == 1:
        return volumes[0]
    if len({volume.grid.shape for volume in volumes}) != 1:
        raise ValueError("volumes to join differ in size")
    dtype = reduce(torch.promote_types, (volume.data.dtype for volume in volumes))
    return Volume(torch.cat([volume.data.to(dtype) for volume in volumes]), volumes[0].grid)
