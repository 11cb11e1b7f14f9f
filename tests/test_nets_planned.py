"""The plan's U-Net: its shape by hand formulas, and that it learns."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
import torch

from kidseg import nets
from kidseg.config import METHODS, UNetConfig, load
from kidseg.errors import UsageError
from kidseg.losses import segmentation_loss
from kidseg.plan.rules import _topology
from kidseg.topology import ResidualTopology, Topology
from test_topology import FLAT, THICK


def image_for(net: nets.PlannedUNet, channels: int = 2, times: int = 2) -> torch.Tensor:
    sides = [times * side for side in net.multiple]
    return torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(0))


# ---- shape -------------------------------------------------------------------------------------


def test_levels_follow_the_strides_and_the_coarsest_decoder_stage_has_no_output() -> None:
    net = nets.build(THICK, 2, 3)
    assert net.multiple == (4, 8, 4)
    shapes = [tuple(level.shape) for level in net(image_for(net))]
    assert shapes == [(2, 3, 8, 16, 8), (2, 3, 8, 8, 4)]
    assert [tuple(level.shape) for level in net.eval()(image_for(net))] == shapes[:1]


def test_two_stages_have_one_output_and_one_stage_is_no_u_net() -> None:
    two = Topology(features=(4, 8), kernels=((3, 3), (3, 3)), strides=((1, 1), (2, 1)))
    net = nets.build(two, 1, 2)
    assert [tuple(level.shape) for level in net(image_for(net, 1, 4))] == [(2, 2, 8, 4)]
    one = Topology(features=(4,), kernels=((3, 3),), strides=((1, 1),))
    with pytest.raises(ValueError, match="two stages"):
        nets.build(one, 1, 2)


@pytest.mark.parametrize("convolutions", [1, 2, 3])
@pytest.mark.parametrize("topology", [FLAT, THICK])
def test_parameters_by_hand(topology: Topology, convolutions: int) -> None:
    t = Topology(
        features=topology.features,
        kernels=topology.kernels,
        strides=topology.strides,
        convolutions=convolutions,
    )
    f, last = t.features, len(t.features) - 1

    def stage(inputs: int, level: int) -> int:
        cube, norm = prod(t.kernels[level]), 2  # a scale and a shift for each map
        entering = [inputs] + [f[level]] * (convolutions - 1)
        return sum((cube * channels + 1 + norm) * f[level] for channels in entering)

    expected = sum(stage(f[k - 1] if k else 2, k) for k in range(last + 1))
    for k in range(last):
        expected += (prod(t.strides[k + 1]) * f[k + 1]) * f[k] + f[k]  # up
        expected += stage(2 * f[k], k)
    expected += sum((f[k] + 1) * 3 for k in range(last - 1))
    net = nets.build(t, 2, 3)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_a_residual_encoder_by_hand() -> None:
    """Its blocks add the input: with weights 0, what is left is the image, pooled and projected."""
    t = ResidualTopology(
        features=(4, 8, 8),
        kernels=THICK.kernels[:3],
        strides=THICK.strides[:3],
        convolutions=1,
        blocks=(1, 2, 1),
    )
    net = nets.build(t, 2, 3)
    assert [len(stage) for stage in net.encode] == [2, 2, 1]  # the first begins with the stem
    assert [len(stage) for stage in net.decode] == [1, 1]
    stage = net.encode[1]
    image = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    with torch.no_grad():
        for block in stage:
            block.second.norm.weight.zero_()
        pooled = torch.nn.functional.avg_pool3d(image, (1, 2, 2))
        projected = stage[0].project(pooled)
        expected = torch.nn.functional.leaky_relu(projected, 0.01)
        assert torch.allclose(stage[0](image), expected)
        again = torch.nn.functional.leaky_relu(expected, 0.01)
        assert torch.allclose(stage(image), again)
    assert net(image_for(net))[0].shape == image_for(net)[:, :1].expand(-1, 3, -1, -1, -1).shape
    with pytest.raises(ValueError, match="at least one block"):
        ResidualTopology(
            features=(4, 8), kernels=FLAT.kernels[:2], strides=FLAT.strides[:2], blocks=(1,)
        )


def test_parameters_of_nnunets_first_3d_network() -> None:
    """An isotropic patch of 128: six stages, 32 to 320 maps. By hand, as above.

    nnU-Net's own network has 642 more here: 320 weights and 1 bias for each of 2 classes in the
    output at the coarsest resolution of the decoder, which its loss weighs with 0.
    """
    topology = Topology(
        features=(32, 64, 128, 256, 320, 320),
        kernels=((3, 3, 3),) * 6,
        strides=((1, 1, 1), *((2, 2, 2),) * 5),
    )
    with torch.device("meta"):
        net = nets.PlannedUNet(topology, 1, 2)
    assert len(net.heads) == 4 and net.multiple == (32, 32, 32)
    f = topology.features
    encoder = 27 * (1 * 32 + sum(a * b for a, b in pairwise(f)))
    encoder += 27 * sum(a * a for a in f) + 2 * 3 * sum(f)
    up = sum(8 * a * b + a for a, b in pairwise(f))
    decoder = sum(27 * (2 * a * a + a * a) + 2 * 3 * a for a in f[:-1])
    heads = sum(2 * (a + 1) for a in f[:4])
    assert sum(p.numel() for p in net.parameters()) == encoder + up + decoder + heads


def test_sides_that_do_not_fit_are_refused() -> None:
    net = nets.build(THICK, 1, 2)
    with pytest.raises(ValueError, match="4 x 8 x 4"):
        net(torch.zeros(1, 1, 8, 12, 8))
    with pytest.raises(ValueError, match="4 x 8 x 4"):
        net(torch.zeros(1, 1, 8, 16))


# ---- behaviour ---------------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (nets.build(THICK, 1, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.heads[0].weight, other.heads[0].weight)


def test_weights_are_drawn_for_leaky_relu_and_biases_are_zero() -> None:
    """He et al., eq. 15: the variance is 2 / ((1 + 0.01^2) fan-in)."""
    wide = Topology(features=(64, 64), kernels=((3, 3), (3, 3)), strides=((1, 1), (2, 2)))
    net = nets.build(wide, 64, 3)
    weight = net.encode[0][1].convolution.weight
    assert weight.var().item() == pytest.approx(2 / (1.0001 * 9 * 64), rel=0.02)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    assert net.encode[0][0].norm.eps == 1e-5
    assert net.encode[0][0].activation.negative_slope == 0.01


def test_the_contrast_of_the_image_does_not_matter() -> None:
    """Without biases, yet, an instance norm forgets any factor; and it keeps no running state."""
    net = nets.build(FLAT, 1, 3).eval()
    assert not list(net.buffers())
    image = image_for(net, 1, 8)
    with torch.no_grad():
        assert torch.allclose(net(image)[0], net(5.0 * image)[0], atol=1e-4)


@pytest.mark.parametrize("topology", [FLAT, THICK])
def test_every_parameter_gets_a_gradient(topology: Topology) -> None:
    """But biases before an instance norm, which takes their effect away."""
    net = nets.build(topology, 1, 3)
    image = image_for(net, 1, 4)
    labels = torch.randint(0, 3, (2, *image.shape[2:]), generator=torch.Generator().manual_seed(0))
    segmentation_loss(net(image), labels).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("convolution.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_it_learns_a_volume_by_heart() -> None:
    topology = Topology(
        features=(6, 12, 12),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    )
    net = nets.build(topology, 1, 2)
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (8, 24, 24)), indexing="ij")
    labels = ((2 * (z - 4)) ** 2 + (y - 10) ** 2 + (x - 14) ** 2 < 40).long()[None]
    noise = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    image = (labels + 0.5 * noise)[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_loss(net(image), labels).backward()
        optimizer.step()
    with torch.no_grad():
        found = net.eval()(image)[0].argmax(1)
    assert 2 * (found * labels).sum() / (found.sum() + labels.sum()) > 0.95


# ---- in place of the U-Net of slice-wise methods -----------------------------------------------


@pytest.mark.parametrize("side", [16, 64, 96, 112, 160, 256, 512])
def test_the_u_net_of_slices_may_be_that_of_the_plans_rules(side: int) -> None:
    config = UNetConfig(architecture="plan").sized(side)
    planned, patch = _topology((0.7, 0.7), (side, side))
    assert config.planned == planned and patch == (side, side)
    assert (config.multiple, config.multiple) == planned.divisors
    net = nets.build(UNetConfig(architecture="plan", size=side, features=2), 1, 3)
    assert isinstance(net, nets.PlannedUNet) and len(net.heads) == config.supervised + 1


@pytest.mark.parametrize("method", ["plain", "homogenized"])
def test_sides_that_it_cannot_halve_are_refused(method: str) -> None:
    kind = METHODS[method]
    load(kind, overrides=["unet.architecture=plan", "view.size=96"])
    with pytest.raises(UsageError, match="halves a side of 100 pixels until it has 4 to 7"):
        load(kind, overrides=["unet.architecture=plan", "view.size=100"])
    with pytest.raises(UsageError, match="'plain3d'"):
        load(kind, overrides=["unet.architecture=plan", "unet.dimensions=3"])
