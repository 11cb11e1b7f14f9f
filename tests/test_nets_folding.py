"""Networks made ready for inference: the same answers, faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kidseg import nets
from kidseg.config import UNetConfig
from kidseg.nets.folding import FoldedNet
from kidseg.topology import Topology

CONFIGS = {
    "2D": (UNetConfig(size=64, features=8, max_features=32), (128, 64)),
    "2D, some skips": (UNetConfig(size=64, features=8, skips=32, head_kernel=1), (64, 64)),
    "2D, output norm": (UNetConfig(size=64, features=8, head_norm=True), (64, 64)),
    "3D": (UNetConfig(size=32, features=8, dimensions=3), (8, 16, 12)),
    "planned 2D": (
        Topology(features=(8, 16, 32), kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2))),
        (64, 48),
    ),
    "planned 3D": (
        Topology(
            features=(8, 16, 16),
            kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        ),
        (8, 32, 24),
    ),
}


def trained(name: str) -> tuple[nets.UNet | nets.PlannedUNet, Tensor]:
    """A network with norms as after training, in evaluation mode, and images for it."""
    config, size = CONFIGS[name]
    net = nets.build(config, 2, 3)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return net.eval(), torch.randn(2, 2, *size, generator=generator)


def test_one_convolution_by_hand() -> None:
    """w (x - mean) / sqrt(var + eps) * scale + shift, of a pixel that a kernel sees alone."""
    net = nets.build(UNetConfig(size=16, features=1), 1, 2).eval()
    block = net.encode[0]
    with torch.no_grad():
        block.convolution.weight.fill_(2.0)
        block.norm.running_mean.fill_(1.0)
        block.norm.running_var.fill_(4.0 - block.norm.eps)
        block.norm.weight.fill_(3.0)
        block.norm.bias.fill_(0.5)
    convolution = FoldedNet(net).net.encode[0].convolution
    assert torch.allclose(convolution.weight, torch.full((1, 1, 3, 3), 2.0 * 3.0 / 2.0))
    assert torch.allclose(convolution.bias, torch.tensor([0.5 - 1.0 * 3.0 / 2.0]))


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gives_the_same_logits(name: str) -> None:
    net, image = trained(name)
    with torch.no_grad():
        (expected,) = net(image)
    (found,) = FoldedNet(net)(image)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_decides_as_float32_nearly_everywhere(name: str) -> None:
    net, image = trained(name)
    with torch.no_grad():
        (expected,) = net(image)
    (found,) = FoldedNet(net, torch.bfloat16)(image)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.04 * expected.abs().mean()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.97


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_batch_norm_is_left_and_instance_norms_stay_float32(dtype: torch.dtype) -> None:
    for name in CONFIGS:
        net = FoldedNet(trained(name)[0], dtype)
        for module in net.modules():
            assert not isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)
            if isinstance(module, nn.modules.conv._ConvNd):
                assert module.weight.dtype == module.bias.dtype == dtype
            if isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d):
                assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["2D", "planned 3D"])
def test_the_network_itself_stays_as_it_is(name: str) -> None:
    net, image = trained(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    quick = FoldedNet(net, torch.bfloat16)
    quick(image)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert len(quick.net.heads) == 1
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_mode_autocast_and_gradients_do_not_change_what_it_gives() -> None:
    net, image = trained("2D")
    quick = FoldedNet(net, torch.bfloat16)
    (expected,) = quick(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = quick.train()(image.requires_grad_())
    assert torch.equal(found, expected) and not found.requires_grad
    assert quick.multiple == net.multiple
    with pytest.raises(ValueError, match="multiples of 8 x 8"):
        quick(image[..., :60])
