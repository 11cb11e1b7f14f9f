"""Intervals of volumes that are calibrated by the size of what was found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from interval_groups import Found, ends_of, intervals, report


@pytest.fixture
def found() -> Found:
    """Large structures are wrong by three times as many of their scales as small ones."""
    rng = np.random.default_rng(0)
    large = np.arange(600) % 2 == 1
    found_ml = np.where(large, 400.0, 100.0) + rng.uniform(0, 10, 600)
    scale_ml = rng.uniform(5, 10, 600)
    errors = rng.normal(0, 1, 600) * np.where(large, 3, 1)
    return Found(found_ml + errors * scale_ml, found_ml, scale_ml)


def held(found: Found, *, by_size: bool) -> list[float]:
    """The share of small and of large structures in their intervals."""
    group = (found.found_ml > 200).astype(int) * by_size
    low, high = intervals(found, group, np.arange(300), np.arange(300, 600)).T
    inside = (low <= found.true_ml[300:]) & (found.true_ml[300:] <= high)
    return [float(inside[k::2].mean()) for k in (0, 1)]


def test_the_next_score_is_between_the_ends() -> None:
    assert ends_of(np.arange(19.0)) == pytest.approx((0.0, 18.0))
    assert ends_of(np.arange(39.0)[::-1]) == pytest.approx((1.0, 37.0))
    assert ends_of(np.arange(29.0)) == pytest.approx((0.5, 27.5))


def test_each_size_holds_by_itself(found: Found) -> None:
    assert held(found, by_size=True) == pytest.approx([0.9, 0.9], abs=0.05)
    small, large = held(found, by_size=False)
    assert small > 0.98 and large < 0.85


def test_the_table_tells_children_from_adults(found: Found) -> None:
    lines = report({"kidney": found}, found.found_ml > 200, np.arange(600) % 2 == 0, times=9)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[:3] for row in rows[:2]] == [
        ["kidney", "pooled", "as it is"],
        ["kidney", "by size", "as it is"],
    ]
    children, adults = (float(rows[1][k]) for k in (3, 5))
    assert [children, adults] == pytest.approx([0.9, 0.9], abs=0.05)
    assert float(rows[0][5]) < 0.85 < 0.98 < float(rows[0][3])
