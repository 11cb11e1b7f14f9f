"""The R.E.N.A.L. score of blocks and balls whose points are known by hand."""

from __future__ import annotations

import pytest
import torch

from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.measure.criteria import read_criteria
from kidseg.measure.diameters import longest_mm, surface_mm
from kidseg.measure.mask import moved_contours
from kidseg.measure.measurement import Structure, measure_parts
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.quantity import spanned
from kidseg.measure.renal_score import score_renal
from kidseg.measure.sizes import LONGEST
from solids import ball, oblique

CRITERIA = read_criteria()

# The kidney is a block of 90 x 24 x 24 mm: 45 slices of 2 mm, so that its polar lines are 15 slices
# from either end, between slices 19 and 20, and 34 and 35; the middle is slice 27.
GRID = Grid.from_spacing((60, 60, 140), (2.0, 1.0, 1.0))
KIDNEY = (slice(5, 50), slice(10, 34), slice(10, 34))
BESIDE = slice(34, 44)  # columns


def tumour_of(slices: slice, columns: slice) -> Structure:
    """A block of tumour in or beside the kidney, and what is measured of it."""
    data = torch.zeros((1, *GRID.shape), dtype=torch.uint8)
    data[(0, *KIDNEY)] = 1
    data[0, slices, 14:30, columns] = 2
    labelled = Labelled(
        labels=Volume(data, GRID), schema=KIDNEY_TUMOUR, midline=Midline.at(0.0, "body")
    )
    parts = find_parts(labelled, 0.1)
    found = measure_parts(labelled, parts, CRITERIA, person=Patient(), margin_mm=5.0, entered={})
    (tumour,) = found.tumours
    return tumour


@pytest.mark.parametrize(
    ("diameter_mm", "voxel_mm", "points"),
    [
        (38, 0.45, (1,)),
        pytest.param(39, 0.3, (1,), marks=pytest.mark.slow),
        (39, 1.0, (1, 2)),  # with a voxel more it is beyond 4 cm
        (55, 1.5, (2,)),
        (69, 1.5, (2, 3)),
        (75, 1.5, (3,)),
    ],
)
def test_r_is_the_longest_diameter(
    diameter_mm: float, voxel_mm: float, points: tuple[int, ...]
) -> None:
    (tumour,) = ball(oblique(diameter_mm / 2, (voxel_mm,) * 3, 3), diameter_mm / 2).cropped()
    value, *moved = (longest_mm(surface_mm(each)) for each in (tumour, *moved_contours(tumour)))
    longest = {LONGEST: spanned(LONGEST, "mm", value, moved)}
    score = score_renal(longest, tumour, None, CRITERIA.renal, CRITERIA.settings)
    assert score["R"].points == points and score["R"].is_known is (len(points) == 1)


@pytest.mark.parametrize(
    ("inside", "share", "points"),
    [
        (22, 0.0, (3,)),  # wholly in the kidney, 2 mm below its surface
        (14, 30.0, (2,)),
        (10, 50.0, (1, 2)),  # half in it: more or less than a half, as the contour is
        (6, 70.0, (1,)),
        (0, 100.0, (1,)),
    ],
)
def test_e_is_the_part_outside_of_the_kidney(
    inside: int, share: float, points: tuple[int, ...]
) -> None:
    start = KIDNEY[2].stop - inside
    tumour = tumour_of(slice(20, 30), slice(start, start + 20))
    found = tumour.quantity("exophytic share")
    assert found is not None and found.value == pytest.approx(share)
    assert tumour.renal_score["E"].points == points


@pytest.mark.parametrize(
    ("slices", "points"),
    [
        (slice(37, 46), (1,)),  # in the upper pole
        (slice(8, 17), (1,)),  # in the lower one
        (slice(35, 44), (1, 2)),  # up to the line: with a voxel more beyond it
        (slice(31, 46), (2,)),  # across a line, less than half of it between both
        (slice(30, 37), (3,)),  # across a line, more than half of it between both
        (slice(29, 33), (3,)),  # wholly between both, above the middle
        (slice(25, 46), (3,)),  # over the middle, most of it beyond the line
    ],
)
def test_l_is_the_place_between_the_polar_lines(slices: slice, points: tuple[int, ...]) -> None:
    assert tumour_of(slices, BESIDE).renal_score["L"].points == points


def test_what_needs_the_sinus_or_the_vessels_cannot_be_told() -> None:
    score = tumour_of(slice(20, 30), BESIDE).as_dict()["renal_score"]
    assert list(score) == ["R", "E", "N", "A", "L", "hilar suffix"]
    for name in ("N", "A", "hilar suffix"):
        assert score[name]["points"] == [] and "not labelled" in score[name]["reason"]
