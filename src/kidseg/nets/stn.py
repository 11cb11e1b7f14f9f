"""The localisation network of a spatial transformer, and the interpretation of its outputs.

The network returns unbounded numbers, which are zero before training. `pose_from` and `crop_from`
convert them to a bounded pose or crop, with zero as the identity; `pose_grid` and `crop_grid` build
the corresponding grid. One network may do both: 9 outputs, the first five for `pose_from`, the
others for `crop_from`.

Normalised coordinates are (x along columns, y along rows), -1 and 1 at the outer edges of the outer
pixels, as in `kidseg.geometry.grid_from_theta`. All leading shapes are (slices,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kidseg.config import LocalizerConfig
from kidseg.geometry import Grid, grid_from_theta, posed

__all__ = [
    "CROP_OUTPUTS",
    "Crop",
    "Localizer",
    "Pose",
    "crop_around",
    "crop_from",
    "crop_grid",
    "pose_from",
    "pose_grid",
    "pose_outputs",
    "widened",
]

CROP_OUTPUTS = 4
"""Number of outputs for `crop_from`: the corners of the box, low x, low y, high x, high y."""


class Localizer(nn.Module):
    """Two blocks of convolution, 2x2 max-pooling and ReLU, then hidden layers.

    The last layer is initialised with zeros, so an untrained network returns the identity. The
    hidden layers run in float32 even under autocast: an angle needs more than the 8 bits of
    bfloat16.

    Source: La Barbera et al., ISBI 2021, section 4; Jaderberg et al., Spatial
    Transformer Networks, NeurIPS 2015.

    Args:
        config: its architecture.
        in_channels: channels of the image: intensities and masks.
        out_channels: number of outputs; see `pose_outputs` and `CROP_OUTPUTS`.
    """

    def __init__(self, config: LocalizerConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.size = config.size
        self.pool = config.size // 4 // config.mapped
        channels = (in_channels, *config.maps)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[k], channels[k + 1], config.kernels[k], padding="same")
            for k in range(2)
        )
        last = nn.Linear(config.hidden[-1], out_channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        widths = (config.maps[1] * config.mapped**2, *config.hidden)
        hidden: list[nn.Module] = []
        for entering, units in pairwise(widths):
            hidden += [nn.Linear(entering, units), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*hidden, last)

    def forward(self, image: Tensor) -> Tensor:
        """Float32 (n, out_channels) of (n, in_channels, size, size).

        Raises:
            ValueError: the size differs from the configured one.
        """
        if tuple(image.shape[2:]) != (self.size, self.size):
            raise ValueError(
                f"this network needs {self.size} x {self.size} pixels, not {tuple(image.shape[2:])}"
            )
        features = image
        for convolution in self.convolutions:
            features = F.relu(F.max_pool2d(convolution(features), 2))
        if self.pool > 1:
            features = F.avg_pool2d(features, self.pool)
        with torch.autocast(image.device.type, enabled=False):
            out: Tensor = self.head(features.float().flatten(1))
        return out


@dataclass(frozen=True, eq=False)
class Pose:
    """Pose of slices: the object is rotated by `angle_rad`, scaled by `scale`, shifted by `shift`.

    Attributes:
        angle_rad: (slices,), from columns towards rows.
        scale: (slices, 2) along x and y.
        shift: (slices, 2) along x and y, in half images (1 moves the centre to the edge).
    """

    angle_rad: Tensor
    scale: Tensor
    shift: Tensor


def pose_outputs(config: LocalizerConfig) -> int:
    """Number of outputs for `pose_from`: 5 (angle, scale x, y, shift x, y), or 4 with one scale."""
    return 3 + config.scales


def pose_from(outputs: Tensor, config: LocalizerConfig) -> Pose:
    """Convert outputs (slices, `pose_outputs(config)`) to a pose; zeros are the identity.

    The angle is in radians. The scale is logarithmic, so that doubling and halving are symmetric.
    Each is limited by a tanh with slope 1 at zero, which always leaves a gradient.
    """
    angle, size, shift = outputs[..., 0], outputs[..., 1:-2], outputs[..., -2:]
    scale = torch.exp(_limited(size, math.log(config.scale_limit)))
    return Pose(
        angle_rad=_limited(angle, math.radians(config.angle_limit_deg)),
        scale=scale.expand(*scale.shape[:-1], 2),
        shift=_limited(shift, config.shift_limit),
    )


def pose_grid(start: Grid, pose: Pose) -> Grid:
    """Apply the pose to `start`: the grid of the homogenized slices.

    The pose is relative to `start`, which is the scan's own grid or one normalised by moments. It
    is applied in millimetres by `kidseg.geometry.posed`. The result is slice-wise, has the shape of
    `start` and is differentiable.
    """
    spacing_mm = start.spacing_mm.detach()[..., 1:].flip(-1)
    half_mm = spacing_mm * spacing_mm.new_tensor([start.shape[2] / 2, start.shape[1] / 2])
    shift_mm = pose.shift.to(half_mm) * half_mm
    return posed(start, angle_rad=pose.angle_rad, scale=pose.scale, shift_mm=shift_mm)


@dataclass(frozen=True, eq=False)
class Crop:
    """A box in each slice.

    Attributes:
        centre: (slices, 2) centre along x and y, normalised.
        half: (slices, 2) half sides, normalised: 1 is the full image.
    """

    centre: Tensor
    half: Tensor

    @property
    def theta(self) -> Tensor:
        """(slices, 2, 3): scale and shift, as input for `kidseg.geometry.grid_from_theta`."""
        return torch.cat([torch.diag_embed(self.half), self.centre[..., None]], dim=-1)


def crop_from(outputs: Tensor, config: LocalizerConfig) -> Crop:
    """Convert outputs (slices, 4) to a box inside the image; zeros are the full image.

    The outputs move the corners (low x, low y, high x, high y) from those of the image. A square
    box has the mean of both sides. Boxes beyond the bounds are projected onto them; gradients that
    point back inside are kept.
    """
    low, high = outputs[..., :2] - 1.0, outputs[..., 2:4] + 1.0
    return _bounded((low + high) / 2, (high - low) / 2, config)


def crop_around(mask: Tensor, config: LocalizerConfig) -> Crop:
    """The smallest allowed box around each mask: the target of the crop.

    It is the extent of the non-zero pixels, made square by its longer side, at least `min_side`,
    and shifted inside the image.

    Args:
        mask: (slices, rows, columns), bool or numbers.
        config: the box's bounds.

    Returns:
        float32; the full image for an empty mask.
    """
    extents = [_extent((mask != 0).any(axis)) for axis in (-2, -1)]
    low = torch.stack([extent[0] for extent in extents], dim=-1)
    high = torch.stack([extent[1] for extent in extents], dim=-1)
    half = (high - low) / 2
    if config.square:
        half = half.amax(-1, keepdim=True).expand_as(half)
    return _bounded((low + high) / 2, half, config)


def widened(crop: Crop, config: LocalizerConfig) -> Crop:
    """The box enlarged by `margin`, shifted inside the image, at most the full image."""
    return _bounded(crop.centre, crop.half * (1.0 + config.margin), config)


def crop_grid(source: Grid, crop: Crop, size: int) -> Grid:
    """The grid of `size` x `size` pixels that fills the box in each slice of `source`."""
    return grid_from_theta(crop.theta, source, (source.shape[0], size, size))


def _limited(value: Tensor, limit: float) -> Tensor:
    return limit * torch.tanh(value / limit)


def _bounded(centre: Tensor, half: Tensor, config: LocalizerConfig) -> Crop:
    if config.square:
        half = half.mean(-1, keepdim=True).expand_as(half)
    one = torch.ones_like(half)
    half = _project(half, config.min_side * one, one)
    return Crop(_project(centre, half - 1.0, 1.0 - half), half)


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised outer edges of the first and last True of each line (slices, n)."""
    count = line.shape[-1]
    first = line.int().argmax(-1)
    last = count - 1 - line.flip(-1).int().argmax(-1)
    low, high = (2.0 * first / count - 1.0), (2.0 * (last + 1) / count - 1.0)
    empty = ~line.any(-1)
    return low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)


def _project(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    out: Tensor = _Projection.apply(value, low, high)  # type: ignore[no-untyped-call]
    return out


class _Projection(torch.autograd.Function):
    """Clamp with the gradient of projected gradient descent.

    Descent can move a clamped value back inside, but not further out; an ordinary clamp would have
    no gradient there. The bounds get their exact derivative.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(value < low, value > high)
        return torch.minimum(torch.maximum(value, low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        below, above = ctx.saved_tensors
        outwards = (below & (gradient > 0)) | (above & (gradient < 0))
        zero = torch.zeros_like(gradient)
        return (
            torch.where(outwards, zero, gradient),
            torch.where(below, gradient, zero),
            torch.where(above, gradient, zero),
        )
