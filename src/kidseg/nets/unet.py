"""The U-Net of System A."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kidseg.config import UNetConfig
from kidseg.nets.layers import Block, convolution

__all__ = ["UNet", "check_sides"]


class UNet(nn.Module):
    """Encoder and decoder with two blocks per level, connected by skips.

    In the encoder, the first block of a level keeps the size and the second halves it and doubles
    the features. In the decoder, the first block takes the level's skip and the second doubles the
    size and halves the features. The bottleneck has one block that keeps the size and one that
    doubles it. The finest level ends with the output block.

    Source: La Barbera et al., ISBI 2021, section 4, "U-Net for segmentation".

    Args:
        config: its architecture.
        in_channels: channels of the image.
        out_channels: classes, background first.

    Attributes:
        multiple: the sides of an image must be multiples of these, per axis.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        depth, dims = config.halvings, config.dimensions
        width = [min(config.features << level, config.max_features) for level in range(depth + 1)]
        min_size = {"all": 1, "long": config.side}.get(str(config.skips), 32)
        self.joined = tuple(config.side >> level >= min_size for level in range(depth))
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
            Block(dims, width[k], out_channels, activate=False)
            if config.head_norm
            else convolution(dims, width[k], out_channels, config.head_kernel)
            for k in range(config.supervised + 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of the levels, finest first; in evaluation mode only of the finest.

        Args:
            image: (n, in_channels, *size), sides multiples of `multiple`.

        Returns:
            (n, out_channels, *size / 2^level) for level 0..N in training mode, otherwise for 0.

        Raises:
            ValueError: sides that are not multiples of `multiple`.
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
    """Check that the sides of an image (n, channels, *size) are multiples of these, per axis.

    Raises:
        ValueError: they are not, or the number of axes differs.
    """
    sides = tuple(image.shape[2:])
    if len(sides) != len(multiple) or any(n % m for n, m in zip(sides, multiple, strict=True)):
        required = " x ".join(map(str, multiple))
        raise ValueError(f"sides must be multiples of {required}, not {sides}")
