"""The localisation network of a spatial transformer, and what its outputs mean.

The network gives plain numbers, all zero when fresh. `pose_from` and `crop_from` bound them and
give them meaning, so that zero is the identity; `pose_grid` and `crop_grid` choose the grid that
they mean. One network may do both: 9 outputs, the first five for `pose_from`, the rest for
`crop_from`.

Normalised coordinates are (x along columns, y along rows), -1 and 1 at the outer edges of the outer
pixels, as in `kidseg.geometry.grid_from_theta`. All leading shapes are (slices,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
"""Numbers that `crop_from` takes: the box's corners, low x, low y, high x, high y."""


class Localizer(nn.Module):
    """Two blocks of convolution, 2x2 max-pooling and ReLU, then two hidden layers.

    The last layer starts at zero, so a fresh network gives zeros: the identity. The hidden layers
    run in float32 also under autocast: an angle needs more than the 8 bits of bfloat16.

    Source: La Barbera et al., ISBI 2021, section 4; Jaderberg et al., Spatial
    Transformer Networks, NeurIPS 2015.

    Args:
        config: its shape.
        in_channels: channels of the image: intensities, and masks.
        out_channels: numbers to give; see `pose_outputs` and `CROP_OUTPUTS`.
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
        last = nn.Linear(config.hidden[1], out_channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(
            nn.Linear(config.maps[1] * config.mapped**2, config.hidden[0]),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden[0], config.hidden[1]),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Float32 (n, out_channels) of (n, in_channels, size, size).

        Raises:
            ValueError: another size than the configured.
        """
        if tuple(image.shape[2:]) != (self.size, self.size):
            raise ValueError(
                f"this network sees {self.size} x {self.size} pixels, not {tuple(image.shape[2:])}"
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
    """How slices lie: the object is turned by `angle_rad`, `scale` too large, off by `shift`.

    Attributes:
        angle_rad: (slices,), columns towards rows.
        scale: (slices, 2) along x and y.
        shift: (slices, 2) along x and y, in half images (1 moves the middle to the edge).
    """

    angle_rad: Tensor
    scale: Tensor
    shift: Tensor


def pose_outputs(config: LocalizerConfig) -> int:
    """Numbers that `pose_from` takes: 5 (angle, scale x, y, shift x, y), or 4 with one scale."""
    return 3 + config.scales


def pose_from(outputs: Tensor, config: LocalizerConfig) -> Pose:
    """The pose that outputs (slices, `pose_outputs(config)`) mean; zeros are the identity.

    The angle is in radians and the scale is a logarithm, so that twice and half are equally far;
    each passes through a tanh that has slope 1 at zero and its limit at infinity, so a gradient
    always remains.
    """
    angle, size, shift = outputs[..., 0], outputs[..., 1:-2], outputs[..., -2:]
    scale = torch.exp(_limited(size, math.log(config.scale_limit)))
    return Pose(
        angle_rad=_limited(angle, math.radians(config.angle_limit_deg)),
        scale=scale.expand(*scale.shape[:-1], 2),
        shift=_limited(shift, config.shift_limit),
    )


def pose_grid(start: Grid, pose: Pose) -> Grid:
    """The grid on which the slices of `start` lie as the pose says, homogenized.

    The pose is a residual upon `start`, which is the scan's own grid or one normalised by moments.
    Built in millimetres by `kidseg.geometry.posed`; slice-wise, `start`'s shape, differentiable.
    """
    spacing_mm = start.spacing_mm.detach()[..., 1:].flip(-1)
    half_mm = spacing_mm * spacing_mm.new_tensor([start.shape[2] / 2, start.shape[1] / 2])
    shift_mm = pose.shift.to(half_mm) * half_mm
    return posed(start, angle_rad=pose.angle_rad, scale=pose.scale, shift_mm=shift_mm)


@dataclass(frozen=True, eq=False)
class Crop:
    """A box in each slice.

    Attributes:
        centre: (slices, 2) middle along x and y, normalised.
        half: (slices, 2) half sides, normalised: 1 is the whole image.
    """

    centre: Tensor
    half: Tensor

    @property
    def theta(self) -> Tensor:
        """(slices, 2, 3): the scale and shift, as `kidseg.geometry.grid_from_theta` takes them."""
        return torch.cat([torch.diag_embed(self.half), self.centre[..., None]], dim=-1)


def crop_from(outputs: Tensor, config: LocalizerConfig) -> Crop:
    """The box that outputs (slices, 4) mean, inside the image; zeros are the whole image.

    The outputs move the corners (low x, low y, high x, high y) from the image's own. A square box
    has the mean of both sides. What reaches too far is brought back exactly; there, the gradient
    that leads back in still passes.
    """
    low, high = outputs[..., :2] - 1.0, outputs[..., 2:4] + 1.0
    return _bounded((low + high) / 2, (high - low) / 2, config)


def crop_around(mask: Tensor, config: LocalizerConfig) -> Crop:
    """The smallest lawful box around each mask: the target of the crop.

    The extent of the non-zero pixels, made square by its longer side, at least `least_side`, moved
    inside the image.

    Args:
        mask: (slices, rows, columns), bool or numbers.
        config: the box's bounds.

    Returns:
        float32; the whole image where a mask is empty.
    """
    extents = [_extent((mask != 0).any(axis)) for axis in (-2, -1)]
    low = torch.stack([extent[0] for extent in extents], dim=-1)
    high = torch.stack([extent[1] for extent in extents], dim=-1)
    half = (high - low) / 2
    if config.square:
        half = half.amax(-1, keepdim=True).expand_as(half)
    return _bounded((low + high) / 2, half, config)


def widened(crop: Crop, config: LocalizerConfig) -> Crop:
    """The box with its sides longer by `margin`, moved inside the image, at most all of it."""
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
    half = _project(half, config.least_side * one, one)
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
    """Clamp, with the gradient of a projected descent.

    Where a value is clamped, descent may bring it back in, but not push it further out; plain
    clamping would leave it stuck. The bounds get their true derivative.
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
        nothing = torch.zeros_like(gradient)
        return (
            torch.where(outwards, nothing, gradient),
            torch.where(below, gradient, nothing),
            torch.where(above, gradient, nothing),
        )
