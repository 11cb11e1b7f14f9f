"""Windows that slide over a volume: where they lie, and how their answers are weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor

__all__ = ["importance", "starts", "windowed"]

# Source: nnU-Net v2.8.1, `compute_gaussian`: SD as a part of the window's side.
_SIGMA = 1 / 8


def starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the fewest evenly spread windows that overlap by at least this part.

    Args:
        size: voxels along an axis, at least `window`.
        window: voxels of a window.
        overlap: 0 to below 1.

    Source: nnU-Net v2.8.1, `compute_steps_for_sliding_window`.
    """
    if size < window or not 0 <= overlap < 1:
        raise ValueError(f"windows of {window} in {size} voxels with overlap {overlap}")
    count = ceil((size - window) / (window * (1 - overlap))) + 1
    step = (size - window) / (count - 1) if count > 1 else 0.0
    return [round(step * k) for k in range(count)]


def importance(window: Sequence[int]) -> Tensor:
    """(*window) weights: 1 in the middle, falling like a Gaussian, positive everywhere.

    Source: nnU-Net v2.8.1, `compute_gaussian`.
    """
    weights = torch.ones(())
    for side in window:
        at = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side * _SIGMA)
        weights = weights[..., None] * torch.exp(-at.square() / 2)
    weights = (weights / weights.max()).float()
    return weights.clamp(min=float(weights[weights > 0].min()))


def windowed(
    ask: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    *,
    outputs: int,
    overlap: float = 0.5,
) -> Tensor:
    """The answers of a network to windows of a volume, their weighted mean.

    Args:
        ask: (1, channels, *window) to (1, outputs, *window) on the CPU.
        image: (channels, *size), each side at least the window's.
        window: sides of a window.
        outputs: channels of an answer.
        overlap: part by which neighbours overlap at least.

    Returns:
        (outputs, *size) float32.
    """
    size = tuple(image.shape[1:])
    total = torch.zeros((outputs, *size))
    weight = torch.zeros(size)
    weights = importance(window)
    axes = [starts(n, w, overlap) for n, w in zip(size, window, strict=True)]
    for corner in product(*axes):
        box = tuple(slice(s, s + w) for s, w in zip(corner, window, strict=True))
        answer = ask(image[(slice(None), *box)][None])[0]
        total[(slice(None), *box)] += answer * weights
        weight[box] += weights
    return total.div_(weight)
