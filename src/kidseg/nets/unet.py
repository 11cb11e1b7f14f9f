"""The U-Net of System A."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kidseg.config import UNetConfig
from kidseg.nets.blocks import Block, convolution

__all__ = ["UNet", "check_sides"]


class UNet(nn.Module):
    """Encoder and decoder, each level of two blocks, joined level by level.

    In the encoder the first block keeps the size and the second halves it, doubling the features;
    in the decoder the first takes the level's skip in and the second doubles the size, halving the
    features. At the bottleneck the two meet: one keeps, one doubles. The finest level ends in the
    output block.

    Source: La Barbera et al., ISBI 2021, section 4, "U-Net for segmentation".

    Args:
        config: its shape.
        in_channels: channels of the image.
        out_channels: classes, background first.

    Attributes:
        multiple: what the sides of an image must be multiples of, per axis.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        depth, dims = config.halvings, config.dimensions
        width = [min(config.features << level, config.max_features) for level in range(depth + 1)]
        least = 1 if config.skips == "all" else config.skips
        self.joined = tuple(config.size >> level >= least for level in range(depth))
        self.multiple = (1 << depth,) * dims

        entering = [in_channels, *width[1:]]
        self.encode = nn.ModuleList(Block(dims, entering[k], width[k]) for k in range(depth))
        self.down = nn.ModuleList(
            Block(dims, width[k], width[k + 1], "halve") for k in range(depth)
        )
        self.bottleneck = Block(dims, width[depth], width[depth])
        self.up = nn.ModuleList(Block(dims, width[k + 1], width[k], "double") for k in range(depth))
        self.decode = nn.ModuleList(
            Block(dims, width[k] * (2 if self.joined[k] else 1), width[k]) for k in range(depth)
        )
        self.heads = nn.ModuleList(
            convolution(dims, width[k], out_channels, config.head_kernel)
            for k in range(config.supervised + 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of the levels, finest first; in evaluation mode of the finest alone.

        Args:
            image: (n, in_channels, *size), sides multiples of `multiple`.

        Returns:
            (n, out_channels, *size / 2^level) for level 0..N in training mode, else for level 0.

        Raises:
            ValueError: a side that cannot be halved so often.
        """
        check_sides(image, self.multiple)
        skips = []
        features = image
        for encode, down in zip(self.encode, self.down, strict=True):
            features = encode(features)
            skips.append(features)
            features = down(features)
        features = self.bottleneck(features)

        logits = []
        for level in reversed(range(len(skips))):
            features = self.up[level](features)
            if self.joined[level]:
                features = torch.cat([features, skips[level]], dim=1)
            features = self.decode[level](features)
            if level == 0 or (self.training and level < len(self.heads)):
                logits.append(self.heads[level](features))
        return logits[::-1]


def check_sides(image: Tensor, multiple: Sequence[int]) -> None:
    """Refuse an image (n, channels, *size) whose sides are no multiples of these, per axis.

    Raises:
        ValueError: so it is, or the image has another number of axes.
    """
    sides = tuple(image.shape[2:])
    if len(sides) != len(multiple) or any(n % m for n, m in zip(sides, multiple, strict=True)):
        wanted = " x ".join(map(str, multiple))
        raise ValueError(f"sides must be multiples of {wanted}, not {sides}")
