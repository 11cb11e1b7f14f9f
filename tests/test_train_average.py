"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from kidseg.train.average import WeightAverage


def _set(net: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)


def test_average_by_hand() -> None:
    net = nn.Linear(1, 1)
    _set(net, 0.0)
    average = WeightAverage(net, 0.5)
    _set(net, 1.0)
    average.update(net, 0)  # decay min(0.5, 1 / 10)
    assert torch.allclose(average.weights["weight"], torch.tensor([[0.9]]))
    _set(net, 2.0)
    average.update(net, 1000)  # decay 0.5
    assert torch.allclose(average.weights["weight"], torch.tensor([[1.45]]))


def test_norm_statistics_are_averaged_and_counters_copied() -> None:
    net = nn.BatchNorm1d(2)
    average = WeightAverage(net, 0.5)
    net(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
    average.update(net, 1000)
    assert net.running_mean is not None
    assert torch.allclose(average.weights["running_mean"], net.running_mean / 2)
    assert int(average.weights["num_batches_tracked"]) == 1


def test_network_gets_its_own_weights_back() -> None:
    net = nn.Linear(2, 2)
    average = WeightAverage(net, 0.9)
    own = net.weight.detach().clone()
    average.weights["weight"].fill_(7.0)
    with average.applied(net):
        assert bool((net.weight == 7.0).all())
    assert torch.equal(net.weight, own)


def test_own_weights_are_back_after_an_error() -> None:
    net = nn.Linear(2, 2)
    average = WeightAverage(net, 0.9)
    own = net.weight.detach().clone()
    average.weights["weight"].fill_(7.0)
    try:
        with average.applied(net):
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(net.weight, own)
