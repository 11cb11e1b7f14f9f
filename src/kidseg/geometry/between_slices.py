"""Contours between thick slices: shape-based interpolation.

Source: Raya and Udupa, "Shape-based interpolation of multidimensional objects", IEEE Trans. Med.
Imaging 1990, 10.1109/42.52980.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["distances_mm", "divided"]


def distances_mm(
    inside: np.ndarray,
    spacing_mm: Sequence[float],
    axis: int,
    parts: int,
    *,
    to_contour: bool = True,
) -> np.ndarray:
    """Distances from the contours in each slice, and between slices, in which each is divided.

    In mm, float32, positive inside; on the grid of `Grid.resized`. Between slices they are
    interpolated linearly; beyond the first and the last one they stay what they are. With an odd
    number of parts, the middle one of a slice is the slice itself. Slices without a contour are as
    far from one as the next slice is.

    Args:
        inside: three axes, bool.
        spacing_mm: along these.
        axis: of the slices that are divided.
        parts: of each.
        to_contour: which is half-way between centres of pixels; else to the nearest centre on its
            other side.
    """
    slices = np.moveaxis(inside, axis, 0)
    pixel_mm = np.delete(spacing_mm, axis)
    nearer = float(pixel_mm.min()) / 2 if to_contour else 0.0
    known = [_signed_mm(each, pixel_mm, nearer, float(spacing_mm[axis])) for each in slices]
    return divided(np.moveaxis(np.stack(known), 0, axis), axis, parts)


def divided(in_slices: np.ndarray, axis: int, parts: int) -> np.ndarray:
    """The distances in and between slices, from those in slices; see `distances_mm`."""
    if parts == 1:
        return in_slices
    known = np.moveaxis(in_slices, axis, 0)
    place = ((np.arange(len(known) * parts) + 0.5) / parts - 0.5).clip(0, len(known) - 1)
    below = place.astype(int)
    above = np.minimum(below + 1, len(known) - 1)
    share = (place - below)[:, None, None].astype(np.float32)
    return np.moveaxis(known[below] * (1 - share) + known[above] * share, 0, axis)


def _signed_mm(
    inside: np.ndarray, pixel_mm: np.ndarray, nearer_mm: float, otherwise_mm: float
) -> np.ndarray:
    """Distances of pixels from the other side, less `nearer_mm`, positive inside.

    All the same if there is only one side.
    """
    from scipy import ndimage

    if not inside.any() or inside.all():
        sign = 1.0 if inside.any() else -1.0
        return np.full(inside.shape, sign * otherwise_mm, dtype=np.float32)
    within = ndimage.distance_transform_edt(inside, pixel_mm)
    beyond = ndimage.distance_transform_edt(~inside, pixel_mm)
    return np.where(inside, within - nearer_mm, nearer_mm - beyond).astype(np.float32)
