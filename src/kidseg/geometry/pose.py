"""Build grids from poses and from the thetas of spatial transformers.

A pose is applied in millimetres, so that a rotation stays a rotation if pixels or images are not
square. A theta is the same map in normalised coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry.grid import Grid, affine, applied, like_matrix

__all__ = ["InPlanePose", "grid_from_theta", "has_parallel_slices", "in_plane_pose", "posed"]


def posed(
    grid: Grid,
    *,
    angle_rad: Tensor | float = 0.0,
    scale: Tensor | Sequence[float] = (1.0, 1.0),
    shift_mm: Tensor | Sequence[float] = (0.0, 0.0),
) -> Grid:
    """Scale, rotate and shift a grid about its centre.

    The transform is applied in millimetres along the grid's own rows and columns, so that a
    rotation stays a rotation if pixels or images are not square. A point p relative to the centre,
    in (x along columns, y along rows), moves to `rotation(angle) @ diag(scale) @ p + shift`. So an
    object that is `scale` times too large and rotated by `angle` is upright and of normal size on
    the new grid.

    In the plane: `angle_rad` (...), `scale` (..., 2) and `shift_mm` (..., 2) as (x, y); the angle
    rotates columns towards rows. In space: `angle_rad` (..., 3), `scale` and `shift_mm` (..., 3)
    about and along the (x, y, z) = (column, row, slice) axes; rotations are about x, then y, then
    z. The leading shape is () for one pose of the grid, or (slices,) for one per slice, which gives
    a slice-wise grid. Differentiable in all three.
    """
    matrix = grid.mm_from_index
    angle, size, shift = (like_matrix(values, matrix) for values in (angle_rad, scale, shift_mm))
    if size.shape[-1] == 2:
        zero = torch.zeros_like(angle)
        angle = torch.stack([zero, zero, angle], dim=-1)
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
    """Pose of one grid in the planes of another: see `posed`. Shapes () or (slices,), (..., 2)."""

    angle_rad: Tensor
    scale: Tensor
    shift_mm: Tensor


def in_plane_pose(target: Grid, source: Grid) -> InPlanePose:
    """The pose with which `posed` maps `source` to the axes and the centre of `target`.

    It does not depend on pixel size and image size: a mere change of resolution is angle 0, scale
    1, shift 0. A shear, which `posed` cannot express, is ignored.
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
    """The output grid of a spatial transformer's theta on a source grid.

    Args:
        theta: (slices, 2, 3) for one in-plane map per slice, (2, 3) for the same in all slices, or
            (3, 4) in space. Maps normalised output coordinates (x, y[, z], 1) in -1 .. 1 to
            normalised source coordinates; the edges of the outer voxels are at -1 and 1.
        source: the grid that theta samples.
        shape: voxels of the output; by default those of the source.

    Source: Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 1; the normalisation
    is torch's, with half-pixel centres.
    """
    nz, ny, nx = shape if shape is not None else source.shape
    if theta.ndim == 3:
        source = source.slicewise()
    theta = theta.to(source.mm_from_index)
    if theta.shape[-2:] == (2, 3):
        if nz != source.shape[0]:
            raise ValueError("an in-plane theta cannot change the number of slices")
        lifted = torch.eye(4).to(theta).expand(*theta.shape[:-2], 4, 4).clone()
        lifted[..., :2, :2], lifted[..., :2, 3] = theta[..., :2], theta[..., 2]
    elif theta.shape == (3, 4):
        lifted = torch.cat([theta, theta.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    else:
        raise ValueError(
            f"theta must be (slices, 2, 3), (2, 3) or (3, 4), not {tuple(theta.shape)}"
        )
    sizes = (1, ny, nx) if source.is_slicewise else (nz, ny, nx)
    index_from_theta = _index_from_normalised(_counts(source)).to(theta)
    theta_from_index = torch.linalg.inv(_index_from_normalised(theta.new_tensor(sizes)))
    return Grid((nz, ny, nx), source.mm_from_index @ index_from_theta @ lifted @ theta_from_index)


def has_parallel_slices(grid: Grid, scan: Grid) -> bool:
    """Whether the slices of a grid are those of a volumetric scan, up to a tilt below 45 degrees.

    False for sagittal slices of an axial scan. Of a slice-wise grid, the first slice decides.
    """
    along = grid.slicewise().mm_from_index[0, :3, 0].detach()
    matrix = scan.mm_from_index.detach()
    in_scan_mm = (torch.linalg.inv(matrix[:3, :3]) @ along.to(matrix)) * scan.spacing_mm
    return int(in_scan_mm.abs().argmax()) == 0


def _rotation(angle_rad: Tensor) -> Tensor:
    """(..., 3, 3) rotations about x, then y, then z, from (..., 3) angles."""
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    one, zero = torch.ones_like(cos[..., 0]), torch.zeros_like(cos[..., 0])

    def matrix(rows: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    (cx, cy, cz), (sx, sy, sz) = cos.unbind(-1), sin.unbind(-1)
    about_x = matrix([[one, zero, zero], [zero, cx, -sx], [zero, sx, cx]])
    about_y = matrix([[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]])
    about_z = matrix([[cz, -sz, zero], [sz, cz, zero], [zero, zero, one]])
    return about_z @ about_y @ about_x


def _mm_from_frame(grid: Grid) -> Tensor:
    """The grid's own millimetre frame: origin at its centre, x along columns, y along rows.

    z completes the right-handed system; for a grid without shear it is parallel to the slice axis,
    in either direction. Has no gradients.
    """
    matrix = grid.mm_from_index.detach()
    x = F.normalize(matrix[..., :3, 2], dim=-1)
    y = matrix[..., :3, 1]
    y = F.normalize(y - (y * x).sum(-1, keepdim=True) * x, dim=-1)
    z = torch.linalg.cross(x, y)
    axes = torch.stack([x, y, z], dim=-1)
    return affine(linear=axes, translation=grid.centre_mm.detach())


def _index_from_normalised(counts: Tensor) -> Tensor:
    """(4, 4): maps normalised (x, y, z, 1), edges at -1 and 1, to (slice, row, column, 1)."""
    nz, ny, nx = counts.tolist()
    matrix = counts.new_zeros((4, 4))
    for axis, (column, count) in enumerate([(2, nz), (1, ny), (0, nx)]):
        matrix[axis, column], matrix[axis, 3] = count / 2, (count - 1) / 2
    matrix[3, 3] = 1.0
    return matrix


def _counts(grid: Grid) -> Tensor:
    shape = (1, *grid.shape[1:]) if grid.is_slicewise else grid.shape
    return grid.mm_from_index.new_tensor([float(n) for n in shape])
