"""The building blocks of the networks: their gradients in bfloat16 are those in float32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from kidseg.nets.layers import Block, InstanceNormBlock, convolution


def gradients(layer: nn.Module, image: Tensor, *, bf16: bool) -> list[Tensor]:
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        out = layer(image)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    (out.float() * weights).sum().backward()
    return [p.grad.clone() for p in layer.parameters() if p.grad is not None and p.ndim > 1]


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_gradients_in_bfloat16_are_those_in_float32(slices: int, channels: int) -> None:
    """Of two slices, the processor's own gradient may contain anything."""
    torch.manual_seed(0)
    image = torch.randn(4, channels, slices, 8, 8)
    planned: nn.Module = InstanceNormBlock(channels, channels, (3, 3, 3), (1, 1, 1)).convolution
    for layer in (
        Block(3, channels, channels).convolution,
        planned,
        convolution(3, channels, channels, 3),
    ):
        expected = gradients(layer, image, bf16=False)
        for _ in range(2):
            found = gradients(layer, image, bf16=True)
            for one, other in zip(found, expected, strict=True):
                assert float((one - other).norm() / other.norm()) < 0.02
