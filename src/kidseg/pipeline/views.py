"""How a network sees a region: slice by slice, with neighbours, or in blocks.

The only code that knows slices, slabs and blocks. A view takes what lies on a grid to the input of
a network, and the network's answer to probabilities on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kidseg.device import Device
from kidseg.geometry import Grid, Slices, Volume, sampled
from kidseg.intensity import Scaling, as_input
from kidseg.labels import Target
from kidseg.losses import probabilities
from kidseg.pipeline.sliding import windowed
from kidseg.pipeline.steps import Progress, Region

__all__ = ["Blocks", "Planes", "View", "padded"]

# Source: benchmarks/inference_speed.py; two slices at once take 0.4 of the memory of sixteen.
_AT_ONCE = {"cpu": 2}


class View(Protocol):
    """What a network sees of a region."""

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """The input of the network on a grid."""
        ...

    def predict(self, net: nn.Module, target: Target, progress: Progress, region: Region) -> Volume:
        """Probabilities on the region's grid."""
        ...


@dataclass(frozen=True, kw_only=True)
class Planes:
    """Two-dimensional networks: each slice on its own.

    Attributes:
        scalings: how the image's channels are normalised: one for all slices, or one for each.
        padding: of each channel, what lies outside of the image.
        device: where networks run.
    """

    scalings: Sequence[Sequence[Scaling]]
    padding: Sequence[float]
    device: Device

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """(slices, channels, rows, columns) float32, normalised."""
        return as_input(sampled(image, grid, fill=self.padding).data, self.scalings)

    @torch.no_grad()
    def predict(self, net: nn.Module, target: Target, progress: Progress, region: Region) -> Volume:
        """(target.outputs, *region.grid.shape) float32 on the CPU."""
        grid = region.grid
        found = torch.empty((target.outputs, *grid.shape))
        rows, columns = grid.shape[1:]
        for start in range(0, grid.shape[0], self.at_once):
            stop = min(start + self.at_once, grid.shape[0])
            raw = sampled(progress.image, grid.slices(start, stop), fill=self.padding).data
            seen = as_input(raw.to(self.device.torch), self.scalings)
            seen = padded(seen, getattr(net, "multiple", (1, 1)))
            with self.device.autocast():
                (logits,) = net(seen.contiguous(memory_format=torch.channels_last))
            answer = probabilities(logits[..., :rows, :columns], target)
            found[:, start:stop].copy_(answer.transpose(0, 1))
        return Volume(found, region.grid)

    @property
    def at_once(self) -> int:
        """Slices that go through the network together: on a CPU more only take more memory."""
        return _AT_ONCE.get(self.device.torch.type, 16)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Three-dimensional networks: windows that slide over a volumetric grid.

    Attributes:
        patch: sides of a window, (slices, rows, columns).
        overlap: part by which neighbouring windows overlap at least.
        scalings: how the image's channels are normalised: one, of the case.
        padding: of each channel, what lies outside of the image.
        device: where networks run.
    """

    patch: tuple[int, int, int]
    overlap: float
    scalings: Sequence[Sequence[Scaling]]
    padding: Sequence[float]
    device: Device

    def image(self, image: Volume | Slices, grid: Grid) -> Tensor:
        """(1, channels, slices, rows, columns) float32, normalised."""
        seen = as_input(sampled(image, grid, fill=self.padding).data, self.scalings)
        return seen.transpose(0, 1)[None]

    @torch.no_grad()
    def predict(self, net: nn.Module, target: Target, progress: Progress, region: Region) -> Volume:
        """(target.outputs, *region.grid.shape) float32 on the CPU; windows weighted by Gaussians.

        A region smaller than a window is looked at with what lies around it.
        """
        grid = region.grid
        added = [max(0, w - n) for w, n in zip(self.patch, grid.shape, strict=True)]
        before = [n // 2 for n in added]
        wide = grid
        if any(added):
            shape = [n + more for n, more in zip(grid.shape, added, strict=True)]
            wide = grid.crop([-n for n in before], shape)

        def ask(window: Tensor) -> Tensor:
            with self.device.autocast():
                (logits,) = net(window.to(self.device.torch))
            answer: Tensor = logits.float().cpu()
            return answer

        image = self.image(progress.image, wide)[0]
        logits = windowed(ask, image, self.patch, outputs=target.outputs, overlap=self.overlap)
        found = probabilities(logits[None], target)[0]
        box = tuple(slice(b, b + n) for b, n in zip(before, grid.shape, strict=True))
        return Volume(found[(slice(None), *box)].contiguous(), grid)


def padded(image: Tensor, multiple: Sequence[int]) -> Tensor:
    """(n, channels, *size) with the last values repeated until sides are multiples."""
    added = [-side % m for side, m in zip(image.shape[2:], multiple, strict=True)]
    if not any(added):
        return image
    ends = [n for end in reversed(added) for n in (0, end)]
    return F.pad(image, ends, mode="replicate")
