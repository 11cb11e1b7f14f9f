"""The only interpolation in the package: once on the way to a network, once on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry.grid import SAME_INDEX, SAME_SLOPE, Grid, index_from_voxels
from kidseg.geometry.volume import Volume

__all__ = ["is_sub_grid", "resample", "sample_window"]

# Points per chunk, which limits the memory for coordinates. On a CPU small chunks fit its caches
# (twice as fast as 16 M); on other devices each kernel launch costs time.
_CPU_CHUNK_POINTS, _DEVICE_CHUNK_POINTS = 2**20, 2**24
# Edge padding before a cubic spline is fitted. The pole of the cubic B-spline, sqrt(3) - 2, to this
# power is 1e-7, so values further out have no effect. Source: Unser, "Splines: a perfect fit for
# signal and image processing", 1999; the same number as in scipy.ndimage.
_SPLINE_PAD = 12


def resample(
    volume: Volume,
    target: Grid,
    *,
    mode: Literal["linear", "nearest", "cubic"] = "linear",
    fill: float | Sequence[float] = 0.0,
) -> Volume:
    """Sample `volume` at the voxels of `target`.

    Args:
        volume: the source, volumetric or slice-wise.
        target: the output grid. If the source is slice-wise, target slice k must be in the plane of
            source slice k.
        mode: "linear" (bilinear if the planes coincide, otherwise trilinear; floating-point
            result), "nearest" (keeps the dtype of the data, for labels), or "cubic": the
            interpolating cubic spline with edge padding, within the planes if they coincide.
            Overshoots are clipped to the range of the source's values: of the channel, or of the
            slice if the source is slice-wise. Cubic is meant for preprocessing: it runs on the CPU
            and is fast if the axes of the grids are parallel. Source: what nnU-Net does with
            `skimage.transform.resize(order=3, mode="edge", clip=True)`.
        fill: value outside the source, one for all channels or one per channel. A voxel centre is
            outside if it is more than half a voxel beyond the outermost centres; within that half
            voxel the edge value is used.

    Returns:
        (channels, *target.shape) on the target grid, on the device of the data. Differentiable in
        the data and in both grids' matrices (not "cubic"). If the target is a sub-grid of the
        source, values are copied exactly.

    Raises:
        ValueError: the planes of a slice-wise source and the target do not coincide.
    """
    data, kept_type = volume.data, volume.data.dtype
    fills = torch.as_tensor(fill, dtype=torch.float64).expand(volume.channels)
    index_from_target, planes = index_from_voxels(volume.grid, target)
    if planes is not None and is_sub_grid(index_from_target):
        kind = kept_type if mode == "nearest" else _computed_type(data, mode)
        return Volume(_sub_grid(data, planes, index_from_target, target, fills, kind), target)

    if mode == "cubic":
        return Volume(_sample_spline(volume, index_from_target, planes, target, fills), target)
    points = _CPU_CHUNK_POINTS if data.device.type == "cpu" else _DEVICE_CHUNK_POINTS
    chunk_slices = max(1, points // (target.shape[1] * target.shape[2]))
    window = (range(target.shape[1]), range(target.shape[2]))
    data = data if planes is not None else _as_floating(data, index_from_target, window, mode)
    parts, result = [], None
    for start in range(0, target.shape[0], chunk_slices):
        chunk = slice(start, start + chunk_slices)
        chosen = None if planes is None else planes[chunk]
        part = sample_window(data, index_from_target[chunk], chosen, window, fills, mode)
        part = part.to(kept_type) if mode == "nearest" else part
        if part.requires_grad or chunk_slices >= target.shape[0]:
            parts.append(part)
            continue
        # Without gradients, avoid holding all parts and the result in memory.
        result = part.new_empty((volume.channels, *target.shape)) if result is None else result
        result[:, chunk] = part
    return Volume(torch.cat(parts, dim=1) if result is None else result, target)


def is_sub_grid(index_from_target: Tensor) -> bool:
    """Whether all target rows and columns coincide with the source's, so values can be copied.

    Args:
        index_from_target: for slices in planes of the source, see `index_from_voxels`. False if it
            requires gradients, because copying would lose them.
    """
    if index_from_target.requires_grad:
        return False
    in_plane, offset = index_from_target[:, 1:3, 1:3], index_from_target[:, 1:3, 3]
    turned = (in_plane - torch.eye(2).to(in_plane)).abs() > SAME_SLOPE
    moved = (offset - offset[0].round()).abs() > SAME_INDEX
    return not bool(turned.any() or moved.any())


def sample_window(
    data: Tensor,
    index_from_target: Tensor,
    planes: Tensor | None,
    window: tuple[range, range],
    fill: Tensor,
    mode: Literal["linear", "nearest"] = "linear",
) -> Tensor:
    """Sample a window of target slices; bit-identical to the result of `resample`.

    Args:
        data: (channels, slices, rows, columns) of the source. If it is not floating point, only the
            part that is sampled is converted.
        index_from_target: (target slices, 4, 4), see `index_from_voxels`.
        planes: (target slices,), see `index_from_voxels`.
        window: rows and columns of the target.
        fill: (channels,), value outside the source.
        mode: as in `resample`.

    Returns:
        (channels, target slices, rows, columns) of the window.
    """
    if planes is None:
        data = _as_floating(data, index_from_target, window, mode)
    kind = _computed_type(data, mode)
    matrices = index_from_target.to(kind).to(data.device)
    outside = fill.to(kind).to(data.device)
    if planes is None:
        return _sample_volume(data, matrices, window, mode, outside)
    return _sample_planes(data, matrices, planes.to(data.device), window, mode, outside)


def _computed_type(data: Tensor, mode: str) -> torch.dtype:
    """The dtype for interpolation: integers beyond 2^24 need float64."""
    if data.is_floating_point():
        return data.dtype
    wide = data.dtype in (torch.int32, torch.int64) and data.device.type != "mps"
    return torch.float64 if wide and mode == "nearest" else torch.float32


def _as_floating(
    data: Tensor, index_from_target: Tensor, window: tuple[range, range], mode: str
) -> Tensor:
    """Convert volumetric data to floating point, but only the part that the target samples.

    The shape stays the same. The other part is never written, so it takes no memory in large
    volumes, and never read, because sampled positions are clamped to the converted part.
    """
    if data.is_floating_point():
        return data
    ends = [(line.start, line.stop - 1) for line in window]
    corners = torch.tensor([(0, y, x, 1) for y in ends[0] for x in ends[1]]).T
    matrices = index_from_target.detach()
    at = matrices[:, :3] @ corners.to(matrices)
    sampled = [slice(None)]
    for axis, count in enumerate(data.shape[1:]):
        # One voxel more than interpolation needs, because positions are rounded.
        low, high = float(at[:, axis].min()) - 2, float(at[:, axis].max()) + 3
        sampled.append(slice(int(min(max(low, 0), count - 1)), int(min(max(high, 1), count)) + 1))
    wide = torch.empty(data.shape, dtype=_computed_type(data, mode), device=data.device)
    wide[tuple(sampled)] = data[tuple(sampled)]
    return wide


def _slices(data: Tensor, planes: Tensor) -> Tensor:
    """(channels, len(planes), rows, columns); indices are clamped to the first and last slice.

    A single slice shares memory.
    """
    if len(planes) == 1 and planes.device.type == "cpu":
        k = min(max(int(planes[0]), 0), data.shape[1] - 1)
        return data[:, k : k + 1]
    return data[:, planes.clamp(0, data.shape[1] - 1)]


def _sample_planes(
    data: Tensor,
    index_from_target: Tensor,
    planes: Tensor,
    window: tuple[range, range],
    mode: str,
    fill: Tensor,
) -> Tensor:
    """Bilinear sampling if each target slice is in the plane of source slice `planes[k]`."""
    inside_z = (planes >= 0) & (planes < data.shape[1])
    images = _slices(data, planes).to(index_from_target.dtype).transpose(0, 1)
    rows, columns = _axes(window, images)
    y = _plane(index_from_target[:, 1], rows, columns)
    x = _plane(index_from_target[:, 2], rows, columns)
    counts = data.shape[2:]
    at = torch.stack([_normalised(x, counts[1]), _normalised(y, counts[0])], dim=-1)
    if images.requires_grad and images.device.type == "cuda":
        from kidseg.geometry.repeatable import sample_repeatably

        values = sample_repeatably(images, at).transpose(0, 1)
    else:
        values = F.grid_sample(
            images, at, mode=_torch_mode(mode), padding_mode="border", align_corners=False
        ).transpose(0, 1)
    if bool(inside_z.all()) and _corners_within(y, counts[0]) and _corners_within(x, counts[1]):
        return values.contiguous()
    inside = inside_z[:, None, None] & _within(y, counts[0]) & _within(x, counts[1])
    return torch.where(inside[None], values, fill[:, None, None, None])


def _sample_volume(
    data: Tensor,
    index_from_target: Tensor,
    window: tuple[range, range],
    mode: str,
    fill: Tensor,
) -> Tensor:
    """Trilinear sampling of a volumetric source at arbitrary target slices."""
    rows, columns = _axes(window, data)
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
    """Cubic sampling; for parallel axes it is a product with one small matrix per axis."""
    data = volume.data.detach().cpu()
    data = data if data.is_floating_point() else data.float()
    matrices = index_from_target.detach().cpu()
    depths = matrices[:, 0, 3] if planes is None else planes.cpu().to(matrices)
    slope = matrices[:, [0, 0, 1, 2], [1, 2, 2, 1]].abs().max()
    difference = (matrices[:, 1:3, 1:] - matrices[:1, 1:3, 1:]).abs().max()
    sample = _spline_across_axes
    if slope <= SAME_SLOPE and difference <= SAME_SLOPE:
        sample = _spline_along_axes
    values, inside = sample(data, matrices, depths, planes is not None, target.shape[1:])
    axes = (2, 3) if volume.grid.is_slicewise else (1, 2, 3)
    values.clamp_(data.amin(axes, keepdim=True), data.amax(axes, keepdim=True))
    values = torch.where(inside, values, fill[:, None, None, None].to(values))
    return values.to(volume.data.device)


def _spline_along_axes(
    data: Tensor, matrices: Tensor, depths: Tensor, in_planes: bool, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cubic values for grids with parallel axes, and a mask of the points inside the source."""
    inside = _within(depths, data.shape[1])[:, None, None]
    if in_planes:
        data = data[:, depths.long().clamp(0, data.shape[1] - 1)]
    else:
        data = torch.einsum("kz,czyx->ckyx", _spline_matrix(depths, data, 1), data)
    rows, columns = _axes((range(size[0]), range(size[1])), matrices)
    y = matrices[0, 1, 1] * rows + matrices[0, 1, 3]
    x = matrices[0, 2, 2] * columns + matrices[0, 2, 3]
    along_rows, along_columns = _spline_matrix(y[:, 0], data, 2), _spline_matrix(x[0], data, 3)
    inside = inside & _within(y, data.shape[2]) & _within(x, data.shape[3])
    return along_rows @ data @ along_columns.T, inside


def _spline_matrix(index: Tensor, data: Tensor, axis: int) -> Tensor:
    """(targets, sources): weight of each value along an axis in the spline at each index."""
    from scipy import ndimage

    count = data.shape[axis]
    unit = np.pad(np.eye(count), ((_SPLINE_PAD, _SPLINE_PAD), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(unit, order=3, axis=0, mode="nearest")
    at = index.clamp(-1.0, count).numpy()  # indices further out are outside
    below = np.floor(at)
    s = (at - below)[:, None]
    weights = (1 - s) ** 3, 4 - 3 * s**2 * (2 - s), 4 - 3 * (1 - s) ** 2 * (1 + s), s**3
    first = below.astype(int) + _SPLINE_PAD - 1
    matrix = sum(w * coefficients[first + k] for k, w in enumerate(weights)) / 6
    return torch.as_tensor(matrix, dtype=data.dtype)


def _spline_across_axes(
    data: Tensor, matrices: Tensor, depths: Tensor, in_planes: bool, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cubic values at arbitrary points, slice by slice, and a mask of the points inside."""
    from scipy import ndimage

    axes = (1, 2) if in_planes else (0, 1, 2)
    pads = [(_SPLINE_PAD, _SPLINE_PAD) if axis in axes else (0, 0) for axis in range(3)]
    rows, columns = _axes((range(size[0]), range(size[1])), matrices)
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
    data: Tensor,
    planes: Tensor,
    index_from_target: Tensor,
    target: Grid,
    fill: Tensor,
    kind: torch.dtype,
) -> Tensor:
    """Copy the target's values as dtype `kind`: see `is_sub_grid`."""
    top, left = (int(c) for c in index_from_target[0, 1:3, 3].round().tolist())
    counts = data.shape[1:]
    shape = (data.shape[0], *target.shape)
    out = fill.to(kind).to(data.device)[:, None, None, None].expand(shape).clone()
    rows = slice(max(0, -top), min(target.shape[1], counts[1] - top))
    columns = slice(max(0, -left), min(target.shape[2], counts[2] - left))
    kept = ((planes >= 0) & (planes < counts[0])).nonzero()[:, 0]
    if not len(kept) or rows.start >= rows.stop or columns.start >= columns.stop:
        return out
    source = data[
        ..., rows.start + top : rows.stop + top, columns.start + left : columns.stop + left
    ]
    sources = planes[kept]
    if bool((sources.diff() == 1).all()) and len(kept) == kept[-1] + 1 - kept[0]:
        # The common case, without an intermediate copy.
        first, number = int(sources[0]), len(kept)
        out[:, kept[0] : kept[-1] + 1, rows, columns] = source[:, first : first + number]
    else:
        out[:, kept.to(data.device), rows, columns] = source[:, sources.to(data.device)].to(kind)
    return out


def _axes(window: tuple[range, range], like: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (
        torch.arange(line.start, line.stop, device=like.device, dtype=like.dtype) for line in window
    )
    return rows[:, None], columns[None, :]


def _plane(coefficients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(slices, rows, columns) values of an affine function, from its (slices, 4) coefficients."""
    _, by_row, by_column, constant = coefficients[:, :, None, None].unbind(1)
    return by_row * rows + by_column * columns + constant


def _within(index: Tensor, count: int) -> Tensor:
    return (index >= -0.5 - SAME_INDEX) & (index <= count - 0.5 + SAME_INDEX)


def _corners_within(index: Tensor, count: int) -> bool:
    """Are all (slices, rows, columns) values of an affine function within? Its extremes are."""
    return bool(_within(index[:, [0, 0, -1, -1], [0, -1, 0, -1]], count).all())


def _normalised(index: Tensor, count: int) -> Tensor:
    return (2.0 * index + 1.0) / count - 1.0


def _torch_mode(mode: str) -> str:
    return {"linear": "bilinear", "nearest": "nearest"}[mode]
