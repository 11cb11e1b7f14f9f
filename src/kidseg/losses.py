"""What the networks are trained on, in two and three dimensions.

Networks give logits (n, channels, *size). What their channels mean a `Target` says: exclusive
classes with background first (softmax), or regions that may overlap (sigmoid). `labels` are
(n, *size) whole numbers: the data set's, or without a target the classes themselves. Every loss is
a scalar, computed in float32 at least, and lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry import Grid, Volume, resample
from kidseg.labels import Target

__all__ = [
    "coarsened",
    "crop_loss",
    "cross_entropy",
    "encode",
    "level_weights",
    "probabilities",
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
Grids = Grid | Sequence[Grid]


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


def encode(labels: Tensor, target: Target) -> Tensor:
    """What a network with this target should say of labels (n, *size).

    Returns:
        (n, *size) int64 classes, if the target is exclusive: 0, background, for labels that no
        channel covers, else 1 + the channel. Otherwise (n, channels, *size) bool: inside the
        region or not.
    """
    covered = [torch.tensor(members, device=labels.device) for members in target.channels]
    regions = [torch.isin(labels, members) for members in covered]
    if not target.exclusive:
        return torch.stack(regions, dim=1)
    classes = torch.zeros_like(labels, dtype=torch.long)
    for number, region in enumerate(regions, start=1):
        classes[region] = number
    return classes


def probabilities(logits: Tensor, target: Target | None = None) -> Tensor:
    """Probabilities of logits (n, channels, *size), float32 at least.

    Args:
        logits: of a network.
        target: what its channels mean; exclusive classes, background first, by default. These sum
            to 1 over the channels; regions are decided each on its own.

    Raises:
        ValueError: another number of channels than the target's outputs.
    """
    values = _checked(logits, target)
    return torch.softmax(values, dim=1) if _exclusive(target) else values.sigmoid()


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
        labels: (n, *size) classes.
        valid: (n, *size) bool; other pixels do not count. 0 if none counts.
        class_weights: (classes,); the mean is divided by the sum of the pixels' weights.
    """
    surprise = -torch.log(_of_truth(_wide(probabilities), labels) + LEAST_PROBABILITY)
    return _weighted_mean(surprise, labels, valid, class_weights)


def segmentation_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    *,
    target: Target | None = None,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """Cross entropy + (1 - SoftDice) at each level, weighted: the U-Net's loss without a warp.

    Args:
        levels: logits (n, channels, *size), finest first; coarser ones meet coarser labels.
        labels: (n, *size) of the finest level.
        target: what the channels mean; None: exclusive classes, which `labels` are.
        valid: (n, *size) bool; other pixels do not count, at any level.
        class_weights: (classes,) for the cross entropy, if they are exclusive.
        over: what a Dice sums over. Source: nnU-Net's 2D configuration takes the batch.

    Of classes the Dice is the mean over all but background; one that is nowhere in the batch adds
    about 1 while any of it is predicted, with hardly a gradient, and 0 once none is; cross entropy
    is what unlearns it. Regions have binary cross entropy, and Dice of all channels.

    Raises:
        ValueError: another number of channels than the target's; class weights for regions.

    Source: La Barbera et al., ISBI 2021, eq. 3; background left out of the Dice as in nnU-Net;
    regions as in its `DC_and_BCE_loss`, but squares in the Dice, and always the mean over channels.
    """
    losses = []
    for logits in levels:
        size = logits.shape[2:]
        true = coarsened(labels, size)
        true = true if target is None else encode(true, target)
        counted = None if valid is None else coarsened(valid, size)
        if _exclusive(target):
            log_probabilities = torch.log_softmax(_checked(logits, target), dim=1)
            surprise = -_of_truth(log_probabilities, true)
            found = log_probabilities.exp()
        else:
            found = probabilities(logits, target)
            surprise = F.binary_cross_entropy_with_logits(
                _wide(logits), true.to(found), reduction="none"
            )
        losses.append(_compared(surprise, found, true, counted, class_weights, over))
    return _over_levels(losses)


@overload
def restored(
    logits: Tensor, grid: Grid, original: Grid, *, target: Target | None = None
) -> Volume: ...
@overload
def restored(
    logits: Tensor, grid: Grids, original: Grids, *, target: Target | None = None
) -> Volume | list[Volume]: ...
def restored(
    logits: Tensor, grid: Grids, original: Grids, *, target: Target | None = None
) -> Volume | list[Volume]:
    """Probabilities on the original grid: the inverse of every pose and crop that led to `grid`.

    Args:
        logits: at the size of `grid` or coarser: (slices, channels, rows, columns) with one grid
            for all, or volumes (n, channels, slices, rows, columns) with n grids.
        grid: the network's, slice-wise or volumetric; of volumes one each.
        original: where the answer is wanted; of volumes one each.
        target: what the channels mean; exclusive classes, background first, by default.

    Returns:
        (channels, *original.shape), float32 at least; a list of these for volumes. Exclusive
        classes sum to 1 everywhere. Outside `grid` background is certain. Differentiable in logits
        and grid.

    Raises:
        ValueError: another number of grids than of volumes, or of channels than the target's.
    """
    found = probabilities(logits, target)
    certain = target.background if target else (1.0,) + (0.0,) * (found.shape[1] - 1)

    def bring_back(data: Tensor, seen: Grid, scan: Grid) -> Volume:
        return resample(Volume(data, seen.resized(data.shape[1:])), scan, fill=certain)

    if isinstance(grid, Grid) and isinstance(original, Grid):
        return bring_back(found.transpose(0, 1), grid, original)
    if isinstance(grid, Grid) or isinstance(original, Grid):
        raise ValueError("slices have one grid on both sides, volumes one each on both sides")
    return [bring_back(*triple) for triple in zip(found, grid, original, strict=True)]


def restored_segmentation_loss(
    levels: Sequence[Tensor],
    grid: Grids,
    labels: Volume | Sequence[Volume],
    *,
    target: Target | None = None,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """`segmentation_loss` after the inverse warp, against the untouched reference.

    Each level is compared on the original grid, coarsened as the level is. If `grid` is the
    original, this is `segmentation_loss`. Labels lost by a crop are paid for: probability 0.

    Args:
        levels: logits on `grid`, finest first, as for `restored`.
        grid: the network's; of volumes one each.
        labels: (1, slices, rows, columns) on the original grid, slice-wise, or volumetric with
            `grid` in its planes; of volumes one each, all of one size.
        target: what the channels mean; None: exclusive classes, which `labels` are.
        valid: bool on the original grid: (slices, rows, columns), or (n, slices, rows, columns).
        class_weights: (classes,) for the cross entropy, if they are exclusive.
        over: what a Dice sums over.

    The gradient of a region's cross entropy fades where the network is surer of it than float32
    can say (logits above 17) and wrong.

    Raises:
        ValueError: as `segmentation_loss` and `restored`; volumes that differ in size.

    Source: La Barbera et al., ISBI 2021, eq. 3.
    """
    losses, whole = [], _stacked(labels)
    for logits in levels:
        ratios = zip(whole.shape[1:], logits.shape[2:], levels[0].shape[2:], strict=True)
        size = [max(1, round(side * new / finest)) for side, new, finest in ratios]
        true = coarsened(whole, size)
        true = true if target is None else encode(true, target)
        counted = None if valid is None else coarsened(valid, size)
        found = _on_original(logits, grid, labels, size, target)
        if _exclusive(target):
            of_truth = _of_truth(found, true)
        else:
            of_truth = torch.where(true, found, 1.0 - found)
        surprise = -torch.log(of_truth + LEAST_PROBABILITY)
        losses.append(_compared(surprise, found, true, counted, class_weights, over))
    return _over_levels(losses)


def _exclusive(target: Target | None) -> bool:
    return target is None or target.exclusive


def _checked(logits: Tensor, target: Target | None) -> Tensor:
    if target is not None and logits.shape[1] != target.outputs:
        raise ValueError(f"{logits.shape[1]} channels for a target with {target.outputs}")
    return _wide(logits)


def _stacked(labels: Volume | Sequence[Volume]) -> Tensor:
    if isinstance(labels, Volume):
        return labels.data[0]
    if len({volume.grid.shape for volume in labels}) != 1:
        raise ValueError("volumes of a batch must be of one size on the original grid")
    return torch.stack([volume.data[0] for volume in labels])


def _on_original(
    logits: Tensor,
    grid: Grids,
    labels: Volume | Sequence[Volume],
    size: Sequence[int],
    target: Target | None,
) -> Tensor:
    """(n, channels, *size) probabilities on the labels' grids, coarsened to `size`."""
    if isinstance(labels, Volume):
        original: Grids = labels.grid.resized((labels.grid.shape[0], *size))
    else:
        original = [volume.grid.resized(size) for volume in labels]
    back = restored(logits, grid, original, target=target)
    if isinstance(back, Volume):
        return back.data.transpose(0, 1)
    return torch.stack([one.data for one in back])


def _of_truth(values: Tensor, classes: Tensor) -> Tensor:
    """(n, *size): of values (n, classes, *size) that of the true class."""
    return values.gather(1, classes.long()[:, None])[:, 0]


def _compared(
    surprise: Tensor,
    found: Tensor,
    true: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    over: Over,
) -> Tensor:
    """Mean of -log(probability of the truth) + 1 - Dice; `true` is what `encode` gives."""
    if true.ndim < found.ndim:
        mean = _weighted_mean(surprise, true, valid, class_weights)
        return mean + _dice_loss(found, true, valid, over)
    if class_weights is not None:
        raise ValueError("class weights are for exclusive classes, not for regions")
    dice = soft_dice(found, true, valid=valid, over=over)
    return _weighted_mean(surprise.mean(1), true, valid, None) + (1.0 - dice.mean())


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
