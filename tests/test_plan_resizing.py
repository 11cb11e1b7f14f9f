"""Resampling as nnU-Net does it, against scikit-image and by hand, along every axis."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.geometry import Grid, Volume
from kidseg.plan import resized, spline, thick_axis

HOW: dict[str, Any] = {"mode": "edge", "anti_aliasing": False}


def volume_of(rng: np.random.Generator, shape: Any) -> Volume:
    data = torch.from_numpy(rng.normal(size=(2, *shape)))
    return Volume(data, Grid.from_spacing(shape, (3, 1, 1)))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from((1, 3)), st.sampled_from((None, 0, 1, 2)))
def test_values_are_those_of_scikit_image(seed: int, order: Any, axis: int | None) -> None:
    """All at once; or each plane, and then the nearest plane, the later of two."""
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(seed)
    shape, wanted = rng.integers(2, 14, 3), rng.integers(2, 14, 3)
    volume = volume_of(rng, shape)
    found = resized(volume, volume.grid.resized(wanted), spline(order), axis).data.numpy()
    for channel, mine in zip(volume.data.numpy(), found, strict=True):
        if axis is None:
            theirs = transform.resize(channel, wanted, order=order, **HOW)
        else:
            inside = np.delete(wanted, axis)
            planes = [
                transform.resize(plane, inside, order=order, **HOW)
                for plane in np.moveaxis(channel, axis, 0)
            ]
            at = ((2 * np.arange(wanted[axis]) + 1) * shape[axis]) // (2 * wanted[axis])
            theirs = np.moveaxis(np.stack(planes)[at], 0, axis)
        assert np.abs(mine - theirs).max() < 1e-6


def test_values_on_the_same_number_of_voxels_are_copied() -> None:
    volume = volume_of(np.random.default_rng(0), (4, 5, 6))
    target = volume.grid.resized((4, 5, 6))
    assert resized(volume, target, spline(3), 0).data is volume.data


@given(st.permutations((0, 1, 2)))
def test_the_thick_axis_moves_with_the_axes(order: list[int]) -> None:
    def turned(*spacing: float) -> list[float]:
        return [spacing[k] for k in order]

    thick = order.index(0)
    assert thick_axis(turned(5, 1, 1.5), turned(1, 1, 1)) == thick
    assert thick_axis(turned(1, 1, 1), turned(5, 1, 1.5)) == thick
    assert thick_axis(turned(3, 1, 1), turned(2, 1, 1)) is None  # a factor of three is not more
    assert thick_axis(turned(3, 1, 1), turned(2, 1, 1), by_slice=True) == thick
    assert thick_axis(turned(5, 1, 1), turned(5, 1, 1), by_slice=False) is None


def test_two_thick_axes_are_none_and_the_scan_decides_before_the_plan() -> None:
    for spacing in permutations((0.24, 1.25, 1.25)):
        assert thick_axis(spacing, (1, 1, 1)) is None
        assert thick_axis(spacing, (9, 1, 1)) is None
    assert thick_axis((9, 1, 1), (1, 1, 9)) == 0
    assert thick_axis((1, 1, 1), (1, 1, 1), by_slice=True) is None
