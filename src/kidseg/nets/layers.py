"""Building blocks of the networks, in two or three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "Block",
    "Dimensions",
    "InstanceNormBlock",
    "ResidualNormBlock",
    "convolution",
    "initialised",
    "upsampling",
]

Dimensions = Literal[2, 3]


class _Convolution3d(nn.Conv3d):
    """Trains in float32 on images of two slices on the CPU, also under autocast.

    There, the gradient of the weights in bfloat16 contains arbitrary values, of 1e34 or not finite,
    without an error (PyTorch 2.13, oneDNN; kernel 3, 16 channels or more).
    """

    def forward(self, image: Tensor) -> Tensor:
        """As its class."""
        if self.training and image.device.type == "cpu" and image.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                return super().forward(image.float())
        return super().forward(image)


_Layer = Callable[..., nn.Module]
_CONVOLUTION: Mapping[int, _Layer] = {2: nn.Conv2d, 3: _Convolution3d}
_TRANSPOSED: Mapping[int, _Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGE: Mapping[int, _Layer] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

# Source: nnU-Net v2.8.1: torch's default for LeakyReLU, which `InitWeights_He` uses too; the norm's
# epsilon from default_experiment_planner.
_NEGATIVE_SLOPE = 0.01
_NORM_EPSILON = 1e-5


def convolution(dimensions: Dimensions, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution with bias that keeps the image size; `kernel` is odd."""
    return _CONVOLUTION[dimensions](inputs, outputs, kernel, padding=kernel // 2)


class Block(nn.Module):
    """A convolution with kernel 3 that keeps, halves or doubles the image size; batch norm; ReLU.

    No bias: the batch norm that follows has one. The weights are initialised for ReLU.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 10.

    Args:
        dimensions: 2 or 3.
        inputs: input channels.
        outputs: output channels.
        resize: "keep" has stride 1, "halve" stride 2, "double" is a transposed convolution with
            stride 2. Halving an odd side rounds up.
        activate: False leaves out the ReLU.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        inputs: int,
        outputs: int,
        resize: Literal["keep", "halve", "double"] = "keep",
        *,
        activate: bool = True,
    ) -> None:
        super().__init__()
        if resize == "double":
            self.convolution = _TRANSPOSED[dimensions](
                inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
            )
        else:
            stride = 2 if resize == "halve" else 1
            self.convolution = _CONVOLUTION[dimensions](
                inputs, outputs, 3, stride=stride, padding=1, bias=False
            )
        self.norm: nn.Module = _BATCH_NORM[dimensions](outputs)
        self.activation: nn.Module = nn.ReLU(inplace=True) if activate else nn.Identity()
        for weight in self.convolution.parameters():
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, *size) to (n, outputs, *size), (..., size / 2) or (..., size * 2)."""
        out: Tensor = self.activation(self.norm(self.convolution(image)))
        return out


class InstanceNormBlock(nn.Module):
    """nnU-Net's block: a convolution with bias, instance norm with scale and shift, LeakyReLU.

    The weights are initialised for LeakyReLU, the biases are 0.

    Source: `ConvDropoutNormReLU` of dynamic_network_architectures 0.4.4, as nnU-Net v2.8.1 sets it.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size per axis (2 or 3 axes), odd.
        stride: per axis; sides that are not multiples of it are rounded up.
        bias: of the convolution.
        activate: False leaves out the LeakyReLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        bias: bool = True,
        activate: bool = True,
    ) -> None:
        super().__init__()
        dimensions = len(kernel)
        self.convolution = _CONVOLUTION[dimensions](
            inputs,
            outputs,
            tuple(kernel),
            stride=tuple(stride),
            padding=tuple(side // 2 for side in kernel),
            bias=bias,
        )
        self.norm = _INSTANCE_NORM[dimensions](outputs, eps=_NORM_EPSILON, affine=True)
        self.activation: nn.Module = nn.Identity()
        if activate:
            self.activation = nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)
        initialised(self.convolution)

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, *size) to (n, outputs, *size / stride)."""
        out: Tensor = self.activation(self.norm(self.convolution(image)))
        return out


class ResidualNormBlock(nn.Module):
    """nnU-Net's residual block: two convolutions with instance norm, added to the input.

    The input is averaged over the stride, and projected (a convolution with kernel 1 without bias,
    and a norm) if the number of feature maps changes.

    Source: `BasicBlockD` of dynamic_network_architectures 0.4.4; He et al., Bag of Tricks for Image
    Classification with Convolutional Neural Networks, CVPR 2019, ResNet-D.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: of both convolutions, per axis (2 or 3 axes), odd.
        stride: of the first, per axis.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.first = InstanceNormBlock(inputs, outputs, kernel, stride)
        self.second = InstanceNormBlock(outputs, outputs, kernel, unit, activate=False)
        self.pool: nn.Module = nn.Identity()
        if max(stride) > 1:
            self.pool = _AVERAGE[len(kernel)](tuple(stride), tuple(stride))
        self.project: nn.Module = nn.Identity()
        if inputs != outputs:
            self.project = InstanceNormBlock(
                inputs, outputs, unit, unit, bias=False, activate=False
            )
        self.activation = nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, *size) to (n, outputs, *size / stride)."""
        deep = self.second(self.first(image))
        out: Tensor = self.activation(deep + self.project(self.pool(image)))
        return out


def upsampling(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """nnU-Net's transposed convolution with bias: each voxel becomes `stride` voxels."""
    factor = tuple(stride)
    return initialised(_TRANSPOSED[len(factor)](inputs, outputs, factor, stride=factor))


def initialised(convolution: nn.Module) -> nn.Module:
    """Initialise a convolution as nnU-Net does: weights by He et al., eq. 15; biases 0."""
    for name, values in convolution.named_parameters():
        if name == "bias":
            nn.init.zeros_(values)
        else:
            nn.init.kaiming_normal_(values, a=_NEGATIVE_SLOPE)
    return convolution
