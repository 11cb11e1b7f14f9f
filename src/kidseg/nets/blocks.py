"""What networks are built of, in two or three dimensions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

__all__ = ["Block", "Dimensions", "convolution"]

Dimensions = Literal[2, 3]

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def convolution(dimensions: Dimensions, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution with bias that keeps the image's size; `kernel` is odd."""
    return _CONVOLUTION[dimensions](inputs, outputs, kernel, padding=kernel // 2)


class Block(nn.Module):
    """A convolution with kernel 3 that keeps, halves or doubles the image; batch norm; ReLU.

    No bias: the batch norm that follows has one. The weights are drawn for ReLU.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 10.

    Args:
        dimensions: 2 or 3.
        inputs: channels in.
        outputs: channels out.
        resize: "keep" has stride 1, "halve" stride 2, "double" is the transposed convolution with
            stride 2. Halving an odd side rounds up.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        inputs: int,
        outputs: int,
        resize: Literal["keep", "halve", "double"] = "keep",
    ) -> None:
        super().__init__()
        if resize == "double":
            self.convolution: nn.Module = _TRANSPOSED[dimensions](
                inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
            )
        else:
            stride = 2 if resize == "halve" else 1
            self.convolution = _CONVOLUTION[dimensions](
                inputs, outputs, 3, stride=stride, padding=1, bias=False
            )
        self.norm = _BATCH_NORM[dimensions](outputs)
        self.activation = nn.ReLU(inplace=True)
        for weight in self.convolution.parameters():
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, *size) to (n, outputs, *size), (..., size / 2) or (..., size * 2)."""
        out: Tensor = self.activation(self.norm(self.convolution(image)))
        return out
