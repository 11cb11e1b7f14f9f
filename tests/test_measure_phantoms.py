"""Measures of digital children against the same children in voxels of half the spacing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kidseg.geometry import Grid
from kidseg.measure.contact import contact_area
from kidseg.measure.diameters import measure_diameters
from kidseg.measure.mask import Mask
from kidseg.phantom.anatomy import Anatomy
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.posture import Pose
from kidseg.phantom.render import KIDNEY, TUMOUR, render
from kidseg.phantom.tumour import resized

Labelled = tuple[Mask, Mask]


def child(seed: int, age_years: float, tumour_ml: float | None = None) -> Anatomy:
    """With a tumour in one kidney, of the volume that was drawn, or of this one."""
    found = draw_anatomy(
        np.random.default_rng(seed), age_years, tumour="one-sided", kidneys="separate"
    )
    if tumour_ml is None:
        return found
    tumours = tuple(resized(each, found.body, tumour_ml) for each in found.tumours)
    return replace(found, tumours=tumours)


def region(anatomy: Anatomy, spacing_mm: tuple[float, ...]) -> Grid:
    """Voxels around the kidney with the tumour."""
    (tumour,) = anatomy.tumours
    (kidney,) = (each for each in anatomy.kidneys if each.side == tumour.side)
    reach = 1.35 * tumour.radius_mm + 6
    half = np.array([kidney.width_mm, kidney.width_mm, kidney.length_mm]) / 2 + 14
    places = np.array([tumour.centre_mm, kidney.centre_mm])
    low = np.minimum(places[0] - reach, places[1] - half)
    high = np.maximum(places[0] + reach, places[1] + half)
    if tumour.side == "right":
        low[0] = max(low[0], min(0.0, places[0, 0] - reach))
    else:
        high[0] = min(high[0], max(0.0, places[0, 0] + reach))
    shape = np.ceil((high - low)[::-1] / spacing_mm).astype(int)
    return Grid.from_spacing(shape.tolist(), spacing_mm, tuple((low + high) / 2))


def halved(grid: Grid) -> Grid:
    """The same extent in voxels of half the spacing."""
    spacing = [float(step) / 2 for step in grid.spacing_mm]
    return grid.with_spacing(spacing)


def labelled(anatomy: Anatomy, grid: Grid) -> Labelled:
    """The tumour and its kidney, as the phantom labels them on these voxels."""
    made = render(anatomy, Pose(), grid, "portal-venous", np.random.default_rng(0)).labels
    assert not (made[[0, -1]] == TUMOUR).any() and not (made[:, [0, -1]] == TUMOUR).any()
    tumour, kidney = (Mask(made == label, grid).cropped()[0] for label in (TUMOUR, KIDNEY))
    return tumour, kidney


def assert_sizes_agree(coarse: Labelled, fine: Labelled) -> None:
    """Volumes within 2 %, diameters within one voxel.

    Not the width across the longest axial diameter: in a crescent, the direction of that may change
    with any voxel.
    """
    for one, true in zip(coarse, fine, strict=True):
        assert one.volume_ml == pytest.approx(true.volume_ml, rel=0.02)
        slice_mm, *pixels_mm = np.linalg.norm(one.linear, axis=0)
        found, wanted = measure_diameters(one), measure_diameters(true)
        assert found.longest_mm == pytest.approx(wanted.longest_mm, abs=slice_mm)
        assert found.axial_mm == pytest.approx(wanted.axial_mm, abs=max(slice_mm, *pixels_mm))
        assert found.height_mm == pytest.approx(wanted.height_mm, abs=slice_mm)


def test_sizes_of_a_small_child_are_those_in_finer_voxels() -> None:
    anatomy = child(6, 0.1, tumour_ml=25.0)
    grid = region(anatomy, (2.5, 1.3, 1.3))
    coarse, fine = labelled(anatomy, grid), labelled(anatomy, halved(grid))
    assert fine[0].volume_ml == pytest.approx(25, rel=0.05) and fine[1].volume_ml > 5
    assert_sizes_agree(coarse, fine)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "age_years"), [(0, 0.5), (1, 2.0), (3, 4.0), (4, 6.0)])
def test_measures_at_usual_spacing_are_those_at_half_of_it(seed: int, age_years: float) -> None:
    """Contact: a crescent of parenchyma thinner than a pixel is not labelled; docs/measure.md."""
    anatomy = child(seed, age_years)
    grid = region(anatomy, (2.0, 0.8, 0.8))
    coarse, fine = labelled(anatomy, grid), labelled(anatomy, halved(grid))
    assert_sizes_agree(coarse, fine)
    area, true = contact_area(*coarse), contact_area(*fine).value
    assert area.low is not None and area.high is not None
    assert area.low < true < area.high
    assert area.value == pytest.approx(true, rel=0.1)
