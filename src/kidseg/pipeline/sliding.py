"""Sliding-window inference: window positions and Gaussian weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor

__all__ = ["gaussian_weights", "sliding_window", "window_starts"]

# SD as a fraction of the window's side. Source: nnU-Net v2.8.1, `compute_gaussian`.
_SIGMA = 1 / 8


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the fewest evenly spaced windows with at least this overlap.

    Args:
        size: voxels along an axis, at least `window`.
        window: voxels of a window.
        overlap: minimum overlap as a fraction of the window, in [0, 1).

    Source: nnU-Net v2.8.1, `compute_steps_for_sliding_window`.
    """
    if size < window or not 0 <= overlap < 1:
        raise ValueError(f"windows of {window} in {size} voxels with overlap {overlap}")
    count = ceil((size - window) / (window * (1 - overlap))) + 1
    step = (size - window) / (count - 1) if count > 1 else 0.0
    return [round(step * k) for k in range(count)]


def gaussian_weights(window: Sequence[int]) -> Tensor:
    """(*window) Gaussian weights with maximum 1, positive everywhere.

    Source: nnU-Net v2.8.1, `compute_gaussian`.
    """
    weights = torch.ones(())
    for side in window:
        z = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side * _SIGMA)
        weights = weights[..., None] * torch.exp(-z.square() / 2)
    weights = (weights / weights.max()).float()
    return weights.clamp(min=float(weights[weights > 0].min()))


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    *,
    outputs: int,
    overlap: float = 0.5,
) -> Tensor:
    """Predict a volume window by window; overlapping predictions are averaged with weights.

    Args:
        predict: (1, channels, *window) -> (1, outputs, *window) on the CPU.
        image: (channels, *size), each side at least the window's.
        window: size of a window.
        outputs: number of output channels.
        overlap: minimum overlap of neighbouring windows, as a fraction.

    Returns:
        (outputs, *size) float32.
    """
    size = tuple(image.shape[1:])
    total = torch.zeros((outputs, *size))
    weight = torch.zeros(size)
    weights = gaussian_weights(window)
    axes = [window_starts(n, w, overlap) for n, w in zip(size, window, strict=True)]
    for corner in product(*axes):
        box = tuple(slice(s, s + w) for s, w in zip(corner, window, strict=True))
        prediction = predict(image[(slice(None), *box)][None])[0]
        total[(slice(None), *box)] += prediction * weights
        weight[box] += weights
    return total.div_(weight)
