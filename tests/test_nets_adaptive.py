"""Batch norms with the statistics of the images at hand."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kidseg.config import UNetConfig
from kidseg.device import choose_device
from kidseg.nets import UNet, adaptive, build
from kidseg.nets.adaptive import AdaptiveNet, has_batch_norms, norm_statistics
from kidseg.nets.folding import FoldedNet
from kidseg.topology import Topology

CPU = choose_device("cpu", "fp32")


def trained(seed: int = 0) -> UNet:
    """A network with statistics as after training."""
    net = build(UNetConfig(size=32, features=4), 1, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return net.eval().requires_grad_(False)


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 32, 48, generator=torch.Generator().manual_seed(seed))


def adaptive_net(net: UNet) -> AdaptiveNet:
    return AdaptiveNet(net, CPU, lambda each: each)


def answer(net: nn.Module, image: Tensor) -> Tensor:
    (logits,) = net(image)
    assert isinstance(logits, Tensor)
    return logits


def test_the_statistics_are_those_of_torch_in_training() -> None:
    """Of each layer, after those before it were normalized with theirs; the biased variance."""
    net, seen = trained(), images()
    expected = copy.deepcopy(net)
    norms = {n: m for n, m in expected.named_modules() if isinstance(m, nn.BatchNorm2d)}
    sizes: dict[str, int] = {}
    for name, norm in norms.items():
        norm.train()
        norm.momentum = 1.0
        norm.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.update({name: inputs[0][:, 0].numel()})
        )
    answer(expected, seen)
    found = norm_statistics(net, seen, CPU)
    assert set(found) == set(norms) and len(norms) > 8
    for name, (mean, variance) in found.items():
        norm, n = norms[name], sizes[name]
        assert norm.running_var is not None
        torch.testing.assert_close(mean, norm.running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(variance, norm.running_var * (n - 1) / n, atol=1e-5, rtol=1e-4)


def test_mean_and_variance_of_many_images_are_over_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand of the first layer; seven images in batches of two or three, unlike each other."""
    net = trained()
    seen = images(7) * torch.arange(1.0, 8.0)[:, None, None, None]
    monkeypatch.setattr(adaptive, "_MOST_PIXELS", 3 * 32 * 48)
    counts: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    found = norm_statistics(copy.deepcopy(net), seen, CPU)
    assert counts == [3, 2, 2]
    mean, variance = found["encode.0.norm"]
    features = net.encode[0].convolution(seen)
    torch.testing.assert_close(mean, features.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(variance, features.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_an_adapted_network_does_not_see_the_contrast_of_a_scan() -> None:
    """Its first convolution has no bias: three times the image, three times the deviation."""
    image = images()
    for weight, same in ((1.0, True), (0.0, False)):
        net, found = adaptive_net(trained()), []
        for gain in (1.0, 3.0):
            net.adapt(gain * image, weight)
            found.append(answer(net, gain * image))
        assert torch.allclose(*found, atol=1e-3, rtol=1e-3) == same


def test_weight_0_and_reset_are_the_trained_network_and_scans_do_not_add_up() -> None:
    net = trained()
    before = copy.deepcopy(net.state_dict())
    image, other = images(seed=1), 5 * images(seed=2) + 1
    expected = answer(net, image)
    adapted = adaptive_net(net)
    assert torch.equal(answer(adapted, image), expected), "as trained until it is adapted"
    adapted.adapt(image, 0.0)
    torch.testing.assert_close(answer(adapted, image), expected)
    adapted.adapt(image, 0.7)
    once = answer(adapted, image)
    assert (once - expected).abs().max() > 0.01
    adapted.adapt(other, 0.7)
    assert (answer(adapted, image) - once).abs().max() > 0.01
    adapted.adapt(image, 0.7)
    assert torch.equal(answer(adapted, image), once)
    adapted.reset()
    assert torch.equal(answer(adapted, image), expected)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself does not change"


def test_statistics_are_blended_by_the_weight() -> None:
    net, seen = trained(), images()
    alone = norm_statistics(copy.deepcopy(net), seen, CPU)
    adapted = adaptive_net(net)
    adapted.adapt(seen, 0.25)
    ready = adapted._ready
    for name, (mean, variance) in alone.items():
        was, now = net.get_submodule(name), ready.get_submodule(name)
        for key, found in (("running_mean", mean), ("running_var", variance)):
            expected = 0.75 * getattr(was, key) + 0.25 * found
            torch.testing.assert_close(getattr(now, key), expected)


def test_a_folded_network_is_adapted_before_it_is_folded() -> None:
    image = images()
    plain = adaptive_net(trained())
    quick = AdaptiveNet(trained(), CPU, partial(FoldedNet, dtype=torch.float32))
    assert quick.multiple == plain.multiple == trained().multiple
    for net in (plain, quick):
        net.adapt(2 * image, 1.0)
    torch.testing.assert_close(answer(quick, image), answer(plain, image), atol=1e-3, rtol=1e-3)


def test_one_value_per_channel_has_no_variance() -> None:
    """One small image: at the bottleneck a single pixel is left; the result stays finite."""
    net = adaptive_net(build(UNetConfig(size=8, bottleneck=1, features=2), 1, 3).eval())
    one = images(1)[..., :8, :8]
    for weight in (0.2, 1.0):
        net.adapt(one, weight)
        assert answer(net, one).isfinite().all()


def test_instance_norms_have_nothing_to_adapt() -> None:
    topology = Topology(features=(4, 8), kernels=((3, 3),) * 2, strides=((1, 1), (2, 2)))
    assert has_batch_norms(trained())
    assert not has_batch_norms(build(topology, 1, 3))
