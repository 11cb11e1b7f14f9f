"""Whether what was found is cut by the border of its region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kidseg.geometry import Grid
from kidseg.pipeline.deciding import decide
from kidseg.pipeline.steps import Region

__all__ = ["reaches_border"]


def reaches_border(region: Region, scan: Grid, others: Sequence[Region] = ()) -> bool:
    """Whether foreground touches the in-plane border of its region inside the scan.

    Args:
        region: with probabilities.
        scan: grid of the scan; at its own border nothing is cut by the region.
        others: what lies inside one of these regions, away from its border, is not cut either.
    """
    assert region.found is not None and region.target is not None
    foreground = decide(region.found, region.target).data[0] > 0
    inner = torch.zeros_like(foreground[0])
    inner[1:-1, 1:-1] = True
    edge = (foreground & ~inner).nonzero()
    if not len(edge):
        return False
    grid = region.grid.slicewise()
    matrices = grid.mm_from_index[edge[:, 0]]
    index = torch.cat([torch.zeros(len(edge), 1), edge[:, 1:], torch.ones(len(edge), 1)], dim=1)
    mm = torch.einsum("kij,kj->ki", matrices, index.to(matrices))[:, :3]
    cut = _inside(mm, scan)
    for other in others:
        if other is not region and not other.grid.is_slicewise:
            cut &= ~(_inside(mm, other.grid) & _in_slices(mm, other.grid))
    return bool(cut.any())


def _inside(mm: Tensor, grid: Grid) -> Tensor:
    """Whether positions lie away from the in-plane border of a volumetric grid."""
    rows, columns = grid.index(mm)[:, 1:].unbind(1)
    inside = (rows > 0.5) & (rows < grid.shape[1] - 1.5)
    return inside & (columns > 0.5) & (columns < grid.shape[2] - 1.5)


def _in_slices(mm: Tensor, grid: Grid) -> Tensor:
    depth = grid.index(mm)[:, 0]
    return (depth > -0.5) & (depth < grid.shape[0] - 0.5)
