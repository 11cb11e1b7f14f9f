"""Loss functions in two and three dimensions.

Networks return logits (n, channels, *size). A `Target` defines their channels: exclusive classes
with background first (softmax), or regions that may overlap (sigmoid). `labels` are (n, *size)
integers: the labels of the dataset, or without a target the classes. Every loss is a scalar,
computed in at least float32; lower is better.
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
    "Supervision",
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
Supervision = Literal["paper", "normalised"]
Grids = Grid | Sequence[Grid]


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
    """Mean |HC - TC| over all values, plus the root mean square distance of the thetas.

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


def level_weights(count: int, supervision: Supervision = "normalised") -> list[float]:
    """Weights for deep supervision: 1 / 2^level, finest level first.

    Args:
        count: number of levels.
        supervision: "normalised" weights sum to 1; "paper": as they are.

    Source: La Barbera et al., ISBI 2021, eq. 3; normalised as nnU-Net does.
    """
    total = sum(0.5**level for level in range(count)) if supervision == "normalised" else 1.0
    return [0.5**level / total for level in range(count)]


def coarsened(values: Tensor, size: Sequence[int]) -> Tensor:
    """Downsample `values` (..., *old) to `size` by nearest neighbour.

    Between two equally near values it takes the upper one. Source: nnU-Net's (batchgeneratorsv2's)
    `DownsampleSegForDSTransform`, which is torch's "nearest-exact".
    """
    for axis, new in zip(range(-len(size), 0), size, strict=True):
        old = values.shape[axis]
        if old != new:
            at = (2 * torch.arange(new, device=values.device) + 1) * old // (2 * new)
            values = values.index_select(axis, at)
    return values


def encode(labels: Tensor, target: Target) -> Tensor:
    """Encode labels (n, *size) as the ideal output of a network with this target.

    Returns:
        (n, *size) int64 classes if the target is exclusive: 0 (background) for labels that no
        channel covers, otherwise 1 + channel. If not exclusive, (n, channels, *size) bool regions.
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
    """Probabilities of logits (n, channels, *size), in at least float32.

    Args:
        logits: output of a network.
        target: defines its channels; by default exclusive classes, background first. Exclusive
            classes sum to 1 over the channels; regions are independent.

    Raises:
        ValueError: the number of channels differs from the target's outputs.
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
    """Mean of -log(probability of the true class + `MIN_PROBABILITY`), weighted by class.

    Like `torch.nn.functional.cross_entropy`, but for probabilities.

    Args:
        probabilities: (n, classes, *size).
        labels: (n, *size) classes.
        valid: (n, *size) bool; other pixels are ignored. The loss is 0 if all are ignored.
        class_weights: (classes,); the sum is divided by the sum of the pixels' weights.
    """
    log_loss = -torch.log(_of_truth(_wide(probabilities), labels) + MIN_PROBABILITY)
    return _weighted_mean(log_loss, labels, valid, class_weights)


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
        log_loss = -_of_truth(torch.log_softmax(_checked(logits, target), dim=1), true)
    else:
        wide = _checked(logits, target)
        each = F.binary_cross_entropy_with_logits(wide, true.to(wide), reduction="none")
        log_loss = each.mean(1)
    weights = label_weights.to(log_loss)[labels.long()]
    return _weighted_mean(log_loss * weights, labels, valid, None)


def segmentation_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    *,
    target: Target | None = None,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """Weighted sum of cross entropy + (1 - SoftDice) over the levels, without an inverse warp.

    Args:
        levels: logits (n, channels, *size), finest first; labels are downsampled for coarser ones.
        labels: (n, *size) of the finest level.
        target: defines the channels; None: exclusive classes, given by `labels`.
        valid: (n, *size) bool; other pixels are ignored at all levels.
        class_weights: (classes,) for the cross entropy, only for exclusive classes.
        over: the sums in Dice. Source: nnU-Net's 2D configuration sums over the batch.

    For classes, Dice is the mean over all but background. A class that is missing in the batch adds
    about 1 as long as any of it is predicted, with almost no gradient, and 0 otherwise; only cross
    entropy suppresses such predictions. Regions use binary cross entropy and Dice of all channels.

    Raises:
        ValueError: the number of channels differs from the target's; class weights for regions.

    Source: La Barbera et al., ISBI 2021, eq. 3; Dice without background as in nnU-Net; regions as
    in its `DC_and_BCE_loss`, but with squares in Dice, and always the mean over channels.
    """
    losses = []
    for logits in levels:
        size = logits.shape[2:]
        true = coarsened(labels, size)
        true = true if target is None else encode(true, target)
        counted = None if valid is None else coarsened(valid, size)
        if _exclusive(target):
            log_probabilities = torch.log_softmax(_checked(logits, target), dim=1)
            log_loss = -_of_truth(log_probabilities, true)
            found = log_probabilities.exp()
        else:
            found = probabilities(logits, target)
            log_loss = F.binary_cross_entropy_with_logits(
                _wide(logits), true.to(found), reduction="none"
            )
        losses.append(_loss(log_loss, found, true, counted, class_weights, over))
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
    """Resample probabilities onto the original grid: the inverse of all poses and crops.

    Args:
        logits: at the size of `grid` or coarser: (slices, channels, rows, columns) with one grid
            for all, or volumes (n, channels, slices, rows, columns) with n grids.
        grid: the network's, slice-wise or volumetric; one per volume.
        original: the output grid; one per volume.
        target: defines the channels; by default exclusive classes, background first.

    Returns:
        (channels, *original.shape), in at least float32; a list of these for volumes. Exclusive
        classes sum to 1 everywhere. Outside `grid`, background has probability 1. Differentiable in
        logits and grid.

    Raises:
        ValueError: the number of grids differs from that of volumes, or the number of channels
            from the target's.
    """
    found = probabilities(logits, target)
    background = target.background if target else (1.0,) + (0.0,) * (found.shape[1] - 1)

    def restore(data: Tensor, source: Grid, scan: Grid) -> Volume:
        return resample(Volume(data, source.resized(data.shape[1:])), scan, fill=background)

    if isinstance(grid, Grid) and isinstance(original, Grid):
        return restore(found.transpose(0, 1), grid, original)
    if isinstance(grid, Grid) or isinstance(original, Grid):
        raise ValueError("slices need one grid on both sides, volumes one grid each on both sides")
    return [restore(*triple) for triple in zip(found, grid, original, strict=True)]


def restored_segmentation_loss(
    levels: Sequence[Tensor],
    grid: Grids,
    labels: Volume | Sequence[Volume],
    *,
    target: Target | None = None,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    over: Over = "batch",
    supervision: Supervision = "normalised",
) -> Tensor:
    """`segmentation_loss` after the inverse warp, compared with the original labels.

    Each level is compared on the original grid, downsampled by the same factor as the level. If
    `grid` is the original grid, this equals `segmentation_loss`. Labels that a crop cuts off have
    probability 0 and add to the loss. With supervision "paper", each level is compared on the
    complete original grid, and the weights do not sum to 1.

    Args:
        levels: logits on `grid`, finest first, as for `restored`.
        grid: the network's; one per volume.
        labels: (1, slices, rows, columns) on the original grid, slice-wise, or volumetric with
            `grid` in its planes; one per volume, all of the same size.
        target: defines the channels; None: exclusive classes, given by `labels`.
        valid: bool on the original grid: (slices, rows, columns), or (n, slices, rows, columns).
        class_weights: (classes,) for the cross entropy, only for exclusive classes.
        over: the sums in Dice.
        supervision: resolution and weights of the levels; see `level_weights`.

    The gradient of a region's cross entropy vanishes if the network is wrong and its probability
    rounds to 1 in float32 (logits above 17).

    Raises:
        ValueError: as `segmentation_loss` and `restored`; volumes differ in size.

    Source: La Barbera et al., ISBI 2021, eq. 3.
    """
    losses, stacked = [], _stacked(labels)
    for logits in levels:
        ratios = zip(stacked.shape[1:], logits.shape[2:], levels[0].shape[2:], strict=True)
        size = [max(1, round(side * new / finest)) for side, new, finest in ratios]
        if supervision == "paper":
            size = list(stacked.shape[1:])
        true = coarsened(stacked, size)
        true = true if target is None else encode(true, target)
        counted = None if valid is None else coarsened(valid, size)
        found = _on_original(logits, grid, labels, size, target)
        if _exclusive(target):
            of_truth = _of_truth(found, true)
        else:
            of_truth = torch.where(true, found, 1.0 - found)
        log_loss = -torch.log(of_truth + MIN_PROBABILITY)
        losses.append(_loss(log_loss, found, true, counted, class_weights, over))
    return _over_levels(losses, supervision)


def _exclusive(target: Target | None) -> bool:
    return target is None or target.exclusive


def _checked(logits: Tensor, target: Target | None) -> Tensor:
    if target is not None and logits.shape[1] != target.outputs:
        raise ValueError(
            f"the logits have {logits.shape[1]} channels, but the target {target.outputs}"
        )
    return _wide(logits)


def _stacked(labels: Volume | Sequence[Volume]) -> Tensor:
    if isinstance(labels, Volume):
        return labels.data[0]
    if len({volume.grid.shape for volume in labels}) != 1:
        raise ValueError("volumes of a batch must have the same size on the original grid")
    return torch.stack([volume.data[0] for volume in labels])


def _on_original(
    logits: Tensor,
    grid: Grids,
    labels: Volume | Sequence[Volume],
    size: Sequence[int],
    target: Target | None,
) -> Tensor:
    """(n, channels, *size) probabilities on the labels' grids at `size`."""
    if isinstance(labels, Volume):
        original: Grids = labels.grid.resized((labels.grid.shape[0], *size))
    else:
        original = [volume.grid.resized(size) for volume in labels]
    back = restored(logits, grid, original, target=target)
    if isinstance(back, Volume):
        return back.data.transpose(0, 1)
    return torch.stack([one.data for one in back])


def _of_truth(values: Tensor, classes: Tensor) -> Tensor:
    """(n, *size): the value of the true class, from values (n, classes, *size)."""
    return values.gather(1, classes.long()[:, None])[:, 0]


def _loss(
    log_loss: Tensor,
    found: Tensor,
    true: Tensor,
    valid: Tensor | None,
    class_weights: Tensor | None,
    over: Over,
) -> Tensor:
    """Mean of -log(probability of the truth) + 1 - Dice; `true` is the result of `encode`."""
    if true.ndim < found.ndim:
        mean = _weighted_mean(log_loss, true, valid, class_weights)
        return mean + _dice_loss(found, true, valid, over)
    if class_weights is not None:
        raise ValueError("class weights need exclusive classes, not regions")
    dice = soft_dice(found, true, valid=valid, over=over)
    return _weighted_mean(log_loss.mean(1), true, valid, None) + (1.0 - dice.mean())


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
    # If all pixels are ignored, both sums and the loss are 0.
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def _over_levels(losses: Sequence[Tensor], supervision: Supervision = "normalised") -> Tensor:
    pairs = zip(level_weights(len(losses), supervision), losses, strict=True)
    return torch.stack([weight * loss for weight, loss in pairs]).sum()
