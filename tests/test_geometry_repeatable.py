"""Sampling whose gradient does not depend on the order of its sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry.repeatable import sample_repeatably, spread

SIZE = (17, 23)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, places in and around them, and the gradient of what is sampled there."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, *SIZE, generator=rng)
    at = torch.rand(3, 40, 50, 2, generator=rng) * 2.6 - 1.3
    return images, at, torch.randn(3, 2, 40, 50, generator=rng)


def test_values_and_gradients_are_those_of_torch() -> None:
    images, at, gradient = drawn()
    images.requires_grad_()
    at.requires_grad_()
    expected = F.grid_sample(images, at, padding_mode="border", align_corners=False)
    found = sample_repeatably(images, at)
    assert torch.equal(found, expected)
    of_images, of_at = torch.autograd.grad((found * gradient).sum(), (images, at))
    to_images, to_at = torch.autograd.grad((expected * gradient).sum(), (images, at))
    assert torch.equal(of_at, to_at)
    assert torch.allclose(of_images, to_images, atol=1e-5)


def test_the_gradient_is_the_exact_one_rounded_once() -> None:
    images, at, gradient = drawn(1)
    exact = images.double().requires_grad_()
    values = F.grid_sample(exact, at.double(), padding_mode="border", align_corners=False)
    (to_images,) = torch.autograd.grad((values * gradient).sum(), exact)
    assert torch.allclose(spread(gradient, at, SIZE).double(), to_images, rtol=1e-7, atol=1e-9)


def test_the_order_of_the_samples_does_not_matter() -> None:
    _, at, gradient = drawn(2)
    order = torch.randperm(40)
    assert torch.equal(
        spread(gradient, at, SIZE), spread(gradient[:, :, order], at[:, order], SIZE)
    )


def test_by_hand() -> None:
    """A value between four pixels belongs to each by a quarter; one beyond the edge to the edge."""
    at = torch.tensor([[[[0.0, 0.0], [5.0, -5.0]]]])
    found = spread(torch.tensor([[[[8.0, 1.0]]]]), at, (2, 2))
    assert found.tolist() == [[[[2.0, 3.0], [2.0, 2.0]]]]


@pytest.mark.parametrize("largest", [1e-30, 1e30])
def test_any_magnitude_is_kept(largest: float) -> None:
    _, at, gradient = drawn(3)
    scaled = spread(gradient * largest, at, SIZE)
    assert torch.allclose(scaled / largest, spread(gradient, at, SIZE), rtol=1e-5, atol=1e-6)


def test_nothing_gives_nothing_and_what_is_not_finite_stays_so() -> None:
    _, at, gradient = drawn(4)
    assert not spread(torch.zeros_like(gradient), at, SIZE).any()
    gradient[0, 0, 0, 0] = torch.inf
    assert spread(gradient, at, SIZE).isnan().all()
