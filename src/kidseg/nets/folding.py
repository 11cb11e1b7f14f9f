"""Prepare networks for inference: batch norms folded into convolutions, low-precision weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kidseg.nets.layers import Block
from kidseg.nets.planned import PlannedUNet
from kidseg.nets.unet import UNet

__all__ = ["FoldedNet"]


class FoldedNet(nn.Module):
    """A faster copy of a network for inference only; the network itself does not change.

    Each batch norm is folded into the preceding convolution, transposed or not. Weights and
    features have type `dtype` without autocast, which would cast the weights for each batch.
    Instance norms are kept, because their statistics depend on the image; their weights and sums
    are float32. In evaluation mode, with the finest output, without gradients.

    Folding is not exact, because it rounds differently: logits differ by about 1e-6 of their
    magnitude in float32 and by 1e-2 in bfloat16.

    Args:
        net: in any mode and on any device; its running statistics are used.
        dtype: torch.float32 or torch.bfloat16 (or float16 if the device supports it).

    Attributes:
        multiple: the sides of an image must be multiples of these, per axis.
        dtype: of weights and features.
        memory_format: of features: channels last, except with instance norms, which it would slow
            down (benchmarks/inference_speed.py).

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, section 3.2.
    """

    def __init__(self, net: UNet | PlannedUNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.multiple = net.multiple
        self.dtype = dtype
        self.memory_format = torch.contiguous_format
        if isinstance(net, UNet):
            last = {2: torch.channels_last, 3: torch.channels_last_3d}
            self.memory_format = last[len(net.multiple)]
        inner = copy.deepcopy(net).requires_grad_(False).eval()
        inner.heads = inner.heads[:1]
        for module in list(inner.modules()):
            if isinstance(module, Block):
                _fold(module)
        for module in inner.modules():
            if isinstance(module, _ConvNd):  # instance norms keep float32 weights
                module.to(dtype)
                weight = module.weight
                weight.data = weight.data.contiguous(memory_format=self.memory_format)
        self.net = inner

    def forward(self, image: Tensor) -> list[Tensor]:
        """Float32 logits [(n, out_channels, *size)] of float32 (n, in_channels, *size).

        Raises:
            ValueError: sides that are not multiples of `multiple`.
        """
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            converted = image.to(dtype=self.dtype, memory_format=self.memory_format)
            (logits,) = self.net(converted)
            return [logits.float()]


def _fold(block: Block) -> None:
    """Fold a block's batch norm into its convolution, which gets a bias."""
    convolution, norm = block.convolution, block.norm
    assert isinstance(convolution, _ConvNd) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=convolution.transposed,
    )
    block.norm = nn.Identity()
