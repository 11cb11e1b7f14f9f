"""Postprocess a segmentation: remove and report components that are neither kidney nor tumour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import LabelSchema, Target

__all__ = [
    "LoneTumours",
    "Piece",
    "Reason",
    "least_kidney_ml",
    "lone_tumours",
    "min_volume_ml",
    "notable_tumour_ml",
    "remove_lone_tumours",
    "remove_small",
]

# Parenchyma that counts as a kidney, as a share of a kidney's volume. The liver and the spleen are
# found as tumour with shreds of kidney at the rim.
_KIDNEY_SHARE = 0.1
# A small kidney of an adult. Source: 5-95 percentile of 33 healthy kidneys of KiTS19, 144-301 ml.
_KIDNEY_ML = 100.0
# Tumour of an adult that is no speck: a sphere of 10 mm. The choice is ours.
_NOTABLE_ML = 0.5

Reason = Literal["no-kidney", "small"]
"""Why a component was removed."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A connected component that was removed.

    Attributes:
        volume_ml: its volume.
        centre_mm: (x, y, z) centroid, RAS+.
        voxels: {label: number of voxels}.
        reason: it is "small", or a tumour with "no-kidney".
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    voxels: dict[int, int]
    reason: Reason = "small"

    def ml_of(self, labels: Sequence[int]) -> float:
        """Volume of the voxels that have one of these labels."""
        share = sum(self.voxels.get(label, 0) for label in labels) / sum(self.voxels.values())
        return self.volume_ml * share

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "volume_ml": self.volume_ml,
            "centre_mm": self.centre_mm,
            "voxels": dict(self.voxels),
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class LoneTumours:
    """Which tumours without a kidney are removed from a scan.

    Attributes:
        below_ml: smaller ones; 0: none.
        kidney_ml: parenchyma that counts as a kidney.
        within_mm: distance to a kidney up to which a tumour may be part of it.
        kidney: labels of parenchyma.
        mass: labels of tumours and cysts.
    """

    below_ml: float = 0.0
    kidney_ml: float = 0.0
    within_mm: float = 0.0
    kidney: tuple[int, ...] = ()
    mass: tuple[int, ...] = ()


def min_volume_ml(
    config: PostprocessConfig, body_radius_mm: float | None, voxel_ml: float = 0.0
) -> float:
    """The minimum volume of a component, for a body of this size.

    Volumes scale with the cube of a length. A newborn's trunk has a radius of about 55 mm and an
    adult's of 150 mm, so 3 ml for adults become 0.15 ml, far below a newborn's kidney (10-18 ml).

    Args:
        config: threshold for an adult, or in voxels.
        body_radius_mm: geometric mean of the body's semi-axes; None or NaN if there is no body:
            nothing is removed then, unless the threshold is in voxels.
        voxel_ml: volume of the voxels that `min_voxels` counts.
    """
    if config.min_voxels is not None:
        return config.min_voxels * voxel_ml
    return config.min_volume_ml * _share_of_adult(config, body_radius_mm)


def notable_tumour_ml(config: PostprocessConfig, body_radius_mm: float | None) -> float:
    """Tumour that is not removed without a warning: 0.5 ml in an adult, less in a smaller body.

    Args:
        config: size of an adult.
        body_radius_mm: see `min_volume_ml`; without a body, an adult's is assumed.
    """
    return _NOTABLE_ML * (_share_of_adult(config, body_radius_mm) or 1.0)


def lone_tumours(
    config: PostprocessConfig,
    body_radius_mm: float | None,
    scan: Grid,
    schema: LabelSchema,
    target: Target,
) -> LoneTumours:
    """Which tumours without a kidney are removed from a scan of a body of this size.

    None are in a slab thinner than `config.stack_mm`, or if the labels do not distinguish tumour
    from kidney.

    Args:
        config: thresholds for an adult.
        body_radius_mm: see `min_volume_ml`; without a body nothing is removed.
        scan: volumetric grid.
        schema: meaning of the labels.
        target: the labels that the network distinguishes.
    """
    kidney, mass = schema.ids_of("kidney"), schema.ids_of("tumour", "cyst")
    distinguished = all(set(ids) & set(target.writes) for ids in (kidney, mass))
    if not distinguished or is_slab(config, scan):
        return LoneTumours()
    below_ml = config.lone_tumour_ml * _share_of_adult(config, body_radius_mm)
    return LoneTumours(
        below_ml=below_ml,
        kidney_ml=_KIDNEY_SHARE * below_ml,
        within_mm=config.within_mm,
        kidney=kidney,
        mass=mass,
    )


def least_kidney_ml(config: PostprocessConfig, body_radius_mm: float | None, scan: Grid) -> float:
    """What is found of kidneys and tumours in a scan that shows them: a tenth of a small kidney.

    0 in a slab thinner than `config.stack_mm`, and without a body.

    Args:
        config: size of an adult.
        body_radius_mm: see `min_volume_ml`.
        scan: volumetric grid.
    """
    if is_slab(config, scan):
        return 0.0
    return _KIDNEY_SHARE * _KIDNEY_ML * _share_of_adult(config, body_radius_mm)


def remove_small(
    labels: Volume, min_ml: float, *, keep_ends: bool = True, known: np.ndarray | None = None
) -> tuple[Volume, tuple[Piece, ...]]:
    """Remove connected components of all labels together that are smaller than `min_ml`.

    Voxels are connected by faces.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        min_ml: see `min_volume_ml`; 0 removes nothing.
        keep_ends: keep components in the first or last slice, which may continue outside the scan.
        known: (slices, rows, columns) bool: keep components with one of these voxels.

    Returns:
        The labels, a new volume if anything was removed, and the removed components, largest first.
        An empty mask stays empty.
    """
    if min_ml <= 0 or (found := _components(labels, labels.data[0].numpy() > 0)) is None:
        return labels, ()
    small = found.sizes() * float(labels.grid.voxel_ml) < min_ml
    small[0] = False  # the background
    if keep_ends and found.box[0].start == 0:
        small[found.numbers[0].ravel()] = False
    if keep_ends and found.box[0].stop == labels.grid.shape[0]:
        small[found.numbers[-1].ravel()] = False
    return found.without(small & ~found.with_any(known), "small")


def remove_lone_tumours(
    labels: Volume, rule: LoneTumours, *, known: np.ndarray | None = None
) -> tuple[Volume, tuple[Piece, ...]]:
    """Remove tumours that have no kidney, such as parts of the liver that are taken for a tumour.

    A tumour is removed with what it is connected to (by faces) if that is smaller than
    `rule.below_ml`, contains less parenchyma than `rule.kidney_ml`, and is farther than
    `rule.within_mm` from all components that are larger than this or contain more parenchyma. A
    tumour that has replaced its kidney, so that no parenchyma is left, is larger than the kidney
    was.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        rule: see `lone_tumours`.
        known: see `remove_small`.

    Returns:
        See `remove_small`.
    """
    values = labels.data[0].numpy()
    if rule.below_ml <= 0 or not _among(values, rule.mass).any():
        return labels, ()
    found = _components(labels, _among(values, (*rule.kidney, *rule.mass)))
    assert found is not None
    voxel_ml = float(labels.grid.voxel_ml)
    is_kidney = (found.sizes(rule.kidney) * voxel_ml >= rule.kidney_ml) | (
        found.sizes() * voxel_ml >= rule.below_ml
    )
    is_kidney[0] = False
    lone = (found.sizes(rule.mass) > 0) & ~is_kidney & ~found.with_any(known)
    return found.without(lone & ~found.near(is_kidney, lone, rule.within_mm), "no-kidney")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Components:
    """Connected components of a mask.

    Attributes:
        labels: of the scan.
        box: of the mask, (slices, rows, columns).
        numbers: (slices, rows, columns) in the box: 1, 2, ... in the order of the first voxels; 0
            outside the mask.
        count: of the components.
        foreground: (voxels,) of the mask, counted in the box.
    """

    labels: Volume
    box: tuple[slice, slice, slice]
    numbers: np.ndarray
    count: int
    foreground: np.ndarray

    @cached_property
    def number(self) -> np.ndarray:
        """(voxels,) component of each voxel of the mask."""
        return np.asarray(self.numbers.ravel()[self.foreground])

    def sizes(self, members: Sequence[int] | None = None) -> np.ndarray:
        """(count + 1,) voxels of each component that have one of these labels; None: all."""
        number = self.number
        if members is not None:
            inside = self.labels.data[0].numpy()[self.box].ravel()[self.foreground]
            number = number[_among(inside, members)]
        return np.bincount(number, minlength=self.count + 1)

    def with_any(self, voxels: np.ndarray | None) -> np.ndarray:
        """(count + 1,) bool: which components have one of these voxels of the scan; None: none."""
        found = np.zeros(self.count + 1, dtype=bool)
        if voxels is not None:
            found[self.numbers[voxels[self.box]]] = True
        return found

    def near(self, some: np.ndarray, others: np.ndarray, within_mm: float) -> np.ndarray:
        """(count + 1,) bool: which of `others` lie within a distance of one of `some`.

        Args:
            some: (count + 1,) bool, components.
            others: the same.
            within_mm: between the centres of voxels.
        """
        from scipy.spatial import KDTree

        near = np.zeros(self.count + 1, dtype=bool)
        if not (some.any() and others.any()):
            return near
        number = self.number
        spacing = self.labels.grid.spacing_mm.numpy()
        index = self._index(others[number])
        mm = index.T * spacing
        known = self._index(some[number]).T * spacing
        low, high = mm.min(0) - within_mm, mm.max(0) + within_mm
        known = known[((known >= low) & (known <= high)).all(1)]
        if len(known):
            distance, _ = KDTree(known).query(
                mm, distance_upper_bound=np.nextafter(within_mm, np.inf)
            )
            near[number[others[number]][np.isfinite(distance)]] = True
        return near

    def without(self, remove: np.ndarray, reason: Reason) -> tuple[Volume, tuple[Piece, ...]]:
        """The labels without some components, and these, largest first.

        Args:
            remove: (count + 1,) bool.
            reason: why.
        """
        if not remove.any():
            return self.labels, ()
        number = self.number
        chosen = remove[number]
        index = self._index(chosen)
        values = self.labels.data[0].numpy()
        kept = values.copy()
        kept[tuple(index)] = 0
        # Removed components are numbered 0, 1, ... in the order of their first voxels.
        renumbered = (np.cumsum(remove) - 1)[number[chosen]]
        grid = self.labels.grid
        removed = _pieces(renumbered, index, values[tuple(index)], grid, reason)
        return Volume(torch.from_numpy(kept)[None], grid), removed

    def _index(self, chosen: np.ndarray) -> np.ndarray:
        """(3, chosen voxels) slice, row, column in the scan of voxels of the mask."""
        index = np.stack(np.unravel_index(self.foreground[chosen], self.numbers.shape))
        return np.asarray(index + np.array([[side.start] for side in self.box]))


def _components(labels: Volume, mask: np.ndarray) -> _Components | None:
    """The components of a mask, (slices, rows, columns) bool; None if it is empty."""
    from scipy import ndimage

    if (box := _box(mask)) is None:
        return None
    numbers, count = ndimage.label(mask[box])
    foreground = np.flatnonzero(mask[box])
    return _Components(labels=labels, box=box, numbers=numbers, count=count, foreground=foreground)


def _among(values: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """Which uint8 values are among these."""
    table = np.zeros(256, dtype=bool)
    table[list(members)] = True
    return np.asarray(table[values])


def is_slab(config: PostprocessConfig, scan: Grid) -> bool:
    """Whether a scan is too thin to show a kidney: it covers less than `config.stack_mm`."""
    covered_mm = round(scan.shape[0] * float(scan.spacing_mm[0]), 3)  # micrometres are rounding
    return covered_mm < config.stack_mm


def _share_of_adult(config: PostprocessConfig, body_radius_mm: float | None) -> float:
    """Volume of a body as a share of an adult's, at most 1; 0 without a body."""
    if body_radius_mm is None or not np.isfinite(body_radius_mm):
        return 0.0
    return float((min(body_radius_mm, config.body_radius_mm) / config.body_radius_mm) ** 3)


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Bounding box of a mask; None if it is empty."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        return None
    plane = np.zeros(mask.shape[1:], dtype=bool)
    for k in slices:
        plane |= mask[k]
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    z, y, x = (slice(int(line[0]), int(line[-1]) + 1) for line in (slices, rows, columns))
    return z, y, x


def _pieces(
    number: np.ndarray, index: np.ndarray, values: np.ndarray, grid: Grid, reason: Reason
) -> tuple[Piece, ...]:
    """The components that voxels form, largest first.

    Args:
        number: (voxels,) component of each, 0, 1, ...
        index: (3, voxels) slice, row, column.
        values: (voxels,) labels.
        grid: of the labels.
        reason: why they are removed.
    """
    sizes = np.bincount(number)
    sums = [np.bincount(number, weights=axis) for axis in index]
    centres = grid.mm(np.stack(sums, axis=1) / sizes[:, None]).tolist()
    volumes = (sizes * float(grid.voxel_ml)).tolist()
    voxels: list[dict[int, int]] = [{} for _ in sizes]
    for label in np.unique(values).tolist():
        counts = np.bincount(number[values == label], minlength=len(sizes))
        for k in np.flatnonzero(counts).tolist():
            voxels[k][label] = int(counts[k])
    return tuple(
        Piece(volume_ml=volumes[k], centre_mm=tuple(centres[k]), voxels=voxels[k], reason=reason)
        for k in np.argsort(-sizes, kind="stable").tolist()
    )
