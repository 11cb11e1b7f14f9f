"""Volumes, diameters and contacts of solids that are known by formula, on oblique odd grids."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.geometry import Grid
from kidseg.measure.contact import (
    contact_area,
    contact_of,
    gap_to,
    rim_quantities,
    thin_share,
)
from kidseg.measure.contact_ends import narrow_gaps
from kidseg.measure.diameters import ellipsoid_ml, measure_diameters, surface_mm
from kidseg.measure.mask import Mask, bounds, moved_contours
from kidseg.measure.quantity import Quantity
from kidseg.measure.sizes import (
    ACROSS,
    AXIAL,
    ELLIPSOID,
    HEIGHT,
    LONGEST,
    VOLUME,
    sizes_of,
    volume_of,
)
from solids import (
    ball,
    cylinder,
    ellipsoid,
    filmed_ball,
    oblique,
    positions,
    right_tumour,
    rotation,
    six_tenths_cm2,
)

SPACINGS = [(1.0, 1.0, 1.0), (1.5, 0.8, 0.8), (0.7, 1.9, 0.9), (4.0, 0.9, 0.9)]
FINE = SPACINGS[:3]


def assert_within(quantity: Quantity, true: float) -> None:
    """The interval contains the true value, and more than it."""
    assert quantity.low is not None and quantity.high is not None
    assert quantity.low < true < quantity.high, quantity


@pytest.mark.requirement("volumes")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", [0, 2])
def test_a_ball(spacing_mm: tuple[float, ...], seed: int) -> None:
    mask = ball(oblique(24, spacing_mm, seed), 22)
    true_ml = 4 / 3 * math.pi * 22**3 / 1000
    assert mask.volume_ml == pytest.approx(true_ml, rel=0.02)
    found = measure_diameters(mask)
    for diameter in (found.longest_mm, found.axial_mm, found.across_mm, found.height_mm):
        assert diameter == pytest.approx(44, abs=max(spacing_mm))
    assert_within(volume_of(right_tumour(mask)), true_ml)


@pytest.mark.requirement("volumes")
def test_the_intervals_of_diameters_contain_those_of_a_ball() -> None:
    mask = ball(oblique(18, (1.5, 0.9, 0.9), 2), 16)
    found = {quantity.name: quantity for quantity in sizes_of(right_tumour(mask))}
    for name in (LONGEST, AXIAL, ACROSS, HEIGHT):
        assert_within(found[name], 32)
    for name in (VOLUME, ELLIPSOID):
        assert_within(found[name], 4 / 3 * math.pi * 16**3 / 1000)


@pytest.mark.requirement("volumes")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", [0, 3])
def test_an_ellipsoid_has_its_longest_diameter_in_any_direction(
    spacing_mm: tuple[float, ...], seed: int
) -> None:
    mask = ellipsoid(oblique(26, spacing_mm, seed), (12, 17, 24))
    assert mask.volume_ml == pytest.approx(ellipsoid_ml(24, 34, 48), rel=0.02)
    assert measure_diameters(mask).longest_mm == pytest.approx(48, abs=max(spacing_mm))
    assert_within(volume_of(right_tumour(mask)), ellipsoid_ml(24, 34, 48))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_three_diameters_of_an_upright_ellipsoid(spacing_mm: tuple[float, ...]) -> None:
    found = measure_diameters(ellipsoid(oblique(26, spacing_mm), (12, 17, 24)))
    assert found.axial_mm == pytest.approx(34, abs=spacing_mm[1])
    assert found.across_mm == pytest.approx(24, abs=spacing_mm[2])
    assert found.height_mm == pytest.approx(48, abs=spacing_mm[0])
    assert found.ellipsoid_ml == pytest.approx(ellipsoid_ml(24, 34, 48), rel=0.12)


@pytest.mark.requirement("volumes")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", [1, 3, 6])
def test_diameters_in_the_slices_of_an_ellipsoid_off_their_axes(
    spacing_mm: tuple[float, ...], seed: int
) -> None:
    """The central section of an ellipsoid by a plane is the largest, and an ellipse."""
    half = np.array([12.0, 17.0, 24.0])
    across, rows, columns = rotation(seed).T[::-1]  # of the slices, in mm; x is along columns
    section = np.stack([rows, columns]) @ np.diag(half**-2) @ np.stack([rows, columns]).T
    axis = 2 / np.sqrt(np.linalg.eigvalsh(section))
    found = measure_diameters(ellipsoid(oblique(26, spacing_mm, seed), half))
    in_plane = max(spacing_mm[1:])
    assert found.axial_mm == pytest.approx(axis[0], abs=in_plane)
    assert found.across_mm == pytest.approx(axis[1], abs=in_plane)
    assert found.height_mm == pytest.approx(2 * np.linalg.norm(half * across), abs=spacing_mm[0])


@pytest.mark.requirement("volumes")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", [0, 4])
def test_a_cylinder(spacing_mm: tuple[float, ...], seed: int) -> None:
    # A whole number of slices: of an upright one, slices are all in or all out.
    length = spacing_mm[0] * round(40 / spacing_mm[0])
    mask = cylinder(oblique(30, spacing_mm, seed), 15, length)
    true_ml = math.pi * 15**2 * length / 1000
    assert mask.volume_ml == pytest.approx(true_ml, rel=0.02)
    diagonal = math.hypot(30, length)
    assert measure_diameters(mask).longest_mm == pytest.approx(diagonal, abs=max(spacing_mm))
    assert_within(volume_of(right_tumour(mask)), true_ml)


@pytest.mark.requirement("volumes")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_the_diameters_of_an_upright_cylinder(spacing_mm: tuple[float, ...]) -> None:
    length = spacing_mm[0] * round(40 / spacing_mm[0])
    found = measure_diameters(cylinder(oblique(30, spacing_mm), 15, length))
    assert found.height_mm == pytest.approx(length)
    assert found.axial_mm == pytest.approx(30, abs=max(spacing_mm[1:]))
    assert found.across_mm == pytest.approx(30, abs=max(spacing_mm[1:]))


def test_one_voxel_and_nothing() -> None:
    grid = Grid.from_spacing((3, 3, 3), (4.0, 2.0, 1.0))
    one = np.zeros(grid.shape, bool)
    assert measure_diameters(Mask(one, grid)).longest_mm == 0.0
    one[1, 1, 1] = True
    found = measure_diameters(Mask(one, grid))
    assert (found.longest_mm, found.axial_mm, found.height_mm) == pytest.approx((4.0, 2.0, 4.0))
    assert found.across_mm == pytest.approx(1.0)
    assert len(surface_mm(Mask(one, grid))) == 6


@settings(max_examples=12)
@given(
    half=st.tuples(*[st.floats(3, 9)] * 3), seed=st.integers(0, 50), thick=st.sampled_from([1, 2.5])
)
def test_diameters_are_ordered_and_grow_with_the_contour(
    half: tuple[float, float, float], seed: int, thick: float
) -> None:
    (mask,) = ellipsoid(oblique(12, (thick, 1.0, 1.2), seed), half).cropped()
    inner, outer = moved_contours(mask)
    sizes = [measure_diameters(each) for each in (inner, mask, outer)]
    for small, large in pairwise(sizes):
        assert small.longest_mm < large.longest_mm and small.height_mm <= large.height_mm
    assert sizes[1].across_mm <= sizes[1].axial_mm <= sizes[1].longest_mm + 1e-9


@pytest.mark.parametrize("spacing_mm", FINE)
@pytest.mark.parametrize("seed", [0, 1])
def test_contact_of_a_cut_ball_is_a_disc(spacing_mm: tuple[float, ...], seed: int) -> None:
    grid = oblique(32, spacing_mm, seed)
    whole = ball(grid, 30).data
    above = positions(grid) @ rotation(seed + 7)[:, 0] > 4
    contact = contact_of(Mask(whole & above, grid), Mask(whole & ~above, grid))
    assert contact.area_cm2 == pytest.approx(math.pi * (30**2 - 4**2) / 100, rel=0.05)
    assert np.linalg.norm(contact.normals, axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("spacing_mm", FINE)
@pytest.mark.parametrize("seed", [0, 2])
def test_contact_of_a_ball_in_a_ball_is_a_cap(spacing_mm: tuple[float, ...], seed: int) -> None:
    grid = oblique(32, spacing_mm, seed)
    tumour = ball(grid, 18, 22 * rotation(seed + 7)[:, 0])
    kidney = Mask(ball(grid, 30).data & ~tumour.data, grid)
    height = 18 - (22**2 + 18**2 - 30**2) / (2 * 22)
    area = contact_area(tumour.cropped()[0], kidney.cropped()[0])
    assert area.value == pytest.approx(2 * math.pi * 18 * height / 100, rel=0.05)
    assert area.low is not None and area.high is not None
    assert area.low < area.value < area.high


@pytest.mark.parametrize(
    ("spacing_mm", "seed"),
    [
        ((5.0, 1.4, 1.4), 2),
        *(
            pytest.param(spacing_mm, seed, marks=pytest.mark.slow)
            for spacing_mm in ((3.0, 0.9, 0.9), (5.0, 0.8, 0.8), (5.0, 1.2, 1.2))
            for seed in (0, 2)
        ),
    ],
)
def test_contacts_between_thick_slices(spacing_mm: tuple[float, ...], seed: int) -> None:
    """A cap, a disc and a whole ball: in any direction, and whichever axis the slices are along."""
    grid = oblique(32, spacing_mm, seed)
    along = rotation(seed + 7)[:, 0]
    whole = ball(grid, 30).data
    cap, inside = ball(grid, 18, 22 * along), ball(grid, 14, 5 * along)
    above = Mask(whole & (positions(grid) @ along > 4), grid)
    height = 18 - (22**2 + 18**2 - 30**2) / (2 * 22)
    areas_mm2 = {
        cap: 2 * math.pi * 18 * height,
        inside: 4 * math.pi * 14**2,
        above: math.pi * (30**2 - 4**2),
    }
    for tumour, area_mm2 in areas_mm2.items():
        kidney = Mask(whole & ~tumour.data, grid)
        found = contact_area(tumour.cropped()[0], kidney.cropped()[0])
        assert found.value == pytest.approx(area_mm2 / 100, rel=0.05)
        assert found.low is not None and found.high is not None
        assert found.low < found.value < found.high


def test_a_contact_in_voxels_of_any_shape_takes_little_memory() -> None:
    grid = Grid.from_spacing((3, 4, 4), (1e6, 1.0, 1.0))
    tumour, kidney = np.zeros((2, *grid.shape), bool)
    tumour[:, :, :2], kidney[:, :, 2:] = True, True
    tracemalloc.start()
    assert contact_area(Mask(tumour, grid), Mask(kidney, grid)).value > 0
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_a_contact_is_the_same_whatever_axis_the_slices_are_along() -> None:
    grid = oblique(18, (5.0, 1.6, 1.6), 2)
    tumour = ball(grid, 10, (8, 0, 0))
    kidney = Mask(ball(grid, 16).data & ~tumour.data, grid)
    first = contact_area(tumour, kidney).value
    for order in ((1, 0, 2), (2, 1, 0)):
        turned = grid.permuted(order)
        one, other = (Mask(each.data.transpose(order), turned) for each in (tumour, kidney))
        assert contact_area(one, other).value == pytest.approx(first, rel=1e-6)


def test_a_tumour_inside_its_kidney_touches_it_all_around() -> None:
    grid = oblique(22, (1.2, 0.9, 0.9), 3)
    tumour = ball(grid, 10)
    kidney = Mask(ball(grid, 20).data & ~tumour.data, grid)
    assert contact_of(tumour, kidney).area_cm2 == pytest.approx(4 * math.pi, rel=0.05)
    median, thinnest = rim_quantities(contact_of(tumour, kidney), kidney)
    assert median.value == pytest.approx(10, abs=1.2)
    assert thinnest.value == pytest.approx(10, abs=1.2)


def check_thin_contact(tumour: Mask, kidney: Mask, area_cm2: float) -> None:
    found = contact_area(tumour, kidney)
    assert found.value == pytest.approx(area_cm2, rel=0.05)
    assert contact_of(tumour, kidney).area_cm2 < found.value, "labels alone are less"
    assert_within(found, area_cm2)


@pytest.mark.parametrize("seed", [1, 4])
@pytest.mark.parametrize("spacing_mm", [(1.5, 1.0, 1.0), (3.0, 0.9, 0.9)])
def test_contact_with_parenchyma_thinner_than_a_voxel(
    spacing_mm: tuple[float, ...], seed: int
) -> None:
    """A shell of 0.4 of the widest spacing around six tenths of a ball has labels in patches."""
    radius_mm, thick_mm = 18.0, 0.4 * max(spacing_mm)
    grid = oblique(radius_mm + 6, spacing_mm, seed)
    check_thin_contact(*filmed_ball(grid, radius_mm, thick_mm, seed))


@pytest.mark.parametrize("slope", [0.15, 0.3, 1.0])
@pytest.mark.parametrize(
    ("spacing_mm", "seed"),
    [
        ((1.5, 1.0, 1.0), 1),
        *(
            pytest.param(spacing_mm, seed, marks=pytest.mark.slow)
            for spacing_mm in ((1.0, 1.0, 1.0), (3.0, 0.9, 0.9))
            for seed in (2, 4)
        ),
    ],
)
def test_contact_with_parenchyma_that_tapers_to_nothing(
    spacing_mm: tuple[float, ...], seed: int, slope: float
) -> None:
    """A shell around six tenths of a ball, as thick as `slope` times the way to its rim."""
    radius_mm = 18.0
    grid = oblique(radius_mm + 9, spacing_mm, seed)
    place = positions(grid)
    away = np.sqrt((place**2).sum(-1))
    angle = np.arccos(np.clip(place @ rotation(seed + 50)[:, 0] / np.maximum(away, 1e-9), -1, 1))
    thick_mm = np.clip(slope * radius_mm * (math.acos(-0.2) - angle), 0, 8)
    tumour = Mask(away <= radius_mm, grid)
    kidney = Mask(~tumour.data & (away <= radius_mm + thick_mm), grid)
    check_thin_contact(tumour, kidney, six_tenths_cm2(radius_mm))


@pytest.mark.parametrize("voxels", [0.4, 0.6, 1.0, 3.0])
def test_contact_with_an_even_film_around_a_small_tumour(voxels: float) -> None:
    """Its ends have nothing beside them that would tell a film from parenchyma that tapers."""
    radius_mm, spacing_mm = 14.0, (3.0, 0.9, 0.9)
    grid = oblique(radius_mm + 3.0 * (voxels + 2), spacing_mm, 1)
    tumour, kidney, area_cm2 = filmed_ball(grid, radius_mm, 3.0 * voxels, 1)
    assert contact_area(tumour, kidney).value == pytest.approx(area_cm2, rel=0.05)


def test_a_gap_in_thick_parenchyma_is_open() -> None:
    """Two blocks on a plane, two voxels apart: both are seen as they are."""
    tumour, kidney = np.zeros((2, 24, 24, 24), bool)
    tumour[:, :, :8] = True
    kidney[:, :10, 8:14] = kidney[:, 12:, 8:14] = True
    grid = Grid.from_spacing(tumour.shape, (1.0, 1.0, 1.0))
    assert not narrow_gaps(Mask(tumour, grid), kidney).any()
    kidney[:, :, 9:] = False
    closed = narrow_gaps(Mask(tumour, grid), kidney)
    assert closed[2:-2, 10:12, 8].all(), "between single voxels it is closed"


@pytest.mark.parametrize("seed", [1, 4])
def test_a_contact_ends_half_way_between_thick_slices(seed: int) -> None:
    """A shell of 6 mm ends bluntly around six tenths of a ball, not at the next slice."""
    radius_mm = 18.0
    grid = oblique(radius_mm + 6, (5.0, 1.2, 1.2), seed)
    whole, tumour = ball(grid, radius_mm + 6).data, ball(grid, radius_mm)
    is_covered = positions(grid) @ rotation(seed + 50)[:, 0] > -0.2 * radius_mm
    kidney = Mask(whole & ~tumour.data & is_covered, grid)
    area_cm2 = 2 * math.pi * radius_mm * 1.2 * radius_mm / 100
    assert contact_area(tumour, kidney).value == pytest.approx(area_cm2, rel=0.03)


@pytest.mark.parametrize(("gap_mm", "bare_mm"), [(10.0, 10.0), (1.0, 0.0)])
def test_only_a_narrow_gap_belongs_to_a_contact(gap_mm: float, bare_mm: float) -> None:
    """Two caps on a ball, with a band between them; three voxels are 3.6 mm."""
    grid = oblique(26, (1.2, 0.9, 0.9), 2)
    height = positions(grid) @ rotation(5)[:, 0]
    tumour, around = ball(grid, 18), ball(grid, 24).data & ~ball(grid, 18).data
    kidney = Mask(around & (np.abs(height) > gap_mm / 2), grid)
    area_cm2 = 2 * math.pi * 18 * (36 - bare_mm) / 100
    assert contact_area(tumour, kidney).value == pytest.approx(area_cm2, rel=0.05)


def test_how_much_of_a_contact_is_before_single_voxels() -> None:
    grid = Grid.from_spacing((6, 10, 10), (3.0, 1.0, 1.0))
    tumour, kidney = np.zeros((2, *grid.shape), bool)
    tumour[:, :, :4] = True
    kidney[:, :5, 4:5] = kidney[:, 5:, 4:7] = True
    assert thin_share(Mask(tumour, grid), Mask(kidney, grid)) == 0.5
    assert thin_share(Mask(tumour, grid), Mask(~tumour, grid)) == 0.0
    assert thin_share(Mask(tumour, grid), Mask(np.zeros_like(kidney), grid)) == 0.0


def test_without_contact_there_is_no_area_and_no_rim() -> None:
    grid = oblique(20, (1.0, 1.0, 1.0))
    tumour, kidney = ball(grid, 5, (-10, 0, 0)), ball(grid, 5, (10, 0, 0))
    area = contact_area(tumour, kidney)
    assert (area.low, area.value, area.high) == (0.0, 0.0, 0.0)
    assert rim_quantities(contact_of(tumour, kidney), kidney) == ()


@pytest.mark.parametrize("seed", [0, 5])
def test_gap_between_balls(seed: int) -> None:
    grid = oblique(30, (2.0, 0.9, 0.9), seed)
    along = rotation(3)[:, 0]
    gap = gap_to(ball(grid, 8, -14 * along), [ball(grid, 6, 12 * along), ball(grid, 2, 26 * along)])
    assert gap.value == pytest.approx(26 - 14, abs=2.0)
    assert gap.low is not None and gap.high is not None and gap.low < gap.value < gap.high


def test_a_gap_to_what_vanishes_has_no_upper_end() -> None:
    grid = oblique(10, (1.0, 1.0, 1.0))
    speck = np.zeros(grid.shape, bool)
    speck[3, 3, 3] = True
    gap = gap_to(ball(grid, 3), [Mask(speck, grid).cropped()[0]])
    assert gap.high is None and gap.value > 0


@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 9)), min_size=3, max_size=3))
def test_bounds_take_what_is_there(extents: list[tuple[int, int]]) -> None:
    data = np.arange(1, 61).reshape(3, 4, 5)
    start, shape = [low for low, _ in extents], [count for _, count in extents]
    padded = np.pad(data, 20)
    expected = padded[tuple(slice(20 + a, 20 + a + n) for a, n in extents)]
    assert np.array_equal(bounds(data, start, shape), expected)


def test_a_mask_in_the_box_of_another_one() -> None:
    grid = oblique(12, (2.0, 1.0, 1.0), 4)
    one, other = ball(grid, 5, (4, 0, 0)), ball(grid, 8)
    small, large = one.cropped()[0], other.cropped()[0]
    both = Mask(small.onto(large) & large.data, large.grid)
    assert both.volume_ml == pytest.approx(Mask(one.data & other.data, grid).volume_ml)
