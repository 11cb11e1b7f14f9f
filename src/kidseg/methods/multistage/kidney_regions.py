"""From what stage 1 found to one region per kidney."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import Target
from kidseg.measure import Midline, side_of_component
from kidseg.pipeline import decide
from kidseg.postprocess import Piece, remove_small

__all__ = ["Kidney", "kidneys_in", "without_small"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kidney:
    """A kidney with its tumour, as far as stage 1 can tell.

    Attributes:
        name: "right", "left" or "both sides".
        grid: the region around it, on voxels of the full grid.
        volume_ml: of all its components.
        components: their number.
        is_grown: the region is larger than `box`, because the kidney is.
    """

    name: str
    grid: Grid
    volume_ml: float
    components: int
    is_grown: bool


def kidneys_in(
    mask: Tensor, coarse: Grid, full: Grid, *, reduction: int, box: int, midline: Midline
) -> list[Kidney]:
    """One region per kidney: the bounding box of its components, extended symmetrically in plane.

    The components on one side of the body are one kidney, as a kidney may be found in pieces; a
    component on both sides is one of its own. Voxels are connected by faces. Along the slices a
    region ends with its kidney.

    Args:
        mask: (slices, rows, columns) bool, kidney and tumour.
        coarse: its grid, volumetric.
        full: with pixels `reduction` times smaller; pixel 0 begins where that of `coarse` does.
        reduction: see `full`.
        box: pixels of `full` along each side of a region; more where the kidney is larger.
        midline: of the body.

    Returns:
        At most three, in the order right, left, both sides; none for an empty mask. Regions may
        extend beyond the scan.
    """
    from scipy import ndimage

    numbers, count = ndimage.label(mask.numpy())
    places: dict[str, list[int]] = {"right": [], "left": [], "both sides": []}
    corners = {}
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    for number, found in enumerate(ndimage.find_objects(numbers), start=1):
        low = np.array([side.start for side in found])
        index = np.argwhere(numbers[found] == number) + low
        places[side_of_component(midline.right_of(coarse.mm(index).numpy()) > 0)].append(number)
        corners[number] = low, np.array([side.stop for side in found])
    kidneys = []
    for name, members in places.items():
        if not members:
            continue
        low = np.min([corners[n][0] for n in members], axis=0)
        high = np.max([corners[n][1] for n in members], axis=0)
        start, shape = _extended(low, high, reduction, box)
        kidneys.append(
            Kidney(
                name=name,
                grid=full.crop(start, shape),
                volume_ml=float(sizes[members].sum()) * float(coarse.voxel_ml),
                components=len(members),
                is_grown=max(shape[1:]) > box,
            )
        )
    return kidneys


def without_small(
    found: Volume,
    target: Target,
    config: PostprocessConfig,
    min_ml: float,
    counted: Callable[[Volume], Tensor] | None = None,
) -> tuple[Volume, tuple[Piece, ...]]:
    """Probabilities in which small components are certain background, and these components.

    Args:
        found: (target.outputs, slices, rows, columns) probabilities, volumetric.
        target: meaning of the channels.
        config: whether components in the first and last slice are kept: if not counted in voxels.
        min_ml: see `kidseg.postprocess.min_volume_ml`.
        counted: (labels) -> (1, slices, rows, columns) bool, the labelled voxels that form
            components; all others stay. None: all labels.
    """
    labels = decide(found, target)
    if counted is not None:
        labels = replace(labels, data=labels.data.masked_fill(~counted(labels), 0))
    kept, removed = remove_small(labels, min_ml, keep_ends=config.min_voxels is None)
    if not removed:
        return found, ()
    away = (labels.data[0] > 0) & (kept.data[0] == 0)
    background = torch.tensor(target.background).to(found.data)[:, None, None, None]
    # The volumes of single opinions stay as they are: `Predicted`.
    return replace(found, data=torch.where(away, background, found.data)), removed


def _extended(
    low: np.ndarray, high: np.ndarray, reduction: int, box: int
) -> tuple[Sequence[int], Sequence[int]]:
    """First voxel and size of a region, from the first and last + 1 voxel on the coarse grid."""
    start, shape = [int(low[0])], [int(high[0] - low[0])]
    for axis in (1, 2):
        first, last = int(low[axis]) * reduction, int(high[axis]) * reduction
        side = max(box, last - first)
        start.append((first + last - side) // 2)
        shape.append(side)
    return start, shape
