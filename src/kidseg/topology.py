"""The shape of a U-Net as a plan gives it; read wherever a store or a model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from kidseg.records import Record

__all__ = ["ResidualTopology", "Topology"]


@dataclass(frozen=True, kw_only=True)
class Topology(Record):
    """A planned U-Net, per stage from the finest: nnU-Net's PlainConvUNet.

    Attributes:
        features: feature maps.
        kernels: kernel sizes of the convolutions, per axis; odd.
        strides: of the first convolution, per axis; 1 at the finest stage.
        convolutions: per stage of the encoder, and of the decoder (one stage fewer).

    Raises:
        ValueError: the numbers of stages or axes differ, or a size is invalid.
    """

    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    convolutions: int = 2  # Source: nnU-Net v2.8.1, default_experiment_planner.

    def __post_init__(self) -> None:
        stages = {len(self.features), len(self.kernels), len(self.strides)}
        axes = {len(per_axis) for per_axis in (*self.kernels, *self.strides)}
        if len(stages) != 1 or len(axes) != 1 or not axes <= {2, 3}:
            raise ValueError("features, kernels and strides must agree in stages and axes (2 or 3)")
        sizes = [*self.features, *sum(self.strides, ()), self.convolutions]
        if min(sizes) < 1 or set(self.strides[0]) != {1}:
            raise ValueError(f"sizes must be at least 1, and the first strides 1: {self}")
        if not all(kernel > 0 and kernel % 2 for kernel in sum(self.kernels, ())):
            raise ValueError(f"kernels must be odd: {self.kernels}")

    @property
    def dimensions(self) -> Literal[2, 3]:
        """2 for slices, 3 for volumes."""
        return 2 if len(self.strides[0]) == 2 else 3

    @property
    def divisors(self) -> tuple[int, ...]:
        """The sides of an image must be multiples of these, per axis."""
        return tuple(prod(per_axis) for per_axis in zip(*self.strides, strict=True))

    def feature_map_values(self, patch: Sequence[int], classes: int) -> int:
        """Number of values in all feature maps for a patch, nnU-Net's estimate of memory."""
        sizes, side = [], list(patch)
        for stride in self.strides:
            side = [n // s for n, s in zip(side, stride, strict=True)]
            sizes.append(prod(side))
        maps = [f * n for f, n in zip(self.features, sizes, strict=True)]
        # Encoder; decoder with its transposed convolution on top; output.
        return (
            self.convolutions * sum(maps)
            + (self.convolutions + 1) * sum(maps[:-1])
            + classes * sizes[0]
        )


@dataclass(frozen=True, kw_only=True)
class ResidualTopology(Topology):
    """The same with residual blocks in the encoder: nnU-Net's ResidualEncoderUNet.

    Attributes:
        blocks: per stage of the encoder, of two convolutions each; before the first, the image
            passes one convolution. `convolutions` are those of the decoder.
    """

    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blocks) != len(self.features) or min(self.blocks) < 1:
            raise ValueError(f"each stage has at least one block: {self.blocks}")
