"""nnU-Net's sliding windows: mirrored inputs, several networks, and sums in half precision.

Where two labels are about equally likely, the rounding of the sums decides. It is nnU-Net's here,
so that an imported model gives its labels.

Source: nnU-Net v2.8.1, `nnUNetPredictor` and `compute_gaussian`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kidseg.device import Device
from kidseg.pipeline.sliding import window_starts
from kidseg.pipeline.steps import OnProgress, ignore_progress

__all__ = ["Box", "half_gaussian", "mean_logits"]

# SD as a fraction of the window's side, and the maximum of the weights.
_SIGMA, _PEAK = 1 / 8, 10.0

Box = tuple[Any, ...]
"""A window as an index."""

Predict = Callable[[Tensor, Box], Tensor]
"""(1, channels, *window) and where it lies -> (outputs, *window) logits on the CPU."""

Hear = Callable[[int, Tensor, Box, Tensor], None]
"""Number of the opinion (of a network and a mirroring), its (outputs, *window) logits in a window,
the window, (*window) how much each voxel there counts: 1 over all windows, 0 beyond the image."""


@torch.no_grad()
def mean_logits(
    nets: Sequence[nn.Module],
    image: Tensor,
    window: Sequence[int],
    *,
    overlap: float,
    mirror_axes: Sequence[int],
    device: Device,
    hear: Hear | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Tensor:
    """The mean logits of networks in an image.

    Args:
        nets: in two or three dimensions, in eval mode, on the device.
        image: (channels, slices, rows, columns) float32, normalised. Padded with 0 where it is
            smaller than a window.
        window: rows and columns, or slices, rows and columns.
        overlap: minimum overlap of neighbouring windows, as a fraction.
        mirror_axes: of the window; the logits are the mean over all combinations of mirroring.
        device: of the networks.
        hear: called for each opinion in each window.
        on_progress: called with how much is done.

    Returns:
        (outputs, slices, rows, columns) float16 on the CPU.
    """
    size = image.shape[-len(window) :]
    missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
    ends = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    padded = F.pad(image, ends)
    inner = [slice(n // 2, n // 2 + s) for n, s in zip(missing, size, strict=True)]
    weights = half_gaussian(window).float()
    shares = None if hear is None else _shares(padded.shape[1:], inner, weights, overlap)

    windows = sum(1 for _ in _boxes(padded.shape[1:], window, overlap))
    done = itertools.count(1)

    def predictor(number: int) -> Predict:
        def predict(part: Tensor, box: Box) -> Tensor:
            def on_logits(mirroring: int, logits: Tensor) -> None:
                if hear is not None and shares is not None:
                    first = number * 2 ** len(mirror_axes)
                    hear(first + mirroring, logits[0].float().cpu(), box, shares[box] * weights)

            with device.autocast():
                found = _mirrored(nets[number], part.to(device.torch), mirror_axes, on_logits)
            on_cpu: Tensor = found[0].float().cpu()
            on_progress(next(done) / (windows * len(nets)))
            return on_cpu

        return predict

    total = _windowed(predictor(0), padded, window, overlap)
    for number in range(1, len(nets)):
        total += _windowed(predictor(number), padded, window, overlap)
    if len(nets) > 1:
        total /= len(nets)
    outer = [slice(None)] * (total.ndim - len(inner))
    return total[tuple(outer + inner)]


def half_gaussian(window: Sequence[int]) -> Tensor:
    """(*window) float16 weights: a Gaussian about the voxel at half of each side, 10 there.

    Weights that half precision cannot hold get the least that it can.
    """
    from scipy import ndimage

    weights = torch.ones((), dtype=torch.float64)
    for side in window:
        line = torch.zeros(side, dtype=torch.float64)
        line[side // 2] = 1
        blurred = ndimage.gaussian_filter1d(line.numpy(), side * _SIGMA, mode="constant")
        weights = weights[..., None] * torch.from_numpy(blurred)
    half = (weights / (weights.max() / _PEAK)).half()
    return half.masked_fill_(half == 0, float(half[half > 0].min()))


def _windowed(predict: Predict, image: Tensor, window: Sequence[int], overlap: float) -> Tensor:
    """(outputs, *image.shape[1:]) float16: the weighted mean of the predictions of all windows."""
    weights = half_gaussian(window)
    total: Tensor | None = None
    count = torch.zeros(image.shape[1:], dtype=torch.half)
    for box in _boxes(image.shape[1:], window, overlap):
        found = predict(image[(slice(None), *box)][None].contiguous(), box)
        if total is None:
            total = torch.zeros((len(found), *image.shape[1:]), dtype=torch.half)
        total[(slice(None), *box)] += found * weights
        count[box] += weights
    assert total is not None
    return total.div_(count)


def _shares(size: Sequence[int], inner: Sequence[slice], weights: Tensor, overlap: float) -> Tensor:
    """(*size) float32: 1 over the sum of the weights of all windows; 0 outside of `inner`."""
    count = torch.zeros(tuple(size))
    for box in _boxes(size, weights.shape, overlap):
        count[box] += weights
    shares = torch.zeros_like(count)
    outer = [slice(None)] * (count.ndim - len(inner))
    shares[tuple(outer + list(inner))] = 1
    return shares / count


def _boxes(size: Sequence[int], window: Sequence[int], overlap: float) -> Iterator[Box]:
    """The windows as indices; windows of two axes in each slice."""
    flat = len(size) - len(window)
    axes = [window_starts(n, w, overlap) for n, w in zip(size[flat:], window, strict=True)]
    for index in product(*(range(n) for n in size[:flat])):
        for corner in product(*axes):
            yield (*index, *(slice(s, s + w) for s, w in zip(corner, window, strict=True)))


def _mirrored(
    net: nn.Module, image: Tensor, axes: Sequence[int], on_logits: Callable[[int, Tensor], None]
) -> Tensor:
    """Logits of an image, averaged over all combinations of mirroring along axes."""
    turns = [[2 + axis for axis in c] for n in range(len(axes)) for c in combinations(axes, n + 1)]
    total: Tensor = net(image)[0]
    on_logits(0, total)
    for number, turned in enumerate(turns, start=1):
        found = net(image.flip(turned))[0].flip(turned)
        on_logits(number, found)
        total += found
    if turns:
        total /= len(turns) + 1
    return total
