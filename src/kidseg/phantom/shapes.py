"""Implicit functions of simple shapes: negative inside, approximately the distance in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Place", "ellipsoid", "point", "rounded", "smooth_max", "smooth_min", "tube"]

Place = tuple[Tensor, Tensor, Tensor]
"""(x, y, z) of many points, mm."""


def smooth_min(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Union with a fillet of about `width`. Source: the polynomial smooth minimum of I. Quilez."""
    blend = (width - (a - b).abs()).clamp_(min=0.0)
    return torch.minimum(a, b) - blend * blend / (4.0 * width)


def smooth_max(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Intersection with a rounding of about `width`."""
    blend = (width - (a - b).abs()).clamp_(min=0.0)
    return torch.maximum(a, b) + blend * blend / (4.0 * width)


def ellipsoid(
    place: Place, centre: Sequence[float] | np.ndarray, half: Sequence[float] | np.ndarray
) -> Tensor:
    """An ellipsoid along the axes, from its centre and half-axes in mm."""
    total: Tensor | float = 1e-9
    for p, c, h in zip(place, centre, half, strict=True):
        total = total + ((p - float(c)) / float(h)) ** 2
    return (torch.sqrt(torch.as_tensor(total)) - 1.0) * float(min(half))


def tube(place: Place, points: np.ndarray, radii: np.ndarray) -> Tensor:
    """A tube along (n, 3) points with interpolated (n,) radii; n at least 2."""
    nearest: Tensor | None = None
    for k in range(len(points) - 1):
        start, axis = points[k], points[k + 1] - points[k]
        d = [p - float(s) for p, s in zip(place, start, strict=True)]
        t = d[0] * float(axis[0]) + d[1] * float(axis[1]) + d[2] * float(axis[2])
        t = t.mul_(1.0 / max(float(axis @ axis), 1e-6)).clamp_(0.0, 1.0)
        square = torch.full_like(t, 1e-6)
        for component, a in zip(d, axis, strict=True):
            off = component - t * float(a)
            square.addcmul_(off, off)
        f = square.sqrt_() - t * float(radii[k + 1] - radii[k]) - float(radii[k])
        nearest = f if nearest is None else torch.minimum(nearest, f)
    assert nearest is not None
    return nearest


def point(place: np.ndarray) -> tuple[float, float, float]:
    """(x, y, z) of one point as plain numbers."""
    x, y, z = (float(v) for v in place)
    return x, y, z


def rounded(points: np.ndarray) -> np.ndarray:
    """Cut the corners of a line of (n, 3) points once. Source: Chaikin 1974."""
    if len(points) < 3:
        return points
    quarter = 0.75 * points[:-1] + 0.25 * points[1:]
    three = 0.25 * points[:-1] + 0.75 * points[1:]
    inner = np.stack([quarter, three], axis=1).reshape(-1, 3)
    return np.concatenate([points[:1], inner[1:-1], points[-1:]])
