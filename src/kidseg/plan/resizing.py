"""Resample a volume to another number of voxels, as nnU-Net does.

nnU-Net interpolates twice: the normalised image on the way to the network's voxels, and the logits
on the way back. kidseg's own methods interpolate the scan's HU once, directly on any grid; only
imported networks, which were trained on such images, use this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume, resample

__all__ = ["Method", "Order", "resized", "spline", "thick_axis"]

Order = Literal[1, 3]
"""Order of the splines: 1 linear, 3 cubic."""

Method = Callable[[Volume, Grid], Volume]
"""Resamples a volume to a grid."""

# Scans with a larger ratio of the largest to the smallest spacing are resampled slice by slice,
# with the nearest neighbour between slices. Source: nnU-Net v2, ANISO_THRESHOLD.
_ANISOTROPY = 3.0
# Spacings that differ by less than this fraction are equal.
_SAME = 1e-6


def thick_axis(
    source_mm: Sequence[float], target_mm: Sequence[float], by_slice: bool | None = None
) -> int | None:
    """The axis along which slices are so thick that they are resampled one by one; None: none.

    Args:
        source_mm: spacing before.
        target_mm: spacing after.
        by_slice: None: if one spacing is anisotropic; True or False: in any case, or never.

    Source: nnU-Net v2.8.1, `determine_do_sep_z_and_axis`.
    """
    if by_slice is False:
        return None
    for spacing_mm in (source_mm, target_mm):
        largest = max(spacing_mm)
        if by_slice or largest / min(spacing_mm) > _ANISOTROPY:
            thickest = [k for k, each in enumerate(spacing_mm) if each > largest * (1 - _SAME)]
            return thickest[0] if len(thickest) == 1 else None
    return None


def spline(order: Order) -> Method:
    """Interpolation whose overshoots are clipped to the range of the values.

    Source: what nnU-Net does with `skimage.transform.resize(mode="edge", clip=True)`.
    """
    return partial(resample, mode="cubic" if order == 3 else "linear")


def resized(volume: Volume, target: Grid, method: Method, axis: int | None = None) -> Volume:
    """Resample a volume to a grid of the same extent.

    Args:
        volume: (channels, slices, rows, columns).
        target: grid with the extent and the axes of the volume's.
        method: how; see `spline`.
        axis: see `thick_axis`: the slices across it are resampled one by one, then each target
            slice is the nearest one, in a tie the later. None: all axes at once.

    Returns:
        (channels, *target.shape); the values themselves if the shape is the same.

    Source: nnU-Net v2.8.1, `resample_data_or_seg`.
    """
    if volume.grid.shape == target.shape:
        return Volume(volume.data, target)
    if axis is None:
        return method(volume, target)
    axes = [axis, *(other for other in range(3) if other != axis)]
    data = volume.data.permute(0, *(1 + each for each in axes))
    found = _by_slices(Volume(data, volume.grid.permuted(axes)), target.permuted(axes), method)
    return Volume(found.permute(0, *(1 + axes.index(each) for each in range(3))), target)


def _by_slices(volume: Volume, target: Grid, method: Method) -> Tensor:
    slices, wanted = volume.grid.shape[0], target.shape[0]
    planes = volume.grid.resized((slices, *target.shape[1:])).slicewise()
    data = method(Volume(volume.data, volume.grid.slicewise()), planes).data
    if wanted != slices:
        data = data[:, (2 * torch.arange(wanted) + 1) * slices // (2 * wanted)]
    return data
