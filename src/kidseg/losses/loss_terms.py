"""Losses of one output of a network: Dice, cross entropy and the loss of crops; see the package."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.labels import Target

__all__ = [
    "MIN_PROBABILITY",
    "SMOOTH",
    "Over",
    "checked_logits",
    "crop_loss",
    "cross_entropy",
    "encode",
    "in_float32",
    "is_exclusive",
    "mean_over",
    "probabilities",
    "soft_dice",
    "value_of_truth",
    "weighted_cross_entropy",
]

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice. Source: nnU-Net's `SoftDiceLoss` in training."""

MIN_PROBABILITY = 1e-12
"""Added to a probability before its logarithm.

A pixel that a crop has cut off costs 27.6. The gradient is accurate for classes that are less than
25 logits below the maximum; the minimum of float32 is 1e-38.
"""

Over = Literal["batch", "sample"]


def soft_dice(
    found: Tensor, reference: Tensor, *, valid: Tensor | None = None, over: Over = "sample"
) -> Tensor:
    """2 |H.T| / (|H|^2 + |T|^2) with squared sums, smoothed; 1 is perfect agreement.

    Args:
        found: (n, channels, *size), probabilities or soft masks.
        reference: of the same or a broadcastable shape; bool or numbers.
        valid: (n, *size) bool; other pixels count as background in both.
        over: sum over each sample or over the batch.

    Returns:
        (n, channels), or (channels,) over the batch; 1 if both are empty, about 0 if only one is.

    Source: La Barbera et al., ISBI 2021, eq. 1; Milletari et al., V-Net, 3DV 2016.
    """
    found = in_float32(found)
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


def crop_loss(crop: Tensor, target: Tensor, theta: Tensor, target_theta: Tensor) -> Tensor:
    """Mean |HC - TC| over all values, plus the root mean square distance of the thetas.

    Args:
        crop: (n, channels, rows, columns) image on the predicted box.
        target: the same on the target box.
        theta: (n, 2, 3) of the predicted box.
        target_theta: (n, 2, 3) of the target box.

    The gradient is 0 where the two agree exactly.

    Source: La Barbera et al., ISBI 2021, eq. 2; its first norm is the L1 norm that the text names.
    """
    pixels = (in_float32(crop) - in_float32(target)).abs().mean()
    distance = torch.linalg.vector_norm(in_float32(theta) - in_float32(target_theta))
    loss: Tensor = pixels + distance / math.sqrt(len(theta))
    return loss


def encode(labels: Tensor, target: Target) -> Tensor:
    """Encode labels (n, *size) as the ideal output of a network with this target.

    Returns:
        (n, *size) int64 classes if the target is exclusive: 0 (background) for labels that no
        channel covers, otherwise 1 + channel. If not exclusive, (n, channels, *size) bool regions.
    """
    regions = [_among(labels, members) for members in target.channels]
    if not target.exclusive:
        return torch.stack(regions, dim=1)
    classes = torch.zeros_like(labels, dtype=torch.long)
    for number, region in enumerate(regions, start=1):
        classes = torch.where(region, number, classes)
    return classes


def _among(labels: Tensor, members: Sequence[int]) -> Tensor:
    """Where a label is one of `members`; by plain numbers, so that no device waits for the CPU."""
    return functools.reduce(torch.logical_or, (labels == member for member in members))


def probabilities(logits: Tensor, target: Target | None = None) -> Tensor:
    """Probabilities of logits (n, channels, *size), in at least float32.

    Args:
        logits: output of a network.
        target: defines its channels; by default exclusive classes, background first. Exclusive
            classes sum to 1 over the channels; regions are independent.

    Raises:
        ValueError: the number of channels differs from the target's outputs.
    """
    values = checked_logits(logits, target)
    return torch.softmax(values, dim=1) if is_exclusive(target) else values.sigmoid()


def cross_entropy(probabilities: Tensor, labels: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Mean of -log(probability of the true class + `MIN_PROBABILITY`).

    Like `torch.nn.functional.cross_entropy`, but for probabilities.

    Args:
        probabilities: (n, classes, *size).
        labels: (n, *size) classes.
        valid: (n, *size) bool; other pixels are ignored. The loss is 0 if all are ignored.
    """
    log_loss = -torch.log(value_of_truth(in_float32(probabilities), labels) + MIN_PROBABILITY)
    return mean_over(log_loss, valid)


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_weights: Tensor,
    *,
    target: Target,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean over all pixels of the cross entropy, each times the weight of its true label.

    The weights are not normalised, so that a batch with more of a heavy label has a larger loss.
    Regions (sigmoid) use the mean binary cross entropy over the channels.

    Args:
        logits: (n, channels, *size).
        labels: (n, *size) labels of the data set.
        label_weights: (256,) weight of each label, background first.
        target: defines the channels.
        valid: (n, *size) bool; other pixels are ignored. The loss is 0 if all are ignored.

    Raises:
        ValueError: the number of channels differs from the target's.

    Source: Santini et al., KiTS19, section 2.3 "weighted categorical cross-entropy"; the mean over
    pixels as usual in Keras.
    """
    true = encode(labels, target)
    if target.exclusive:
        log_loss = -value_of_truth(torch.log_softmax(checked_logits(logits, target), dim=1), true)
    else:
        found = checked_logits(logits, target)
        each = F.binary_cross_entropy_with_logits(found, true.to(found), reduction="none")
        log_loss = each.mean(1)
    weights = label_weights.to(log_loss)[labels.long()]
    return mean_over(log_loss * weights, valid)


def is_exclusive(target: Target | None) -> bool:
    """Whether the channels of a target are classes, background first."""
    return target is None or target.exclusive


def checked_logits(logits: Tensor, target: Target | None) -> Tensor:
    """The logits in at least float32.

    Raises:
        ValueError: the number of channels differs from the target's outputs.
    """
    if target is not None and logits.shape[1] != target.outputs:
        raise ValueError(
            f"the logits have {logits.shape[1]} channels, but the target {target.outputs}"
        )
    return in_float32(logits)


def value_of_truth(values: Tensor, classes: Tensor) -> Tensor:
    """(n, *size): the value of the true class, from values (n, classes, *size)."""
    return values.gather(1, classes.long()[:, None])[:, 0]


def in_float32(values: Tensor) -> Tensor:
    """Values in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mean_over(losses: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of the losses of pixels, (n, *size), that are valid (bool); 0 if none is."""
    if valid is None:
        return losses.mean()
    weights = torch.ones_like(losses) * valid
    # If all pixels are ignored, both sums and the loss are 0.
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))
