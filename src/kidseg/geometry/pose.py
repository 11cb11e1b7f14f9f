"""Poses and spatial transformers' thetas: both are grids.

A pose is built in millimetres, so that a rotation is a rotation also where pixels or images are not
square; a theta is the same map in normalised coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry.grid import Grid, affine, applied, check_paired_planes, like_matrix

__all__ = ["InPlanePose", "grid_from_theta", "in_plane_pose", "posed", "theta_from_grid"]


def posed(
    grid: Grid,
    *,
    angle_rad: Tensor | float = 0.0,
    scale: Tensor | Sequence[float] = (1.0, 1.0),
    shift_mm: Tensor | Sequence[float] = (0.0, 0.0),
) -> Grid:
    """The grid whose voxels lie at `grid`'s, scaled, turned and shifted about its middle.

    Built in millimetres along the grid's own rows and columns, so that a rotation is a rotation
    also where pixels or images are not square. A point p of the new grid, seen from the middle in
    (x along columns, y along rows), lies at `rotation(angle) @ diag(scale) @ p + shift`. So an
    object that is `scale` times too large and turned by `angle` comes out upright and in size.

    In the plane: `angle_rad` (...), `scale` (..., 2) and `shift_mm` (..., 2) as (x, y); the angle
    turns columns towards rows. In space: `angle_rad` (..., 3), `scale` and `shift_mm` (..., 3)
    about and along (x, y, z) = (column, row, slice) axes; rotations apply about x, then y, then z.
    The leading shape is () for one pose of the whole grid, or (slices,) for one per slice, which
    gives a slice-wise grid. Differentiable in all three.
    """
    matrix = grid.mm_from_index
    angle, size, shift = (like_matrix(values, matrix) for values in (angle_rad, scale, shift_mm))
    if size.shape[-1] == 2:
        nothing = torch.zeros_like(angle)
        angle = torch.stack([nothing, nothing, angle], dim=-1)
        size = torch.cat([size, torch.ones_like(size[..., :1])], dim=-1)
        shift = torch.cat([shift, torch.zeros_like(shift[..., :1])], dim=-1)
    frame_from_frame = affine(linear=_rotation(angle) * size[..., None, :], translation=shift)
    if frame_from_frame.ndim == 3:
        grid = grid.slicewise()
    mm_from_frame = _mm_from_frame(grid)
    frame_from_index = torch.linalg.inv(mm_from_frame) @ grid.mm_from_index
    return Grid(grid.shape, mm_from_frame @ frame_from_frame @ frame_from_index)


@dataclass(frozen=True, eq=False)
class InPlanePose:
    """How one grid's planes lie in another's: see `posed`. Shapes () or (slices,), and (..., 2)."""

    angle_rad: Tensor
    scale: Tensor
    shift_mm: Tensor


def in_plane_pose(target: Grid, source: Grid) -> InPlanePose:
    """The pose that, applied to `source` as `posed` does, gives `target`'s axes and middle.

    Pixel size and image size drop out: a change of resolution alone is angle 0, scale 1, shift 0.
    A shear, which `posed` cannot make, is ignored.
    """
    if target.is_slicewise or source.is_slicewise:
        target, source = target.slicewise(), source.slicewise()
    frame_from_mm = torch.linalg.inv(_mm_from_frame(source))
    frame_from_index = frame_from_mm @ target.mm_from_index
    pixel = (source.spacing_mm * _counts(source)) / _counts(target)
    column = frame_from_index[..., :2, 2] / pixel[..., 2:]
    row = frame_from_index[..., :2, 1] / pixel[..., 1:2]
    scale = torch.stack(
        [torch.linalg.vector_norm(column, dim=-1), torch.linalg.vector_norm(row, dim=-1)], dim=-1
    )
    centre = applied(frame_from_mm, target.centre_mm)[..., :2]
    return InPlanePose(torch.atan2(column[..., 1], column[..., 0]), scale, centre)


def grid_from_theta(theta: Tensor, source: Grid, shape: Sequence[int] | None = None) -> Grid:
    """The output grid that a spatial transformer's theta means on a source grid.

    Args:
        theta: (slices, 2, 3) for one in-plane map per slice, (2, 3) for the same in all slices, or
            (3, 4) in space. Takes normalised output coordinates (x, y[, z], 1) in -1 .. 1 to
            normalised source coordinates, edges of the outer voxels at -1 and 1.
        source: the grid that theta samples.
        shape: voxels of the output; the source's by default.

    Source: Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 1; the normalisation
    is torch's, with half-pixel centres.
    """
    nz, ny, nx = shape if shape is not None else source.shape
    if theta.ndim == 3:
        source = source.slicewise()
    theta = theta.to(source.mm_from_index)
    if theta.shape[-2:] == (2, 3):
        if nz != source.shape[0]:
            raise ValueError("an in-plane theta keeps the number of slices")
        lifted = torch.eye(4).to(theta).expand(*theta.shape[:-2], 4, 4).clone()
        lifted[..., :2, :2], lifted[..., :2, 3] = theta[..., :2], theta[..., 2]
    elif theta.shape == (3, 4):
        lifted = torch.cat([theta, theta.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    else:
        raise ValueError(f"theta is (slices, 2, 3), (2, 3) or (3, 4), not {tuple(theta.shape)}")
    sizes = (1, ny, nx) if source.is_slicewise else (nz, ny, nx)
    index_from_theta = _index_from_normalised(_counts(source)).to(theta)
    theta_from_index = torch.linalg.inv(_index_from_normalised(theta.new_tensor(sizes)))
    return Grid((nz, ny, nx), source.mm_from_index @ index_from_theta @ lifted @ theta_from_index)


def theta_from_grid(target: Grid, source: Grid) -> Tensor:
    """The theta by which `source` is sampled at `target`; inverse of `grid_from_theta`.

    Returns:
        (slices, 2, 3) if either grid is slice-wise, else (3, 4).

    Raises:
        ValueError: slice-wise, and the planes of the two do not coincide.
    """
    if target.is_slicewise or source.is_slicewise:
        target, source = target.slicewise(), source.slicewise()
        check_paired_planes(target, source)
    source_from_target = torch.linalg.inv(source.mm_from_index) @ target.mm_from_index
    source_normal = torch.linalg.inv(_index_from_normalised(_counts(source)))
    lifted = source_normal @ source_from_target @ _index_from_normalised(_counts(target))
    if target.is_slicewise:
        return _rows(lifted, 2)[..., [0, 1, 3]]
    return _rows(lifted, 3)


def _rotation(angle_rad: Tensor) -> Tensor:
    """(..., 3, 3) rotations about x, then y, then z, from (..., 3) angles."""
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    one, nothing = torch.ones_like(cos[..., 0]), torch.zeros_like(cos[..., 0])

    def turn(rows: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    (cx, cy, cz), (sx, sy, sz) = cos.unbind(-1), sin.unbind(-1)
    about_x = turn([[one, nothing, nothing], [nothing, cx, -sx], [nothing, sx, cx]])
    about_y = turn([[cy, nothing, sy], [nothing, one, nothing], [-sy, nothing, cy]])
    about_z = turn([[cz, -sz, nothing], [sz, cz, nothing], [nothing, nothing, one]])
    return about_z @ about_y @ about_x


def _mm_from_frame(grid: Grid) -> Tensor:
    """The grid's own millimetre frame: origin in its middle, x along columns, y along rows.

    z is the third axis of the right-hand system; for a grid without shear it runs along the slice
    axis, forwards or backwards. Constant: carries no gradients.
    """
    matrix = grid.mm_from_index.detach()
    x = F.normalize(matrix[..., :3, 2], dim=-1)
    y = matrix[..., :3, 1]
    y = F.normalize(y - (y * x).sum(-1, keepdim=True) * x, dim=-1)
    z = torch.linalg.cross(x, y)
    axes = torch.stack([x, y, z], dim=-1)
    return affine(linear=axes, translation=grid.centre_mm.detach())


def _index_from_normalised(counts: Tensor) -> Tensor:
    """(4, 4): normalised (x, y, z, 1), edges at -1 and 1, to index (slice, row, column, 1)."""
    nz, ny, nx = counts.tolist()
    matrix = counts.new_zeros((4, 4))
    for axis, (column, count) in enumerate([(2, nz), (1, ny), (0, nx)]):
        matrix[axis, column], matrix[axis, 3] = count / 2, (count - 1) / 2
    matrix[3, 3] = 1.0
    return matrix


def _rows(matrix: Tensor, count: int) -> Tensor:
    return matrix[..., :count, :]


def _counts(grid: Grid) -> Tensor:
    shape = (1, *grid.shape[1:]) if grid.is_slicewise else grid.shape
    return grid.mm_from_index.new_tensor([float(n) for n in shape])
