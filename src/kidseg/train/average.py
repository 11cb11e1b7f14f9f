"""A moving average of the weights of a network during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The exponential moving average of a network's weights and norm statistics.

    Its memory grows with the steps, so that the first, random weights are soon forgotten: the decay
    of step n is at most (1 + n) / (10 + n).

    Source: Polyak and Juditsky, SIAM J. Control Optim. 1992; the growing decay is that of
    TensorFlow's ExponentialMovingAverage.

    Args:
        net: the network.
        decay: per step, in 0..1.

    Attributes:
        weights: the average, as the network's `state_dict`; what is not a floating-point number is
            the network's.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Add the weights after an optimizer step; steps count from 0 at the start of training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = net.state_dict()
        names = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.weights[name] for name in names], [current[name] for name in names], 1 - decay
        )
        for name in current.keys() - set(names):
            self.weights[name].copy_(current[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Give the network the average, and its own weights back at the end."""
        own = {name: value.clone() for name, value in net.state_dict().items()}
        net.load_state_dict(self.weights)
        try:
            yield
        finally:
            net.load_state_dict(own)
