"""Losses over the levels of deep supervision, on a network's grid or after the inverse warp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry import Grid, Volume, resample
from kidseg.labels import Target
from kidseg.losses.loss_terms import (
    MIN_PROBABILITY,
    Over,
    checked_logits,
    encode,
    in_float32,
    is_exclusive,
    mean_over,
    probabilities,
    soft_dice,
    value_of_truth,
)

__all__ = [
    "Supervision",
    "coarsened",
    "level_weights",
    "restored",
    "restored_segmentation_loss",
    "segmentation_loss",
]

Supervision = Literal["paper", "normalised"]
Grids = Grid | Sequence[Grid]


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


def segmentation_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    *,
    target: Target | None = None,
    valid: Tensor | None = None,
    over: Over = "batch",
) -> Tensor:
    """Weighted sum of cross entropy + (1 - SoftDice) over the levels, without an inverse warp.

    Args:
        levels: logits (n, channels, *size), finest first; labels are downsampled for coarser ones.
        labels: (n, *size) of the finest level.
        target: defines the channels; None: exclusive classes, given by `labels`.
        valid: (n, *size) bool; other pixels are ignored at all levels.
        over: the sums in Dice. Source: nnU-Net's 2D configuration sums over the batch.

    For classes, Dice is the mean over all but background. A class that is missing in the batch adds
    about 1 as long as any of it is predicted, with almost no gradient, and 0 otherwise; only cross
    entropy suppresses such predictions. Regions use binary cross entropy and Dice of all channels.

    Raises:
        ValueError: the number of channels differs from the target's.

    Source: La Barbera et al., ISBI 2021, eq. 3; Dice without background as in nnU-Net; regions as
    in its `DC_and_BCE_loss`, but with squares in Dice, and always the mean over channels.
    """
    losses = []
    for logits in levels:
        size = logits.shape[2:]
        true = coarsened(labels, size)
        true = true if target is None else encode(true, target)
        counted = None if valid is None else coarsened(valid, size)
        if is_exclusive(target):
            log_probabilities = torch.log_softmax(checked_logits(logits, target), dim=1)
            log_loss = -value_of_truth(log_probabilities, true)
            found = log_probabilities.exp()
        else:
            found = probabilities(logits, target)
            log_loss = F.binary_cross_entropy_with_logits(
                in_float32(logits), true.to(found), reduction="none"
            )
        losses.append(_loss(log_loss, found, true, counted, over))
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
        if is_exclusive(target):
            of_truth = value_of_truth(found, true)
        else:
            of_truth = torch.where(true, found, 1.0 - found)
        log_loss = -torch.log(of_truth + MIN_PROBABILITY)
        losses.append(_loss(log_loss, found, true, counted, over))
    return _over_levels(losses, supervision)


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


def _loss(
    log_loss: Tensor,
    found: Tensor,
    true: Tensor,
    valid: Tensor | None,
    over: Over,
) -> Tensor:
    """Mean of -log(probability of the truth) + 1 - Dice; `true` is the result of `encode`."""
    if true.ndim < found.ndim:
        return mean_over(log_loss, valid) + _dice_loss(found, true, valid, over)
    dice = soft_dice(found, true, valid=valid, over=over)
    return mean_over(log_loss.mean(1), valid) + (1.0 - dice.mean())


def _dice_loss(probabilities: Tensor, labels: Tensor, valid: Tensor | None, over: Over) -> Tensor:
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    reference = labels[:, None] == classes.view(1, -1, *[1] * (labels.ndim - 1))
    return 1.0 - soft_dice(probabilities[:, 1:], reference, valid=valid, over=over).mean()


def _over_levels(losses: Sequence[Tensor], supervision: Supervision = "normalised") -> Tensor:
    pairs = zip(level_weights(len(losses), supervision), losses, strict=True)
    return torch.stack([weight * loss for weight, loss in pairs]).sum()
