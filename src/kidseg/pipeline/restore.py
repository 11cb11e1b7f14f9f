"""Restore probabilities to the scan's voxels and decide the labels there.

Probabilities are interpolated once, directly from each region's grid to the scan's voxels; labels
are decided last. To save time and memory, each slice is sampled only inside a window that contains
all its foreground voxels; the rest is background.

The labels are identical to those of resampling each region to the full scan, averaging and
deciding, because

- exclusive channels: between voxels where no channel exceeds the background, no interpolated
  channel does; the same holds for the sum of the channels, which decides if the target has
  weights. The weights of an interpolation are non-negative and the same for all channels, and
  products, sums and their rounding are monotonic; so are the sum over an ensemble and its division
  by the count.
- other channels: between voxels where no channel exceeds 0.5, minus the rounding of the weights, no
  interpolated channel does. Channels with weights of the target are compared in the same way, in
  both cases.
- a voxel is background if it is background in every place. If it may be foreground in one place,
  another may still have less doubt that it is background: so every place is sampled wherever any
  may have foreground.

Two overlapping regions with the same probabilities give the same labels as one region that covers
both, without a seam: exactly, if their voxels are the scan's. With interpolation this holds up to
half a voxel from the region's border (nearer, the edge value is repeated) and up to rounding
(positions count from each region's first voxel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import ModelError
from kidseg.geometry import Grid, Volume, index_from_voxels, is_sub_grid, sample_window
from kidseg.labels import Target
from kidseg.pipeline.deciding import PRESENT, Sample, maximum, with_weights
from kidseg.pipeline.steps import Region
from kidseg.pipeline.windows import (
    Window,
    bounding_window,
    disjoint,
    intersection,
    part_of,
    projected,
)

__all__ = ["FAINT", "Samples", "Watch", "restore", "sample"]

FAINT = 0.01
"""A watcher sees all voxels at which a channel is more than this times as probable as the
background, or, if channels are not exclusive, is more probable than this."""

Watch = Callable[[int, Window, Tensor], None]
"""Slice, rows and columns, (channels, rows, columns) probabilities that decide the labels there."""


# Interpolation weights sum to 1 only up to rounding: the error of a sum of eight products of three
# factors is less than this many epsilons of the data type.
_WEIGHT_ROUNDING = 16
# The same of two such sums, each times a weight of the target.
_TWO_ROUNDINGS = 2 * _WEIGHT_ROUNDING + 4


@torch.no_grad()
def restore(
    regions: Sequence[Region], scan: Grid, target: Target, watch: Watch | None = None
) -> Volume:
    """Resample the probabilities of regions to the scan's voxels, and decide the labels there.

    Regions with the same name are an ensemble: each voxel gets the mean over those whose grid
    covers it. Regions with different names are places; where they overlap, the one with the least
    background probability decides. Outside a region's grid the background probability is 1.

    Exclusive channels: the most probable channel wins, the lower one in a tie. Other channels: each
    channel whose probability exceeds 0.5 overwrites those before it; the background probability of
    a place is then 1 minus its largest probability. If two places have the same background
    probability, the lower channel wins, and background is the lowest. So the result does not depend
    on the order of regions (in an ensemble of three or more, up to rounding of the sum, 1e-16).

    The target's weights, if it has any, count after averaging, in the decision; see `Target`.

    Args:
        regions: with probabilities, (target.outputs, slices, rows, columns) each, 0 to 1,
            volumetric anywhere in space or slice-wise over the scan's slices; () gives all
            background. A region may lie outside the scan.
        scan: grid of the scan.
        target: meaning of the channels.
        watch: called once for each window with the mean probabilities, before the weights, on the
            CPU; elsewhere the background is (almost) certain, see `FAINT`.

    Returns:
        (1, slices, rows, columns) uint8 on the scan's grid, on the CPU.

    Raises:
        ValueError: a region has no probabilities, or the wrong number of channels; or the planes of
            slice-wise probabilities and the scan do not coincide.
        ModelError: "not-finite-probabilities".
    """
    seen = target if watch is None else _widest((target, _faint(target)))
    return _decided(_sampled(regions, scan, seen), scan, target, watch)


@torch.no_grad()
def sample(regions: Sequence[Region], scan: Grid, targets: Sequence[Target]) -> Samples:
    """Resample the probabilities of regions once, to decide by several targets.

    Args:
        regions: see `restore`.
        scan: grid of the scan.
        targets: that differ only in their weights.

    Raises:
        ValueError: the targets differ otherwise, or there are none; see also `restore`.
        ModelError: "not-finite-probabilities".
    """
    return Samples(scan=scan, parts=tuple(_sampled(regions, scan, _widest(targets))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Probabilities on the scan's voxels, wherever one of several targets may find foreground.

    Attributes:
        scan: grid of the scan.
        parts: of its slices; the rest is background.
    """

    scan: Grid
    parts: tuple[Sample, ...]

    @torch.no_grad()
    def decided(self, target: Target) -> Volume:
        """The labels by one of the targets; those of `restore`."""
        return _decided(self.parts, self.scan, target)


def _sampled(regions: Sequence[Region], scan: Grid, target: Target) -> Iterator[Sample]:
    """All windows that may contain foreground, slice by slice."""
    places: dict[str, list[_Source]] = {}
    for region in regions:
        places.setdefault(region.name, []).append(_source(region, scan, target))
    sources = [source for ensemble in places.values() for source in ensemble]
    for k in range(scan.shape[0]):
        for window in disjoint(source.foreground_window(k) for source in sources):
            means = [_ensemble_mean(each, k, window, target) for each in places.values()]
            yield Sample(k, window, tuple(mean for mean in means if mean is not None))


def _decided(
    samples: Iterable[Sample], scan: Grid, target: Target, watch: Watch | None = None
) -> Volume:
    writes = torch.tensor((0, *target.writes), dtype=torch.uint8)
    out = torch.zeros((1, *scan.shape), dtype=torch.uint8)
    for each in samples:
        part_of(out[0, each.k], each.window).copy_(writes[each.decided(target).int()])
        if watch is not None and each.places:
            watch(each.k, each.window, each.deciding(target))
    return Volume(out, scan)


def _widest(targets: Sequence[Target]) -> Target:
    """A target that finds foreground wherever one of these does."""
    alike = {replace(target, weights=()) for target in targets}
    if len(alike) != 1:
        raise ValueError(f"targets must differ only in their weights, not {len(alike)} in more")
    (target,) = alike
    if not any(each.weights for each in targets):
        return target
    every = [each.weights or (1.0,) * target.outputs for each in targets]
    weights = [max(of_output) for of_output in zip(*every, strict=True)]
    if target.exclusive:
        weights[0] = min(each[0] for each in every)
    return replace(target, weights=tuple(weights))


def _faint(target: Target) -> Target:
    """The target with weights by which anything that is not `FAINT` is foreground."""
    weights = list(target.weights or (1.0,) * target.outputs)
    if target.exclusive:
        return replace(target, weights=(FAINT * weights[0], *weights[1:]))
    return replace(target, weights=tuple(PRESENT / FAINT * weight for weight in weights))


@dataclass(frozen=True, eq=False)
class _Source:
    """Probabilities of a region, and the mapping from the scan's slices to them.

    Attributes:
        data: (channels, slices, rows, columns).
        index_from_scan: (scan slices, 4, 4), see `index_from_voxels`.
        matrices: `index_from_scan` as numpy array on the CPU.
        planes: (scan slices,), see `index_from_voxels`.
        copied: the scan's voxels coincide with voxels of the data, so no interpolation is needed.
        foreground: (slices, 4) first and last row and column that may be foreground, -1 if there
            are none.
        size: rows and columns of the scan.
    """

    data: Tensor
    index_from_scan: Tensor
    matrices: np.ndarray
    planes: Tensor | None
    copied: bool
    foreground: np.ndarray
    size: tuple[int, int]

    def foreground_window(self, k: int) -> Window | None:
        """The window of slice k of the scan that may contain foreground; None if there is none."""
        return self._window(k, self.foreground)

    def window(self, k: int) -> Window | None:
        """The window of slice k of the scan that the data cover; None if they do not."""
        slices, rows, columns = self.data.shape[1:]
        return self._window(k, np.tile((0, rows - 1, 0, columns - 1), (slices, 1)))

    def sampled(self, k: int, window: Window, fill: Tensor) -> Tensor:
        """(channels, rows, columns) in a part of `window(k)`; `fill`, (channels,), outside."""
        row = slice(k, k + 1)
        if self.copied:
            assert self.planes is not None
            top, left = self._offset()
            shifted = tuple(
                range(line.start + first, line.stop + first)
                for line, first in zip(window, (top, left), strict=True)
            )
            return part_of(self.data[:, int(self.planes[k])], (shifted[0], shifted[1]))
        planes = None if self.planes is None else self.planes[row]
        return sample_window(self.data, self.index_from_scan[row], planes, window, fill)[:, 0]

    def _window(self, k: int, boxes: np.ndarray) -> Window | None:
        plane = None if self.planes is None else int(self.planes[k])
        if not self.copied:
            return projected(boxes, self.matrices[k], plane, self.size)
        assert plane is not None
        if not 0 <= plane < len(boxes) or boxes[plane, 0] < 0:
            return None
        top, left = self._offset()
        first, last, start, end = (int(n) for n in boxes[plane])
        return intersection(
            (range(first - top, last + 1 - top), range(start - left, end + 1 - left)),
            (range(self.size[0]), range(self.size[1])),
        )

    def _offset(self) -> tuple[int, int]:
        top, left = self.matrices[0, 1:3, 3].round()
        return int(top), int(left)


def _source(region: Region, scan: Grid, target: Target) -> _Source:
    """Raises ValueError and ModelError, see `restore`."""
    if region.found is None:
        raise ValueError(f"region '{region.name}' has no probabilities")
    data = region.found.data
    if len(data) != target.outputs:
        raise ValueError(
            f"region '{region.name}' has {len(data)} channels, the target {target.outputs}"
        )
    _check_finite(data, region.name)
    index_from_scan, planes = index_from_voxels(region.found.grid, scan)
    return _Source(
        data=data,
        index_from_scan=index_from_scan,
        matrices=index_from_scan.cpu().numpy(),
        planes=planes,
        copied=planes is not None and is_sub_grid(index_from_scan),
        foreground=_foreground_boxes(data, target),
        size=scan.shape[1:],
    )


def _check_finite(data: Tensor, name: str) -> None:
    """Raise ModelError for NaN and infinity: comparisons would turn them into labels."""
    # The sum is finite only if all terms are; slice by slice, it needs no extra memory.
    for k in range(data.shape[1]):
        if not bool(data[:, k].sum(dtype=torch.float32).isfinite()):
            of_region = f" of region '{name}'" if name else ""
            raise ModelError(
                f"the model's probabilities{of_region} are not finite in slice {k + 1} of "
                f"{data.shape[1]}",
                code="not-finite-probabilities",
                next_step="Segment with precision fp32; if it already is fp32, training diverged: "
                "train again.",
            )


def _foreground_boxes(data: Tensor, target: Target) -> np.ndarray:
    """(slices, 4): first and last row and column that may be foreground; -1 if there are none."""
    roundings = 0 if target.exclusive else _WEIGHT_ROUNDING
    if target.weights:
        roundings = _TWO_ROUNDINGS
    least = 1 - roundings * torch.finfo(data.dtype).eps if roundings else 1
    boxes = np.full((data.shape[1], 4), -1)
    for k, box in enumerate(boxes):
        values = with_weights(data[:, k], target)
        if target.exclusive:
            mask = maximum(values[1:]) > values[0] * least
        else:
            mask = maximum(values) > PRESENT * least
        rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            box[:] = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    return boxes


def _ensemble_mean(
    ensemble: Sequence[_Source], k: int, window: Window, target: Target
) -> tuple[Window, Tensor] | None:
    """The part of a window that an ensemble covers, and its (channels, rows, columns) mean there.

    None if no member covers any of the window.
    """
    fill = torch.tensor(target.background)
    parts = [intersection(source.window(k), window) for source in ensemble]
    covering = [(s, part) for s, part in zip(ensemble, parts, strict=True) if part is not None]
    if not covering:
        return None
    if len(covering) == 1:
        ((source, part),) = covering
        return part, source.sampled(k, part, fill)
    union = bounding_window([part for _, part in covering])
    outside = torch.full_like(fill, torch.nan)  # the data are finite, so NaN marks the outside
    size = [len(line) for line in union]
    total = torch.zeros((len(fill), *size), dtype=torch.float64)
    count = torch.zeros(size, dtype=torch.uint8)
    for source, part in covering:
        values = source.sampled(k, part, outside).cpu()
        missing = values[0].isnan()
        if bool(missing.any()):
            values = values.masked_fill(missing, 0.0)
            part_of(count, part, union).add_(~missing)
        else:
            part_of(count, part, union).add_(1)
        part_of(total, part, union).add_(values)
    fewest, most = (int(each) for each in count.aminmax())
    if fewest == most > 0:
        return union, total.div_(most)
    mean = total.div_(count.clamp(min=1))
    return union, mean if fewest else torch.where(count > 0, mean, fill.double()[:, None, None])
