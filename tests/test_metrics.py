"""Figures of agreement: cases worked out by hand, properties, and MONAI as the peer."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kidseg.geometry import Grid, posed
from kidseg.metrics import (
    _areas_mm2,
    dice,
    hd95_mm,
    measure,
    surface_dice,
    surface_distances,
    union_box,
    volume_error_ml,
)

seeds = st.integers(0, 2**31 - 1)
EMPTY = np.zeros((6, 7, 8), bool)


def grid(shape: tuple[int, ...], spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Grid:
    return Grid.from_spacing(shape, spacing_mm)


def box(shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def blob(rng: np.random.Generator, shape: tuple[int, ...], share: float = 0.3) -> np.ndarray:
    """A ragged random mask that may touch every border."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return smooth > np.quantile(smooth, 1 - share)


# Hand-computed


def test_dice_of_boxes() -> None:
    a = box((10, 10, 10), (2, 2, 2), (4, 4, 4))
    assert dice(a, a) == 1.0
    assert dice(a, box(a.shape, (2, 2, 4), (4, 4, 4))) == 0.5  # half of each overlaps
    assert dice(a, box(a.shape, (2, 2, 2), (4, 4, 2))) == pytest.approx(2 * 32 / (64 + 32))
    assert dice(a, box(a.shape, (7, 7, 7), (2, 2, 2))) == 0.0


def test_one_voxel_has_the_surface_of_an_octahedron() -> None:
    """Marching cubes cuts half-way to each neighbour: an octahedron of six half-spacings."""
    spacing = (5.0, 0.8, 0.7)
    a, b, c = (s / 2 for s in spacing)
    area = 8 * 0.5 * math.sqrt((a * b) ** 2 + (b * c) ** 2 + (c * a) ** 2)
    one = box((3, 3, 3), (1, 1, 1), (1, 1, 1))
    surfaces = surface_distances(one, one, grid((3, 3, 3), spacing))
    assert surfaces.reference_mm2.sum() == pytest.approx(area, rel=1e-6)
    assert len(surfaces.reference_mm) == 8


def test_areas_of_corner_codes() -> None:
    """At 5 x 0.8 x 0.7 mm: a plane across each axis, a bevelled edge, one corner, nothing."""
    spacing = np.array((5.0, 0.8, 0.7))
    areas = _areas_mm2(spacing)
    z, y, x = spacing
    assert areas[[0b00000000, 0b11111111]].tolist() == [0, 0]
    planes = areas[[0b11110000, 0b11001100, 0b10101010]]
    assert planes == pytest.approx([y * x, z * x, z * y])
    assert areas[0b11000000] == pytest.approx(x * math.hypot(y / 2, z / 2))
    corner = 0.5 * math.sqrt((z * y) ** 2 + (y * x) ** 2 + (x * z) ** 2) / 4
    assert areas[0b10000000] == pytest.approx(corner)
    assert areas[0b01101001] == pytest.approx(4 * corner)  # no two of the four are neighbours
    assert areas.tolist() == areas[::-1].tolist()  # inside and outside may change places


def test_two_voxels_apart() -> None:
    """Corners at columns 0, 1 and 3, 4 of 2 mm: half the surface 4 mm off, half 6 mm."""
    shape, spacing = (3, 3, 6), (5.0, 1.0, 2.0)
    a, b = box(shape, (1, 1, 0), (1, 1, 1)), box(shape, (1, 1, 3), (1, 1, 1))
    g = grid(shape, spacing)
    assert hd95_mm(a, b, g) == pytest.approx(6.0)
    assert [surface_dice(a, b, g, t) for t in (3.9, 4.0, 5.9, 6.0)] == pytest.approx(
        [0, 0.5, 0.5, 1]
    )
    assert dice(a, b) == 0.0
    assert volume_error_ml(a, b, g) == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_plane(axis: int) -> None:
    """A plate one voxel thick, three voxels on: its faces at 0, 1 are 3 and 2 voxels off."""
    spacing = (3.0, 0.5, 0.8)
    shape, size = [20, 20, 20], [20, 20, 20]
    size[axis] = 1
    start_a, start_b = [0, 0, 0], [0, 0, 0]
    start_a[axis], start_b[axis] = 5, 8
    a, b = (box(tuple(shape), tuple(s), tuple(size)) for s in (start_a, start_b))
    g, step = grid(tuple(shape), spacing), spacing[axis]
    assert hd95_mm(a, b, g) == pytest.approx(3 * step)
    assert surface_dice(a, b, g, 2.5 * step) == pytest.approx(0.5)
    assert surface_dice(a, b, g, 3 * step) == pytest.approx(1.0)


def test_two_cubes_three_millimetres_apart() -> None:
    """20 mm cubes, 3 mm between their nearest faces: the far faces are 23 mm off.

    A face has 21 x 21 corners. Those of the near plane are 3 mm away and those of the plane behind
    one more, so the share within 3 mm is one plane of 441 corners: the face's 19 x 19 inner corners
    of 1 mm2, and its rim.
    """
    shape = (22, 22, 45)
    a, b = box(shape, (1, 1, 0), (20, 20, 20)), box(shape, (1, 1, 23), (20, 20, 20))
    g = grid(shape)
    surfaces = surface_distances(a, b, g)
    assert surfaces.predicted_mm.min() == pytest.approx(3.0)
    assert surfaces.predicted_mm.max() == pytest.approx(23.0)
    # The far face is about a sixth of the surface, so more than 5 % lies 23 mm away.
    assert hd95_mm(a, b, g) == pytest.approx(23.0)
    face = 19 * 19 * 1.0  # inner corners, flat patches of 1 mm2
    near = surfaces.predicted_mm2[surfaces.predicted_mm <= 3.0].sum()
    edge, corner = 4 * 19 * math.sqrt(0.5), 4 * math.sqrt(3) / 8
    assert near == pytest.approx(face + edge + corner, rel=1e-6)
    assert surface_dice(a, b, g, 3.0) == pytest.approx(near / surfaces.predicted_mm2.sum())


def test_hd95_forgets_five_percent_of_the_surface() -> None:
    """A stray voxel far away is 1.7 mm2 beside 870: below 5 %, so HD95 does not see it."""
    shape = (14, 14, 60)
    a = box(shape, (1, 1, 1), (12, 12, 12))
    b = a.copy()
    b[6, 6, 55] = True
    assert hd95_mm(b, a, grid(shape)) == 0.0
    assert surface_distances(b, a, grid(shape)).percentile_mm(100) == pytest.approx(43.0)


def test_volume_error_is_signed_and_in_millilitres() -> None:
    a, b = box((9, 9, 9), (0, 0, 0), (5, 5, 4)), box((9, 9, 9), (0, 0, 0), (5, 5, 2))
    g = grid((9, 9, 9), (5.0, 2.0, 1.0))
    assert volume_error_ml(a, b, g) == pytest.approx(50 * 10 / 1000)
    assert volume_error_ml(b, a, g) == pytest.approx(-0.5)


def test_a_mask_at_the_border_has_a_surface_there() -> None:
    full = np.ones((4, 4, 4), bool)
    inside = np.pad(full, 3)
    at_border = surface_distances(full, full, grid((4, 4, 4)))
    within = surface_distances(inside, inside, grid((10, 10, 10)))
    assert at_border.reference_mm2.sum() == pytest.approx(within.reference_mm2.sum())


def test_a_single_slice_is_a_slab() -> None:
    a, b = box((1, 30, 30), (0, 5, 5), (1, 20, 20)), box((1, 30, 30), (0, 5, 8), (1, 20, 20))
    g = grid((1, 30, 30), (5.0, 1.0, 1.0))
    assert hd95_mm(a, b, g) == pytest.approx(3.0)
    assert surface_dice(a, b, g, 3.0) == 1.0


# Empty masks


@pytest.mark.requirement("honest figures")
def test_both_empty_is_undefined() -> None:
    m = measure(EMPTY, EMPTY, grid(EMPTY.shape), 1.0)
    assert (m.dice, m.hd95_mm, m.surface_dice, m.volume_error_ml) == (None, None, None, 0.0)
    assert m.both_empty


@pytest.mark.requirement("honest figures")
@pytest.mark.parametrize("found", [True, False])
def test_one_empty_is_a_miss(found: bool) -> None:
    some = box(EMPTY.shape, (1, 1, 1), (2, 3, 4))
    predicted, wanted = (some, EMPTY) if found else (EMPTY, some)
    m = measure(predicted, wanted, grid(EMPTY.shape, (1.0, 2.0, 3.0)), 1.0)
    assert (m.dice, m.hd95_mm, m.surface_dice) == (0.0, None, 0.0)
    assert m.volume_error_ml == pytest.approx(24 * 6 / 1000 * (1 if found else -1))
    assert not m.both_empty


# Guards


def test_masks_and_grid_must_fit() -> None:
    g = grid(EMPTY.shape)
    with pytest.raises(ValueError, match="boolean"):
        dice(EMPTY.astype(np.uint8), EMPTY)
    with pytest.raises(ValueError, match="different shapes"):
        dice(EMPTY, EMPTY[1:])
    with pytest.raises(ValueError, match="do not match a grid"):
        hd95_mm(EMPTY, EMPTY, grid((6, 7, 9)))
    with pytest.raises(ValueError, match="do not match a grid"):
        volume_error_ml(EMPTY, EMPTY, grid((6, 7, 9)))
    with pytest.raises(ValueError, match="volumetric"):
        surface_dice(EMPTY, EMPTY, g.slicewise(), 1.0)
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            surface_dice(EMPTY, EMPTY, g, tolerance)


# Properties


@settings(max_examples=25)
@given(seeds)
def test_properties_on_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(2, 14, size=3))
    spacing = tuple(float(s) for s in rng.uniform(0.4, 6.0, size=3))
    a, b, g = blob(rng, shape), blob(rng, shape), grid(shape, spacing)
    forth, back = measure(a, b, g, 1.0), measure(b, a, g, 1.0)
    assert forth.dice == back.dice
    assert forth.hd95_mm == back.hd95_mm
    assert forth.surface_dice == pytest.approx(back.surface_dice)
    assert forth.volume_error_ml == pytest.approx(-back.volume_error_ml)
    assert 0 <= forth.dice <= 1 and 0 <= forth.surface_dice <= 1 + 1e-12
    same = measure(a, a, g, 0.0)
    assert (same.dice, same.hd95_mm, same.surface_dice, same.volume_error_ml) == (1, 0, 1, 0)
    surfaces = surface_distances(a, b, g)
    overlaps = [surfaces.overlap(t) for t in (0.0, 0.5, 1.0, 3.0, 1000.0)]
    assert overlaps == sorted(overlaps) and overlaps[-1] == pytest.approx(1.0)
    assert surfaces.percentile_mm(95) <= surfaces.percentile_mm(100)
    doubled = measure(a, b, grid(shape, tuple(2 * s for s in spacing)), 2.0)
    assert doubled.hd95_mm == pytest.approx(2 * forth.hd95_mm)
    assert doubled.surface_dice == pytest.approx(forth.surface_dice)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_axis_order_and_flips_do_not_matter(order: tuple[int, ...]) -> None:
    shape, spacing = (12, 20, 24), (4.0, 0.9, 0.7)
    place = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")

    def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
        gaps = (((p - c) * s) ** 2 for p, c, s in zip(place, centre, spacing, strict=True))
        return sum(gaps) <= radius**2

    a, b = ball((5.0, 9.0, 10.0), 7.0), ball((6.2, 10.5, 12.0), 6.5)
    expected = measure(a, b, grid(shape, spacing), 1.0)
    c, d = (m.transpose(order)[::-1, :, ::-1] for m in (a, b))
    g = grid(c.shape, tuple(spacing[axis] for axis in order))
    found = measure(c, d, posed(g, angle_rad=0.4), 1.0)
    assert found.dice == expected.dice
    assert found.hd95_mm == pytest.approx(expected.hd95_mm)
    assert found.surface_dice == pytest.approx(expected.surface_dice)
    assert found.volume_error_ml == pytest.approx(expected.volume_error_ml)


def test_tensors_and_arrays_alike() -> None:
    rng = np.random.default_rng(3)
    a, b, g = blob(rng, (6, 7, 8)), blob(rng, (6, 7, 8)), grid((6, 7, 8))
    assert measure(torch.from_numpy(a), torch.from_numpy(b), g, 1.0) == measure(a, b, g, 1.0)


def test_union_box() -> None:
    a, b = box((9, 9, 9), (1, 2, 3), (1, 1, 1)), box((9, 9, 9), (4, 2, 0), (2, 3, 1))
    assert union_box(a, b) == (slice(1, 6), slice(2, 5), slice(0, 4))
    assert union_box(EMPTY, EMPTY) is None


# The peer


@pytest.fixture
def monai_metrics():
    metrics = pytest.importorskip("monai.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield metrics


@pytest.mark.parametrize(
    "spacing",
    [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (0.6, 0.7, 3.0), (1.3, 0.4, 2.9), (0.05, 12.0, 1.0)],
)
def test_areas_of_all_256_corner_codes_are_those_of_monai(monai_metrics, spacing) -> None:
    """MONAI computes with 32-bit floats."""
    peer, _ = monai_metrics.utils.get_code_to_measure_table(list(spacing))
    assert peer.shape == (256,)
    np.testing.assert_allclose(_areas_mm2(np.array(spacing)), peer.numpy(), rtol=1e-6, atol=0)


@pytest.mark.requirement("honest figures")
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_monai(monai_metrics, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(3, 20, size=3))
    spacing = tuple(float(s) for s in rng.uniform(0.4, 6.0, size=3))
    tolerance = float(rng.uniform(0.3, 5.0))
    a, b = blob(rng, shape), blob(rng, shape)
    found = measure(a, b, grid(shape, spacing), tolerance)
    ours = [torch.from_numpy(m)[None, None] for m in (a, b)]
    peer = monai_metrics.compute_surface_dice(
        *ours, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
    )
    assert found.surface_dice == pytest.approx(float(peer), abs=1e-5)
    peer = monai_metrics.compute_dice(*(m.float() for m in ours))
    assert found.dice == pytest.approx(float(peer), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_hd95_from_monai_surface_elements(monai_metrics, seed: int) -> None:
    """MONAI's distances and areas, and a percentile computed another way: by spreading the area."""
    rng = np.random.default_rng(100 + seed)
    shape, spacing = (9, 15, 17), tuple(float(s) for s in rng.uniform(0.5, 5.0, size=3))
    a, b = blob(rng, shape), blob(rng, shape)
    edges, distances, areas = monai_metrics.utils.get_edge_surface_distance(
        torch.from_numpy(a),
        torch.from_numpy(b),
        spacing=spacing,
        use_subvoxels=True,
        symmetric=True,
    )
    ways = []
    for edge, distance, area in zip(edges, distances, areas, strict=True):
        grains = np.repeat(distance.numpy(), np.round(area[edge].numpy() * 2000).astype(int))
        ways.append(np.quantile(grains, 0.95))
    assert hd95_mm(a, b, grid(shape, spacing)) == pytest.approx(max(ways), abs=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_hd_near_monai_voxel_hausdorff(monai_metrics, seed: int) -> None:
    """MONAI's own HD counts edge voxels' centres: within a voxel's diagonal of ours."""
    rng = np.random.default_rng(200 + seed)
    shape, spacing = (9, 15, 17), (3.0, 0.8, 0.7)
    a, b = blob(rng, shape), blob(rng, shape)
    peer = monai_metrics.compute_hausdorff_distance(
        *(torch.from_numpy(m)[None, None] for m in (a, b)), include_background=True, spacing=spacing
    )
    whole = surface_distances(a, b, grid(shape, spacing)).percentile_mm(100)
    assert whole == pytest.approx(float(peer), abs=math.dist((0, 0, 0), spacing))
