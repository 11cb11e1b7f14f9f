"""The networks of the multi-stage method: Res-UNet and ResNet, of pre-activated residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kidseg.config import ResidualConfig
from kidseg.nets.unet import check_sides

__all__ = ["ResidualBlock", "ResidualUNet"]

# Source: Santini et al., KiTS19, table 1. As in TensorFlow, values beyond two SD are drawn again.
_SD = 0.1
_LIMIT_SD = 2.0


class ResidualBlock(nn.Module):
    """Two convolutions with kernel 3, each after batch norm and ReLU; and a linear shortcut.

    The shortcut is a convolution with kernel 1 in every block, without norm and activation, with
    stride 2 where the block halves the image.

    Source: Santini et al., KiTS19, section 2.3; He et al., Identity Mappings, ECCV 2016, fig. 4e.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: 1, or 2 to halve the image.
        dropout: fraction of the values dropped before the second convolution.
        is_first: the input is the image: the first convolution has no norm and no ReLU before it,
            which would drop all values below the mean.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        dropout: float = 0.0,
        is_first: bool = False,
    ) -> None:
        super().__init__()
        self.before = nn.Identity() if is_first else _activation(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.between = _activation(outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        # Every stride-th pixel, then a convolution without stride: the same result. The gradient of
        # a 1x1 convolution with stride writes beyond its memory on some processors, if it has few
        # channels that come last in memory (PyTorch 2.13, oneDNN).
        self.stride = stride
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, rows, columns) to (n, outputs, rows / stride, columns / stride)."""
        features = self.dropout(self.between(self.first(self.before(image))))
        shortcut = self.shortcut(image[..., :: self.stride, :: self.stride])
        out: Tensor = self.second(features) + shortcut
        return out


class ResidualUNet(nn.Module):
    """Encoder, bridge and decoder of residual blocks.

    The first level of the encoder keeps the size of the image, the others and the bridge halve it.
    Before each level of the decoder, a transposed convolution with stride 2 doubles the size.

    Source: Santini et al., KiTS19, section 2.3. Where the paper is silent: batch norm and ReLU
    before the output convolution, transposed convolutions with kernel 2.

    Args:
        config: its architecture.
        in_channels: channels of the image.
        out_channels: classes, background first; or regions.

    Attributes:
        multiple: the sides of an image must be multiples of these.
    """

    def __init__(self, config: ResidualConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = [
            min(config.features << level, config.max_features) for level in range(config.levels + 1)
        ]
        self.multiple = (config.multiple,) * 2
        self.is_concatenated = config.skips == "concatenated"
        joined = 2 if self.is_concatenated else 1

        def level(inputs: int, outputs: int, stride: int = 1, *, first: bool = False) -> nn.Module:
            return nn.Sequential(
                *(
                    ResidualBlock(
                        outputs if k else inputs,
                        outputs,
                        stride=1 if k else stride,
                        dropout=config.dropout,
                        is_first=first and k == 0,
                    )
                    for k in range(config.blocks)
                )
            )

        self.encode = nn.ModuleList(
            level(width[k - 1] if k else in_channels, width[k], 2 if k else 1, first=k == 0)
            for k in range(config.levels)
        )
        self.bridge = level(width[-2], width[-1], 2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width[k + 1], width[k], 2, stride=2) for k in range(config.levels)
        )
        self.decode = nn.ModuleList(
            level(joined * width[k], width[k]) for k in range(config.levels)
        )
        self.last = _activation(width[0])
        self.heads = nn.ModuleList([nn.Conv2d(width[0], out_channels, 1)])
        self.apply(_truncated_normal if config.init == "truncated_normal" else _he_uniform)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits [(n, out_channels, rows, columns)] of (n, in_channels, rows, columns).

        Raises:
            ValueError: sides that are not multiples of `multiple`.
        """
        check_sides(image, self.multiple)
        skips = []
        features = image
        for encode in self.encode:
            features = encode(features)
            skips.append(features)
        features = self.bridge(features)
        for level in reversed(range(len(skips))):
            features, skip = self.up[level](features), skips[level]
            if self.is_concatenated:
                features = torch.cat([features, skip], dim=1)
            else:
                features = features + skip
            features = self.decode[level](features)
        return [self.heads[0](self.last(features))]


def _activation(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        limit = _LIMIT_SD * _SD
        nn.init.trunc_normal_(module.weight, std=_SD, a=-limit, b=limit)
        _zero_bias(module)


def _he_uniform(module: nn.Module) -> None:
    """Source: He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 10, as a uniform one."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        _zero_bias(module)


def _zero_bias(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
