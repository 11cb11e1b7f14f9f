"""Bilinear sampling whose gradient is the same bits each time, on a GPU too.

Many samples add to the gradient of one pixel. A GPU adds them in any order, and sums of
floating-point numbers depend on it; sums of integers do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sample_repeatably", "spread"]

_BITS = 62
"""Of a sum; one more is its sign."""


def sample_repeatably(images: Tensor, at: Tensor) -> Tensor:
    """`torch.nn.functional.grid_sample`, bilinear, with padding "border" and no aligned corners.

    Args:
        images: (n, channels, rows, columns).
        at: (n, target rows, target columns, 2), normalised x and y.

    Returns:
        (n, channels, target rows, target columns); differentiable once in both.
    """
    values: Tensor = _Sampled.apply(images, at)  # type: ignore[no-untyped-call]
    return values


def spread(gradient: Tensor, at: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient of the images, (n, channels, *size), from that of values sampled at `at`.

    Sums are of multiples of the largest value / 2^62, times the number of samples of an image: with
    512 x 512 samples, of its 2^-44th part. NaN everywhere if the gradient is not finite.
    """
    rows, columns = size
    x, y = (
        (((at[..., axis].double() + 1.0) * count - 1.0) / 2.0).clamp(0.0, count - 1.0)
        for axis, count in ((0, columns), (1, rows))
    )
    left, top = x.floor(), y.floor()
    largest = gradient.abs().amax().double()
    _, exponent = torch.frexp(largest)
    shift = _BITS - (at.shape[1] * at.shape[2]).bit_length() - exponent
    sums = gradient.new_zeros((*gradient.shape[:2], rows * columns), dtype=torch.int64)
    for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = left + right, top + below
        weight = (1.0 - (x - column).abs()) * (1.0 - (y - row).abs())
        pixel = row.clamp(max=rows - 1) * columns + column.clamp(max=columns - 1)
        share = torch.ldexp(gradient.double() * weight[:, None], shift).round().long()
        place = pixel.long().flatten(1)[:, None].expand(*share.shape[:2], -1)
        sums.scatter_add_(2, place, share.flatten(2))
    out = torch.ldexp(sums.double(), -shift).to(gradient.dtype).unflatten(2, size)
    return torch.where(largest.isfinite(), out, torch.nan)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(images, at)
        return F.grid_sample(
            images, at, mode="bilinear", padding_mode="border", align_corners=False
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        images, at = ctx.saved_tensors
        of_images = of_at = None
        if ctx.needs_input_grad[0]:
            of_images = spread(gradient, at, (images.shape[2], images.shape[3]))
        if ctx.needs_input_grad[1]:
            bilinear, border, aligned = 0, 1, False
            _, of_at = torch.ops.aten.grid_sampler_2d_backward(
                gradient, images, at, bilinear, border, aligned, [False, True]
            )
        return of_images, of_at
