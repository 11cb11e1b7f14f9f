"""Decide labels from probabilities, voxel by voxel; several places at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kidseg.geometry import Volume
from kidseg.labels import Target
from kidseg.pipeline.windows import Window, part_of

__all__ = ["PRESENT", "Sample", "channels_written", "decide", "maximum", "with_weights"]

PRESENT = 0.5
"""Threshold of non-exclusive channels. Source: nnU-Net, `convert_probabilities_to_segmentation` for
regions."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Probabilities in a window of a slice of the scan.

    Attributes:
        k: the slice.
        window: rows and columns; disjoint from the other windows of the slice.
        places: the part of the window that each place covers, and its (channels, rows, columns)
            mean probabilities there.
    """

    k: int
    window: Window
    places: tuple[tuple[Window, Tensor], ...]

    def decided(self, target: Target) -> Tensor:
        """(rows, columns) uint8: 1 + the channel to write; 0 is background."""
        out = torch.zeros(self._shape, dtype=torch.uint8)
        least = torch.full(out.shape, torch.inf, dtype=torch.float64)
        for part, probabilities in self.places:
            values = with_weights(probabilities, target)
            channels = channels_written(values, target.exclusive).cpu()
            here = part_of(out, part, self.window)
            if len(self.places) == 1:
                here.copy_(channels)
                break
            background = _background(values, target)
            previous = part_of(least, part, self.window)
            lower = torch.where(background == previous, torch.minimum(here, channels), here)
            here.copy_(torch.where(background < previous, channels, lower))
            previous.copy_(torch.minimum(background, previous))
        return out

    def deciding(self, target: Target) -> Tensor:
        """(channels, rows, columns) probabilities of the place that decides each pixel.

        They are not multiplied by the target's weights. Where no place is: certain background.
        """
        first, *others = self.places
        if not others and first[0] == self.window:
            return first[1].cpu()
        fill = torch.tensor(target.background, dtype=torch.float64)[:, None, None]
        out = fill.expand(-1, *self._shape).clone()
        least = torch.full(self._shape, torch.inf, dtype=torch.float64)
        for part, probabilities in self.places:
            background = _background(with_weights(probabilities, target), target)
            previous = part_of(least, part, self.window)
            here = part_of(out, part, self.window)
            here.copy_(torch.where(background < previous, probabilities.cpu().double(), here))
            previous.copy_(torch.minimum(background, previous))
        return out

    @property
    def _shape(self) -> list[int]:
        return [len(line) for line in self.window]


def decide(found: Volume, target: Target) -> Volume:
    """Decide the labels of probabilities on their own grid; see `restore`.

    Args:
        found: (target.outputs, slices, rows, columns).
        target: meaning of the channels.

    Returns:
        (1, slices, rows, columns) uint8 on the CPU.
    """
    writes = torch.tensor((0, *target.writes), dtype=torch.uint8)
    planes = [
        channels_written(with_weights(found.data[:, k], target), target.exclusive).cpu()
        for k in range(found.grid.shape[0])
    ]
    return Volume(writes[torch.stack(planes).int()][None], found.grid)


def channels_written(values: Tensor, exclusive: bool) -> Tensor:
    """uint8 without the first axis of (channels, ...): 1 + the channel to write, 0 for background.

    A running maximum: argmax over a first axis of a few channels takes thirty times as long.
    """
    channels = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    if not exclusive:
        for number, value in enumerate(values, start=1):
            channels.masked_fill_(value > PRESENT, number)
        return channels
    highest = values[0]
    for number, value in enumerate(values[1:], start=1):
        channels.masked_fill_(value > highest, number)
        highest = torch.maximum(highest, value)
    return channels


def with_weights(values: Tensor, target: Target, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the target's weights make of (channels, ...) probabilities; themselves without any.

    Channels that are not exclusive are multiplied by their weights. Of exclusive ones the first,
    background, is; of the others the one whose product is highest gets the probability of all of
    them, without weights, and the rest 0. So the highest of all decides, as `Target` says.
    """
    if not target.weights:
        return values
    weights = torch.tensor(target.weights, dtype=dtype, device=values.device)
    weighted = values.to(dtype) * weights.reshape(-1, *(1,) * (values.ndim - 1))
    if target.exclusive:
        foreground = weighted[1:]
        together = values[1:].to(dtype).sum(0)
        foreground.copy_(torch.where(foreground == maximum(foreground), together, 0.0))
    return weighted


def maximum(values: Tensor) -> Tensor:
    """The maximum over the first axis, (channels, ...)."""
    highest = values[0]
    for value in values[1:]:
        highest = torch.maximum(highest, value)
    return highest


def _background(values: Tensor, target: Target) -> Tensor:
    """How far pixels are background; of non-exclusive channels, minus the most probable one."""
    background = values[0] if target.exclusive else -maximum(values)
    return background.cpu().double()
