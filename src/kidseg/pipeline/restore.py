"""The way back: probabilities onto the scan's own voxels, and the decision between labels there.

They are interpolated once, from the network's grid straight to the scan's voxels; the decision
comes last of all.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import ModelError
from kidseg.geometry import (
    Grid,
    Volume,
    index_from_voxels,
    is_sub_grid,
    resample,
    sample_window,
)

__all__ = ["decided", "restore"]


@torch.no_grad()
def restore(probabilities: Volume, scan: Grid) -> Volume:
    """Probabilities brought onto the scan's voxels and decided there.

    The labels are those of `resample` onto the whole scan and argmax. But between voxels that are
    all background interpolation finds background, so only what lies around the others is sampled,
    slice by slice: a scan's probabilities are neither computed everywhere nor held in memory.

    Outside the grid of the probabilities background is certain.

    Args:
        probabilities: (labels + 1, slices, rows, columns), background first, 0 to 1.
        scan: grid of the scan.

    Returns:
        (1, slices, rows, columns) uint8: the most probable label; the lower number on a tie.

    Raises:
        ValueError: the planes of slice-wise probabilities and the scan do not coincide.
        ModelError: "not-finite-probabilities".
    """
    data, source = probabilities.data, probabilities.grid
    _check_finite(data)
    index_from_scan, planes = index_from_voxels(source, scan)
    if planes is not None and is_sub_grid(index_from_scan):
        return resample(decided(probabilities), scan, mode="nearest")
    fill = torch.tensor([1.0] + [0.0] * (probabilities.channels - 1))
    boxes = _boxes(data)
    out = torch.zeros((1, *scan.shape), dtype=torch.uint8)
    for k, matrix in enumerate(index_from_scan.cpu().numpy()):
        plane = None if planes is None else int(planes[k])
        window = _window(boxes, matrix, plane, scan.shape[1:])
        if window is None:
            continue
        rows, columns = window
        this = slice(k, k + 1)
        chosen = None if planes is None else planes[this]
        values = sample_window(data, index_from_scan[this], chosen, window, fill)
        part = out[0, k, rows.start : rows.stop, columns.start : columns.stop]
        part.copy_(values[:, 0].argmax(0))
    return Volume(out, scan)


def _check_finite(data: Tensor) -> None:
    """Where a probability is no number, argmax would make a label of it."""
    # A slice at a time, and a sum: it holds nothing in memory, and is finite only if all terms are.
    for k in range(data.shape[1]):
        if not bool(data[:, k].sum(dtype=torch.float32).isfinite()):
            raise ModelError(
                f"the model's probabilities are not finite in slice {k} of {data.shape[1]}",
                code="not-finite-probabilities",
                next_step="Segment in precision fp32; if it is, the model's training diverged: "
                "train again.",
            )


def decided(probabilities: Volume) -> Volume:
    """(1, slices, rows, columns) uint8 on the CPU: the most probable label of each voxel."""
    data = probabilities.data
    out = torch.empty(data.shape[1:], dtype=torch.uint8)
    for k in range(len(out)):
        out[k].copy_(data[:, k].argmax(0))
    return Volume(out[None], probabilities.grid)


def _boxes(data: Tensor) -> np.ndarray:
    """(slices, 4): first and last row and column that may be other than background; -1 if none is.

    Between voxels where no label exceeds background none does: the weights are the same for all
    channels and not negative, and products, sums and their rounding keep "at most".
    """
    boxes = np.full((data.shape[1], 4), -1)
    for k, box in enumerate(boxes):
        doubtful = data[1:, k].amax(0) > data[0, k]
        rows, columns = (doubtful.any(axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            box[:] = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    return boxes


def _window(
    boxes: np.ndarray, index_from_target: np.ndarray, plane: int | None, size: tuple[int, int]
) -> tuple[range, range] | None:
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
