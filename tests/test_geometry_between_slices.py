"""Contours between thick slices, by distances from those of the slices."""

from __future__ import annotations

import numpy as np
import pytest

from kidseg.geometry import distances_mm


def half_planes() -> np.ndarray:
    """In the first slice columns 0 to 3 are inside, in the second 0 to 7."""
    inside = np.zeros((2, 3, 12), bool)
    inside[0, :, :4] = inside[1, :, :8] = True
    return inside


def test_straight_contours_move_evenly_from_slice_to_slice() -> None:
    found = distances_mm(half_planes(), (6.0, 1.0, 1.0), axis=0, parts=3)
    contours = [3.5, 3.5, 3.5 + 4 / 3, 3.5 + 8 / 3, 7.5, 7.5]
    for plane, contour in zip(found, contours, strict=True):
        assert plane == pytest.approx(np.tile(contour - np.arange(12), (3, 1)), abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_may_be_that_of_the_slices(axis: int) -> None:
    spacing = np.array((6.0, 2.0, 1.0))
    turned = np.moveaxis(half_planes(), 0, axis)
    order = np.insert(spacing[1:], axis, spacing[0])
    found = distances_mm(turned, order, axis=axis, parts=3)
    assert np.array_equal(
        np.moveaxis(found, axis, 0), distances_mm(half_planes(), spacing, axis=0, parts=3)
    )


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_the_middle_part_is_the_slice_itself(parts: int) -> None:
    inside = np.random.default_rng(0).random((4, 9, 9)) < 0.4
    inside[2] = False
    found = distances_mm(inside, (4.0, 1.0, 1.0), axis=0, parts=parts)
    assert np.array_equal(found[parts // 2 :: parts] > 0, inside)


def test_slices_without_a_contour_are_as_far_from_one_as_the_next_slice() -> None:
    inside = np.zeros((3, 4, 4), bool)
    inside[2] = True
    found = distances_mm(inside, (4.0, 1.0, 1.0), axis=0, parts=1)
    assert (found[:2] == -4).all() and (found[2] == 4).all()
    assert distances_mm(inside[2:], (4.0, 1.0, 1.0), axis=0, parts=3).shape == (3, 4, 4)
