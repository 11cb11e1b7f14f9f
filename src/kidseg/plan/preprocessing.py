"""nnU-Net's preprocessing: crop, normalise, resample.

It exists for the peer check `benchmarks/nnunet_preprocessing.py`, which compares its result with
nnU-Net's voxel by voxel. kidseg's methods choose a grid and interpolate the scan's HU once on it;
they do not crop, and normalise afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import torch

from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import normalise
from kidseg.plan.nonzero import Box, nonzero_box, nonzero_region

if TYPE_CHECKING:
    from kidseg.plan.rules import Plan

__all__ = ["Preprocessed", "preprocess"]

# Scans with a larger ratio of slice thickness to pixel spacing are resampled slice by slice, with
# the nearest neighbour between slices. Source: nnU-Net v2, ANISO_THRESHOLD.
_ANISOTROPY = 3.0
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
    gets the label with the largest share, or that of the nearest voxel in a tie. If slices are over
    three times thicker than pixels are wide, in the scan or the plan, both are resampled slice by
    slice, with the nearest neighbour between slices.

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
    image = _cropped(image, start, shape)
    inside = None
    if any(channel.inside_only for channel in plan.channels):
        inside = nonzero_region(image.data)
    image = Volume(normalise(image.data, plan.channels, inside), image.grid)
    chosen = plan.configurations[configuration]
    target = chosen.grid(image.grid)
    resampled = _by_slices if _is_coarse(image.grid, chosen.spacing_mm) else _by_volume
    return Preprocessed(
        image=resampled(image, target, _cubic),
        labels=labels and resampled(_cropped(labels, start, shape), target, _largest_share),
    )


def _cropped(volume: Volume, start: Sequence[int], shape: Sequence[int]) -> Volume:
    box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    return Volume(volume.data[(slice(None), *box)], volume.grid.crop(start, shape))


def _is_coarse(source: Grid, target_mm: Sequence[float]) -> bool:
    """Are slices so thick that the scan is resampled slice by slice?"""
    source_mm = source.spacing_mm.tolist()
    for spacing_mm in (source_mm, [*source_mm[: 3 - len(target_mm)], *target_mm]):
        if max(spacing_mm) / min(spacing_mm) > _ANISOTROPY:
            return [axis for axis in range(3) if spacing_mm[axis] == max(spacing_mm)] == [0]
    return False


Method = Callable[[Volume, Grid], Volume]


def _by_volume(volume: Volume, target: Grid, method: Method) -> Volume:
    return method(volume, target)


def _by_slices(volume: Volume, target: Grid, method: Method) -> Volume:
    """Resample slice by slice, then take the nearest slice; in a tie, the later one."""
    slices, wanted = volume.grid.shape[0], target.shape[0]
    planes = volume.grid.resized((slices, *target.shape[1:])).slicewise()
    data = method(Volume(volume.data, volume.grid.slicewise()), planes).data
    if wanted != slices:
        data = data[:, (2 * torch.arange(wanted) + 1) * slices // (2 * wanted)]
    return Volume(data, target)


def _cubic(image: Volume, target: Grid) -> Volume:
    return resample(image, target, mode="cubic")


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
