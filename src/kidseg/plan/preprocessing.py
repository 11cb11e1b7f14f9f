"""nnU-Net's preprocessing of an image that is cropped: normalise, resample.

The method `nnunet` gives its networks such images; the peer check
`benchmarks/nnunet_preprocessing.py` compares them with nnU-Net's voxel by voxel. kidseg's other
methods choose a grid and interpolate the scan's HU once on it; they do not crop, and normalise
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kidseg.geometry import Volume
from kidseg.intensity import normalise
from kidseg.plan.nonzero import nonzero_region
from kidseg.plan.resizing import Order, resized, spline, thick_axis

if TYPE_CHECKING:
    from kidseg.intensity import Normalisation
    from kidseg.plan.rules import Configuration

__all__ = ["network_input"]


def network_input(
    image: Volume,
    channels: Sequence[Normalisation],
    configuration: Configuration,
    *,
    order: Order = 3,
    by_slice: bool | None = None,
) -> Volume:
    """Normalise an image, and resample it to a configuration's voxels.

    Args:
        image: (channels, slices, rows, columns), cropped to its non-zero voxels; HU for CT.
        channels: one per channel.
        configuration: of the plan; its axes are those of the image.
        order: of the splines.
        by_slice: see `thick_axis`.

    Returns:
        (channels, ...) float32 on `configuration.grid(image.grid)`.

    Raises:
        ValueError: the number of channels differs from the plan's.

    Source: nnU-Net v2.8.1, default_preprocessor; but the axes are never transposed.
    """
    inside = None
    if any(channel.inside_only for channel in channels):
        inside = nonzero_region(image.data)
    normalised = Volume(normalise(image.data, channels, inside), image.grid)
    source_mm = image.grid.spacing_mm.tolist()
    axis = thick_axis(source_mm, configuration.spacing_of(source_mm), by_slice)
    return resized(normalised, configuration.grid(image.grid), spline(order), axis)
