"""Windows that slide: where they lie, what they weigh, and that nothing is lost between them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kidseg.pipeline.sliding import gaussian_weights, sliding_window, window_starts


@pytest.mark.parametrize(
    ("size", "window", "overlap", "wanted"),
    [
        (110, 64, 0.5, [0, 23, 46]),  # the example of nnU-Net's own source
        (64, 64, 0.5, [0]),
        (65, 64, 0.5, [0, 1]),
        (96, 64, 0.5, [0, 32]),
        (97, 64, 0.5, [0, 16, 33]),  # halves are rounded to even: 16.5 to 16
        (128, 64, 0.0, [0, 64]),
        (129, 64, 0.0, [0, 32, 65]),
        (8, 4, 0.75, [0, 1, 2, 3, 4]),
        (3, 1, 0.5, [0, 0, 1, 2, 2]),  # (3 - 1) / 0.5 + 1 windows: some are the same
    ],
)
def test_windows_start_where_nnunets_do(
    size: int, window: int, overlap: float, wanted: list[int]
) -> None:
    assert window_starts(size, window, overlap) == wanted


@settings(max_examples=100)
@given(
    window=st.integers(1, 60),
    more=st.integers(0, 200),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]),
)
def test_windows_reach_from_end_to_end_and_overlap(window: int, more: int, overlap: float) -> None:
    """By what is asked for, but for half a voxel of rounding at either side."""
    found = window_starts(window + more, window, overlap)
    assert found[0] == 0 and found[-1] == more
    gaps = [b - a for a, b in pairwise(found)]
    assert all(0 <= gap <= window for gap in gaps), "no voxel is left out"
    assert all(gap <= window * (1 - overlap) + 1 for gap in gaps)
    if gaps:
        assert max(gaps) - min(gaps) <= 1, "evenly"


@pytest.mark.parametrize(
    ("size", "window", "overlap"), [(63, 64, 0.5), (64, 64, 1.0), (64, 32, -0.1), (64, 32, 1.5)]
)
def test_windows_that_cannot_be_are_refused(size: int, window: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="windows of"):
        window_starts(size, window, overlap)


@pytest.mark.parametrize("window", [(5,), (4, 6), (3, 5, 7), (128, 128, 128), (1, 1, 1)])
def test_weights_are_positive_symmetric_and_1_in_the_middle(window: tuple[int, ...]) -> None:
    weights = gaussian_weights(window)
    assert weights.shape == window and weights.dtype == torch.float32
    assert float(weights.min()) > 0 and float(weights.max()) == 1.0
    assert torch.equal(weights, weights.flip(tuple(range(len(window)))))
    middle = tuple(n // 2 for n in window)
    assert float(weights[middle]) == 1.0


def test_weights_by_hand() -> None:
    """A Gaussian with an SD of an eighth of the side, a product over the axes."""
    weights = gaussian_weights((17,))
    sd = 17 / 8
    wanted = [math.exp(-(((k - 8) / sd) ** 2) / 2) for k in range(17)]
    assert weights.tolist() == pytest.approx(wanted, rel=1e-6)
    both = gaussian_weights((17, 9))
    torch.testing.assert_close(
        both, gaussian_weights((17,))[:, None] * gaussian_weights((9,))[None]
    )


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("window", [(4, 6, 5), (7, 9, 8), (1, 3, 8)])
def test_a_network_that_returns_its_input_gives_the_input_back(
    window: tuple[int, int, int], overlap: float
) -> None:
    image = torch.randn((2, 7, 9, 11), generator=torch.Generator().manual_seed(0))
    seen = 0

    def ask(block: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        assert block.shape == (1, 2, *window)
        return torch.cat([block, -block], dim=1)

    found = sliding_window(ask, image, window, outputs=4, overlap=overlap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat([image, -image]), atol=1e-6, rtol=1e-5)
    count = [len(window_starts(n, w, overlap)) for n, w in zip((7, 9, 11), window, strict=True)]
    assert seen == math.prod(count)


def test_where_windows_overlap_each_counts_by_its_weight() -> None:
    """Windows of 4 at 0 and 2 that answer 1 and 5."""
    answers = iter((1.0, 5.0))

    def ask(block: Tensor) -> Tensor:
        return torch.full_like(block, next(answers))

    found = sliding_window(ask, torch.zeros((1, 6)), (4,), outputs=1)
    a, b = gaussian_weights((4,)).tolist()[2:]
    # The second window's first two voxels have the weights of its edge and inner voxel: b, a.
    wanted = [1, 1, (a * 1 + b * 5) / (a + b), (b * 1 + a * 5) / (a + b), 5, 5]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-6)


def test_an_image_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="windows of 5 in 4"):
        sliding_window(lambda block: block, torch.zeros((1, 4, 8, 8)), (5, 8, 8), outputs=1)
    with pytest.raises(ValueError, match="argument"):
        sliding_window(lambda block: block, torch.zeros((1, 8, 8)), (4, 4, 4), outputs=1)
