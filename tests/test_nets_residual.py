"""The residual networks: their sizes, their blocks and their first weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kidseg import nets
from kidseg.config import ResidualConfig
from kidseg.nets.residual import ResidualBlock, ResidualUNet

SMALL = ResidualConfig(features=2, max_features=8)


def made(seed: int = 0, **settings: Any) -> ResidualUNet:
    return nets.build(replace(SMALL, **settings), 5, 3, seed=seed)


def test_four_levels_and_a_bridge_halve_four_times_and_come_back() -> None:
    """The first level keeps the size: 32, 16, 8, 4; the bridge has 2."""
    net = made().eval()
    sides: list[int] = []
    for module in (*net.encode, net.bridge, *reversed(net.up), *reversed(net.decode)):
        module.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    (logits,) = net(torch.zeros(1, 5, 32, 32))
    assert logits.shape == (1, 3, 32, 32) and net.multiple == (16, 16)
    assert sides == [32, 16, 8, 4, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert [len(part) for part in (net.encode, net.up, net.decode)] == [4, 4, 4]


def test_features_double_up_to_the_limit_and_skips_are_joined() -> None:
    net = made()
    assert [level[0].second.out_channels for level in net.encode] == [2, 4, 8, 8]
    assert net.bridge[0].second.out_channels == 8
    assert [level[0].first.in_channels for level in net.decode] == [4, 8, 16, 16]
    added = made(skips="added")
    assert [level[0].first.in_channels for level in added.decode] == [2, 4, 8, 8]


def test_a_block_by_hand() -> None:
    """Zero kernels leave the shortcut, which is linear: no norm, no ReLU."""
    block = ResidualBlock(1, 1, stride=2).eval()
    nn.init.zeros_(block.second.weight)
    with torch.no_grad():
        block.shortcut.weight.fill_(-2.0)
        block.shortcut.bias.fill_(1.0)  # type: ignore[union-attr]
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(block(image), 1 - 2 * image[..., ::2, ::2])


@pytest.mark.parametrize("side", [48, 64])
def test_a_gradient_with_channels_last_does_not_damage_memory(side: int) -> None:
    """That of a strided 1x1 convolution of few channels ended the process, sooner or later."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, stride=2)
    image = torch.randn(16, 8, side, side)
    last = image.contiguous(memory_format=torch.channels_last)
    gradients = []
    for each in (image, *[last] * 4):
        given = each.clone().requires_grad_(True)
        block.zero_grad()
        block(given).square().mean().backward()
        assert given.grad is not None and block.shortcut.weight.grad is not None
        gradients.append((given.grad, block.shortcut.weight.grad.clone()))
    for other in gradients[1:]:
        for value, expected in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


def test_norm_and_relu_come_before_each_convolution() -> None:
    """Negative values do not enter a block's convolutions, but those of an image do."""
    image = -torch.rand(1, 2, 8, 8) - 1
    inner, first = ResidualBlock(2, 3).eval(), ResidualBlock(2, 3, is_first=True).eval()
    shortcut = inner.shortcut(image)
    assert torch.equal(inner(image), shortcut)
    assert not torch.equal(first(image), first.shortcut(image))
    kinds = [type(module) for module in inner.before]  # type: ignore[union-attr]
    assert kinds == [nn.BatchNorm2d, nn.ReLU]


def test_dropout_acts_in_every_block_in_training_only() -> None:
    net = made(dropout=0.5, blocks=2)
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2 * 9 and {block.dropout.p for block in blocks} == {0.5}
    image = torch.rand(2, 5, 32, 32)
    with torch.no_grad():
        assert not torch.equal(net(image)[0], net(image)[0])
        net.eval()
        assert torch.equal(net(image)[0], net(image)[0])


def test_first_weights() -> None:
    """Truncated at two SD, the SD of a normal distribution is 0.88 of it; He's limit by hand."""
    normal = made(features=32, max_features=64)
    kernel = normal.decode[0][0].first.weight.detach()
    assert float(kernel.abs().max()) <= 0.2 and 0.085 < float(kernel.std()) < 0.091
    uniform = made(features=32, max_features=64, init="he_uniform")
    kernel = uniform.decode[0][0].first.weight.detach()
    limit = (6 / (64 * 9)) ** 0.5
    assert 0.98 * limit < float(kernel.abs().max()) <= limit
    for net in (normal, uniform):
        convolutions = [
            module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        ]
        assert all(not m.bias.any() for m in convolutions if m.bias is not None)


def test_weights_depend_on_the_seed_alone() -> None:
    first, same, other = made(0), made(0), made(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(first.heads[0].weight, other.heads[0].weight)


def test_other_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        made()(torch.zeros(1, 5, 32, 24))
