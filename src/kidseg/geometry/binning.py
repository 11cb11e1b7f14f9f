"""Means of blocks of pixels: a scan in larger pixels, without aliasing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kidseg.geometry.grid import Grid, boxed
from kidseg.geometry.volume import Volume

__all__ = ["binned", "binned_grid"]


def binned(volume: Volume, factor: int) -> Volume:
    """Average blocks of `factor` x `factor` pixels in each slice.

    Downsamples a scan without aliasing before it is interpolated. If a side is not a multiple of
    `factor`, the last block is padded with the edge value, as in `resample`.

    Args:
        volume: (channels, slices, rows, columns), any dtype.
        factor: 1 returns the volume itself.

    Returns:
        (channels, slices, ceil(rows / factor), ceil(columns / factor)), in the dtype of the data if
        that is floating point, otherwise float32.

    Raises:
        ValueError: `factor` is below 1.
    """
    if factor < 1:
        raise ValueError(f"the factor must be at least 1, not {factor}")
    if factor == 1:
        return volume
    grid, (_, ny, nx) = binned_grid(volume.grid, factor), volume.grid.shape
    nz, rows, columns = grid.shape
    kind = volume.data.dtype if volume.data.is_floating_point() else torch.float32
    out = torch.empty((volume.channels, nz, rows, columns), dtype=kind, device=volume.data.device)
    pad = (0, columns * factor - nx, 0, rows * factor - ny)
    for k in range(nz):
        plane = F.pad(volume.data[:, k].to(kind)[None], pad, mode="replicate")
        out[:, k] = F.avg_pool2d(plane, factor)[0]
    return Volume(out, grid)


def binned_grid(grid: Grid, factor: int) -> Grid:
    """The grid of blocks of `factor` x `factor` pixels; the last may reach beyond the edge."""
    nz, ny, nx = grid.shape
    rows, columns = -(-ny // factor), -(-nx // factor)
    low = grid.mm_from_index.new_tensor([-0.5, -0.5, -0.5])
    last = 1 if grid.is_slicewise else nz
    high = low + low.new_tensor([last, rows * factor, columns * factor])
    return boxed(grid, low, high, (nz, rows, columns))
