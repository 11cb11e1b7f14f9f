"""Polygons: pixels and areas by the even-odd rule, against matplotlib, the shoelace and by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from kidseg.io.polygons import area_inside, filled

SHAPE = (14, 17)
SQUARE = np.array([[1.5, 1.5], [1.5, 8.5], [8.5, 8.5], [8.5, 1.5]])


def star(seed: int, points: int = 12, centre: tuple[float, float] = (6.3, 8.1)) -> np.ndarray:
    """A polygon that does not cross itself, around a centre, with corners at any places."""
    random = np.random.default_rng(seed)
    angles = (np.arange(points) + random.uniform(0, 0.8, points)) * 2 * np.pi / points
    radii = random.uniform(1.0, 7.0, points)
    return np.array(centre) + np.column_stack([np.sin(angles), np.cos(angles)]) * radii[:, None]


def shoelace(polygon: np.ndarray) -> float:
    row, column = polygon.T
    return abs(float(row @ np.roll(column, -1) - column @ np.roll(row, -1))) / 2


def peer(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    centres = np.column_stack([one.ravel() for one in np.indices(shape)])
    inside = np.zeros(len(centres), bool)
    for polygon in polygons:
        inside ^= Polygon(np.vstack([polygon, polygon[:1]])).contains_points(centres)
    return inside.reshape(shape)


def on_edge(polygons: list[np.ndarray], shape: tuple[int, int], within: float) -> np.ndarray:
    """Centres this close to an edge, by distances to segments."""
    centres = np.moveaxis(np.indices(shape).astype(float), 0, -1)
    near = np.zeros(shape, bool)
    for polygon in polygons:
        for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            long = float((b - a) @ (b - a)) or 1.0
            share = np.clip((centres - a) @ (b - a) / long, 0, 1)[..., None]
            near |= np.linalg.norm(centres - a - share * (b - a), axis=-1) <= within
    return near


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_pixels_are_those_that_matplotlib_finds(seed: int, count: int) -> None:
    polygons = [star(seed + k, 5 + (seed + 5 * k) % 20) for k in range(count)]
    clear = ~on_edge(polygons, SHAPE, 0.03)
    assert np.array_equal(filled(polygons, SHAPE)[clear], peer(polygons, SHAPE)[clear])


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_area_is_the_shoelace_formula(seed: int) -> None:
    polygon = star(seed, 5 + seed % 30)
    assert np.isclose(area_inside([polygon]), shoelace(polygon), rtol=1e-9)
    assert np.isclose(area_inside([polygon[::-1] + 100.0]), shoelace(polygon), rtol=1e-9)


def test_an_inner_polygon_is_a_hole_and_one_in_it_an_island() -> None:
    hole, island = (SQUARE - 5) * 0.6 + 5, (SQUARE - 5) * 0.3 + 5
    assert np.isclose(area_inside([SQUARE]), 49)
    assert np.isclose(area_inside([SQUARE, hole]), 49 * (1 - 0.36))
    assert np.isclose(area_inside([hole, island, SQUARE]), 49 * (1 - 0.36 + 0.09))
    inside = filled([SQUARE, hole, island], SHAPE)
    assert not inside[3, 3:8].any() and inside[5, 5] and inside[2, 2:9].all()


def test_a_channel_without_width_has_no_effect() -> None:
    """Along a slope, whose crossings are rounded differently from either end without care."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        hole = (SQUARE - 5) * 0.4 + 5 + random.uniform(-0.4, 0.4, (1, 2))
        corner, inner = int(random.integers(4)), int(random.integers(4))
        hole = np.roll(hole[::-1], inner, axis=0)
        outer = np.roll(SQUARE, -corner, axis=0)
        keyhole = np.vstack([outer, outer[:1], hole, hole[:1]])
        assert np.isclose(area_inside([keyhole]), area_inside([SQUARE, hole]))
        channel = np.vstack([outer[:1], hole[:1]])
        clear = ~on_edge([channel], SHAPE, 0.02)
        both = filled([SQUARE, hole], SHAPE)
        assert np.array_equal(filled([keyhole], SHAPE)[clear], both[clear])


def test_a_centre_on_a_polygon_is_inside() -> None:
    whole = np.array([[2.0, 3.0], [2.0, 7.0], [6.0, 7.0], [6.0, 3.0]])
    expected = np.zeros(SHAPE, bool)
    expected[2:7, 3:8] = True
    for polygon in (whole, whole[::-1], whole + 0.006, whole - 0.006):
        assert np.array_equal(filled([polygon], SHAPE), expected), "as rounded in a file"
    assert filled([whole + 0.02], SHAPE).sum() == 16, "no longer on it"
    diagonal = np.array([[1.0, 5.0], [5.0, 9.0], [9.0, 5.0], [5.0, 1.0]])
    assert filled([diagonal], SHAPE).sum() == 41
    line = np.array([[4.0, 2.0], [4.0, 9.0], [4.0, 5.0]])
    assert filled([line], SHAPE).sum() == 8


def test_what_is_outside_is_cut_off() -> None:
    inside = filled([SQUARE * 100 - 300], SHAPE)
    assert inside.all()
    assert not filled([SQUARE + 50], SHAPE).any() and not filled([SQUARE - 50], SHAPE).any()
    assert filled([SQUARE - 4], SHAPE).sum() == 25
    assert not filled([], SHAPE).any() and area_inside([]) == 0
    assert area_inside([SQUARE[:1]]) == 0


def test_a_polygon_of_very_many_points_needs_little_memory() -> None:
    angles = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    circle = 40 + 30 * np.column_stack([np.sin(angles), np.cos(angles)])
    assert np.isclose(area_inside([circle]), np.pi * 900, rtol=1e-5)
    assert abs(filled([circle], (80, 80)).sum() / (np.pi * 900) - 1) < 0.01
