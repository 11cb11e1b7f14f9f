"""Where the digital patient is painted: voxels, their place in the anatomy, partial volume, texture.

Organs are implicit functions of the *reference anatomy* (no tumour, straight spine, nothing pushed).
A coarse field says for each voxel which point of the reference anatomy lies there; it is smooth, so
it is computed every few millimetres and resampled to the voxels. Organs are painted over each other,
each only in the box of voxels in which the field says it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume, resample
from kidseg.phantom.shapes import Place

__all__ = ["Box", "Canvas", "Locator", "Noise", "Patch"]

Box = tuple[Sequence[float], Sequence[float]]
"""Lowest and highest (x, y, z) of a structure in the reference anatomy, mm."""

_CELL_MM = 6.0
_FLATTEST = 1e-5


@dataclass(frozen=True, eq=False)
class Noise:
    """A random smooth texture in space: mean 0, standard deviation 1, repeated nowhere.

    Drawn on a lattice turned against all axes, so that its cells do not show.
    """

    volume: Volume

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        size_mm: Sequence[float],
        centre_mm: Sequence[float],
        correlation_mm: float,
    ) -> Noise:
        """Texture of a correlation length (standard deviation of the Gaussian) over a box.

        Args:
            rng: every draw; their number depends on the box alone.
            size_mm: (x, y, z) of the box that is to be covered.
            centre_mm: its middle.
            correlation_mm: of the smoothing; details are about twice as large.
        """
        from scipy import ndimage

        step = correlation_mm / 1.25
        turn, _ = np.linalg.qr(np.array([[1.0, 0.15, 0.1], [-0.15, 1.0, 0.12], [-0.1, -0.12, 1.0]]))
        reach = np.abs(turn.T) @ np.asarray(size_mm) + 4 * step
        shape = tuple(int(n) for n in np.ceil(reach / step)[::-1] + 1)
        white = rng.standard_normal(shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, 1.25, mode="wrap", truncate=3.0)
        smooth /= max(float(smooth.std()), 1e-6)
        matrix = np.eye(4)
        matrix[:3, :3] = turn[:, ::-1] * step
        matrix[:3, 3] = np.asarray(centre_mm) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
        grid = Grid((shape[0], shape[1], shape[2]), torch.from_numpy(matrix))
        return cls(Volume(torch.from_numpy(smooth)[None], grid))

    def on(self, grid: Grid) -> Tensor:
        """(slices, rows, columns) of the texture at a grid; 0 outside of its box."""
        return resample(self.volume, grid).data[0]


class Locator:
    """Which coarse nodes show a box of the reference anatomy.

    A table over cells of the reference anatomy holds the range of node indices that fall into each.
    """

    def __init__(self, places: Tensor) -> None:
        """From the places: (3, slices, rows, columns) reference (x, y, z) of the coarse nodes."""
        flat = places.reshape(3, -1).numpy()
        self._low = flat.min(axis=1)
        counts = np.floor((flat.max(axis=1) - self._low) / _CELL_MM).astype(int) + 1
        cell = np.floor((flat - self._low[:, None]) / _CELL_MM).astype(int)
        key = np.ravel_multi_index(tuple(cell), tuple(counts))
        nodes = np.indices(places.shape[1:], dtype=np.int32).reshape(3, -1)
        order = np.argsort(key, kind="stable")
        filled, starts = np.unique(key[order], return_index=True)
        far = np.iinfo(np.int32).max
        self._first = np.full((3, *counts), far, dtype=np.int32)
        self._last = np.full((3, *counts), -far, dtype=np.int32)
        sorted_nodes = nodes[:, order]
        self._first.reshape(3, -1)[:, filled] = np.minimum.reduceat(sorted_nodes, starts, axis=1)
        self._last.reshape(3, -1)[:, filled] = np.maximum.reduceat(sorted_nodes, starts, axis=1)

    def nodes(self, box: Box) -> tuple[np.ndarray, np.ndarray] | None:
        """(first, last) node (slice, row, column) around the box, one to spare; None if nowhere."""
        counts = np.array(self._first.shape[1:])
        low = np.floor((np.asarray(box[0]) - self._low) / _CELL_MM).astype(int)
        high = np.floor((np.asarray(box[1]) - self._low) / _CELL_MM).astype(int) + 1
        low, high = np.maximum(low, 0), np.minimum(high, counts)
        if (low >= high).any():
            return None
        window = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        first = self._first[window].reshape(3, -1).min(axis=1)
        last = self._last[window].reshape(3, -1).max(axis=1)
        if (first > last).any():
            return None
        return first - 1, last + 1


@dataclass(eq=False)
class Patch:
    """A box of voxels to paint in. Tensors with a halo have one slice more at their end.

    Attributes:
        x, y, z: place in the reference anatomy, mm, with halo.
        extra: further channels of the coarse field, (channels, ...) with halo.
        up_mm: (rows, 1) height in the scanner, against gravity.
        grid: of the voxels with halo.
        hu, organs: views of the canvas, without halo.
        noises: textures by name.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    extra: Tensor
    up_mm: Tensor
    grid: Grid
    hu: Tensor
    organs: Tensor
    noises: dict[str, Noise]

    @property
    def place(self) -> Place:
        """(x, y, z) with halo."""
        return self.x, self.y, self.z

    def cover(self, f: Tensor) -> Tensor:
        """Part of each voxel where f < 0, from f (with halo) and its change from voxel to voxel.

        Exact for a plane boundary through a box seen along its normal; f needs no unit slope.
        """
        here = f[:-1]
        width = (f[1:] - here).abs_()
        width[:, :, :-1] += (here[:, :, 1:] - here[:, :, :-1]).abs_()
        width[:, :, -1:] += width[:, :, -2:-1] * 0.5
        width[:, :-1] += (here[:, 1:] - here[:, :-1]).abs_()
        width[:, -1:] += width[:, -2:-1] * 0.5
        return (0.5 - here / width.clamp_(min=_FLATTEST)).clamp_(0.0, 1.0)

    def paint(self, cover: Tensor, hu: Tensor | float, organ: int | None = None) -> None:
        """Blend `hu` in by its cover; where that is half or more the voxel is the organ's."""
        value = hu if isinstance(hu, Tensor) else torch.tensor(hu, dtype=torch.float32)
        self.hu.lerp_(value.expand_as(self.hu) if value.ndim == 0 else value, cover)
        if organ is not None:
            self.organs.masked_fill_(cover >= 0.5, organ)

    def noise(self, name: str, *, halo: bool = False) -> Tensor:
        """A texture at this patch's voxels."""
        return self.noises[name].on(self.grid if halo else self.grid.slices(0, len(self.hu)))


class Canvas:
    """A slab of the scan: some slices, all in memory together.

    Args:
        grid: of the slab.
        coarse: the field: channels x, y, z of the reference anatomy, then any others.
        locator: over the coarse field.
        noises: textures by name.
    """

    def __init__(
        self, grid: Grid, coarse: Volume, locator: Locator, noises: dict[str, Noise]
    ) -> None:
        self.grid = grid
        self._halo = grid.crop((0, 0, 0), (grid.shape[0] + 1, *grid.shape[1:]))
        self.field = resample(coarse, self._halo).data
        self.hu = torch.full(grid.shape, -1000.0)
        self.organs = torch.zeros(grid.shape, dtype=torch.uint8)
        self._locator, self._noises = locator, noises
        index_from_node = torch.linalg.inv(grid.mm_from_index) @ coarse.grid.mm_from_index
        self._scale = index_from_node.diagonal()[:3].numpy()
        self._shift = index_from_node[:3, 3].numpy()
        rows = torch.arange(grid.shape[1], dtype=torch.float64)
        middle = torch.stack([rows * 0, rows, rows * 0], dim=-1)
        self._up_mm = grid.mm(middle)[:, 1:2].float()

    def whole(self) -> Patch:
        """All of the slab."""
        return self._patch((0, 0, 0), self.grid.shape)

    def patch(self, box: Box) -> Patch | None:
        """The voxels that may show a box of the reference anatomy; None if none does."""
        nodes = self._locator.nodes(box)
        if nodes is None:
            return None
        first = np.floor(nodes[0] * self._scale + self._shift).astype(int)
        last = np.ceil(nodes[1] * self._scale + self._shift).astype(int) + 1
        first, last = np.maximum(first, 0), np.minimum(last, self.grid.shape)
        if (first >= last).any():
            return None
        return self._patch(tuple(first.tolist()), tuple(last.tolist()))

    def where(self, mask: Tensor) -> Patch | None:
        """The voxels around those of a mask (slices + 1, rows, columns); None if it is empty."""
        ranges = []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            hits = mask.any(dim=others[1]).any(dim=others[0]).nonzero()
            if len(hits) == 0:
                return None
            size = self.grid.shape[axis]
            ranges.append((max(0, int(hits[0]) - 1), min(size, int(hits[-1]) + 2)))
        if any(a >= b for a, b in ranges):
            return None
        return self._patch(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))

    def _patch(self, first: tuple[int, ...], last: tuple[int, ...]) -> Patch:
        (z0, y0, x0), (z1, y1, x1) = first, last
        here = (slice(z0, z1), slice(y0, y1), slice(x0, x1))
        field = self.field[:, z0 : z1 + 1, y0:y1, x0:x1]
        return Patch(
            x=field[0],
            y=field[1],
            z=field[2],
            extra=field[3:],
            up_mm=self._up_mm[y0:y1],
            grid=self._halo.crop(first, (z1 + 1 - z0, y1 - y0, x1 - x0)),
            hu=self.hu[here],
            organs=self.organs[here],
            noises=self._noises,
        )
