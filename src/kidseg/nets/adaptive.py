"""Batch norms that take their statistics from the images at hand, not only from the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kidseg.device import Device

__all__ = ["AdaptiveNet", "has_batch_norms", "norm_statistics"]

# Pixels of a forward pass that measures statistics: 8 slices of 192 x 192, whose features take 0.2
# GB in a U-Net of 16 maps (measured).
_MOST_PIXELS = 8 * 192 * 192

Statistics = dict[str, tuple[Tensor, Tensor]]
"""{name of a batch norm: (mean, variance) per channel}."""


def has_batch_norms(net: nn.Module) -> bool:
    """Whether the network has a batch norm with running statistics."""
    return any(_is_running(module) for module in net.modules())


class AdaptiveNet(nn.Module):
    """A network for inference whose batch norms can be adapted to the images of a scan.

    Attributes:
        net: the trained network, in evaluation mode; it never changes.
        multiple: the sides of an image must be multiples of these, per axis.

    Args:
        net: see above.
        device: of the network.
        prepare: makes a network with final statistics ready for inference, such as `FoldedNet`.
    """

    multiple: tuple[int, ...]

    def __init__(
        self, net: nn.Module, device: Device, prepare: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        self.net, self.device, self.prepare = net, device, prepare
        self.multiple = tuple(getattr(net, "multiple", (1, 1)))
        self._trained = prepare(net)
        self._ready = self._trained

    def forward(self, image: Tensor) -> list[Tensor]:
        """As the network, with the statistics of the last `adapt`."""
        out: list[Tensor] = self._ready(image)
        return out

    def reset(self) -> None:
        """Return to the statistics of the training."""
        self._ready = self._trained

    def adapt(self, images: Tensor, weight: float) -> None:
        """Blend the trained statistics, (1 - weight), with those of images, `weight`.

        What an earlier call has set does not count.

        Args:
            images: (n, channels, rows, columns), as in `forward`, n > 0.
            weight: 0 to 1; 0 leaves the trained ones.

        Source: Schneider et al., Improving robustness against common corruptions by covariate shift
        adaptation, NeurIPS 2020, section 3.
        """
        adapted = copy.deepcopy(self.net)
        found = norm_statistics(adapted, images, self.device)
        for name, (mean, variance) in found.items():
            norm = adapted.get_submodule(name)
            assert isinstance(norm, _BatchNorm)
            assert norm.running_mean is not None and norm.running_var is not None
            trained = self.net.get_submodule(name)
            norm.running_mean.copy_(_blended(trained.running_mean, mean, weight))
            norm.running_var.copy_(_blended(trained.running_var, variance, weight))
        self._ready = self.prepare(adapted)


@torch.no_grad()
def norm_statistics(net: nn.Module, images: Tensor, device: Device) -> Statistics:
    """Mean and variance of the inputs of each batch norm, layer after layer, as in training.

    Each layer is normalized with the statistics of its own batch before the next is measured. Many
    images are divided into batches, each with images from all over the scan: the mean is that over
    all pixels, the variance, too, includes that between the batches.

    Args:
        net: in evaluation mode; its running statistics are overwritten.
        images: (n, channels, rows, columns), n > 0.
        device: of network and images.

    Returns:
        For each batch norm (channels,) float32 each.
    """
    norms = {name: module for name, module in net.named_modules() if _is_running(module)}
    batches: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in norms}

    def measure(name: str, norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        features = inputs[0].float()
        axes = [axis for axis in range(features.ndim) if axis != 1]
        variance, mean = torch.var_mean(features, axes, correction=0)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        batches[name].append((mean, variance))

    hooks = [norm.register_forward_pre_hook(partial(measure, name)) for name, norm in norms.items()]
    size = max(1, _MOST_PIXELS // images[0, 0].numel())
    count = -(-len(images) // size)
    parts = [images[first::count] for first in range(count)]
    try:
        for part in parts:
            with device.autocast():
                net(part.contiguous(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
    shares = torch.tensor([len(part) / len(images) for part in parts], device=images.device)
    return {name: _pooled(found, shares) for name, found in batches.items()}


def _pooled(found: list[tuple[Tensor, Tensor]], shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of batches together, whose shares of the pixels sum to 1."""
    means, variances = (torch.stack(values) for values in zip(*found, strict=True))
    share = shares[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _blended(trained: object, found: Tensor, weight: float) -> Tensor:
    assert isinstance(trained, Tensor)
    return (1 - weight) * trained + weight * found


def _is_running(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
