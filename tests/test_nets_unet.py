"""The U-Net: its shape by hand formulas, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kidseg import nets
from kidseg.config import LocalizerConfig, UNetConfig, dump, load
from kidseg.errors import UsageError
from kidseg.losses import segmentation_loss


def small(size: int = 32, **settings: object) -> UNetConfig:
    return UNetConfig(size=size, **{"features": 4, "max_features": 16, **settings})  # type: ignore[arg-type]


def widths(config: UNetConfig) -> list[int]:
    return [min(config.features * 2**k, config.max_features) for k in range(config.halvings + 1)]


def joined(config: UNetConfig) -> list[int]:
    """How many times each level's features enter its decoder: 2 where a skip joins."""
    least = {"all": 1, "long": config.side, 32: 32}[config.skips]
    return [2 if config.side / 2**k >= least else 1 for k in range(config.halvings)]


# ---- shape -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "halvings", "last"), [(16, 1, 0), (32, 2, 0), (64, 3, 1), (128, 4, 2), (256, 5, 3)]
)
def test_levels_follow_the_size(size: int, halvings: int, last: int) -> None:
    config = small(size)
    assert (config.halvings, config.supervised) == (halvings, last)
    net = nets.build(config, 2, 3)
    image = torch.zeros(2, 2, size, size)
    levels = net(image)
    assert [tuple(level.shape) for level in levels] == [
        (2, 3, size >> n, size >> n) for n in range(last + 1)
    ]
    if size > 32:
        assert levels[-1].shape[-1] == 32
    assert [tuple(level.shape) for level in net.eval()(image)] == [(2, 3, size, size)]


def test_at_512_the_bottleneck_is_8_and_supervision_ends_at_32() -> None:
    config = UNetConfig(size=512)
    assert config.side >> config.halvings == 8
    assert config.side >> config.supervised == 32
    net = nets.build(small(512), 1, 3)
    seen: list[tuple[int, ...]] = []
    net.bottleneck.register_forward_hook(lambda _net, _in, out: seen.append(tuple(out.shape)))
    levels = net(torch.zeros(1, 1, 512, 512))
    assert seen == [(1, 16, 8, 8)]
    assert [level.shape[-1] for level in levels] == [512, 256, 128, 64, 32]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("skips", ["all", "long", 32])
@pytest.mark.parametrize("kernel", [1, 3])
def test_parameters_by_hand(dimensions: int, skips: str | int, kernel: int) -> None:
    config = small(64, dimensions=dimensions, skips=skips, head_kernel=kernel)
    net = nets.build(config, 2, 3)
    f, times, cube = widths(config), joined(config), 3**dimensions
    norm = 2  # a scale and a shift for each map
    expected = 0
    for k in range(config.halvings):
        expected += cube * (2 if k == 0 else f[k]) * f[k] + norm * f[k]
        expected += cube * f[k] * f[k + 1] + norm * f[k + 1]
        expected += cube * f[k + 1] * f[k] + norm * f[k]
        expected += cube * times[k] * f[k] * f[k] + norm * f[k]
    expected += cube * f[-1] * f[-1] + norm * f[-1]
    expected += sum((kernel**dimensions * f[k] + 1) * 3 for k in range(config.supervised + 1))
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("size", [128, 256])
def test_work_by_hand(size: int) -> None:
    """Two per multiply-add; a transposed convolution works once per pixel that enters it."""
    config = UNetConfig(size=size)
    net = nets.build(config, 1, 3).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, size, size))
    f, times = widths(config), joined(config)
    pixels = [(size >> k) ** 2 for k in range(config.halvings + 1)]
    pairs = pixels[-1] * f[-1] ** 2 + pixels[0] * f[0] * 3
    for k in range(config.halvings):
        pairs += pixels[k] * (1 if k == 0 else f[k]) * f[k]
        pairs += pixels[k + 1] * f[k] * f[k + 1] * 2  # down and up
        pairs += pixels[k] * times[k] * f[k] ** 2
    assert counter.get_total_flops() == 2 * 9 * pairs


def test_skips_stop_at_32_when_told() -> None:
    assert nets.build(small(128), 1, 3).joined == (True, True, True, True)
    assert nets.build(small(128, skips=32), 1, 3).joined == (True, True, True, False)
    assert nets.build(small(128, skips="long"), 1, 3).joined == (True, False, False, False)


def test_without_a_size_it_is_that_of_the_input() -> None:
    config = UNetConfig(bottleneck=4, features=4)
    with pytest.raises(ValueError, match="not known"):
        nets.build(config, 1, 3)
    assert config.sized(32) == UNetConfig(size=32, bottleneck=4, features=4)
    assert config.sized(32).sized(64).size == 32, "one that is set is kept"
    assert [side for side in range(4, 70) if config.fits(side)] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("size", "side", "bottleneck", "supervised_to"),
    [(256, 160, 5, 20), (128, 96, 6, 24), (64, 48, 6, 24), (64, 64, 8, 32), (64, 128, 16, 64)],
)
def test_the_same_network_by_the_size_of_other_images_and_by_its_own_input(
    size: int, side: int, bottleneck: int, supervised_to: int
) -> None:
    """As models of earlier versions say it, of the preset `starter` first: the same weights."""
    earlier = small(size)
    own = earlier.of_input(side)
    assert own == small(side, bottleneck=bottleneck, supervised_to=supervised_to)
    one, other = (nets.build(config, 1, 3, seed=1) for config in (earlier, own))
    assert one.joined == other.joined and one.multiple == other.multiple
    weights = other.state_dict()
    assert weights.keys() == one.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())
    assert own.of_input(side) == own


def test_the_output_blocks_norm_stands_before_the_softmax() -> None:
    """In training, the logits of each class have mean 0 and variance 1 over the batch."""
    net = nets.build(small(64, head_norm=True), 1, 3)
    for logits in net(torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))):
        own = logits.detach().transpose(0, 1).flatten(1)
        assert torch.allclose(own.mean(1), torch.zeros(3), atol=1e-4)
        assert torch.allclose(own.var(1), torch.ones(3), atol=1e-2)
        assert bool((own < 0).any()), "no ReLU"
    with pytest.raises(ValueError, match="head_kernel"):
        small(64, head_norm=True, head_kernel=1)


def test_features_double_up_to_the_limit() -> None:
    net = nets.build(UNetConfig(size=512), 1, 3)
    outputs = [block.convolution.out_channels for block in net.encode]
    assert outputs == [32, 64, 128, 256, 512, 512]


def test_a_volume_of_any_fitting_size() -> None:
    net = nets.build(small(32, dimensions=3, features=2), 1, 3).eval()
    assert net(torch.zeros(1, 1, 8, 16, 20))[0].shape == (1, 3, 8, 16, 20)


@pytest.mark.parametrize("size", [100, 8, 96, 129])
def test_a_size_that_does_not_reach_the_bottleneck_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="does not reach 8"):
        UNetConfig(size=size)
    with pytest.raises(UsageError, match="does not reach 8"):
        load(UNetConfig, overrides=[f"size={size}"])


def test_configs_read_back_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    unet = load(UNetConfig, overrides=["skips=32", "size=128"])
    assert unet == UNetConfig(skips=32, size=128)
    localizer = load(LocalizerConfig, overrides=["hidden=[960, 64]", "head=dense", "scale_limit=3"])
    for config in (unet, localizer):
        file.write_text(dump(config))
        assert load(type(config), file=file) == config


def test_another_bottleneck_allows_other_sizes() -> None:
    config = small(96, bottleneck=6)
    assert nets.build(config, 1, 3).eval()(torch.zeros(1, 1, 96, 96))[0].shape[-1] == 96


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        nets.build(small(32), 1, 3)(torch.zeros(1, 1, 32, 30))


# ---- behaviour ---------------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (nets.build(small(), 1, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.bottleneck.convolution.weight, other.bottleneck.convolution.weight)


def test_weights_keep_the_scale_of_what_passes() -> None:
    """He's rule: through a convolution and ReLU the mean square stays."""
    block = nets.build(small(32, features=64, max_features=64), 1, 3).bottleneck
    image = torch.relu(torch.randn(8, 64, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        out = torch.relu(block.convolution(image)[..., 1:-1, 1:-1])
    assert out.square().mean() / image.square().mean() == pytest.approx(1.0, abs=0.15)


def test_every_parameter_gets_a_gradient() -> None:
    net = nets.build(small(64), 1, 3)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 64, 64, generator=generator)
    labels = torch.randint(0, 3, (2, 64, 64), generator=generator)
    segmentation_loss(net(image), labels).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_channels_last_and_bfloat16_agree_with_plain() -> None:
    net = nets.build(small(64, features=8), 1, 3).eval()
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = net(image)[0]
        net = net.to(memory_format=torch.channels_last)
        last = net(image.to(memory_format=torch.channels_last))[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow = net(image.to(memory_format=torch.channels_last))[0]
    assert torch.allclose(last, plain, atol=1e-4 * float(plain.abs().max()))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - plain).abs().mean() < 0.02 * plain.abs().mean()


def test_one_graph_for_the_compiler() -> None:
    torch._dynamo.reset()
    net = nets.build(small(32), 1, 3)
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    expected = net(image)
    assert torch.allclose(compiled(image)[0], expected[0], atol=1e-5)


def test_it_learns_two_images_by_heart() -> None:
    net = nets.build(small(64, features=8), 1, 3)
    at = torch.arange(64.0)
    y, x = at[:, None], at[None, :]
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0][(y - 24) ** 2 + (x - 20) ** 2 < 150] = 1
    labels[1][(y - 40) ** 2 + (x - 36) ** 2 < 220] = 1
    labels[1][(y - 34) ** 2 + (x - 40) ** 2 < 60] = 2
    noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    image = (labels + 0.5 * noise)[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_loss(net(image), labels).backward()
        optimizer.step()
    for module in net.modules():  # statistics of the final weights
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        net(image)
        found = net.eval()(image)[0].argmax(1)
    for label in (1, 2):
        a, b = found == label, labels == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.97
