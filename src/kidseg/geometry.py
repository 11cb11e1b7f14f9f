"""Grids in patient millimetres, and the only interpolation in the package.

A spacing change, a pose normalization, a crop, a coarse-to-fine region and a spatial augmentation
are one act: choosing an output `Grid`. A chain of them is a matrix product, and the inverse of any
chain is "resample onto the original grid". So a scan is interpolated once on its way to a network,
and the probabilities once on their way back.

Conventions, here and everywhere:

- Arrays and indices are in the order (slice, row, column) = (z, y, x).
- World coordinates are patient millimetres (x, y, z), growing to the patient's Right, Anterior and
  Superior: "RAS+".
- An index names the *centre* of a voxel; the voxel fills half an index step to each side. A grid of
  n voxels along an axis therefore spans the indices -0.5 .. n - 0.5 (`align_corners=False`).
- A matrix is named `target_from_source`, so that products read by adjacency:
  `mm_from_index @ index_from_theta`.

A grid is either *volumetric* (one matrix) or *slice-wise* (one matrix per slice, each for a stack
of its own with a single slice, index 0). A batch of slices from many patients is a slice-wise grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "Grid",
    "InPlanePose",
    "Volume",
    "binned",
    "boxed",
    "grid_from_theta",
    "in_plane_pose",
    "posed",
    "resample",
    "stack",
    "theta_from_grid",
]

# Two positions closer than this part of a voxel are the same: far above float64 rounding of patient
# coordinates (1e-13 of a metre), far below anything interpolation could show.
_SAME_INDEX = 1e-6
# The same for a slope, in slices per pixel: over 1000 pixels it adds up to `_SAME_INDEX`.
_SAME_SLOPE = 1e-9
# Coordinates computed at once, so that a whole volume's never lie in memory together: 16 M points.
_POINTS_AT_ONCE = 2**24
# Edge values put around an image before its cubic spline is fitted: the pole of the cubic B-spline,
# sqrt(3) - 2, to this power is 1e-7, so what lies further out has no say. Source: Unser, "Splines:
# a perfect fit for signal and image processing", 1999; the same number as in scipy.ndimage.
_SPLINE_PAD = 12


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie in the patient.

    Attributes:
        shape: number of voxels (slices, rows, columns), each at least 1.
        mm_from_index: (4, 4), or (slices, 4, 4) for a slice-wise grid; float64, on the device it
            was given on (on the CPU where the device has no float64). Takes a homogeneous index
            (slice, row, column, 1) to (x, y, z, 1) in millimetres, RAS+. In a slice-wise grid
            matrix k takes (0, row, column, 1). Carries gradients if it was made from a tensor that
            does.

    Raises:
        ValueError: a shape or matrix that is no grid: wrong size, not finite, not invertible.
    """

    shape: tuple[int, int, int]
    mm_from_index: Tensor

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three sizes of at least 1, not {self.shape}")
        matrix = _as_matrix(self.mm_from_index)
        if matrix.shape[-2:] != (4, 4) or matrix.ndim not in (2, 3):
            raise ValueError(f"mm_from_index is (4, 4) or (slices, 4, 4), not {matrix.shape}")
        if matrix.ndim == 3 and matrix.shape[0] != shape[0]:
            raise ValueError(f"{matrix.shape[0]} matrices for {shape[0]} slices")
        if matrix.device.type == "cpu":  # elsewhere a look at the values would wait for the device
            _check_affine(matrix.detach())
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "mm_from_index", matrix)

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Grid:
        """An axial grid in the canonical order: slices go up, rows back, columns to the left.

        Args:
            shape: (slices, rows, columns).
            spacing_mm: distance between voxel centres along (slice, row, column), positive.
            centre_mm: (x, y, z) of the middle of the grid, RAS+ mm.
        """
        dz, dy, dx = (float(s) for s in spacing_mm)
        matrix = np.zeros((4, 4))
        matrix[0, 2], matrix[1, 1], matrix[2, 0], matrix[3, 3] = -dx, -dy, dz, 1.0
        middle = (np.asarray(shape, dtype=float) - 1.0) / 2.0
        matrix[:3, 3] = np.asarray(centre_mm, dtype=float) - matrix[:3, :3] @ middle
        nz, ny, nx = shape
        return cls((nz, ny, nx), torch.from_numpy(matrix))

    @property
    def is_slicewise(self) -> bool:
        """One matrix per slice?"""
        return self.mm_from_index.ndim == 3

    @property
    def spacing_mm(self) -> Tensor:
        """Distance between voxel centres along (slice, row, column): (3,), or (slices, 3)."""
        spacing: Tensor = torch.linalg.vector_norm(self.mm_from_index[..., :3, :3], dim=-2)
        return spacing

    @property
    def voxel_ml(self) -> Tensor:
        """Volume of one voxel in millilitres: (), or (slices,)."""
        volume_mm3: Tensor = torch.linalg.det(self.mm_from_index[..., :3, :3]).abs()
        return volume_mm3 / 1000.0

    @property
    def centre_mm(self) -> Tensor:
        """(x, y, z) of the middle of the grid: (3,), or of each slice: (slices, 3)."""
        shape = (1, *self.shape[1:]) if self.is_slicewise else self.shape
        middle = self.mm_from_index.new_tensor([(n - 1) / 2 for n in shape])
        return self.mm(middle)

    def mm(self, index: ArrayLike | Tensor) -> Tensor:
        """Patient position of an index.

        Args:
            index: (..., 3) indices (slice, row, column), whole or fractional. For a slice-wise grid
                the last-but-one axis is the slices: (slices, 3), all with slice index 0, or (3,).

        Returns:
            (..., 3) positions (x, y, z) in millimetres.
        """
        return _apply(self.mm_from_index, index)

    def index(self, mm: ArrayLike | Tensor) -> Tensor:
        """Fractional index (slice, row, column) of patient positions (..., 3); inverse of `mm`."""
        return _apply(torch.linalg.inv(self.mm_from_index), mm)

    def slicewise(self) -> Grid:
        """The same voxels as a slice-wise grid (itself if it is one)."""
        if self.is_slicewise:
            return self
        steps = torch.zeros((self.shape[0], 3), dtype=self.mm_from_index.dtype)
        steps[:, 0] = torch.arange(self.shape[0])
        shift = _affine(translation=steps.to(self.mm_from_index.device))
        return Grid(self.shape, self.mm_from_index @ shift)

    def slices(self, start: int, stop: int) -> Grid:
        """The sub-grid of slices start .. stop - 1.

        Raises:
            ValueError: not 0 <= start < stop <= number of slices.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"slices {start}..{stop} of a grid with {self.shape[0]}")
        if self.is_slicewise:
            return Grid((stop - start, *self.shape[1:]), self.mm_from_index[start:stop])
        return self.crop((start, 0, 0), (stop - start, *self.shape[1:]))

    def crop(self, start: Sequence[float], shape: Sequence[int]) -> Grid:
        """`shape` voxels from index `start` on, which may be fractional or outside (padding).

        A slice-wise grid is cropped in its planes only: `start[0]` = 0 and all slices kept.
        """
        nz, ny, nx = shape
        if self.is_slicewise and (start[0] != 0 or nz != self.shape[0]):
            raise ValueError("a slice-wise grid is cropped in its planes; take slices() before")
        shift = self.mm_from_index.new_tensor([float(s) for s in start])
        return Grid((nz, ny, nx), self.mm_from_index @ _affine(translation=shift))

    def resized(self, shape: Sequence[int]) -> Grid:
        """The same extent in millimetres, cut into `shape` voxels."""
        nz, ny, nx = shape
        if self.is_slicewise and nz != self.shape[0]:
            raise ValueError("a slice-wise grid keeps its number of slices")
        full = [n - 0.5 for n in ((1, *self.shape[1:]) if self.is_slicewise else self.shape)]
        low, high = self.mm_from_index.new_tensor([[-0.5] * 3, full])
        return boxed(self, low, high, (nz, ny, nx))

    def with_spacing(self, spacing_mm: Sequence[float]) -> Grid:
        """The same extent at (nearly) the given spacing (slice, row, column).

        The number of voxels is rounded and the extent is kept, so the spacing is met to half a
        voxel over the whole extent. Source: nnU-Net's `compute_new_shape`.

        Raises:
            ValueError: this grid is slice-wise; or a spacing is not positive.
        """
        if self.is_slicewise or min(spacing_mm) <= 0:
            raise ValueError(f"a volumetric grid and positive spacing, not {tuple(spacing_mm)}")
        old = self.spacing_mm.tolist()
        pairs = zip(old, self.shape, spacing_mm, strict=True)
        return self.resized([max(1, round(s / new * n)) for s, n, new in pairs])

    def moved(self, mm_from_mm: Tensor) -> Grid:
        """This grid carried through a map of patient space, (4, 4) or (slices, 4, 4)."""
        return Grid(self.shape, _as_matrix(mm_from_mm) @ self.mm_from_index)

    def to(self, device: torch.device | str) -> Grid:
        """The same grid with its matrix on `device`."""
        return Grid(self.shape, _as_matrix(self.mm_from_index, torch.device(device)))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Do all voxels lie within `tolerance_mm` of the other grid's, with the same shape?

        Two affine maps differ most at a corner, so the corners decide.
        """
        if self.shape != other.shape:
            return False
        mine, theirs = self, other
        if mine.is_slicewise or theirs.is_slicewise:
            mine, theirs = mine.slicewise(), theirs.slicewise()
        last = [n - 1 for n in ((1, *self.shape[1:]) if mine.is_slicewise else self.shape)]
        ends = [(0, n) for n in last]
        corners = torch.tensor([(z, y, x, 1) for z in ends[0] for y in ends[1] for x in ends[2]])
        gap = (mine.mm_from_index - theirs.mm_from_index.to(mine.mm_from_index)).detach()
        far = gap @ corners.T.to(gap)
        return bool((torch.linalg.vector_norm(far[..., :3, :], dim=-2) <= tolerance_mm).all())

    def __repr__(self) -> str:
        spacing = self.spacing_mm.detach()
        if self.is_slicewise:
            spacing = spacing.median(dim=0).values
        steps = " x ".join(f"{s:.4g}" for s in spacing.tolist())
        kind = "slice-wise " if self.is_slicewise else ""
        return f"Grid({kind}{' x '.join(map(str, self.shape))} voxels of {steps} mm)"


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values and where they lie.

    Attributes:
        data: (channels, slices, rows, columns), any type and device.
        grid: their positions; `grid.shape` equals `data.shape[1:]`.

    Raises:
        ValueError: the shapes disagree.
    """

    data: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or tuple(self.data.shape[1:]) != self.grid.shape:
            raise ValueError(
                f"data (channels, slices, rows, columns) = {tuple(self.data.shape)} "
                f"does not fit a grid of {self.grid.shape}"
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.data.shape[0]

    def slices(self, start: int, stop: int) -> Volume:
        """The sub-volume of slices start .. stop - 1; shares memory."""
        return Volume(self.data[:, start:stop], self.grid.slices(start, stop))

    def astype(self, dtype: torch.dtype) -> Volume:
        """The same volume with its values as `dtype`."""
        return Volume(self.data.to(dtype), self.grid)

    def to(self, device: torch.device | str) -> Volume:
        """The same volume on `device`."""
        return Volume(self.data.to(device), self.grid.to(device))


def stack(volumes: Sequence[Volume]) -> Volume:
    """Slices from anywhere as one slice-wise volume: a training batch.

    Args:
        volumes: at least one; same channels, rows and columns; any number of slices each.

    Raises:
        ValueError: nothing to stack, or sizes differ.
    """
    if not volumes:
        raise ValueError("nothing to stack")
    if len({(v.channels, *v.grid.shape[1:]) for v in volumes}) != 1:
        raise ValueError("volumes to stack differ in channels, rows or columns")
    data = torch.cat([v.data for v in volumes], dim=1)
    matrices = torch.cat([v.grid.slicewise().mm_from_index for v in volumes])
    return Volume(data, Grid((data.shape[1], data.shape[2], data.shape[3]), matrices))


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
    angle, size, shift = (_like(values, matrix) for values in (angle_rad, scale, shift_mm))
    if size.shape[-1] == 2:
        nothing = torch.zeros_like(angle)
        angle = torch.stack([nothing, nothing, angle], dim=-1)
        size = torch.cat([size, torch.ones_like(size[..., :1])], dim=-1)
        shift = torch.cat([shift, torch.zeros_like(shift[..., :1])], dim=-1)
    frame_from_frame = _affine(linear=_rotation(angle) * size[..., None, :], translation=shift)
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
    centre = _apply(frame_from_mm, target.centre_mm)[..., :2]
    return InPlanePose(torch.atan2(column[..., 1], column[..., 0]), scale, centre)


def boxed(grid: Grid, low: Tensor, high: Tensor, shape: Sequence[int]) -> Grid:
    """The grid of `shape` voxels that fills the box from index `low` to index `high`.

    Args:
        grid: what the indices refer to.
        low: (3,) or (slices, 3) lower *edges* in index units (slice, row, column). The box of the
            whole grid is -0.5 .. n - 0.5. One box per slice gives a slice-wise grid, and its slice
            edges are -0.5 .. 0.5. Differentiable.
        high: the upper edges, likewise.
        shape: voxels of the new grid.
    """
    nz, ny, nx = shape
    matrix = grid.mm_from_index
    low, high = low.to(matrix), high.to(matrix)
    if low.ndim == 2:
        grid = grid.slicewise()
    count = matrix.new_tensor([1 if grid.is_slicewise else nz, ny, nx])
    step = (high - low) / count
    index_from_index = _affine(linear=torch.diag_embed(step), translation=low + step / 2)
    return Grid((nz, ny, nx), grid.mm_from_index @ index_from_index)


def binned(volume: Volume, factor: int) -> Volume:
    """The mean over blocks of `factor` x `factor` pixels of each slice, on their grid.

    Makes a scan coarser without aliasing before it is interpolated. If a side is no multiple of
    `factor`, the last block goes on with the edge value beyond the edge, as `resample` does.

    Args:
        volume: (channels, slices, rows, columns), any type.
        factor: 1 gives the volume itself.

    Returns:
        (channels, slices, ceil(rows / factor), ceil(columns / factor)), floating point; the type of
        the data if that is floating point, else float32.

    Raises:
        ValueError: `factor` is below 1.
    """
    if factor < 1:
        raise ValueError(f"blocks of {factor} pixels")
    if factor == 1:
        return volume
    nz, ny, nx = volume.grid.shape
    rows, columns = -(-ny // factor), -(-nx // factor)
    kind = volume.data.dtype if volume.data.is_floating_point() else torch.float32
    out = torch.empty((volume.channels, nz, rows, columns), dtype=kind, device=volume.data.device)
    pad = (0, columns * factor - nx, 0, rows * factor - ny)
    for k in range(nz):
        plane = F.pad(volume.data[:, k].to(kind)[None], pad, mode="replicate")
        out[:, k] = F.avg_pool2d(plane, factor)[0]
    low = volume.grid.mm_from_index.new_tensor([-0.5, -0.5, -0.5])
    last = 1 if volume.grid.is_slicewise else nz
    high = low + low.new_tensor([last, rows * factor, columns * factor])
    return Volume(out, boxed(volume.grid, low, high, (nz, rows, columns)))


def grid_from_theta(theta: Tensor, source: Grid, shape: Sequence[int] | None = None) -> Grid:
    """The output grid that a spatial transformer's theta means on a source grid.

    Args:
        theta: (slices, 2, 3) for one in-plane map per slice, (2, 3) for the same in all slices, or
            (3, 4) in space. Takes normalised output coordinates (x, y[, z], 1) in -1 .. 1 to
            normalised source coordinates, edges of the outer voxels at -1 and 1.
        source: the grid that theta samples.
        shape: voxels of the output; the source's by default.

    Source: Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 1; the normalisation
    is `torch.nn.functional.affine_grid(align_corners=False)`.
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
        _check_paired_planes(target, source)
    source_from_target = torch.linalg.inv(source.mm_from_index) @ target.mm_from_index
    source_normal = torch.linalg.inv(_index_from_normalised(_counts(source)))
    lifted = source_normal @ source_from_target @ _index_from_normalised(_counts(target))
    if target.is_slicewise:
        return _rows(lifted, 2)[..., [0, 1, 3]]
    return _rows(lifted, 3)


def resample(
    volume: Volume,
    target: Grid,
    *,
    mode: Literal["linear", "nearest", "cubic"] = "linear",
    fill: float | Sequence[float] = 0.0,
) -> Volume:
    """The values of `volume` at the voxels of `target`: the one interpolation.

    Args:
        volume: the source, volumetric or slice-wise.
        target: where to sample. If the source is slice-wise, target slice k must lie in the plane
            of source slice k.
        mode: "linear" (bilinear where the planes coincide, else trilinear; floating-point result),
            "nearest" (keeps the type of the data, for labels), or "cubic": the interpolating cubic
            spline, in the planes alone where these coincide, as if the edge values went on beyond
            the edges. Its overshoots are clipped to the range of the source's values: of the
            channel, or of the slice if the source is slice-wise. It is made for preprocessing: on
            the CPU, fast where the axes of the grids are parallel. Source: what nnU-Net does with
            `skimage.transform.resize(order=3, mode="edge", clip=True)`.
        fill: value outside the source, one for all channels or one per channel. A voxel centre is
            outside if it lies more than half a voxel beyond the outermost centres; within that
            half voxel the edge value holds.

    Returns:
        (channels, *target.shape) on the target grid, on the device of the data. Differentiable in
        the data and in both grids' matrices ("cubic": not). A target that is a sub-grid of the
        source gives its values exactly.

    Raises:
        ValueError: the planes of a slice-wise source and the target do not coincide.
    """
    source = volume.grid
    data, kept_type = volume.data, volume.data.dtype
    fills = torch.as_tensor(fill, dtype=torch.float64).expand(volume.channels)
    target_matrix = target.slicewise().mm_from_index.to(source.mm_from_index)
    if source.is_slicewise:
        _check_paired_planes(target.slicewise(), source)
    index_from_target = torch.linalg.inv(source.mm_from_index) @ target_matrix

    planes = _coinciding_planes(index_from_target.detach())
    if planes is not None and source.is_slicewise:
        planes = torch.arange(source.shape[0])
    if planes is not None and not index_from_target.requires_grad:
        exact = _sub_grid(data, planes, index_from_target, target, fills)
        if exact is not None:
            exact = exact if mode == "nearest" or exact.is_floating_point() else exact.float()
            return Volume(exact, target)

    if mode == "cubic":
        return Volume(_sample_spline(volume, index_from_target, planes, target, fills), target)
    if not data.is_floating_point():
        wide = data.dtype in (torch.int32, torch.int64) and data.device.type != "mps"
        data = data.double() if wide and mode == "nearest" else data.float()
    sample = _sample_volume if planes is None else _sample_planes
    out = []
    at_once = max(1, _POINTS_AT_ONCE // (target.shape[1] * target.shape[2]))
    for start in range(0, target.shape[0], at_once):
        chunk = slice(start, start + at_once)
        matrices = index_from_target[chunk].to(data.dtype).to(data.device)
        chosen = None if planes is None else planes[chunk].to(data.device)
        out.append(
            sample(
                data, matrices, chosen, target.shape[1:], mode, fills.to(data.dtype).to(data.device)
            )
        )
    result = torch.cat(out, dim=1) if len(out) > 1 else out[0]
    return Volume(result.to(kept_type) if mode == "nearest" else result, target)


def _sample_planes(
    data: Tensor,
    index_from_target: Tensor,
    planes: Tensor | None,
    size: tuple[int, int],
    mode: str,
    fill: Tensor,
) -> Tensor:
    """Bilinear sampling where each target slice lies in the plane of source slice `planes[k]`."""
    assert planes is not None
    inside_z = (planes >= 0) & (planes < data.shape[1])
    images = data[:, planes.clamp(0, data.shape[1] - 1)].transpose(0, 1)
    rows, columns = _axes(size, data)
    y = _plane(index_from_target[:, 1], rows, columns)
    x = _plane(index_from_target[:, 2], rows, columns)
    counts = data.shape[2:]
    inside = inside_z[:, None, None] & _within(y, counts[0]) & _within(x, counts[1])
    at = torch.stack([_normalised(x, counts[1]), _normalised(y, counts[0])], dim=-1)
    values = F.grid_sample(
        images, at, mode=_torch_mode(mode), padding_mode="border", align_corners=False
    )
    return torch.where(inside[None], values.transpose(0, 1), fill[:, None, None, None])


def _sample_volume(
    data: Tensor,
    index_from_target: Tensor,
    planes: Tensor | None,
    size: tuple[int, int],
    mode: str,
    fill: Tensor,
) -> Tensor:
    """Trilinear sampling at target slices that lie anywhere in a volumetric source."""
    rows, columns = _axes(size, data)
    z, y, x = (_plane(index_from_target[:, axis], rows, columns) for axis in range(3))
    nz, ny, nx = data.shape[1:]
    inside = _within(z, nz) & _within(y, ny) & _within(x, nx)
    at = torch.stack([_normalised(x, nx), _normalised(y, ny), _normalised(z, nz)], dim=-1)
    values = F.grid_sample(
        data[None], at[None], mode=_torch_mode(mode), padding_mode="border", align_corners=False
    )
    return torch.where(inside[None], values[0], fill[:, None, None, None])


def _sample_spline(
    volume: Volume, index_from_target: Tensor, planes: Tensor | None, target: Grid, fill: Tensor
) -> Tensor:
    """Cubic sampling. Between parallel axes it is a product with one small matrix per axis."""
    data = volume.data.detach().cpu()
    data = data if data.is_floating_point() else data.float()
    matrices = index_from_target.detach().cpu()
    depths = matrices[:, 0, 3] if planes is None else planes.cpu().to(matrices)
    slope = matrices[:, [0, 0, 1, 2], [1, 2, 2, 1]].abs().max()
    unlike = (matrices[:, 1:3, 1:] - matrices[:1, 1:3, 1:]).abs().max()
    sample = _spline_across_axes
    if slope <= _SAME_SLOPE and unlike <= _SAME_SLOPE:
        sample = _spline_along_axes
    values, inside = sample(data, matrices, depths, planes is not None, target.shape[1:])
    alike = (2, 3) if volume.grid.is_slicewise else (1, 2, 3)
    values.clamp_(data.amin(alike, keepdim=True), data.amax(alike, keepdim=True))
    values = torch.where(inside, values, fill[:, None, None, None].to(values))
    return values.to(volume.data.device)


def _spline_along_axes(
    data: Tensor, matrices: Tensor, depths: Tensor, in_planes: bool, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cubic values where rows, columns and slices of both grids are parallel; which are inside."""
    inside = _within(depths, data.shape[1])[:, None, None]
    if in_planes:
        data = data[:, depths.long().clamp(0, data.shape[1] - 1)]
    else:
        data = torch.einsum("kz,czyx->ckyx", _spline_matrix(depths, data, 1), data)
    rows, columns = _axes(size, matrices)
    y = matrices[0, 1, 1] * rows + matrices[0, 1, 3]
    x = matrices[0, 2, 2] * columns + matrices[0, 2, 3]
    along_rows, along_columns = _spline_matrix(y[:, 0], data, 2), _spline_matrix(x[0], data, 3)
    inside = inside & _within(y, data.shape[2]) & _within(x, data.shape[3])
    return along_rows @ data @ along_columns.T, inside


def _spline_matrix(index: Tensor, data: Tensor, axis: int) -> Tensor:
    """(targets, sources): what each value along an axis adds to the spline at each index."""
    from scipy import ndimage

    count = data.shape[axis]
    unit = np.pad(np.eye(count), ((_SPLINE_PAD, _SPLINE_PAD), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(unit, order=3, axis=0, mode="nearest")
    at = index.clamp(-1.0, count).numpy()  # further out is outside in any case
    below = np.floor(at)
    s = (at - below)[:, None]
    weights = (1 - s) ** 3, 4 - 3 * s**2 * (2 - s), 4 - 3 * (1 - s) ** 2 * (1 + s), s**3
    first = below.astype(int) + _SPLINE_PAD - 1
    matrix = sum(w * coefficients[first + k] for k, w in enumerate(weights)) / 6
    return torch.as_tensor(matrix, dtype=data.dtype)


def _spline_across_axes(
    data: Tensor, matrices: Tensor, depths: Tensor, in_planes: bool, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cubic values anywhere, slice by slice and point by point; which are inside."""
    from scipy import ndimage

    axes = (1, 2) if in_planes else (0, 1, 2)
    pads = [(_SPLINE_PAD, _SPLINE_PAD) if axis in axes else (0, 0) for axis in range(3)]
    rows, columns = _axes(size, matrices)
    values = data.new_empty((data.shape[0], len(matrices), *size))
    inside = torch.empty((len(matrices), *size), dtype=torch.bool)
    for channel, source in zip(values, data, strict=True):
        coefficients = np.pad(source.numpy(), pads, mode="edge")
        for axis in axes:
            coefficients = ndimage.spline_filter1d(
                coefficients, order=3, axis=axis, output=coefficients.dtype, mode="nearest"
            )
        for k, matrix in enumerate(matrices):
            at = [_plane(matrix[None, axis], rows, columns)[0] for axis in axes]
            image = coefficients
            if in_planes:
                image = coefficients[int(depths[k].clamp(0, data.shape[1] - 1))]
            index = np.stack(at) + _SPLINE_PAD
            sampled = ndimage.map_coordinates(
                image, index, order=3, mode="nearest", prefilter=False
            )
            channel[k] = torch.from_numpy(sampled)
            near = [_within(i, data.shape[1 + axis]) for i, axis in zip(at, axes, strict=True)]
            inside[k] = torch.stack(near).all(dim=0)
            if in_planes:
                inside[k] &= _within(depths[k], data.shape[1])
    return values, inside


def _sub_grid(
    data: Tensor, planes: Tensor, index_from_target: Tensor, target: Grid, fill: Tensor
) -> Tensor | None:
    """The target's values copied, if its voxels are voxels of the source in the same order."""
    in_plane = index_from_target[:, 1:3, 1:3]
    offset = index_from_target[:, 1:3, 3]
    corner = offset[0].round()
    if ((in_plane - torch.eye(2).to(in_plane)).abs() > _SAME_SLOPE).any():
        return None
    if ((offset - corner).abs() > _SAME_INDEX).any():
        return None
    top, left = (int(c) for c in corner.tolist())
    counts = data.shape[1:]
    shape = (data.shape[0], *target.shape)
    out = fill.to(data.device)[:, None, None, None].to(data.dtype).expand(shape).clone()
    rows = slice(max(0, -top), min(target.shape[1], counts[1] - top))
    columns = slice(max(0, -left), min(target.shape[2], counts[2] - left))
    kept = ((planes >= 0) & (planes < counts[0])).nonzero()[:, 0].to(data.device)
    if len(kept) and rows.start < rows.stop and columns.start < columns.stop:
        block = data[:, planes.to(data.device)[kept]]
        block = block[:, :, rows.start + top : rows.stop + top]
        block = block[..., columns.start + left : columns.stop + left]
        out[:, kept, rows, columns] = block
    return out


def _coinciding_planes(index_from_target: Tensor) -> Tensor | None:
    """(slices,) source slice in which each target slice lies, or None if any lies between."""
    across, depth = index_from_target[:, 0, 1:3], index_from_target[:, 0, 3]
    planes = depth.round()
    if (across.abs() > _SAME_SLOPE).any() or ((depth - planes).abs() > _SAME_INDEX).any():
        return None
    return planes.long()


def _check_paired_planes(target: Grid, source: Grid) -> None:
    if target.shape[0] != source.shape[0]:
        raise ValueError(f"{target.shape[0]} slices cannot pair with {source.shape[0]}")
    matrix = source.mm_from_index.detach()
    index_from_target = torch.linalg.inv(matrix) @ target.mm_from_index.detach().to(matrix)
    planes = _coinciding_planes(index_from_target)
    if planes is None or (planes != 0).any():
        raise ValueError("the slices of a slice-wise grid are sampled in their own planes only")


def _check_affine(matrix: Tensor) -> None:
    bottom = matrix.new_tensor([0.0, 0.0, 0.0, 1.0])
    if not (torch.isfinite(matrix).all() and (matrix[..., 3, :] == bottom).all()):
        raise ValueError(f"mm_from_index must be finite and affine:\n{matrix}")
    if not (torch.linalg.det(matrix[..., :3, :3]).abs() > 0).all():
        raise ValueError(f"mm_from_index must be invertible:\n{matrix}")


def _as_matrix(values: Tensor | ArrayLike, device: torch.device | None = None) -> Tensor:
    matrix = torch.as_tensor(values)
    device = device or matrix.device
    return matrix.to("cpu" if device.type == "mps" else device).to(torch.float64)


def _affine(*, linear: Tensor | None = None, translation: Tensor) -> Tensor:
    """(..., 4, 4) from (..., 3, 3), identity by default, and (..., 3)."""
    if linear is None:
        linear = torch.eye(3).to(translation).expand(*translation.shape[:-1], 3, 3)
    lead = np.broadcast_shapes(linear.shape[:-2], translation.shape[:-1])
    top = torch.cat([linear.expand(*lead, 3, 3), translation.expand(*lead, 3)[..., None]], dim=-1)
    bottom = translation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*lead, 1, 4)
    return torch.cat([top, bottom], dim=-2)


def _like(values: ArrayLike | Tensor, matrix: Tensor) -> Tensor:
    """As a tensor of the matrix's type and device; plain numbers never pass through float32."""
    if isinstance(values, Tensor):
        return values.to(matrix)
    return torch.as_tensor(values, dtype=matrix.dtype, device=matrix.device)


def _apply(matrix: Tensor, points: ArrayLike | Tensor) -> Tensor:
    points = _like(points, matrix)
    if matrix.ndim == 3:
        points = points.expand(matrix.shape[0], 3)
        return torch.einsum("kij,kj->ki", matrix[:, :3, :3], points) + matrix[:, :3, 3]
    return points @ matrix[:3, :3].T + matrix[:3, 3]


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
    return _affine(linear=axes, translation=grid.centre_mm.detach())


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


def _axes(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(size[0], device=like.device, dtype=like.dtype)
    columns = torch.arange(size[1], device=like.device, dtype=like.dtype)
    return rows[:, None], columns[None, :]


def _plane(coefficients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(slices, rows, columns) values of an affine function, from its (slices, 4) coefficients."""
    _, by_row, by_column, constant = coefficients[:, :, None, None].unbind(1)
    return by_row * rows + by_column * columns + constant


def _within(index: Tensor, count: int) -> Tensor:
    return (index >= -0.5 - _SAME_INDEX) & (index <= count - 0.5 + _SAME_INDEX)


def _normalised(index: Tensor, count: int) -> Tensor:
    return (2.0 * index + 1.0) / count - 1.0


def _torch_mode(mode: str) -> str:
    return {"linear": "bilinear", "nearest": "nearest"}[mode]
