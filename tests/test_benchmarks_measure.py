"""What is true of digital patients without labels: surfaces between voxels, and thin parenchyma."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from drawn_truth import SIGNS, Shares, Surface, contact_cm2, diameters_mm, part_inside
from kidseg.config import PhantomConfig
from kidseg.metrics import union_box
from kidseg.phantom import draw_patient

FINE_MM = 0.8
KIDNEY_MM, TUMOUR_MM, APART_MM = 20.0, 19.0, 0.8


def ball(radius_mm: float, up_mm: float = 0.0) -> np.ndarray:
    """Shares of voxels of `FINE_MM` around the middle, as they are painted."""
    z, y, x = (np.indices((61, 57, 59)).T - [30, 28, 29]).T * FINE_MM
    away_mm = np.sqrt((z - up_mm) ** 2 + y**2 + x**2)
    width_mm = FINE_MM * (abs(z - up_mm) + abs(y) + abs(x)) / np.maximum(away_mm, 0.1)
    share = 0.5 + (radius_mm - away_mm) / np.maximum(width_mm, 0.1)
    return np.clip(share, 0, 1).astype(np.float32)


def test_diameters_of_parenchyma_thinner_than_a_voxel() -> None:
    """A ball in a ball: a shell that is 0.2 mm thick above and 1.8 mm below."""
    kidney, tumour = ball(KIDNEY_MM), ball(TUMOUR_MM, APART_MM)
    surface = Surface.of([kidney, 1 - tumour], FINE_MM, most_mm=3.0)
    assert diameters_mm(surface.index, FINE_MM) == pytest.approx(
        {"longest diameter": 40, "longest axial diameter": 40, "height": 40}, abs=0.2
    )
    # As thick as 1 mm + 0.8 mm times the cosine of the angle from below, so up to 60 degrees; and
    # 0.1 mm are 2.5 mm of that angle.
    thick = surface.index[surface.thickness_mm >= 1.4]
    sine = np.sqrt(3) / 2
    assert diameters_mm(thick, FINE_MM) == pytest.approx(
        {"longest diameter": 40 * sine, "longest axial diameter": 40 * sine, "height": 10}, abs=2.5
    )
    assert np.allclose(np.linalg.norm(surface.inward, axis=1), 1)
    assert surface.thickness_mm.max() == pytest.approx(1.8, abs=0.2)
    assert surface.thickness_mm.min() == pytest.approx(0.2, abs=0.15)


def test_a_surface_of_one_structure_is_between_voxels() -> None:
    surface = Surface.of([ball(11.3)], FINE_MM, most_mm=1.0)
    away = np.linalg.norm((surface.index - [30, 28, 29]) * FINE_MM, axis=1)
    assert away == pytest.approx(11.3, abs=0.1)
    assert surface.thickness_mm == pytest.approx(1.0, abs=0.11)


def test_the_contact_in_front_of_so_much_parenchyma() -> None:
    whole = 4 * np.pi * TUMOUR_MM**2 / 100
    kidney, tumour = ball(KIDNEY_MM), ball(TUMOUR_MM, APART_MM)
    every, half = contact_cm2(tumour, kidney, (0.0, 1.0))
    assert every == pytest.approx(whole, rel=0.01)
    assert half == pytest.approx(whole / 2, rel=0.1)
    assert contact_cm2(ball(5.0), 0 * kidney) == [0.0] * 5


def test_the_shares_of_a_digital_child_are_what_its_labels_come_from() -> None:
    """On any voxels: more than a half is the label, where no rule takes small pieces away."""
    drawn = draw_patient(replace(PhantomConfig(tumour_share=1.0), size=64), seed=3, index=1)
    grid = drawn.scanner.grid().with_spacing((5.0, 4.0, 4.0))
    shares = Shares.of(drawn, grid)
    (side,) = {tumour.side for tumour in drawn.anatomy.tumours}
    tumour = shares.tumour >= 0.5
    labels = drawn.rendered(grid).labels
    assert tumour.sum() * float(grid.voxel_ml) == pytest.approx(
        sum(each.volume_ml for each in drawn.anatomy.tumours), rel=0.05
    )
    found = np.where(tumour, 2, sum(shares.kidney[each] >= 0.5 for each in SIGNS))
    assert np.mean(found[labels > 0] == labels[labels > 0]) > 0.97, "all but vessels and pieces"
    assert np.mean(labels[found > 0] > 0) > 0.97
    scanner_x = grid.mm(np.argwhere(shares.kidney[side] >= 0.5).astype(float))[:, 0]
    middle = float(drawn.pose.scanner_from_anatomy()[0, 3])
    assert (np.median(scanner_x) > middle) == (side == "right")
    assert union_box(shares.kidney["left"] > 0) != union_box(shares.kidney["right"] > 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_part_of_a_triangle_where_a_function_is_positive(order: tuple[int, ...]) -> None:
    values = np.array([[1.0, -1, -1], [1, 1, -1], [1, 1, 1], [-1, -1, -1], [1, -3, -1]])
    assert part_inside(values[:, order]) == pytest.approx([0.25, 0.75, 1, 0, 0.125])
