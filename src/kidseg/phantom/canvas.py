"""The voxels on which a digital patient is painted, with partial volume and texture.

Organs are implicit functions of the *reference anatomy*: no tumour, straight spine, undeformed. A
smooth field maps each voxel to a point of the reference anatomy; see `splines`. Organs are painted
over each other, each only in the box of voxels that the field can map into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.geometry import Grid
from kidseg.phantom.shapes import Place
from kidseg.phantom.splines import Splines, axes_mm

__all__ = ["Box", "Canvas", "Locator", "Patch"]

Box = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Lowest and highest (x, y, z) of a structure in the reference anatomy, mm."""

_CELL_MM = 3.0
_MIN_HALF_MM = 4.5
_MIN_SLOPE = 1e-5


class Locator:
    """Finds the coarse nodes that map into a box of the reference anatomy.

    A table over cells of the reference anatomy stores the range of node indices in each cell.
    """

    def __init__(self, places: Tensor) -> None:
        """Build the table from (3, slices, rows, columns) reference (x, y, z) of the nodes."""
        flat = places.reshape(3, -1).numpy()
        self._low = flat.min(axis=1)
        counts = np.floor((flat.max(axis=1) - self._low) / _CELL_MM).astype(int) + 1
        cell = np.floor((flat - self._low[:, None]) / _CELL_MM).astype(int)
        key = np.ravel_multi_index(tuple(cell), tuple(counts))
        nodes = np.indices(places.shape[1:], dtype=np.int32).reshape(3, -1)
        order = np.argsort(key, kind="stable")
        filled, starts = np.unique(key[order], return_index=True)
        far = np.iinfo(np.int32).max
        self._found: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray] | None] = {}
        self._first = np.full((3, *counts), far, dtype=np.int32)
        self._last = np.full((3, *counts), -far, dtype=np.int32)
        sorted_nodes = nodes[:, order]
        self._first.reshape(3, -1)[:, filled] = np.minimum.reduceat(sorted_nodes, starts, axis=1)
        self._last.reshape(3, -1)[:, filled] = np.maximum.reduceat(sorted_nodes, starts, axis=1)

    def nodes(self, box: Box) -> tuple[np.ndarray, np.ndarray] | None:
        """(first, last) node (slice, row, column) around the box, with a margin of one; or None."""
        key = (*map(float, box[0]), *map(float, box[1]))
        if key not in self._found:
            self._found[key] = self._search(box)
        return self._found[key]

    def _search(self, box: Box) -> tuple[np.ndarray, np.ndarray] | None:
        # In compressed tissue neighbouring nodes are far apart. The minimum size of a box makes
        # sure that it contains a node.
        counts = np.array(self._first.shape[1:])
        middle = (np.asarray(box[0]) + np.asarray(box[1])) / 2
        half = np.maximum((np.asarray(box[1]) - np.asarray(box[0])) / 2, _MIN_HALF_MM)
        low = np.floor((middle - half - self._low) / _CELL_MM).astype(int)
        high = np.floor((middle + half - self._low) / _CELL_MM).astype(int) + 1
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
    """A box of voxels to paint in. Tensors with a halo have one additional slice at the end.

    Attributes:
        deep: its slices in the canvas, with halo.
        x, y, z: position in the reference anatomy, mm, with halo.
        abdomen: implicit function of the abdominal cavity, with halo.
        pelvis: the same of its part in the pelvis.
        extra: further channels of the field, (channels, ...) with halo.
        up_mm: (rows, 1) height in the scanner, against gravity.
        hu, organs: views of the canvas, without halo.
        steepest: largest possible change of a distance between neighbouring voxels, mm.
    """

    deep: tuple[slice, ...]
    x: Tensor
    y: Tensor
    z: Tensor
    abdomen: Tensor
    pelvis: Tensor
    extra: Tensor
    up_mm: Tensor
    hu: Tensor
    organs: Tensor
    steepest: float
    texture: Callable[[str], Tensor]

    @property
    def place(self) -> Place:
        """(x, y, z) with halo."""
        return self.x, self.y, self.z

    def cover(self, f: Tensor, thick: float | None = None) -> Tensor:
        """Fraction of each voxel where f < 0, from f (with halo) and its local differences.

        Exact for a planar boundary along an axis of the voxel; f needs no unit slope. `thick` is
        the thickness in mm of a thin structure (f reaches only -thick / 2): the volume beyond its
        far side is subtracted, so that a vessel in a thick slice is faint and not wide.
        """
        here = f[:-1]
        width = (f[1:] - here).abs_()
        if here.shape[2] > 1:
            width[:, :, :-1] += (here[:, :, 1:] - here[:, :, :-1]).abs_()
            width[:, :, -1:] += width[:, :, -2:-1] * 0.5
        if here.shape[1] > 1:
            width[:, :-1] += (here[:, 1:] - here[:, :-1]).abs_()
            width[:, -1:] += width[:, -2:-1] * 0.5
        # Limits the slope at discontinuities of f; no distance changes faster than this.
        width.clamp_(_MIN_SLOPE, self.steepest)
        cover = (0.5 - here / width).clamp_(0.0, 1.0)
        if thick is not None:
            cover -= (0.5 - (here + thick) / width).clamp_(0.0, 1.0)
        return cover

    def paint(self, cover: Tensor, hu: Tensor | float, organ: int | None = None) -> None:
        """Blend `hu` by its cover; voxels with a cover of at least one half get the organ."""
        value = hu if isinstance(hu, Tensor) else torch.tensor(hu, dtype=torch.float32)
        self.hu.lerp_(value.expand_as(self.hu) if value.ndim == 0 else value, cover)
        if organ is not None:
            self.organs.masked_fill_(cover >= 0.5, organ)

    def noise(self, name: str, *, halo: bool = False) -> Tensor:
        """A texture at this patch's voxels: mean 0, standard deviation 1."""
        return self.texture(name) if halo else self.texture(name)[:-1]


class Canvas:
    """A slab of consecutive slices of the scan.

    Args:
        grid: of the slab; axial.
        field: channels x, y, z of the reference anatomy, then any others.
        locator: for the nodes of the field.
        textures: by name.
        cavities: implicit functions of the abdominal cavity, and of its part in the pelvis, at x,
            y, z; without a pelvis, twice the same.
    """

    def __init__(
        self,
        grid: Grid,
        field: Splines,
        locator: Locator,
        textures: Mapping[str, Splines],
        cavities: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.grid = grid
        self._halo = grid.crop((0, 0, 0), (grid.shape[0] + 1, *grid.shape[1:]))
        self.field = field.on(self._halo)
        self.hu = torch.full(grid.shape, -1000.0)
        self.organs = torch.zeros(grid.shape, dtype=torch.uint8)
        self._abdomen, self._pelvis = cavities(self.field[0], self.field[1], self.field[2])
        self._locator, self._textures = locator, textures
        self._drawn: dict[str, Tensor] = {}
        axes = axes_mm(grid)
        spacing = grid.spacing_mm.tolist()
        self._steepest = 1.6 * sum(spacing)
        way = [1.0, -1.0, -1.0]
        self._scale = np.array([field.step_mm * w / s for w, s in zip(way, spacing, strict=True)])
        first = np.array(field.first_mm[::-1])
        start = np.array([float(mm[0]) for mm in axes])
        self._shift = (first - start) * way / np.array(spacing)
        self._up_mm = axes[1].float()[:, None]

    def full(self) -> Patch:
        """The complete slab."""
        return self._patch(tuple(slice(0, n) for n in self.grid.shape))

    def patch(self, box: Box) -> Patch | None:
        """The voxels that may map into a box of the reference anatomy; None if there are none."""
        window = self.window(box)
        return None if window is None else self._patch(window)

    def window(self, box: Box) -> tuple[slice, ...] | None:
        """Slices, rows and columns that may map into a box of the reference anatomy."""
        nodes = self._locator.nodes(box)
        if nodes is None:
            return None
        ends = np.sort(np.stack(nodes) * self._scale + self._shift, axis=0)
        first = np.maximum(np.floor(ends[0]).astype(int), 0)
        last = np.minimum(np.ceil(ends[1]).astype(int) + 1, self.grid.shape)
        if (first >= last).any():
            return None
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))

    @staticmethod
    def deepened(window: tuple[slice, ...]) -> tuple[slice, ...]:
        """The same window with the halo."""
        return (slice(window[0].start, window[0].stop + 1), *window[1:])

    def where(self, mask: Tensor) -> Patch | None:
        """The voxels around those of a mask (slices + 1, rows, columns); None if it is empty."""
        window = []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            hits = mask.any(dim=others[1]).any(dim=others[0]).nonzero()
            if len(hits) == 0:
                return None
            size = self.grid.shape[axis]
            window.append(slice(max(0, int(hits[0]) - 1), min(size, int(hits[-1]) + 2)))
        return self._patch(tuple(window)) if window[0].start < window[0].stop else None

    def _patch(self, window: tuple[slice, ...]) -> Patch:
        deep = self.deepened(window)
        field = self.field[:, *deep]

        def texture(name: str) -> Tensor:
            if name not in self._drawn:
                self._drawn[name] = self._textures[name].on(self._halo)[0]
            return self._drawn[name][deep]

        return Patch(
            deep=deep,
            x=field[0],
            y=field[1],
            z=field[2],
            abdomen=self._abdomen[deep],
            pelvis=self._pelvis[deep],
            extra=field[3:],
            up_mm=self._up_mm[window[1]],
            hu=self.hu[window],
            organs=self.organs[window],
            steepest=self._steepest,
            texture=texture,
        )
