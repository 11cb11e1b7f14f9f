"""Slices of volumes of different sizes, from which a training batch is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kidseg.geometry.grid import Grid
from kidseg.geometry.resample import resample
from kidseg.geometry.volume import Volume

__all__ = ["Field", "Slices", "sampled", "slices_apart"]

Field = tuple[int, int, int, int]
"""A field of view in a slice: first row, end of rows, first column, end of columns (exclusive)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Copies of slices.

    Attributes:
        parts: slices of one size as a slice-wise volume, with their positions in the batch.
    """

    parts: tuple[tuple[tuple[int, ...], Volume], ...]

    @classmethod
    def of(
        cls,
        volumes: Sequence[Volume],
        drawn: Sequence[tuple[int, int]],
        *,
        fill: float = 0.0,
        fields: Sequence[Field | None] = (),
        reach: int = 0,
        apart_mm: float = 0.0,
    ) -> Slices:
        """Copy the drawn slices.

        Args:
            volumes: (channels, slices, rows, columns) each, volumetric, any sizes.
            drawn: index pairs (volume, slice).
            fill: value outside the field of view.
            fields: field of view per slice, None for the full slice; empty: all slices in full.
            reach: so many neighbouring slices on either side become additional channels, the lowest
                first; the edge slice of a volume is repeated.
            apart_mm: distance of these neighbours from each other; see `slices_apart`.
        """
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, (n, _) in enumerate(drawn):
            rows_of.setdefault(tuple(volumes[n].data.shape[2:]), []).append(row)
        parts = []
        for rows in rows_of.values():
            picks = [(volumes[drawn[row][0]], drawn[row][1]) for row in rows]
            shown = [_with_neighbours(volume, k, reach, apart_mm) for volume, k in picks]
            data = torch.stack(shown, dim=1)
            for n, row in enumerate(rows):
                if fields and (field := fields[row]) is not None:
                    top, bottom, left, right = field
                    kept = data[:, n, top:bottom, left:right].clone()
                    data[:, n] = round(fill)
                    data[:, n, top:bottom, left:right] = kept
            matrices = torch.stack([volume.grid.mm_from_index for volume, _ in picks]).clone()
            heights = torch.tensor([k for _, k in picks]).to(matrices)
            matrices[:, :3, 3] += heights[:, None] * matrices[:, :3, 0]
            grid = Grid((len(rows), *data.shape[2:]), matrices)
            parts.append((tuple(rows), Volume(data, grid)))
        return cls(parts=tuple(parts))

    def to(self, device: torch.device) -> Slices:
        """The same voxels on a device; grids are not moved."""
        moved = ((rows, Volume(part.data.to(device), part.grid)) for rows, part in self.parts)
        return Slices(parts=tuple(moved))


def sampled(
    image: Volume | Slices,
    grid: Grid,
    *,
    mode: Literal["linear", "nearest"] = "linear",
    fill: float | Sequence[float] = 0.0,
) -> Volume:
    """Sample a volume, or slices, at the voxels of a grid with one interpolation; see `resample`.

    Args:
        image: the source. `Slices` must be in the planes of the corresponding grid slices.
        grid: the target; for `Slices` slice-wise with as many slices.
        mode: as in `resample`.
        fill: value outside the source, one for all channels or one per channel.

    Returns:
        (channels, *grid.shape), differentiable in the grid unless "nearest".
    """
    if isinstance(image, Volume):
        return resample(image, grid, mode=mode, fill=fill)
    found = []
    for rows, source in image.parts:
        target = Grid((len(rows), *grid.shape[1:]), grid.mm_from_index[list(rows)])
        found.append(resample(source, target, mode=mode, fill=fill).data)
    if len(found) == 1:
        return Volume(found[0], grid)
    order = torch.tensor([row for rows, _ in image.parts for row in rows]).argsort()
    return Volume(torch.cat(found, dim=1)[:, order.to(found[0].device)], grid)


def slices_apart(apart_mm: float, slice_mm: torch.Tensor) -> torch.Tensor:
    """How many slices neighbours are apart: the nearest whole number, at least one.

    Args:
        apart_mm: their distance from each other; 0: adjacent slices.
        slice_mm: distance between slices, of any shape.
    """
    return torch.round(apart_mm / slice_mm).clamp(min=1.0)


def _with_neighbours(volume: Volume, k: int, reach: int, apart_mm: float) -> torch.Tensor:
    """(channels * (2 reach + 1), rows, columns): the slice between its neighbours."""
    if reach == 0:
        return volume.data[:, k]
    last = volume.grid.shape[0] - 1
    step = int(slices_apart(apart_mm, volume.grid.spacing_mm[0]))
    rows = [min(max(k + step * offset, 0), last) for offset in range(-reach, reach + 1)]
    return torch.cat([volume.data[:, row] for row in rows])
