"""Which side a kidney is on, and how large it is: counted by hand, in any voxel order."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
import torch

from findings import codes
from kidseg.body import body_mask, moments
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical, reorient
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema
from kidseg.measure import Midline, Sides, measure_sides
from kidseg.measure.midline import estimated_midline
from solids import boxes

GRID = Grid.from_spacing((10, 20, 40), (5.0, 2.0, 2.0))
"""Canonical: columns run to the patient's left. A voxel is 0.02 ml; the middle is column 19.5."""

labels = partial(boxes, grid=GRID)
RIGHT = (1, slice(2, 8), slice(5, 15), slice(5, 10))  # 300 voxels: 6 ml
LEFT = (1, slice(2, 8), slice(5, 15), slice(30, 34))  # 240 voxels: 4.8 ml


def sides(volume: Volume, schema: LabelSchema = KIDNEY_TUMOUR) -> Sides:
    found = measure_sides(volume, schema, Midline.of(GRID, flat_body(GRID)))
    assert found is not None
    return found


def flat_body(grid: Grid):  # type: ignore[no-untyped-def]
    """A body that fills all slices but a margin."""
    data = torch.zeros((1, *grid.shape), dtype=torch.bool)
    data[0, :, 2:-2, 2:-2] = True
    return moments(Volume(data, grid))


@pytest.mark.requirement("sides")
def test_two_kidneys_one_with_a_tumour() -> None:
    tumour = (2, slice(3, 5), slice(5, 15), slice(10, 14))  # 80 voxels: 1.6 ml
    found = sides(labels(RIGHT, LEFT, tumour))
    assert found.right.volumes_ml == pytest.approx({"kidney": 6.0, "tumour": 1.6})
    assert found.left.volumes_ml == pytest.approx({"kidney": 4.8, "tumour": 0.0})
    assert found.right.borders == found.left.borders == ()
    assert codes(found) == []


ORDERS = [
    (order, flips) for order in permutations(range(3)) for flips in product((1.0, -1.0), repeat=3)
]


@pytest.mark.requirement("sides")
@pytest.mark.parametrize(("order", "flips"), ORDERS)
def test_each_voxel_order_gives_the_same_sides(
    order: tuple[int, ...], flips: tuple[float, ...]
) -> None:
    """Six axis orders, eight combinations of flips; mirrored data in a mirrored space."""
    axes = np.zeros((4, 4))
    axes[3, 3] = 1.0
    for column, (axis, sign) in enumerate(zip(order, flips, strict=True)):
        axes[axis, column] = sign
    volume = labels(RIGHT, LEFT, (2, slice(3, 5), slice(0, 15), slice(10, 14)))
    stored = reorient(volume, Grid((2, 2, 2), torch.from_numpy(axes)))
    found = sides(stored)
    assert found == sides(volume)
    assert found.right.borders == ("front",) and found.left.borders == ()
    assert canonical(stored).grid.same_as(GRID)


@pytest.mark.requirement("sides")
def test_a_tumour_across_the_midline_belongs_to_its_kidney() -> None:
    """Most of the mass lies left, the parenchyma right."""
    found = sides(labels(RIGHT, LEFT, (2, slice(3, 5), slice(5, 15), slice(10, 29))))
    assert found.right.volumes_ml == pytest.approx({"kidney": 6.0, "tumour": 7.6})
    assert found.left.volumes_ml == pytest.approx({"kidney": 4.8, "tumour": 0.0})
    assert codes(found) == []


@pytest.mark.requirement("sides")
def test_a_mass_between_both_kidneys_is_counted_on_one_side_and_said() -> None:
    """It touches 20 faces of the right kidney, and more, fewer, hardly any or none of the left."""
    at_right = (2, slice(3, 5), slice(5, 15), slice(10, 20))
    for at_left, faces, side in (
        ((2, slice(3, 6), slice(5, 15), slice(20, 30)), 30, "left"),
        ((2, slice(3, 4), slice(5, 15), slice(20, 30)), 10, "right"),
        ((2, slice(3, 4), slice(5, 7), slice(20, 30)), 2, "right"),
        ((2, slice(3, 4), slice(5, 15), slice(20, 29)), 0, "right"),
    ):
        found = sides(labels(RIGHT, LEFT, at_right, at_left))
        own = max(20, faces) / (20 + faces)
        said = [one.cause for one in found.findings if one.code == "mass-on-both-sides"]
        assert len(said) == (faces >= 10)
        assert all(f"{own:.0%} of the contact on the {side}; it was" in cause for cause in said)
        other = {"left": found.right, "right": found.left}[side]
        assert other.volumes_ml["tumour"] == 0.0 < getattr(found, side).volumes_ml["tumour"]


def test_masses_between_both_kidneys_are_said_together() -> None:
    """Two bridges, of which the larger touches 30 faces of the left kidney and 20 of the right."""
    large = [
        (2, slice(3, 5), slice(5, 15), slice(10, 20)),
        (2, slice(3, 6), slice(5, 15), slice(20, 30)),
    ]
    small = [(2, slice(7, 8), slice(5, 15), slice(10, 30))]
    found = sides(labels(RIGHT, LEFT, *large, *small))
    (cause,) = [one.cause for one in found.findings if one.code == "mass-on-both-sides"]
    assert cause.startswith("2 masses touch") and "60% of the contact of the largest" in cause


def test_a_tumour_apart_from_any_kidney_lies_where_it_lies() -> None:
    found = sides(labels(RIGHT, LEFT, (2, slice(9, 10), slice(0, 2), slice(24, 29))))
    assert found.left.volumes_ml["tumour"] == pytest.approx(0.2)
    assert found.right.volumes_ml["tumour"] == 0.0
    assert found.left.borders == ("upper", "front")
    assert codes(found) == ["kidney-cut"]


@pytest.mark.requirement("partial")
@pytest.mark.row(24)
def test_a_horseshoe_kidney_is_divided_at_the_midline() -> None:
    bridge = (1, slice(4, 5), slice(10, 12), slice(10, 30))  # 20 voxels on each side
    found = sides(labels(RIGHT, LEFT, bridge))
    assert found.right.volumes_ml["kidney"] == pytest.approx(6.4)
    assert found.left.volumes_ml["kidney"] == pytest.approx(5.2)
    assert codes(found) == ["horseshoe-kidney"]
    assert "divided at the midline" in found.findings[0].next_step


@pytest.mark.requirement("partial")
@pytest.mark.row(24)
@pytest.mark.parametrize(("box", "side"), [(RIGHT, "right"), (LEFT, "left")])
def test_a_single_kidney(box: tuple, side: str) -> None:
    speck = (1, slice(5, 6), slice(9, 10), slice(20, 21))  # a fragment is no second kidney
    found = sides(labels(box, speck))
    assert getattr(found, side).volumes_ml["kidney"] > 4
    assert codes(found) == ["one-kidney"]


@pytest.mark.requirement("partial")
def test_two_kidneys_on_one_side_are_flagged() -> None:
    crossed = (1, slice(2, 8), slice(5, 15), slice(12, 16))
    found = sides(labels(RIGHT, crossed))
    assert found.left.volumes_ml["kidney"] == 0.0
    assert found.right.volumes_ml["kidney"] == pytest.approx(10.8)
    assert codes(found) == ["kidneys-on-one-side"]
    assert "right" in found.findings[0].cause


def test_a_kidney_in_pieces_is_flagged() -> None:
    upper = (1, slice(2, 4), slice(5, 15), slice(30, 34))
    lower = (1, slice(6, 9), slice(5, 15), slice(30, 34))
    found = sides(labels(RIGHT, upper, lower))
    assert found.left.volumes_ml["kidney"] == pytest.approx(4.0)
    assert codes(found) == ["kidneys-in-pieces"]


@pytest.mark.row(24)
def test_nothing_and_a_tumour_alone() -> None:
    assert codes(sides(labels())) == ["no-kidney"]
    assert sides(labels()).left.volumes_ml == {"kidney": 0.0, "tumour": 0.0}
    found = sides(labels((2, *LEFT[1:])))
    assert codes(found) == ["no-kidney"] and found.left.volumes_ml["tumour"] == pytest.approx(4.8)


def test_the_midline_follows_the_body() -> None:
    """The body lies far to the left of the image, and leans; both kidneys right of its middle."""
    hu = torch.full((1, *GRID.shape), -1000, dtype=torch.int16)
    for k in range(10):
        hu[0, k, 2:18, 16 - k : 38] = 40
    scan = Volume(hu, GRID)
    body = moments(body_mask(scan))
    midline = Midline.of(GRID, body)
    assert midline.is_body and midline.z_mm[0] < midline.z_mm[-1]
    column = 19.5 - midline.x_mm / 2.0  # +x is to the patient's right
    assert column[0] == pytest.approx((16 + 37) / 2, abs=0.3)
    assert column[-1] == pytest.approx((7 + 37) / 2, abs=0.3)
    kidneys = labels(
        (1, slice(0, 3), slice(5, 15), slice(20, 24)), (1, slice(0, 3), slice(5, 15), slice(30, 34))
    )
    found = measure_sides(kidneys, KIDNEY_TUMOUR, midline)
    assert found is not None
    assert found.right.volumes_ml["kidney"] == found.left.volumes_ml["kidney"] > 0


def test_slices_without_a_body_take_the_middle_of_the_others() -> None:
    data = torch.zeros((1, *GRID.shape), dtype=torch.bool)
    data[0, 3:6, 4:16, 0:20] = True
    midline = Midline.of(GRID, moments(Volume(data, GRID)))
    top = GRID.mm([9.0, 10.0, 9.5]).numpy()
    assert midline.right_of(top) == pytest.approx(0.0, abs=1e-6)


def test_without_a_body_it_is_the_middle_of_the_image_and_said() -> None:
    nothing = moments(Volume(torch.zeros((1, *GRID.shape), dtype=torch.bool), GRID))
    for body in (None, nothing):
        found = measure_sides(labels(RIGHT, LEFT), KIDNEY_TUMOUR, Midline.of(GRID, body))
        assert found is not None and codes(found) == ["side-by-image"]
        assert found.right.volumes_ml["kidney"] == pytest.approx(6.0)


def test_without_a_scan_it_is_between_the_kidneys_or_the_origin_and_said() -> None:
    """The origin, if the labels may be cropped to one kidney."""
    for volume, code in (
        (labels(RIGHT, LEFT), "side-by-kidneys"),
        (labels(LEFT), "side-by-origin"),
    ):
        midline = estimated_midline(volume, KIDNEY_TUMOUR, is_cropped=True)
        found = measure_sides(volume, KIDNEY_TUMOUR, midline)
        assert found is not None and code in codes(found)


def test_a_turned_patient_space_has_its_own_right() -> None:
    """The grid is turned by 30 degrees about the patient's long axis."""
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    turn = torch.tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
    turned = GRID.moved(turn)
    volume = labels(RIGHT, LEFT, grid=turned)
    found = measure_sides(volume, KIDNEY_TUMOUR, Midline.of(turned, flat_body(turned)))
    assert found is not None and found.right.volumes_ml["kidney"] == pytest.approx(6.0)


def test_a_scan_of_one_slice() -> None:
    grid = Grid.from_spacing((1, 20, 40), (5.0, 2.0, 2.0))
    volume = labels((1, slice(0, 1), slice(5, 9), slice(5, 9)), grid=grid)
    found = measure_sides(volume, KIDNEY_TUMOUR, Midline.of(grid))
    assert found is not None and found.right.borders == ("lower", "upper")
    assert found.right.volumes_ml["kidney"] == pytest.approx(16 * 0.02)


def test_structures_are_those_that_the_labels_tell_apart() -> None:
    cyst = (3, slice(2, 3), slice(5, 15), slice(34, 35))
    found = sides(labels(RIGHT, LEFT, cyst), KIDNEY_TUMOUR_CYST)
    assert found.left.volumes_ml == pytest.approx({"kidney": 4.8, "tumour": 0.0, "cyst": 0.2})
    sided = LabelSchema.from_names({1: "left kidney", 2: "right kidney"})
    found = sides(labels(LEFT, (2, *RIGHT[1:])), sided)
    assert found.right.volumes_ml == pytest.approx({"kidney": 6.0})
    other = LabelSchema.from_names({1: "liver"})
    assert measure_sides(labels(RIGHT), other, Midline.of(GRID)) is None
