"""Sampling, pooling and padding of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torch import absent
from torch.tensor import Tensor

__all__ = ["avg_pool2d", "grid_sample", "max_pool2d", "normalize", "pad", "relu"]


def grid_sample(
    images: Tensor,
    at: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "border",
    align_corners: bool = False,
) -> Tensor:
    """Values of images (n, channels, *size) at points (n, *shape, axes), -1..1 at the outer edges.

    Points beyond the centres of the outermost pixels have the nearest value.
    """
    assert padding_mode == "border" and not align_corners
    out = [_sampled(image, points, mode) for image, points in zip(images, at, strict=True)]
    return np.stack(out).view(Tensor)


def _sampled(image: Tensor, points: Tensor, mode: str) -> np.ndarray:
    """(channels, *shape): the last coordinate of a point is that along the first axis."""
    values, wanted = image.numpy(), points.numpy()
    sides = values.shape[1:]
    half = wanted.dtype.type(2)
    near: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for axis, side in enumerate(sides):
        index = ((wanted[..., -1 - axis] + 1) * side - 1) / half
        index = index.clip(0, side - 1)
        low = np.floor(index) if mode == "bilinear" else np.rint(index)
        whole = low.astype(np.intp)
        near.append((whole, np.minimum(whole + 1, side - 1), index - low))
    flat = values.reshape(len(values), -1)
    out = np.zeros((len(values), *wanted.shape[:-1]), values.dtype)
    for corner in range(2 ** len(sides) if mode == "bilinear" else 1):
        weight: Any = values.dtype.type(1)
        place: Any = 0
        for axis, (low, high, part) in enumerate(near):
            is_high = corner >> axis & 1
            place = place * sides[axis] + (high if is_high else low)
            if mode == "bilinear":
                weight = weight * (part if is_high else 1 - part)
        out += np.take(flat, place, axis=1) * weight
    return out


def avg_pool2d(image: Tensor, size: int | Sequence[int]) -> Tensor:
    """Means of blocks of pixels; a rest of the image is left out."""
    down, across = (size, size) if isinstance(size, int) else size
    *lead, rows, columns = image.shape
    rows, columns = rows // down, columns // across
    kept = image.numpy()[..., : rows * down, : columns * across]
    blocks = kept.reshape(*lead, rows, down, columns, across)
    return blocks.mean(axis=(-3, -1), dtype=image.dtype).view(Tensor)


def max_pool2d(
    image: Tensor, size: Sequence[int], stride: int = 1, padding: Sequence[int] = (0, 0)
) -> Tensor:
    """The maximum around each pixel."""
    from scipy import ndimage

    assert stride == 1 and all(n == 2 * p + 1 for n, p in zip(size, padding, strict=True))
    around = (*(1,) * (image.ndim - 2), *size)
    return ndimage.maximum_filter(image.numpy(), around, mode="nearest").view(Tensor)


def pad(image: Tensor, ends: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Padded: the ends of the last axis come first."""
    pairs = [(ends[k], ends[k + 1]) for k in range(0, len(ends), 2)][::-1]
    widths = [(0, 0)] * (image.ndim - len(pairs)) + pairs
    if mode == "replicate":
        return np.pad(image.numpy(), widths, mode="edge").view(Tensor)
    assert mode == "constant"
    return np.pad(image.numpy(), widths, constant_values=value).view(Tensor)


def normalize(values: Tensor, dim: int = 1) -> Tensor:
    """Vectors of length 1 along an axis; those of length 0 stay."""
    length = np.linalg.vector_norm(values.numpy(), axis=dim, keepdims=True)
    return (values.numpy() / np.maximum(length, 1e-12)).view(Tensor)


def relu(values: Tensor) -> Tensor:
    """Zero in place of negative values."""
    return values.clamp(min=0)


def __getattr__(name: str) -> Any:
    return absent.named(f"torch.nn.functional.{name}")
