"""Settings of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.topology import Topology

__all__ = ["LocalizerConfig", "ResidualConfig", "UNetConfig", "check_batch"]

# Pixels along a side of nnU-Net's deepest level. Source: nnU-Net v2, default_experiment_planner.
_MIN_PLANNED_SIDE = 4


def check_batch(name: str, sides: Sequence[int], multiple: int, batch_size: int) -> None:
    """Refuse a training whose batch norm would see one value of a feature map: it has no spread.

    Args:
        name: of the stage in the settings.
        sides: of the network's input.
        multiple: of these, for one pixel or voxel at the deepest level.
        batch_size: of the training.

    Raises:
        ValueError: a batch has a single image, and its deepest level a single pixel.
    """
    if batch_size == 1 and max(sides) <= multiple:
        raise ValueError(
            f"{name}.batch_size must be at least 2, because an input of"
            f" {' x '.join(map(str, sides))} has a single value in each feature map of the deepest"
            " level, which batch norm cannot normalise; or make the input larger"
        )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class UNetConfig:
    """The segmentation network of the methods "homogenized" and "plain"."""

    architecture: Literal["unet", "plan"] = "unet"
    """The "unet" that the other settings describe; or the network that nnU-Net would "plan" in 2D
    for such images: instance norm and leaky ReLU, every skip, 4 to 7 pixels along each side of the
    deepest level. Of the other settings, only `size`, `features` and `max_features` then count.
    """
    size: int | None = Field(default=None, ge=2)
    """Side in pixels of the network's own input, from which halvings lead to `bottleneck`. None:
    that side, whatever it is. Another depth is another `bottleneck`; another side is refused for a
    new training. Models of earlier versions may have one, those fine-tuned on another view, which
    keep their depth, and the networks of "cascade", whose inputs differ. A network accepts any
    image whose sides are multiples of `size / bottleneck`.
    """
    bottleneck: int = Field(default=8, ge=1)
    """Side of the deepest level; halving `size` must reach it."""
    features: int = Field(default=32, ge=1)
    """Feature maps of the finest level; doubled at each level."""
    max_features: int = Field(default=512, ge=1)
    """Upper limit of the feature maps."""
    skips: Literal["all", "long", 32] = "all"
    """Levels with skip connections: "all", the finest only ("long"), or 32 for those with at least
    32 pixels along each side of a training image.
    """
    supervised_to: int = Field(default=32, ge=1)
    """Side of the coarsest level with deep supervision."""
    head_kernel: Literal[1, 3] = 3
    """Kernel size of the output convolutions."""
    head_norm: bool = False
    """Batch norm after the output convolutions, before the softmax (the paper's)."""
    dimensions: Literal[2, 3] = 2
    """Dimensions of the network: 2 for slices, 3 for volumes."""

    @model_validator(mode="after")
    def _check_depth(self) -> UNetConfig:
        if self.architecture == "plan" and self.dimensions != 2:
            raise ValueError("architecture 'plan' is for slices; for volumes there is 'plain3d'")
        if self.size is not None and not self.fits(self.size):
            if self.architecture == "plan":
                raise ValueError(_not_planned(self.size))
            raise ValueError(
                f"halving {self.size} pixels does not reach {self.bottleneck}; "
                f"size must be {self.bottleneck} times a power of two"
            )
        if self.head_norm and self.head_kernel != 3:
            raise ValueError("head_norm requires head_kernel 3")
        return self

    def fits(self, side: int) -> bool:
        """Does halving images of this side reach the deepest level, at least once?"""
        if self.architecture == "plan":
            return _planned_multiple(side) > 1 and side % _planned_multiple(side) == 0
        ratio, rest = divmod(side, self.bottleneck)
        return rest == 0 and ratio > 1 and ratio.bit_count() == 1

    def sized(self, side: int) -> UNetConfig:
        """The network for an input of this side: with `size`, if it is None."""
        return self if self.size is not None else replace(self, size=side)

    def of_input(self, side: int) -> UNetConfig:
        """The same network, described by the side of its own input.

        Its `size` may be that of other images, and `skips` must not be 32, which counts their
        pixels.
        """
        if self.size in (None, side) or self.skips == 32 or self.architecture == "plan":
            return self.sized(side)
        bottleneck, supervised_to = side // self.multiple, side >> self.supervised
        return replace(self, size=side, bottleneck=bottleneck, supervised_to=supervised_to)

    def check_input(self, side: int) -> None:
        """Check that the network takes slices of this side.

        Raises:
            ValueError: it is for volumes; halving the side does not reach the bottleneck, or the
                side is not a multiple of what `size` requires.
        """
        if self.dimensions != 2:
            raise ValueError("unet.dimensions must be 2: the network sees slices")
        if self.size is None and not self.fits(side) and self.architecture == "plan":
            raise ValueError(_not_planned(side))
        if self.size is None and not self.fits(side):
            possible = [side >> n for n in range(1, side.bit_length()) if side % (1 << n) == 0]
            near = min(possible, key=lambda n: abs(n - self.bottleneck), default=None)
            raise ValueError(
                f"the U-Net's input has {side} pixels along each side, and halving that does not"
                f" reach a bottleneck of {self.bottleneck}; make the side {self.bottleneck} times a"
                " power of two" + (f", or set unet.bottleneck={near}" if near else "")
            )
        multiple = self.sized(side).multiple
        if side % multiple:
            raise ValueError(f"U-Net input must be a multiple of {multiple} pixels, not {side}")

    @property
    def side(self) -> int:
        """`size`; see `sized` where it is None.

        Raises:
            ValueError: it is None.
        """
        if self.size is None:
            raise ValueError("the side of the U-Net's input is not known yet")
        return self.size

    @property
    def halvings(self) -> int:
        """Levels below the finest: 4 for 128 pixels, 5 for 256, 6 for 512."""
        return self.multiple.bit_length() - 1

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this."""
        if self.architecture == "plan":
            return _planned_multiple(self.side)
        return self.side // self.bottleneck

    @property
    def planned(self) -> Topology:
        """The network of architecture "plan".

        Source: nnU-Net v2, network_topology, for square pixels; see `kidseg.plan.rules`.
        """
        stages = self.halvings + 1
        return Topology(
            features=tuple(min(self.features << k, self.max_features) for k in range(stages)),
            kernels=((3, 3),) * stages,
            strides=((1, 1), *((2, 2),) * self.halvings),
        )

    @property
    def supervised(self) -> int:
        """N, the coarsest level with an output: 2 for 128 pixels, 3 for 256, 4 for 512.

        At most the level above the bottleneck; 0, only the finest, for small images. With
        architecture "plan", all levels but the two coarsest.
        """
        if self.architecture == "plan":
            return max(0, self.halvings - 2)
        sides = [self.side >> level for level in range(self.halvings)]
        return max(0, sum(side >= self.supervised_to for side in sides) - 1)


def _planned_multiple(side: int) -> int:
    """nnU-Net halves images while their sides have 8 pixels or more."""
    return 1 << max(0, (side // _MIN_PLANNED_SIDE).bit_length() - 1)


def _not_planned(side: int) -> str:
    return (
        f"nnU-Net's network halves a side of {side} pixels until it has {_MIN_PLANNED_SIDE} to"
        f" {2 * _MIN_PLANNED_SIDE - 1}; make it so many times a power of two"
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ResidualConfig:
    """A network of pre-activated residual blocks: encoder, bridge and decoder.

    Source: Santini et al., KiTS19: four encoding levels, of which the first keeps the size.
    """

    levels: int = Field(default=4, ge=1)
    """Levels of the encoder; images must be multiples of 2 ** levels along each side."""
    features: int = Field(default=32, ge=1)
    """Feature maps of the finest level; doubled at each level."""
    max_features: int = Field(default=512, ge=1)
    """Upper limit of the feature maps."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks per level, of two convolutions each."""
    skips: Literal["concatenated", "added"] = "concatenated"
    """How the encoder's maps enter the decoder."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the values that are dropped in each block in training."""
    init: Literal["truncated_normal", "he_uniform"] = "truncated_normal"
    """Initial kernels: a "truncated_normal" distribution with SD 0.1, or "he_uniform"."""

    @property
    def multiple(self) -> int:
        """Sides of images must be multiples of this."""
        return 1 << self.levels


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LocalizerConfig:
    """The localisation network of a spatial transformer (STN1, STN2), and its output ranges."""

    size: int = Field(default=512, ge=8, multiple_of=4)
    """Pixels along each side of its input, a multiple of 4."""
    maps: tuple[int, int] = (8, 10)
    """Feature maps of the two convolutions."""
    kernels: tuple[int, int] = (7, 5)
    """Kernel sizes of the two convolutions, odd."""
    head: Literal["pooled", "dense"] = "pooled"
    """What enters the hidden layers: "pooled", the maps averaged to a fixed grid, or "dense", the
    maps as they are (the paper's).
    """
    pooled: int = Field(default=16, ge=1)
    """Side of the grid of the "pooled" head; must divide `size / 4` unless it is larger."""
    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1)
    """Units of each hidden layer."""
    scales: Literal[1, 2] = 2
    """Scales of a pose: 2 for separate ones along x and y, 1 for a similarity."""
    scale_limit: float = Field(default=2.0, gt=1.0)
    """Scales lie in 1 / limit .. limit."""
    shift_limit: float = Field(default=1.0, gt=0.0)
    """Shifts lie in -limit .. limit, in half images."""
    angle_limit_deg: float = Field(default=180.0, gt=0.0, le=180.0)
    """Angles lie in -limit .. limit."""
    square: bool = True
    """Crops are square (as fractions of the image)."""
    min_side: float = Field(default=0.25, gt=0.0, le=1.0)
    """Minimum side of a crop, as a fraction of the image."""
    margin: float = Field(default=0.1, ge=0.0)
    """Enlargement of a crop at inference, as a fraction of its side."""

    @model_validator(mode="after")
    def _check_layers(self) -> LocalizerConfig:
        if min(*self.maps, *self.hidden) < 1:
            raise ValueError("maps and hidden must be at least 1")
        if min(self.kernels) < 1 or not all(kernel % 2 for kernel in self.kernels):
            raise ValueError("kernels must be odd")
        if self.size // 4 % min(self.pooled, self.size // 4):
            raise ValueError(f"pooled must divide a quarter of size, {self.size // 4}")
        return self

    @property
    def mapped(self) -> int:
        """Side of the feature maps that enter the hidden layers."""
        quarter = self.size // 4
        return quarter if self.head == "dense" else min(self.pooled, quarter)
