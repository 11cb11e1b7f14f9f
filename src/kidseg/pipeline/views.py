"""Views adapt regions to networks: slice by slice for 2D, in sliding windows for 3D.

A view resamples the image to a grid, normalises it as network input, and converts the logits to
probabilities on the grid. No other code depends on the dimension of a network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kidseg.device import Device
from kidseg.geometry import Grid, Slices, Volume, sampled, slices_apart
from kidseg.intensity import Scaling, as_input
from kidseg.labels import Target
from kidseg.losses import probabilities
from kidseg.nets.adaptive import AdaptiveNet
from kidseg.pipeline.opinions import Predicted
from kidseg.pipeline.sliding import sliding_window, window_starts
from kidseg.pipeline.steps import Progress, Region

__all__ = [
    "Blocks",
    "Planes",
    "View",
    "neighbours",
    "pad_to_multiple",
    "smooth_across_slices",
]

# Inference batch size by device. Source: benchmarks/inference_speed.py; two slices take 0.4 of the
# memory of sixteen.
_BATCH_SIZE = {"cpu": 2}


class View(Protocol):
    """Adapts regions to a network."""

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """The image, resampled to a grid and normalised, as network input."""
        ...

    def predict(self, net: nn.Module, target: Target, progress: Progress, region: Region) -> Volume:
        """Predict probabilities on the region's grid; `Predicted` if they are a mean."""
        ...


@dataclass(frozen=True, kw_only=True)
class Planes:
    """View of 2D networks: slice by slice, optionally with neighbouring slices (2.5D).

    Attributes:
        reach: so many neighbouring slices on either side are additional channels, the lowest first.
            At the ends of the image its edge slice is repeated; at the ends of a region the
            neighbours come from the image beyond it.
        apart_mm: distance of these neighbours from each other: so many whole slices, at least one.
        resliced: a volumetric grid whose slices stand for the image's: at its ends its edge slices
            are repeated. None: the image's own slices.
        scalings: normalisation of the image's channels: one for all slices, or one per slice.
        padding: padding value of each channel.
        device: of the network.
        flip: also predict the image flipped along its columns (left and right), and average the
            probabilities.
        smooth_mm: smooth the probabilities across slices; see `smooth_across_slices`.
    """

    scalings: Sequence[Sequence[Scaling]]
    padding: Sequence[float]
    device: Device
    reach: int = 0
    apart_mm: float = 0.0
    flip: bool = False
    smooth_mm: float = 0.0
    resliced: Grid | None = None

    def slices(self, volumes: Sequence[Volume], drawn: Sequence[tuple[int, int]]) -> Slices:
        """Slices of a batch with their neighbours; see `Slices.of`."""
        return Slices.of(volumes, drawn, reach=self.reach, apart_mm=self.apart_mm)

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """(slices, channels * (2 reach + 1), rows, columns) float32, normalised.

        Args:
            image: a scan; or slices of a batch, with their neighbours if there is a reach.
            grid: in the planes of the slices, for a batch.
        """
        count = 2 * self.reach + 1
        scalings = [tuple(each) * count for each in self.scalings]
        return as_input(self.sample(image, grid), scalings)

    def sample(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """(channels * (2 reach + 1), *grid.shape) as in the image, not normalised."""
        count = 2 * self.reach + 1
        if self.reach == 0 or isinstance(image, Slices):
            return sampled(image, grid, fill=tuple(self.padding) * count).data
        grids = neighbours(grid, self.resliced or image.grid, self.reach, self.apart_mm)
        return torch.cat([sampled(image, each, fill=self.padding).data for each in grids])

    @torch.no_grad()
    def predict(
        self,
        net: nn.Module,
        target: Target,
        progress: Progress,
        region: Region,
        mask: Tensor | None = None,
    ) -> Volume:
        """(target.outputs, *region.grid.shape) float32 on the CPU; two opinions with a flip.

        Args:
            net: the network.
            target: meaning of its output channels.
            progress: with the image.
            region: to predict.
            mask: (masks, *region.grid.shape): further channels after those of the image, as they
                are.
        """
        grid = region.grid
        opinions = [torch.empty((target.outputs, *grid.shape)) for _ in range(1 + self.flip)]
        rows, columns = grid.shape[1:]

        def forward(image: Tensor) -> Tensor:
            image = pad_to_multiple(image, getattr(net, "multiple", (1, 1)))
            with self.device.autocast():
                (logits,) = net(image.contiguous(memory_format=torch.channels_last))
            return probabilities(logits[..., :rows, :columns], target)

        for start in range(0, grid.shape[0], self.batch_size):
            stop = min(start + self.batch_size, grid.shape[0])
            raw = self.sample(progress.image, grid.slices(start, stop)).to(self.device.torch)
            image = as_input(raw, [tuple(each) * (2 * self.reach + 1) for each in self.scalings])
            if mask is not None:
                image = torch.cat([image, mask[:, start:stop].transpose(0, 1).to(image)], dim=1)
            found = _opinions(forward, image, self.flip)
            for opinion, values in zip(opinions, found, strict=True):
                opinion[:, start:stop].copy_(values.transpose(0, 1))
            progress.on_progress(stop / grid.shape[0])
        for opinion in opinions:
            smooth_across_slices(opinion, grid, self.smooth_mm)
        return Predicted.mean_of(opinions, grid, target)

    def adapt(self, net: nn.Module, progress: Progress, region: Region, weight: float) -> None:
        """Adapt a network's norm statistics to the image in a region.

        Args:
            net: an `AdaptiveNet`.
            progress: with the image.
            region: slices that represent the scan.
            weight: see `AdaptiveNet.adapt`.
        """
        assert isinstance(net, AdaptiveNet)
        images = self.image(progress.image, region.grid)
        if self.flip:
            images = torch.cat([images, images.flip(-1)])
        net.adapt(pad_to_multiple(images, net.multiple).to(self.device.torch), weight)

    @property
    def batch_size(self) -> int:
        """Slices per forward pass; on a CPU a larger batch only takes more memory."""
        return _BATCH_SIZE.get(self.device.torch.type, 16)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """View of 3D networks: a sliding window over a volumetric grid.

    Attributes:
        patch: size of a window, (slices, rows, columns).
        overlap: minimum overlap of neighbouring windows, as a fraction.
        scalings: normalisation of the image's channels, one for the case.
        padding: padding value of each channel.
        device: of the network.
        flip: as for `Planes`.
    """

    patch: tuple[int, int, int]
    overlap: float
    scalings: Sequence[Sequence[Scaling]]
    padding: Sequence[float]
    device: Device
    flip: bool = False

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """(1, channels, slices, rows, columns) float32, normalised."""
        normalised = as_input(sampled(image, grid, fill=self.padding).data, self.scalings)
        return normalised.transpose(0, 1)[None]

    @torch.no_grad()
    def predict(self, net: nn.Module, target: Target, progress: Progress, region: Region) -> Volume:
        """(target.outputs, *region.grid.shape) float32 on the CPU; windows weighted by Gaussians.

        Two opinions with a flip. A region smaller than a window is extended into its surroundings.
        """
        grid = region.grid
        added = [max(0, w - n) for w, n in zip(self.patch, grid.shape, strict=True)]
        before = [n // 2 for n in added]
        extended = grid
        if any(added):
            shape = [n + more for n, more in zip(grid.shape, added, strict=True)]
            extended = grid.crop([-n for n in before], shape)

        size = zip(extended.shape, self.patch, strict=True)
        windows = prod(len(window_starts(n, side, self.overlap)) for n, side in size)
        done = itertools.count(1)

        def forward(window: Tensor) -> Tensor:
            with self.device.autocast():
                (logits,) = net(window.to(self.device.torch))
            on_cpu: Tensor = logits.float().cpu()
            progress.on_progress(next(done) / (windows * (2 if self.flip else 1)))
            return on_cpu

        def predicted(image: Tensor) -> Tensor:
            logits = sliding_window(
                forward, image, self.patch, outputs=target.outputs, overlap=self.overlap
            )
            return probabilities(logits[None], target)[0]

        image = self.image(progress.image, extended)[0]
        box = tuple(slice(b, b + n) for b, n in zip(before, grid.shape, strict=True))
        opinions = [each[(slice(None), *box)] for each in _opinions(predicted, image, self.flip)]
        return Predicted.mean_of(opinions, grid, target)


def _opinions(predict: Callable[[Tensor], Tensor], image: Tensor, flip: bool) -> list[Tensor]:
    """The prediction of an image; and of the image flipped along its last axis, flipped back."""
    first = predict(image)
    return [first, predict(image.flip(-1)).flip(-1)] if flip else [first]


def smooth_across_slices(values: Tensor, grid: Grid, sd_mm: float) -> None:
    """Replace each slice by the mean of all slices, weighted by a Gaussian of their distance.

    Only slices that are there count: a constant stays constant up to the ends, and a single slice
    as it is.

    Args:
        values: (channels, *grid.shape), float; changed in place.
        grid: whose slices lie above each other, at any distances.
        sd_mm: standard deviation of the Gaussian, cut off at three; 0 changes nothing.
    """
    if sd_mm == 0 or grid.shape[0] == 1:
        return
    slices = grid.slicewise()
    axis = F.normalize(slices.mm_from_index[:, :3, 0].mean(0), dim=0)
    height = slices.centre_mm @ axis / sd_mm
    distance = height[:, None] - height
    weights = torch.exp(-0.5 * distance.square()) * (distance.abs() <= 3.0)
    weights = (weights / weights.sum(1, keepdim=True)).to(values)
    for channel in values:  # one at a time, for the memory
        channel.copy_((weights @ channel.flatten(1)).reshape(channel.shape))


def neighbours(grid: Grid, image: Grid, reach: int, apart_mm: float = 0.0) -> list[Grid]:
    """The slices of a grid and their neighbours, but none beyond the ends of an image.

    Args:
        grid: slice-wise or volumetric, in any orientation.
        image: volumetric. Slices that lie outside of it stay where they are.
        reach: neighbours on either side, along the slices of `grid`.
        apart_mm: their distance from each other; see `slices_apart`.
    """
    slices = grid.slicewise()
    matrices = slices.mm_from_index
    axis = matrices[:, :3, 0]
    step = axis @ torch.linalg.inv(image.mm_from_index)[:3, :3].T.to(axis)
    along = int(step.abs().sum(0).argmax())  # the image's axis along which slices follow
    here = image.index(slices.centre_mm)[:, along]
    per_slice = step[:, along]
    ends = torch.stack([-here / per_slice, (image.shape[along] - 1 - here) / per_slice])
    low, high = ends.amin(0).clamp(max=0.0), ends.amax(0).clamp(min=0.0)
    apart = slices_apart(apart_mm, torch.linalg.vector_norm(axis, dim=1))

    def moved(offset: int) -> Grid:
        matrix = matrices.clone()
        matrix[:, :3, 3] += (apart * offset).clamp(low, high)[:, None] * axis
        return Grid(grid.shape, matrix)

    return [moved(offset) for offset in range(-reach, reach + 1)]


def pad_to_multiple(image: Tensor, multiple: Sequence[int]) -> Tensor:
    """Pad (n, channels, *size) at the end, by edge replication, to multiples along each side."""
    added = [-side % m for side, m in zip(image.shape[2:], multiple, strict=True)]
    if not any(added):
        return image
    ends = [n for end in reversed(added) for n in (0, end)]
    return F.pad(image, ends, mode="replicate")
