"""The U-Net that a plan describes: nnU-Net v2's PlainConvUNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kidseg.nets.layers import InstanceNormBlock, convolution, initialised, upsampling
from kidseg.nets.unet import check_sides
from kidseg.topology import Topology

__all__ = ["PlannedUNet"]


class PlannedUNet(nn.Module):
    """nnU-Net's U-Net in two or three dimensions, each stage with kernels and strides per axis.

    A stage of the encoder starts with its stride; the decoder upsamples with transposed
    convolutions of the same strides and concatenates every skip. One difference: nnU-Net also has
    an output at the coarsest resolution of the decoder, with loss weight 0. Without it, the weights
    of `kidseg.losses.level_weights` equal nnU-Net's, and every parameter is used.

    Source: PlainConvUNet of dynamic_network_architectures 0.4.4, as nnU-Net v2.8.1 plans it;
    `nnUNetTrainer._build_loss` for the weights.

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
        entering = (in_channels, *width[:-1])

        def stage(inputs: int, level: int, stride: tuple[int, ...]) -> nn.Sequential:
            unit = (1,) * topology.dimensions
            return nn.Sequential(
                *(
                    InstanceNormBlock(
                        width[level] if k else inputs,
                        width[level],
                        kernels[level],
                        unit if k else stride,
                    )
                    for k in range(topology.convolutions)
                )
            )

        self.encode = nn.ModuleList(
            stage(entering[level], level, strides[level]) for level in range(depth + 1)
        )
        self.up = nn.ModuleList(
            upsampling(width[level + 1], width[level], strides[level + 1]) for level in range(depth)
        )
        self.decode = nn.ModuleList(
            stage(2 * width[level], level, strides[0]) for level in range(depth)
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
