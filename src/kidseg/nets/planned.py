"""The U-Net that a plan describes: nnU-Net v2's PlainConvUNet, or its ResidualEncoderUNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kidseg.nets.layers import (
    InstanceNormBlock,
    ResidualNormBlock,
    convolution,
    initialised,
    upsampling,
)
from kidseg.nets.unet import check_sides
from kidseg.topology import ResidualTopology, Topology

__all__ = ["PlannedUNet"]


class PlannedUNet(nn.Module):
    """nnU-Net's U-Net in two or three dimensions, each stage with kernels and strides per axis.

    A stage of the encoder starts with its stride, and has convolutions or residual blocks; the
    decoder upsamples with transposed convolutions of the same strides and concatenates every skip.
    One difference: nnU-Net also has an output at the coarsest resolution of the decoder, with loss
    weight 0. Without it, the weights of `kidseg.losses.level_weights` equal nnU-Net's, and every
    parameter is used.

    Source: PlainConvUNet and ResidualEncoderUNet of dynamic_network_architectures 0.4.4, as nnU-Net
    v2.8.1 plans them; `nnUNetTrainer._build_loss` for the weights.

    Args:
        topology: stages, kernels, strides and features.
        in_channels: channels of the image.
        out_channels: channels of the logits.

    Attributes:
        multiple: the sides of an image must be multiples of these, per axis.

    Raises:
        ValueError: a topology with a single stage, which has no decoder.
    """

    def __init__(self, topology: Topology, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width, kernels, strides = topology.features, topology.kernels, topology.strides
        depth = len(width) - 1
        if depth < 1:
            raise ValueError("a U-Net needs at least two stages")
        self.multiple = topology.divisors
        count, unit = topology.convolutions, strides[0]
        self.encode = nn.ModuleList(
            _encoder_stage(topology, in_channels, level) for level in range(depth + 1)
        )
        self.up = nn.ModuleList(
            upsampling(width[level + 1], width[level], strides[level + 1]) for level in range(depth)
        )
        self.decode = nn.ModuleList(
            _convolutions(2 * width[level], width[level], kernels[level], unit, count)
            for level in range(depth)
        )
        self.heads = nn.ModuleList(
            initialised(convolution(topology.dimensions, width[level], out_channels, 1))
            for level in range(max(1, depth - 1))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of the levels, finest first; in evaluation mode only of the finest.

        Args:
            image: (n, in_channels, *size), sides multiples of `multiple` and not all equal to it:
                an instance norm needs more than one voxel at the coarsest stage.

        Returns:
            (n, out_channels, *size / strides so far). In training mode, for all resolutions of the
            decoder but the coarsest (if there is only one, for that); otherwise for the finest.

        Raises:
            ValueError: sides that are not multiples of `multiple`.
        """
        check_sides(image, self.multiple)
        skips = []
        features = image
        for encode in self.encode:
            features = encode(features)
            skips.append(features)

        logits = []
        for level in reversed(range(len(self.up))):
            features = torch.cat([self.up[level](features), skips[level]], dim=1)
            features = self.decode[level](features)
            if level == 0 or (self.training and level < len(self.heads)):
                logits.append(self.heads[level](features))
        return logits[::-1]


def _encoder_stage(topology: Topology, in_channels: int, level: int) -> nn.Sequential:
    width, kernel, stride = topology.features, topology.kernels[level], topology.strides[level]
    inputs, outputs = (width[level - 1] if level else in_channels), width[level]
    if not isinstance(topology, ResidualTopology):
        return _convolutions(inputs, outputs, kernel, stride, topology.convolutions)
    unit = topology.strides[0]
    stage = nn.Sequential()
    if level == 0:
        stage.append(InstanceNormBlock(inputs, outputs, kernel, unit))
        inputs = outputs
    for k in range(topology.blocks[level]):
        stage.append(
            ResidualNormBlock(outputs if k else inputs, outputs, kernel, unit if k else stride)
        )
    return stage


def _convolutions(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int
) -> nn.Sequential:
    """So many convolutions, the first with the stride."""
    unit = (1,) * len(kernel)
    return nn.Sequential(
        *(
            InstanceNormBlock(outputs if k else inputs, outputs, kernel, unit if k else stride)
            for k in range(count)
        )
    )
