"""nnU-Net's windows: weights, mirroring, the mean of networks, in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from kidseg.device import choose_device
from kidseg.pipeline.mirrored_windows import half_gaussian, mean_logits

CPU = choose_device("cpu", "fp32")


class Shown(nn.Module):
    """Logits are the image and its negative, or what `change` makes of it; counts its calls."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.change, self.seen = change, []  # type: ignore[var-annotated]

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        shown = image if self.change is None else self.change(image)
        return [torch.cat([shown, -shown], dim=1)]


def logits_of(
    nets: Sequence[nn.Module], image: Tensor, window: Sequence[int], axes: Sequence[int] = ()
) -> Tensor:
    return mean_logits(nets, image, window, overlap=0.5, mirror_axes=axes, device=CPU)


@pytest.mark.parametrize("window", [(8, 8), (5, 9), (4, 6, 8), (3, 10, 8), (12, 30, 40)])
def test_windows_of_what_is_shown_give_the_image(window: tuple[int, ...]) -> None:
    """Whatever their number and order, and where the image is smaller than a window.

    Not in the corners, where the weights are so small that half precision has no digits left.
    """
    image = torch.randn((1, 7, 21, 17), generator=torch.Generator().manual_seed(0))
    net = Shown()
    found = logits_of([net], image, window)
    assert found.dtype == torch.half and found.shape == (2, 7, 21, 17)
    assert torch.equal(found[0], -found[1])
    difference = (found[0] - image[0]).abs()
    assert difference.median() < 1e-3 and difference.quantile(0.9) < 0.02 and difference.max() < 1
    assert {shape[2:] for shape in net.seen} == {window}


def test_windows_lie_as_nnunet_lays_them() -> None:
    """By hand: 21 rows in windows of 8 with steps of at most 4 need 5, at 0, 3.25, ... rounded."""
    starts: list[int] = []
    image = torch.arange(21.0)[None, None, :, None].expand(1, 1, 21, 8)

    def noting(part: Tensor) -> Tensor:
        starts.append(int(part[0, 0, 0, 0]))
        return part

    logits_of([Shown(noting)], image, (8, 8))
    assert starts == [0, 3, 6, 10, 13]


@pytest.mark.parametrize("window", [(8,), (9, 4), (6, 16, 11)])
def test_weights_are_a_blurred_voxel(window: tuple[int, ...]) -> None:
    spot = np.zeros(window)
    spot[tuple(side // 2 for side in window)] = 1
    peer = ndimage.gaussian_filter(spot, [side / 8 for side in window], mode="constant")
    weights = half_gaussian(window)
    assert weights.dtype == torch.half and float(weights.max()) == 10
    positive = peer / peer.max() * 10 > 1e-7
    assert np.abs(weights.numpy() - peer / peer.max() * 10)[positive].max() < 0.01
    assert float(weights.min()) > 0


def test_weights_that_vanish_in_half_precision_get_the_least_one() -> None:
    weights = half_gaussian((64, 64, 64))
    assert float(weights[0, 0, 0]) == float(weights.min()) > 0


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirroring_averages_all_combinations(axes: tuple[int, ...]) -> None:
    """A ramp that the net adds is turned with each axis: the mean of both directions is flat."""
    ramp = torch.arange(4.0)[:, None, None] + 10 * torch.arange(6.0)[:, None]
    ramp = ramp + 100 * torch.arange(8.0)
    net = Shown(lambda image: image + ramp)
    found = logits_of([net], torch.zeros((1, 4, 6, 8)), (4, 6, 8), axes)[0]
    expected = ramp
    for axis in axes:
        expected = (expected + expected.flip(axis)) / 2
    assert (found - expected).abs().max() <= 0.5
    assert len(net.seen) == 2 ** len(axes)


def test_networks_are_averaged() -> None:
    image = torch.randn((1, 4, 6, 8), generator=torch.Generator().manual_seed(1))
    nets = [Shown(), Shown(lambda part: part + 3), Shown(lambda part: part * 2)]
    found = logits_of(nets, image, (4, 6, 8))[0]
    assert (found - (image[0] * 4 + 3) / 3).abs().quantile(0.8) < 0.01


def test_windows_of_all_networks_are_told() -> None:
    image, told = torch.zeros((1, 3, 12, 12)), list[float]()
    nets = [Shown(), Shown()]
    mean_logits(
        nets, image, (8, 8), overlap=0.5, mirror_axes=(0,), device=CPU, on_progress=told.append
    )
    assert len(told) == 2 * 3 * 4  # 2 networks, 3 slices, 2 x 2 windows
    assert told == pytest.approx([(k + 1) / 24 for k in range(24)])
