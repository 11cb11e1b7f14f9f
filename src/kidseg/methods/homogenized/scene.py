"""The input of the spatial transformers: one patient, or the slices of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kidseg.errors import DivergedError
from kidseg.geometry import Grid, Slices, Volume, sampled
from kidseg.intensity import AIR_HU, Scaling, as_input

__all__ = ["MASKS", "Scene", "masks_on", "outputs_of"]

MASKS = {"body": 1, "body+bone": 2}
"""Number of masks for each setting of `pose.target`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Image, masks and start grid, from which localisation networks take their input.

    Attributes:
        image: (1, slices, rows, columns) HU of a patient, or drawn slices.
        masks: (2, ...) uint8 of the same slices, 0..255 for 0..1: body and bone.
        start: slice-wise grid before the pose.
        scalings: normalisation of the image: one for all slices, or one per slice.
    """

    image: Volume | Slices
    masks: Volume | Slices
    start: Grid
    scalings: Sequence[Sequence[Scaling]]

    def to(self, device: torch.device) -> Scene:
        """A copy with the voxels on the device; grids stay on the CPU."""
        return replace(self, image=_to(self.image, device), masks=_to(self.masks, device))

    def view(self, grid: Grid, masks: int) -> Tensor:
        """(slices, 1 + masks, rows, columns) on a grid: the input of localisation networks."""
        image = as_input(sampled(self.image, grid, fill=AIR_HU).data, self.scalings)
        return torch.cat([image, masks_on(self.masks, grid, masks)], dim=1)


def masks_on(masks: Volume | Slices, grid: Grid, count: int) -> Tensor:
    """(slices, count, rows, columns) float 0..1 on a grid; differentiable in the grid."""
    return sampled(masks, grid).data[:count].transpose(0, 1) / 255.0


def outputs_of(net: nn.Module, view: Tensor) -> Tensor:
    """Outputs of a localisation network in float32; bfloat16 is too coarse for an angle.

    Raises:
        DivergedError: "not-finite": no grid can be placed by them.
    """
    with torch.autocast(view.device.type, enabled=False):
        out: Tensor = net(view)
    if not bool(out.isfinite().all()):
        raise DivergedError(
            "the output of a localisation network is NaN or infinite",
            code="not-finite",
            next_step="Train it with a lower learning rate, or from another seed.",
        )
    return out


def _to(image: Volume | Slices, device: torch.device) -> Volume | Slices:
    if isinstance(image, Volume):
        return Volume(image.data.to(device), image.grid)
    return image.to(device)
