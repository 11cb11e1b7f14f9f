"""nnU-Net's preprocessing: crop, normalise, resample.

The method `nnunet` gives its networks such images; the peer check
`benchmarks/nnunet_preprocessing.py` compares them with nnU-Net's voxel by voxel. kidseg's other
methods choose a grid and interpolate the scan's HU once on it; they do not crop, and normalise
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import torch

from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import normalise
from kidseg.plan.nonzero import Box, nonzero_box, nonzero_region
from kidseg.plan.resizing import Order, resized, spline, thick_axis

if TYPE_CHECKING:
    from kidseg.intensity import Normalisation
    from kidseg.plan.rules import Configuration, Plan

__all__ = ["Preprocessed", "network_input", "preprocess"]

# Fractions of a voxel, or of a label's share, below this are ties.
_TIE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Preprocessed:
    """A case ready for a network.

    Attributes:
        image: (channels, slices, rows, columns) float32, normalised.
        labels: (1, slices, rows, columns) uint8 on the same grid, if there were labels.
    """

    image: Volume
    labels: Volume | None


def preprocess(
    image: Volume, labels: Volume | None, plan: Plan, configuration: str
) -> Preprocessed:
    """Crop to the non-zero voxels, normalise, and resample to a configuration of the plan.

    Images are resampled with cubic splines. Labels are interpolated linearly one by one; each voxel
    gets the label with the largest share, or that of the nearest voxel in a tie. If spacings
    differ by more than a factor of three, in the scan or the plan, both are resampled slice by
    slice, with the nearest neighbour between slices; see `thick_axis`.

    Two differences from nnU-Net: the axes are never transposed, and voxels outside the non-zero
    region, which nnU-Net labels -1 until training, are background.

    Args:
        image: (channels, slices, rows, columns), canonical; HU for CT.
        labels: (1, slices, rows, columns) uint8 on the same grid, or None.
        plan: of the data set.
        configuration: one of the plan's, for example "2d".

    Raises:
        KeyError: the plan has no such configuration.
        ValueError: the channels differ from the plan's, or the labels are on another grid.

    Source: nnU-Net v2.8.1, default_preprocessor and default_resampling.
    """
    if labels is not None and not labels.grid.same_as(image.grid):
        raise ValueError(f"labels on {labels.grid}, image on {image.grid}")
    start, shape = nonzero_box(image)
    chosen = plan.configurations[configuration]
    cropped = _cropped(image, start, shape)
    found = network_input(cropped, plan.channels, chosen)
    if labels is None:
        return Preprocessed(image=found, labels=None)
    source_mm = cropped.grid.spacing_mm.tolist()
    axis = thick_axis(source_mm, chosen.spacing_of(source_mm))
    own = _cropped(labels, start, shape)
    return Preprocessed(image=found, labels=resized(own, found.grid, _largest_share, axis))


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
    """
    inside = None
    if any(channel.inside_only for channel in channels):
        inside = nonzero_region(image.data)
    normalised = Volume(normalise(image.data, channels, inside), image.grid)
    source_mm = image.grid.spacing_mm.tolist()
    axis = thick_axis(source_mm, configuration.spacing_of(source_mm), by_slice)
    return resized(normalised, configuration.grid(image.grid), spline(order), axis)


def _cropped(volume: Volume, start: Sequence[int], shape: Sequence[int]) -> Volume:
    box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    return Volume(volume.data[(slice(None), *box)], volume.grid.crop(start, shape))


def _largest_share(labels: Volume, target: Grid) -> Volume:
    """The label with the largest share in each voxel of `target`, which has the same extent.

    Only the bounding box of the labels is processed; all other voxels are background.
    """
    out = torch.zeros((1, *target.shape), dtype=labels.data.dtype)
    if not bool(labels.data.any()):
        return Volume(out, target)
    box, target_box = _label_boxes(labels, target)
    near = _cropped(labels, *box)
    voxels = target.crop(*target_box)
    # Double precision, so that midpoints between voxels are exact; there the later one is nearest.
    step = (_TIE if voxels.shape[0] != near.grid.shape[0] else 0.0, _TIE, _TIE)
    beyond = Volume(near.data.to(torch.int32), near.grid)
    nearest = resample(beyond, voxels.crop(step, voxels.shape), mode="nearest").data
    winner = torch.zeros_like(nearest, dtype=out.dtype)
    most = torch.full(nearest.shape, -1.0, dtype=torch.float64)
    for number in torch.bincount(near.data.flatten().to(torch.int64)).nonzero()[:, 0].tolist():
        mask = Volume((near.data == number).to(torch.float64), near.grid)
        share = resample(mask, voxels).data.add_((nearest == number) * _TIE)
        better = share > most
        winner[better] = number
        most = torch.where(better, share, most)
    start, shape = target_box
    out[(slice(None), *(slice(s, s + n) for s, n in zip(start, shape, strict=True)))] = winner
    return Volume(out, target)


def _label_boxes(labels: Volume, target: Grid) -> tuple[Box, Box]:
    """The labels' bounding box with a margin of one voxel, and the target voxels centred in it."""
    boxes: list[tuple[int, int, int, int]] = []
    counts = labels.grid.shape
    for axis, (start, length) in enumerate(zip(*nonzero_box(labels), strict=True)):
        low, high = max(0, start - 1), min(counts[axis], start + length + 1)
        if axis == 0 and target.is_slicewise:
            low, high = 0, counts[0]
        ratio = target.shape[axis] / counts[axis]
        first, last = ceil(low * ratio - 0.5), floor(high * ratio - 0.5)
        first, last = max(0, first), min(target.shape[axis] - 1, last)
        boxes.append((low, high - low, first, last - first + 1))
    (z, y, x) = boxes
    source = (z[0], y[0], x[0]), (z[1], y[1], x[1])
    return source, ((z[2], y[2], x[2]), (z[3], y[3], x[3]))
