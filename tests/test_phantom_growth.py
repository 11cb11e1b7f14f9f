"""Growth: the formulas at ages where they can be computed by hand, and draws around them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from kidseg.phantom import growth


def test_kidney_length_follows_rosenbaum() -> None:
    assert growth.kidney_length_mm(0.0) == pytest.approx(49.8)
    assert growth.kidney_length_mm(0.5) == pytest.approx(49.8 + 1.55 * 6)
    assert growth.kidney_length_mm(1.0) == pytest.approx(67.9 + 2.2)
    assert growth.kidney_length_mm(10.0) == pytest.approx(67.9 + 22.0)


@pytest.mark.parametrize(("age", "cm"), [(0, 11), (5, 17), (10, 20), (15, 25)])
def test_effective_diameter_at_the_stated_ages(age: float, cm: float) -> None:
    assert growth.effective_diameter_mm(age) == pytest.approx(10 * cm, abs=2.5)


@pytest.mark.parametrize(
    "size",
    [
        growth.aorta_diameter_mm,
        growth.effective_diameter_mm,
        growth.height_mm,
        growth.lumbar_segment_mm,
        growth.vertebra_width_mm,
        growth.liver_span_mm,
        growth.spleen_length_mm,
        growth.kidney_length_mm,
    ],
)
def test_everything_grows(size: object) -> None:
    assert callable(size)
    values = [size(age) for age in np.linspace(0.0, 16.0, 65)]
    assert all(b > a for a, b in pairwise(values))


def test_draws_spread_about_the_mean() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([growth.vary(rng, 50.0, 0.1) for _ in range(4000)])
    assert np.median(drawn) == pytest.approx(50.0, rel=0.01)
    assert np.log(drawn).std() == pytest.approx(0.1, rel=0.06)
    assert drawn.max() <= 50.0 * np.exp(0.25) + 1e-9 and drawn.min() >= 50.0 * np.exp(-0.25) - 1e-9
