"""The way back: probabilities onto the scan's own voxels, and the decision between labels there.

They are interpolated once, from each region's grid straight to the scan's voxels; the decision
comes last of all. A scan's probabilities are neither computed everywhere nor held in memory: slice
by slice, only what can be other than background is sampled.

The labels are those of `resample` of each region onto the whole scan, mean and decision, to the
last voxel, because

- exclusive channels: between voxels where no channel exceeds the background none does. The weights
  are the same for all channels and not negative, and products, sums and their rounding keep "at
  most"; so do the sum over opinions and its division by their number.
- others: between voxels where no channel exceeds 0.5, less the rounding of the weights, none does.
- where no place is other than background nothing is. Where one is, another may still be surer that
  it is background: so every place is sampled wherever any may be other than background.

Two regions that hold the same probabilities where they overlap give the labels of one that covers
both, without a seam: exactly, where their voxels are the scan's. Interpolated, this holds half a
voxel of the region inside its borders (nearer, the edge value stands for the next voxel's), and but
for rounding (positions count from each region's first voxel).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import ModelError
from kidseg.geometry import Grid, Volume, index_from_voxels, is_sub_grid, sample_window
from kidseg.labels import Target
from kidseg.pipeline.steps import Region

__all__ = ["decided", "restore"]

# Channels that are no alternatives take what is more probable than not. Source: nnU-Net,
# `convert_probabilities_to_segmentation` for regions.
_PRESENT = 0.5
# The weights of an interpolation add up to 1 only to rounding: sums of eight products of three
# factors are off by less than this many of the data type's epsilons.
_WEIGHT_ROUNDING = 16

_Window = tuple[range, range]
"""Rows and columns of a slice of the scan."""


@torch.no_grad()
def restore(regions: Sequence[Region], scan: Grid, target: Target) -> Volume:
    """What was found in regions, brought onto the scan's voxels and decided there.

    Regions of one name are several opinions: their mean holds, at each voxel over those whose grid
    covers it. Regions of different names are places, and where they overlap the one with the least
    probability of background decides. Outside a region's grid background is certain.

    Exclusive channels: the most probable is written, the lower one on a tie. Others: each channel
    in order whose probability exceeds 0.5 is written over those before it; the background of a
    place is then 1 less its most probable channel. Where two places are equally little background,
    the lower of the two channels is written, and background is the lowest. So the order of regions
    has no say (of three or more opinions: but for the rounding of their sum, 1e-16).

    Args:
        regions: what was found, (target.outputs, slices, rows, columns) each, 0 to 1, volumetric
            anywhere in space or slice-wise over the scan's slices; () is all background. A region
            may lie outside the scan.
        scan: grid of the scan.
        target: what the channels mean.

    Returns:
        (1, slices, rows, columns) uint8 on the scan's grid, on the CPU.

    Raises:
        ValueError: a region in which nothing was found, or that has another number of channels than
            the target; or the planes of slice-wise probabilities and the scan do not coincide.
        ModelError: "not-finite-probabilities".
    """
    places: dict[str, list[_Placed]] = {}
    for region in regions:
        places.setdefault(region.name, []).append(_placed(region, scan, target))
    everything = [placed for opinions in places.values() for placed in opinions]
    writes = torch.tensor((0, *target.writes), dtype=torch.uint8)
    out = torch.zeros((1, *scan.shape), dtype=torch.uint8)
    for k in range(scan.shape[0]):
        for window in _disjoint(placed.doubtful_window(k) for placed in everything):
            chosen = _chosen(list(places.values()), k, window, target)
            _part(out[0, k], window).copy_(writes[chosen.int()])
    return Volume(out, scan)


@dataclass(frozen=True, eq=False)
class _Placed:
    """Probabilities, and where the slices of a scan lie in them.

    Attributes:
        data: (channels, slices, rows, columns).
        index_from_scan: (scan slices, 4, 4), see `index_from_voxels`.
        matrices: the same in numpy, on the CPU.
        planes: (scan slices,), see there.
        copied: the scan's voxels are among those of the data.
        doubtful: (slices, 4) first and last row and column that may be other than background, -1
            if none may.
        size: rows and columns of the scan.
    """

    data: Tensor
    index_from_scan: Tensor
    matrices: np.ndarray
    planes: Tensor | None
    copied: bool
    doubtful: np.ndarray
    size: tuple[int, int]

    def doubtful_window(self, k: int) -> _Window | None:
        """What may be other than background in slice k of the scan; None if nothing may."""
        return self._window(k, self.doubtful)

    def window(self, k: int) -> _Window | None:
        """What of slice k of the scan the data can cover; None if nothing."""
        slices, rows, columns = self.data.shape[1:]
        return self._window(k, np.tile((0, rows - 1, 0, columns - 1), (slices, 1)))

    def sampled(self, k: int, window: _Window, fill: Tensor) -> Tensor:
        """(channels, rows, columns) in a part of `window(k)`; `fill`, (channels,), outside."""
        this = slice(k, k + 1)
        if self.copied:
            assert self.planes is not None
            top, left = self._offset()
            seen = tuple(
                range(line.start + first, line.stop + first)
                for line, first in zip(window, (top, left), strict=True)
            )
            return _part(self.data[:, int(self.planes[k])], (seen[0], seen[1]))
        planes = None if self.planes is None else self.planes[this]
        return sample_window(self.data, self.index_from_scan[this], planes, window, fill)[:, 0]

    def _window(self, k: int, boxes: np.ndarray) -> _Window | None:
        plane = None if self.planes is None else int(self.planes[k])
        if not self.copied:
            return _seen(boxes, self.matrices[k], plane, self.size)
        assert plane is not None
        if not 0 <= plane < len(boxes) or boxes[plane, 0] < 0:
            return None
        top, left = self._offset()
        first, last, start, end = (int(n) for n in boxes[plane])
        return _common(
            (range(first - top, last + 1 - top), range(start - left, end + 1 - left)),
            (range(self.size[0]), range(self.size[1])),
        )

    def _offset(self) -> tuple[int, int]:
        top, left = self.matrices[0, 1:3, 3].round()
        return int(top), int(left)


def _placed(region: Region, scan: Grid, target: Target) -> _Placed:
    """Raises ValueError and ModelError, see `restore`."""
    if region.found is None:
        raise ValueError(f"nothing was found in region '{region.name}'")
    data = region.found.data
    if len(data) != target.outputs:
        raise ValueError(
            f"{len(data)} channels in region '{region.name}', but {target.outputs} in the target"
        )
    _check_finite(data, region.name)
    index_from_scan, planes = index_from_voxels(region.found.grid, scan)
    return _Placed(
        data=data,
        index_from_scan=index_from_scan,
        matrices=index_from_scan.cpu().numpy(),
        planes=planes,
        copied=planes is not None and is_sub_grid(index_from_scan),
        doubtful=_boxes(data, target.exclusive),
        size=scan.shape[1:],
    )


def _check_finite(data: Tensor, name: str) -> None:
    """Where a probability is no number, a comparison would make a label of it."""
    # A slice at a time, and a sum: it holds nothing in memory, and is finite only if all terms are.
    for k in range(data.shape[1]):
        if not bool(data[:, k].sum(dtype=torch.float32).isfinite()):
            of_region = f" of region '{name}'" if name else ""
            raise ModelError(
                f"the model's probabilities{of_region} are not finite in slice {k} of "
                f"{data.shape[1]}",
                code="not-finite-probabilities",
                next_step="Segment in precision fp32; if it is, the model's training diverged: "
                "train again.",
            )


def decided(found: Volume, target: Target) -> Volume:
    """The labels of probabilities on their own grid; see `restore`.

    Args:
        found: (target.outputs, slices, rows, columns).
        target: what the channels mean.

    Returns:
        (1, slices, rows, columns) uint8 on the CPU.
    """
    writes = torch.tensor((0, *target.writes), dtype=torch.uint8)
    planes = [
        _decided(found.data[:, k], target.exclusive).cpu() for k in range(found.grid.shape[0])
    ]
    return Volume(writes[torch.stack(planes).int()][None], found.grid)


def _boxes(data: Tensor, exclusive: bool) -> np.ndarray:
    """(slices, 4): first and last row and column that may be other than background; -1 if none."""
    rounding = 0.0 if exclusive else _WEIGHT_ROUNDING * torch.finfo(data.dtype).eps
    present = _PRESENT * (1 - rounding)
    boxes = np.full((data.shape[1], 4), -1)
    for k, box in enumerate(boxes):
        values = data[:, k]
        doubtful = _most(values[1:]) > values[0] if exclusive else _most(values) > present
        rows, columns = (doubtful.any(axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            box[:] = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    return boxes


def _chosen(places: Sequence[Sequence[_Placed]], k: int, window: _Window, target: Target) -> Tensor:
    """(rows, columns) uint8 in slice k of the scan: 1 + the channel to write; 0 is background."""
    out = torch.zeros([len(line) for line in window], dtype=torch.uint8)
    least = torch.full(out.shape, torch.inf, dtype=torch.float64)
    answers = [_answer(opinions, k, window, target) for opinions in places]
    known = [answer for answer in answers if answer is not None]
    for part, values in known:
        chosen = _decided(values, target.exclusive).cpu()
        here = _part(out, part, window)
        if len(known) == 1:
            here.copy_(chosen)
            break
        background = values[0] if target.exclusive else -_most(values)
        background = background.cpu().double()
        before = _part(least, part, window)
        lower = torch.where(background == before, torch.minimum(here, chosen), here)
        here.copy_(torch.where(background < before, chosen, lower))
        before.copy_(torch.minimum(background, before))
    return out


def _answer(
    opinions: Sequence[_Placed], k: int, window: _Window, target: Target
) -> tuple[_Window, Tensor] | None:
    """The part of a window that a place covers, and (channels, rows, columns) probabilities there.

    Their mean, if several opinions cover some of it; None if none does.
    """
    fill = torch.tensor(target.background)
    parts = [_common(placed.window(k), window) for placed in opinions]
    seen = [(o, part) for o, part in zip(opinions, parts, strict=True) if part is not None]
    if not seen:
        return None
    if len(seen) == 1:
        ((placed, part),) = seen
        return part, placed.sampled(k, part, fill)
    whole = _joined([part for _, part in seen])
    size = [len(line) for line in whole]
    total = torch.zeros((len(fill), *size), dtype=torch.float64)
    count = torch.zeros(size, dtype=torch.float64)
    nowhere = torch.full_like(fill, torch.nan)  # the data are finite, so it marks what is outside
    for placed, part in seen:
        values = placed.sampled(k, part, nowhere).cpu().double()
        _part(count, part, whole).add_(~values[0].isnan())
        _part(total, part, whole).add_(values.nan_to_num(0.0))
    mean = total / count.clamp(min=1)
    return whole, torch.where(count > 0, mean, fill.double()[:, None, None])


def _decided(values: Tensor, exclusive: bool) -> Tensor:
    """(rows, columns) uint8: 1 + the channel to write, 0 for background; see `restore`.

    A running maximum: over a first axis of a few channels argmax takes thirty times as long.
    """
    chosen = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    if not exclusive:
        for number, value in enumerate(values, start=1):
            chosen.masked_fill_(value > _PRESENT, number)
        return chosen
    most = values[0]
    for number, value in enumerate(values[1:], start=1):
        chosen.masked_fill_(value > most, number)
        most = torch.maximum(most, value)
    return chosen


def _most(values: Tensor) -> Tensor:
    """(rows, columns) maximum over the channels."""
    most = values[0]
    for value in values[1:]:
        most = torch.maximum(most, value)
    return most


def _part(values: Tensor, part: _Window, whole: _Window = (range(0), range(0))) -> Tensor:
    """The rows and columns `part` of values that begin where `whole` does; shares memory."""
    top, left = (line.start for line in whole)
    rows, columns = part
    return values[
        ..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]


def _common(one: _Window | None, other: _Window) -> _Window | None:
    """What two windows share; None if they share nothing."""
    if one is None:
        return None
    rows, columns = (
        range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (rows, columns) if rows and columns else None


def _joined(windows: Sequence[_Window]) -> _Window:
    """The least window around all."""
    rows, columns = (
        range(min(w[i].start for w in windows), max(w[i].stop for w in windows)) for i in (0, 1)
    )
    return rows, columns


def _disjoint(windows: Iterable[_Window | None]) -> list[_Window]:
    """Windows that share nothing and cover all of these; those that overlap become one."""
    apart: list[_Window] = []
    for window in windows:
        if window is None:
            continue
        while met := [other for other in apart if _common(other, window)]:
            apart = [other for other in apart if other not in met]
            window = _joined([window, *met])
        apart.append(window)
    return apart


def _seen(
    boxes: np.ndarray, index_from_target: np.ndarray, plane: int | None, size: tuple[int, int]
) -> _Window | None:
    """Rows and columns of a target slice that see something of the boxes; None if none do.

    Args:
        boxes: of the source's slices, see `_boxes`.
        index_from_target: (4, 4), see `index_from_voxels`.
        plane: the source slice in whose plane the target slice lies, if it lies in one.
        size: rows and columns of the target.
    """
    if plane is None:
        depths = index_from_target[0] @ _corners((0, 0), *((0, n - 1) for n in size))
        first, last = int(np.floor(depths.min())), int(np.ceil(depths.max()))
    else:
        first = last = plane
    slices = np.arange(max(first, 0), min(last, len(boxes) - 1) + 1)
    slices = slices[boxes[slices, 0] >= 0]
    if not len(slices):
        return None
    # A pixel reaches as far as its neighbours, and a little on for the rounding of positions.
    low, high = boxes[slices].min(0)[[0, 2]] - 1.01, boxes[slices].max(0)[[1, 3]] + 1.01
    ends = (slices[0] - 1.01, slices[-1] + 1.01)
    if plane is not None:
        ends = (index_from_target[0, 3],) * 2
    corners = _corners(ends, *zip(low, high, strict=True))
    there = np.linalg.inv(index_from_target)[1:3] @ corners
    starts = np.maximum(np.ceil(there.min(1)), 0).astype(int)
    stops = np.minimum(np.floor(there.max(1)) + 1, size).astype(int)
    if (starts >= stops).any():
        return None
    return range(starts[0], stops[0]), range(starts[1], stops[1])


def _corners(*ends: tuple[float, float]) -> np.ndarray:
    """(4, 8) homogeneous corners of the box between two ends of each axis."""
    return np.array([(*corner, 1.0) for corner in product(*ends)]).T
