"""What the networks are trained on.

Networks give (n, channels, *size), classes with background first; `labels` are (n, *size) whole
numbers below the number of classes. Every loss is a scalar, computed in float32 at least,
and lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume, resample

__all__ = [
    "coarsened",
    "crop_loss",
    "cross_entropy",
    "level_weights",
    "pose_loss",
    "restored",
    "restored_segmentation_loss",
    "segmentation_loss",
    "soft_dice",
]

SMOOTH = 1e-5
"""Added above and below the Dice fraction. Source: nnU-Net's `SoftDiceLoss` training setting."""

LEAST_PROBABILITY = 1e-12
"""Added to a probability before its logarithm.

What a crop has lost for certain costs 27.6 per pixel. The gradient stays whole for classes that lie
less than 25 logits below the winner; float32 itself would hold 1e-38.
"""

Over = Literal["batch", "sample"]


def soft_dice(
    found: Tensor, reference: Tensor, *, valid: Tensor | None = None, over: Over = "sample"
) -> Tensor:
    """2 |H.T| / (|H|^2 + |T|^2) with squared sums, smoothed; 1 is full agreement.

    Args:
        found: (n, channels, *size), probabilities or soft masks.
        reference: the same shape, or one that broadcasts to it; bool or numbers.
        valid: (n, *size) bool; other pixels count as empty in both.
        over: sums over each sample, or over the whole batch.

    Returns:
        (n, channels), or (channels,) over the batch; 1 where both are empty, and about 0 where one
        is.

    Source: La Barbera et al., ISBI 2021, eq. 1; Milletari et al., V-Net, 3DV 2016.
    """
    found = _wide(found)
    reference = reference.to(found)
    if valid is not None:
        found, reference = found * valid[:, None], reference * valid[:, None]
    axes = [0] if over == "batch" else []
    axes += range(2, found.ndim)
    reference = reference.expand_as(found)
    overlap = (found * reference).sum(axes)
    total = found.square().sum(axes) + reference.square().sum(axes)
    dice: Tensor = (2.0 * overlap + SMOOTH) / (total + SMOOTH)
    return dice


def pose_loss(homogenized: Tensor, reference: Tensor) -> Tensor:
    """1 - SoftDice(H, T), the mean over samples and channels.

    Args:
        homogenized: (n, channels, rows, columns) masks on their pose grids: the body; bone beside
            it, if that is to fix the angle.
        reference: (channels, rows, columns) for all, or (n, channels, rows, columns).

    A sample that is empty in both adds 0; one that is empty in one adds 1 and no gradient.

    Source: La Barbera et al., ISBI 2021, eq. 1, as a loss.
    """
    return 1.0 - soft_dice(homogenized, reference).mean()


def crop_loss(crop: Tensor, target: Tensor, theta: Tensor, target_theta: Tensor) -> Tensor:
    """Mean |HC - TC| over all values, plus the root of the mean squared distance of the thetas.

    Args:
        crop: (n, channels, rows, columns) image on the predicted box.
        target: the same on the target box.
        theta: (n, 2, 3) of the predicted box.
        target_theta: (n, 2, 3) of the target box.

    The gradient is 0 where the two agree exactly.

    Source: La Barbera et al., ISBI 2021, eq. 2; its first norm is the L1 norm that the text names.
    """
    pixels = (_wide(crop) - _wide(target)).abs().mean()
    distance = torch.linalg.vector_norm(_wide(theta) - _wide(target_theta))
    loss: Tensor = pixels + distance / math.sqrt(len(theta))
    return loss


def level_weights(count: int) -> list[float]:
    """Deep supervision: 1 / 2^level, finest first, with sum 1.

    Source: La Barbera et al., ISBI 2021, eq. 3, normalised as nnU-Net does.
    """
    total = sum(0.5**level for level in range(count))
    return [0.5**level / total for level in range(count)]


def coarsened(values: Tensor, size: Sequence[int]) -> Tensor:
    """The nearest of `values` (..., *old) at each pixel of `size`: the same extent, coarser.

    Of an even number of nearest, the upper middle. Source: nnU-Net's (batchgeneratorsv2's)
    `DownsampleSegForDSTransform`, which is torch's "nearest-exact".
    """
    for axis, new in zip(range(-len(size), 0), size, strict=True):
        old = values.shape[axis]
        if old != new:
            at = (2 * torch.arange(new, device=values.device) + 1) * old // (2 * new)
            values = values.index_select(axis, at)
    return values


def cross_entropy(
    probabilities: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean of -log(probability of the true class + `LEAST_PROBABILITY`), weighted by class.

    As `torch.nn.functional.cross_entropy`, but of probabilities.

    Args:
        probabilities: (n, classes, *size).
        labels: (n, *size).
        valid: (n, *size) bool; other pixels do not count. 0 if none counts.
        class_weights: (classes,); the mean is divided by the sum of the pixels' weights.
    """
    true = _wide(probabilities).gather(1, labels.long()[:, None])[:, 0]
    return _weighted_mean(-torch.log(true + LEAST_PROBABILITY), labels, valid, class_weights)


def segmentation_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """Cross entropy + (1 - SoftDice) at each level, weighted: the U-Net's loss without a warp.

    Args:
        levels: logits (n, classes, *size), finest first; coarser ones meet coarser labels.
        labels: (n, *size) of the finest level.
        valid: (n, *size) bool; other pixels do not count, at any level.
        class_weights: (classes,) for the cross entropy.
        over: what a Dice sums over. Source: nnU-Net's 2D configuration takes the batch.

    The Dice is the mean over the classes but background. A class that is nowhere in the batch adds
    about 1 while any of it is predicted, with hardly a gradient, and 0 once none is; cross entropy
    is what unlearns it.

    Source: La Barbera et al., ISBI 2021, eq. 3; background left out of the Dice as in nnU-Net.
    """
    losses = []
    for logits in levels:
        size = logits.shape[2:]
        true = coarsened(labels, size)
        counted = None if valid is None else coarsened(valid, size)
        log_probabilities = torch.log_softmax(_wide(logits), dim=1)
        surprise = -log_probabilities.gather(1, true.long()[:, None])[:, 0]
        losses.append(
            _weighted_mean(surprise, true, counted, class_weights)
            + _dice_loss(log_probabilities.exp(), true, counted, over)
        )
    return _over_levels(losses)


def restored(logits: Tensor, grid: Grid, original: Grid) -> Volume:
    """Probabilities on the original grid: the inverse of every pose and crop that led to `grid`.

    Args:
        logits: (slices, classes, rows, columns) of the image on `grid`, at its size or coarser.
        grid: the network's, slice-wise or volumetric.
        original: where the answer is wanted.

    Returns:
        (classes, *original.shape), float32 at least; sums to 1 everywhere. Outside `grid`
        background is certain. Differentiable in logits and grid.
    """
    probabilities = torch.softmax(_wide(logits), dim=1).transpose(0, 1)
    seen = Volume(probabilities, grid.resized((grid.shape[0], *logits.shape[2:])))
    certain = [1.0] + [0.0] * (len(probabilities) - 1)
    return resample(seen, original, fill=certain)


def restored_segmentation_loss(
    levels: Sequence[Tensor],
    grid: Grid,
    labels: Volume,
    *,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """`segmentation_loss` after the inverse warp, against the untouched reference.

    Level n is compared on the original grid coarsened 2^n times. If `grid` is the original, this is
    `segmentation_loss`. Labels that a crop has lost are paid for: their probability is 0.

    Args:
        levels: logits (slices, classes, rows / 2^n, columns / 2^n) on `grid`, n = 0, 1, ...
        grid: the network's; `rows` and `columns` are its size.
        labels: (1, slices, rows, columns) whole numbers on the original grid, slice-wise, or
            volumetric with `grid` in its planes.
        valid: (slices, rows, columns) bool on the original grid.
        class_weights: (classes,) for the cross entropy.
        over: what a Dice sums over.

    Source: La Barbera et al., ISBI 2021, eq. 3.
    """
    losses = []
    for level, logits in enumerate(levels):
        size = [max(1, round(side / 2**level)) for side in labels.grid.shape[1:]]
        original = labels.grid.resized((labels.grid.shape[0], *size))
        probabilities = restored(logits, grid, original).data.transpose(0, 1)
        true = coarsened(labels.data[0], size)
        counted = None if valid is None else coarsened(valid, size)
        losses.append(
            cross_entropy(probabilities, true, valid=counted, class_weights=class_weights)
            + _dice_loss(probabilities, true, counted, over)
        )
    return _over_levels(losses)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _dice_loss(probabilities: Tensor, labels: Tensor, valid: Tensor | None, over: Over) -> Tensor:
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    reference = labels[:, None] == classes.view(1, -1, *[1] * (labels.ndim - 1))
    return 1.0 - soft_dice(probabilities[:, 1:], reference, valid=valid, over=over).mean()


def _weighted_mean(
    losses: Tensor, labels: Tensor, valid: Tensor | None, class_weights: Tensor | None
) -> Tensor:
    if valid is None and class_weights is None:
        return losses.mean()
    weights = torch.ones_like(losses)
    if class_weights is not None:
        weights = class_weights.to(losses)[labels.long()]
    if valid is not None:
        weights = weights * valid
    # Where nothing counts, both sums are 0 and so is the loss.
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def _over_levels(losses: Sequence[Tensor]) -> Tensor:
    pairs = zip(level_weights(len(losses)), losses, strict=True)
    return torch.stack([weight * loss for weight, loss in pairs]).sum()
