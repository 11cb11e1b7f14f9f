"""Grids in patient millimetres.

A spacing change, a pose normalization, a crop, a coarse-to-fine region and a spatial augmentation
are the same operation: choosing an output `Grid`. A chain of them is a matrix product, and the
inverse of any chain is "resample onto the original grid". So a scan is interpolated once on the way
to a network, and the probabilities once on the way back.

Conventions of the package:

- Arrays and indices are in the order (slice, row, column) = (z, y, x).
- World coordinates are patient millimetres (x, y, z), increasing to the patient's Right, Anterior
  and Superior: "RAS+".
- An index refers to the *centre* of a voxel, which extends half an index step to each side. A grid
  of n voxels along an axis therefore spans the indices -0.5 .. n - 0.5.
- A matrix is named `target_from_source`, so that products read by adjacency:
  `mm_from_index @ index_from_theta`.

A grid is either *volumetric* (one matrix) or *slice-wise* (one matrix per slice, each for a
separate stack with a single slice of index 0). A batch of slices from many patients is slice-wise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["Grid", "boxed", "index_from_voxels"]

# Positions that differ by less than this fraction of a voxel are equal. It is far above float64
# rounding of patient coordinates (1e-13 of a metre) and far below visible effects of interpolation.
SAME_INDEX = 1e-6
# Tolerance of a slope, in slices per pixel: over 1000 pixels it adds up to `SAME_INDEX`.
SAME_SLOPE = 1e-9


@dataclass(frozen=True, eq=False)
class Grid:
    """The positions of voxels in the patient.

    Attributes:
        shape: number of voxels (slices, rows, columns), each at least 1.
        mm_from_index: (4, 4), or (slices, 4, 4) for a slice-wise grid; float64, on the device of
            the input (on the CPU if the device has no float64). Maps a homogeneous index (slice,
            row, column, 1) to (x, y, z, 1) in millimetres, RAS+. In a slice-wise grid, matrix k
            maps (0, row, column, 1). Keeps the gradients of its input.

    Raises:
        ValueError: invalid shape or matrix: wrong size, not finite, not invertible.
    """

    shape: tuple[int, int, int]
    mm_from_index: Tensor

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid needs three sizes of at least 1, not {self.shape}")
        matrix = as_matrix(self.mm_from_index)
        if matrix.shape[-2:] != (4, 4) or matrix.ndim not in (2, 3):
            raise ValueError(f"mm_from_index must be (4, 4) or (slices, 4, 4), not {matrix.shape}")
        if matrix.ndim == 3 and matrix.shape[0] != shape[0]:
            raise ValueError(f"{matrix.shape[0]} matrices for {shape[0]} slices")
        if matrix.device.type == "cpu":  # on other devices this would force a synchronisation
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
        """An axial grid in canonical order: slices to superior, rows to posterior, columns to left.

        Args:
            shape: (slices, rows, columns).
            spacing_mm: distance between voxel centres along (slice, row, column), positive.
            centre_mm: (x, y, z) of the centre of the grid, RAS+ mm.
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
        """Whether there is one matrix per slice."""
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
        """(x, y, z) of the centre of the grid: (3,), or of each slice: (slices, 3)."""
        shape = (1, *self.shape[1:]) if self.is_slicewise else self.shape
        middle = self.mm_from_index.new_tensor([(n - 1) / 2 for n in shape])
        return self.mm(middle)

    def mm(self, index: ArrayLike | Tensor) -> Tensor:
        """Patient position of an index.

        Args:
            index: (..., 3) indices (slice, row, column), integer or fractional. For a slice-wise
                grid (slices, 3), all with slice index 0, or (3,).

        Returns:
            (..., 3) positions (x, y, z) in millimetres.
        """
        return applied(self.mm_from_index, index)

    def index(self, mm: ArrayLike | Tensor) -> Tensor:
        """Fractional index (slice, row, column) of patient positions (..., 3); inverse of `mm`."""
        return applied(torch.linalg.inv(self.mm_from_index), mm)

    def slicewise(self) -> Grid:
        """The same voxels as a slice-wise grid; itself if it is slice-wise."""
        if self.is_slicewise:
            return self
        steps = torch.zeros((self.shape[0], 3), dtype=self.mm_from_index.dtype)
        steps[:, 0] = torch.arange(self.shape[0])
        shift = affine(translation=steps.to(self.mm_from_index.device))
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
        """`shape` voxels from index `start`, which may be fractional or outside (padding).

        A slice-wise grid can only be cropped in its planes: `start[0]` = 0, and all slices stay.
        """
        nz, ny, nx = shape
        if self.is_slicewise and (start[0] != 0 or nz != self.shape[0]):
            raise ValueError("a slice-wise grid is cropped in its planes only; use slices() first")
        shift = self.mm_from_index.new_tensor([float(s) for s in start])
        return Grid((nz, ny, nx), self.mm_from_index @ affine(translation=shift))

    def permuted(self, axes: Sequence[int]) -> Grid:
        """The same voxels with the axes (slice, row, column) in another order.

        `permuted((2, 0, 1))` makes sagittal slices of an axial grid, with its slices as rows.

        Raises:
            ValueError: `axes` is not an order of 0, 1, 2, or the grid is slice-wise.
        """
        if sorted(axes) != [0, 1, 2] or self.is_slicewise:
            raise ValueError(f"a volumetric grid and an order of (0, 1, 2), not {tuple(axes)}")
        nz, ny, nx = (self.shape[axis] for axis in axes)
        return Grid((nz, ny, nx), self.mm_from_index[:, [*axes, 3]])

    def resized(self, shape: Sequence[int]) -> Grid:
        """The same extent in millimetres, divided into `shape` voxels."""
        nz, ny, nx = shape
        if self.is_slicewise and nz != self.shape[0]:
            raise ValueError("a slice-wise grid keeps its number of slices")
        full = [n - 0.5 for n in ((1, *self.shape[1:]) if self.is_slicewise else self.shape)]
        low, high = self.mm_from_index.new_tensor([[-0.5] * 3, full])
        return boxed(self, low, high, (nz, ny, nx))

    def with_spacing(self, spacing_mm: Sequence[float]) -> Grid:
        """The same extent at approximately the given spacing (slice, row, column).

        The number of voxels is rounded and the extent is kept, so the deviation is at most half a
        voxel over the full extent. Source: nnU-Net's `compute_new_shape`.

        Raises:
            ValueError: this grid is slice-wise, or a spacing is not positive.
        """
        if self.is_slicewise or min(spacing_mm) <= 0:
            raise ValueError(
                f"a volumetric grid and positive spacing are needed, not {tuple(spacing_mm)}"
            )
        old = self.spacing_mm.tolist()
        pairs = zip(old, self.shape, spacing_mm, strict=True)
        return self.resized([max(1, round(s / new * n)) for s, n, new in pairs])

    def moved(self, mm_from_mm: Tensor) -> Grid:
        """This grid transformed by a map of patient space, (4, 4) or (slices, 4, 4)."""
        return Grid(self.shape, as_matrix(mm_from_mm) @ self.mm_from_index)

    def to(self, device: torch.device | str) -> Grid:
        """The same grid with its matrix on `device`."""
        return Grid(self.shape, as_matrix(self.mm_from_index, torch.device(device)))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether the shapes are equal and all voxels within `tolerance_mm` of the other grid's."""
        return self.shape == other.shape and self._farthest_mm(other) <= tolerance_mm

    def difference(self, other: Grid) -> str:
        """How this grid differs from another, in words, with the digits that show it.

        Of another shape both shapes; else how far voxels are apart, and spacings that differ.
        """
        if self.shape != other.shape:
            return f"{_by(self.shape)} voxels, not {_by(other.shape)}"
        mine, theirs = (_by(f"{s:.6g}" for s in grid._usual_spacing_mm) for grid in (self, other))
        spacings = "" if mine == theirs else f", of {mine} mm, not {theirs} mm"
        return f"as many voxels, up to {self._farthest_mm(other):.4g} mm apart{spacings}"

    def _farthest_mm(self, other: Grid) -> float:
        """The largest distance of a voxel from that of the other grid, of the same shape.

        Two affine maps differ most at a corner, so only the corners are compared.
        """
        mine, theirs = self, other
        if mine.is_slicewise or theirs.is_slicewise:
            mine, theirs = mine.slicewise(), theirs.slicewise()
        last = [n - 1 for n in ((1, *self.shape[1:]) if mine.is_slicewise else self.shape)]
        ends = [(0, n) for n in last]
        corners = torch.tensor([(z, y, x, 1) for z in ends[0] for y in ends[1] for x in ends[2]])
        gap = (mine.mm_from_index - theirs.mm_from_index.to(mine.mm_from_index)).detach()
        far = gap @ corners.T.to(gap)
        return float(torch.linalg.vector_norm(far[..., :3, :], dim=-2).max())

    @property
    def _usual_spacing_mm(self) -> list[float]:
        """The spacing; of a slice-wise grid the median."""
        usual: list[float] = self.spacing_mm.detach().reshape(-1, 3).median(dim=0).values.tolist()
        return usual

    def __repr__(self) -> str:
        steps = _by(f"{s:.4g}" for s in self._usual_spacing_mm)
        kind = "slice-wise " if self.is_slicewise else ""
        return f"Grid({kind}{_by(self.shape)} voxels of {steps} mm)"


def _by(sizes: Iterable[object]) -> str:
    return " x ".join(map(str, sizes))


def boxed(grid: Grid, low: Tensor, high: Tensor, shape: Sequence[int]) -> Grid:
    """The grid of `shape` voxels that fills the box from index `low` to index `high`.

    Args:
        grid: the grid of the indices.
        low: (3,) or (slices, 3) lower *edges* in index units (slice, row, column). The box of the
            full grid is -0.5 .. n - 0.5. One box per slice gives a slice-wise grid, with slice
            edges -0.5 .. 0.5. Differentiable.
        high: the upper edges, as `low`.
        shape: voxels of the new grid.
    """
    nz, ny, nx = shape
    matrix = grid.mm_from_index
    low, high = low.to(matrix), high.to(matrix)
    if low.ndim == 2:
        grid = grid.slicewise()
    count = matrix.new_tensor([1 if grid.is_slicewise else nz, ny, nx])
    step = (high - low) / count
    index_from_index = affine(linear=torch.diag_embed(step), translation=low + step / 2)
    return Grid((nz, ny, nx), grid.mm_from_index @ index_from_index)


def coinciding_planes(index_from_target: Tensor) -> Tensor | None:
    """(slices,) source slice of each target slice; None if any target slice is between slices."""
    across, depth = index_from_target[:, 0, 1:3], index_from_target[:, 0, 3]
    planes = depth.round()
    if (across.abs() > SAME_SLOPE).any() or ((depth - planes).abs() > SAME_INDEX).any():
        return None
    return planes.long()


def index_from_voxels(source: Grid, target: Grid) -> tuple[Tensor, Tensor | None]:
    """Map the voxels of each target slice to indices of the source.

    Returns:
        (target slices, 4, 4): maps (0, row, column, 1) of a target slice to an index of the
        source, or of its source slice if the source is slice-wise; and the (target slices,) source
        slices whose planes contain the target slices, None if any is between two planes.

    Raises:
        ValueError: the planes of a slice-wise source and the target do not coincide.
    """
    if source.is_slicewise and target.shape[0] != source.shape[0]:
        raise ValueError(f"{target.shape[0]} slices cannot be paired with {source.shape[0]}")
    target_matrix = target.slicewise().mm_from_index.to(source.mm_from_index)
    index_from_target = torch.linalg.inv(source.mm_from_index) @ target_matrix
    planes = coinciding_planes(index_from_target.detach())
    if source.is_slicewise:
        if planes is None or (planes != 0).any():
            raise ValueError("the slices of a slice-wise grid are sampled in their own planes only")
        planes = torch.arange(source.shape[0])
    return index_from_target, planes


def _check_affine(matrix: Tensor) -> None:
    values = matrix.numpy()  # several times faster than torch with so few numbers
    if not (np.isfinite(values).all() and (values[..., 3, :] == (0.0, 0.0, 0.0, 1.0)).all()):
        raise ValueError(f"mm_from_index must be finite and affine:\n{matrix}")
    if not np.linalg.det(values[..., :3, :3]).all():
        raise ValueError(f"mm_from_index must be invertible:\n{matrix}")


def as_matrix(values: Tensor | ArrayLike, device: torch.device | None = None) -> Tensor:
    matrix = torch.as_tensor(values)
    device = device or matrix.device
    return matrix.to("cpu" if device.type == "mps" else device).to(torch.float64)


def affine(*, linear: Tensor | None = None, translation: Tensor) -> Tensor:
    """(..., 4, 4) from a linear map (..., 3, 3), by default the identity, and (..., 3)."""
    if linear is None:
        linear = torch.eye(3).to(translation).expand(*translation.shape[:-1], 3, 3)
    lead = np.broadcast_shapes(linear.shape[:-2], translation.shape[:-1])
    top = torch.cat([linear.expand(*lead, 3, 3), translation.expand(*lead, 3)[..., None]], dim=-1)
    bottom = translation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*lead, 1, 4)
    return torch.cat([top, bottom], dim=-2)


def like_matrix(values: ArrayLike | Tensor, matrix: Tensor) -> Tensor:
    """A tensor of the matrix's dtype and device; plain numbers are never rounded to float32."""
    if isinstance(values, Tensor):
        return values.to(matrix)
    return torch.as_tensor(values, dtype=matrix.dtype, device=matrix.device)


def applied(matrix: Tensor, points: ArrayLike | Tensor) -> Tensor:
    points = like_matrix(points, matrix)
    if matrix.ndim == 3:
        points = points.expand(matrix.shape[0], 3)
        return torch.einsum("kij,kj->ki", matrix[:, :3, :3], points) + matrix[:, :3, 3]
    return points @ matrix[:3, :3].T + matrix[:3, 3]
