"""Smooth functions of space as sums of cubic B-splines: the deformation field, and textures.

On an axial grid, each needs three small matrix products per slab, which is fast and smooth for any
voxel size. Source: free-form deformation, Rueckert et al., IEEE TMI 18 (1999) 712-721.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.geometry import Grid

__all__ = ["Splines", "axes_mm", "draw_texture"]

# Variance of a sum of cubic B-splines with independent coefficients of variance 1, along one axis:
# the mean over a cell of the summed squares of the basis. Source: B-spline of degree 7 at 0.
_VARIANCE = 151.0 / 315.0
# Standard deviation of a cubic B-spline, in nodes.
_WIDTH = 3.0**-0.5


@dataclass(frozen=True, eq=False)
class Splines:
    """A function of space with one or more channels.

    Attributes:
        coefficients: (channels, slices, rows, columns) float32, one per node.
        first_mm: (x, y, z) of the first node.
        step_mm: between nodes, the same along all axes; nodes run to +x, +y and +z.
    """

    coefficients: Tensor
    first_mm: tuple[float, float, float]
    step_mm: float

    @classmethod
    def through(cls, values: Tensor, first_mm: Sequence[float], step_mm: float) -> Splines:
        """A function with approximately `values` (channels, slices, rows, columns) at the nodes.

        Exact for linear functions; otherwise accurate to fourth order in the step.
        """
        bent = torch.zeros_like(values)
        for axis in (1, 2, 3):
            n = values.shape[axis]
            inner = values.narrow(axis, 1, n - 2)
            change = values.narrow(axis, 0, n - 2) - 2.0 * inner + values.narrow(axis, 2, n - 2)
            bent.narrow(axis, 1, n - 2).sub_(change, alpha=1.0 / 6.0)
        x, y, z = (float(v) for v in first_mm)
        return cls(values + bent, (x, y, z), step_mm)

    def on(self, grid: Grid) -> Tensor:
        """(channels, *grid.shape) on an axial grid; decays to 0 outside the nodes."""
        out = self.coefficients
        counts = self.coefficients.shape[1:]
        for axis, (mm, first, count) in enumerate(
            zip(axes_mm(grid), self.first_mm[::-1], counts, strict=True)
        ):
            at = (mm - first) / self.step_mm
            basis = _cubic(at[:, None] - torch.arange(count)).float()
            out = torch.tensordot(out, basis, dims=([1], [1]))  # cycles z, y, x to the end
            assert out.ndim == 4, axis
        return out


def axes_mm(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """World z of the slices, y of the rows and x of the columns of an axial grid.

    Raises:
        ValueError: the grid is slice-wise or not axial.
    """
    matrix = grid.mm_from_index
    if grid.is_slicewise or not _is_axial(matrix):
        raise ValueError("digital patients are rendered on axial, volumetric grids only")
    found = []
    for axis, world in ((0, 2), (1, 1), (2, 0)):
        index = torch.arange(grid.shape[axis], dtype=torch.float64)
        found.append(index * matrix[world, axis] + matrix[world, 3])
    return found[0], found[1], found[2]


def _is_axial(matrix: Tensor) -> bool:
    aligned = torch.zeros(3, 3, dtype=matrix.dtype)
    for axis, world in ((0, 2), (1, 1), (2, 0)):
        aligned[world, axis] = matrix[world, axis]
    return bool((matrix[:3, :3] - aligned).abs().max() < 1e-9)


def draw_texture(
    rng: np.random.Generator,
    size_mm: Sequence[float],
    centre_mm: Sequence[float],
    correlation_mm: float,
) -> Splines:
    """Draw a random smooth texture over a box: mean 0, standard deviation 1.

    Args:
        rng: random generator; the number of draws depends only on the box.
        size_mm: (x, y, z) of the box; outside it the texture fades out.
        centre_mm: centre of the box.
        correlation_mm: standard deviation of the smoothing; details are about twice as large.
    """
    step = correlation_mm / _WIDTH
    counts = [int(np.ceil(s / step)) + 4 for s in size_mm]
    white = rng.standard_normal((1, counts[2], counts[1], counts[0]), dtype=np.float32)
    first = [c - step * (n - 1) / 2 for c, n in zip(centre_mm, counts, strict=True)]
    white /= np.float32(_VARIANCE**1.5)
    return Splines(torch.from_numpy(white), (first[0], first[1], first[2]), step)


def _cubic(t: Tensor) -> Tensor:
    """The cubic B-spline at t nodes from its centre."""
    t = t.abs()
    near = 2.0 / 3.0 - t * t + 0.5 * t**3
    far = (2.0 - t).clamp(min=0.0) ** 3 / 6.0
    return torch.where(t < 1.0, near, far)
