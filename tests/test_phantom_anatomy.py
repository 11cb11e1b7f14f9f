"""Drawn children: sizes by age, forms by option and share, positions where organs belong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kidseg.phantom import growth
from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.child import (
    BILATERAL_SHARE,
    HORSESHOE_SHARE,
    SINGLE_KIDNEY_SHARE,
    draw_tumour_volume_ml,
)
from kidseg.phantom.people import draw_anatomy

AGES = (0.0, 0.5, 2.0, 6.0, 16.0)


def children(count: int, age: float, **options: str) -> list[Anatomy]:
    rng = np.random.default_rng(int(10 * age) + 1)
    return [draw_anatomy(rng, age, **options) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("age", AGES)
def test_kidney_lengths_follow_growth_within_their_spread(age: float) -> None:
    lengths = np.array(
        [
            k.length_mm
            for c in children(120, age, tumour="none", kidneys="separate")
            for k in c.kidneys
        ]
    )
    sd = np.interp(age, growth.CHILD_AGES_YEARS, growth.KIDNEY_LENGTH_SD_MM)
    assert lengths.mean() == pytest.approx(growth.kidney_length_mm(age), abs=0.4 * sd)
    assert lengths.std() == pytest.approx(sd, rel=0.25)


@pytest.mark.parametrize("age", AGES)
def test_bodies_follow_growth(age: float) -> None:
    drawn = children(120, age, tumour="none")
    diameters = np.array([c.effective_diameter_mm for c in drawn])
    assert np.median(diameters) == pytest.approx(growth.effective_diameter_mm(age), rel=0.02)
    assert all(c.lateral_mm > c.ap_mm for c in drawn)
    assert 0.03 < np.log(diameters).std() < 0.08


def test_scale_is_relative_to_two_years() -> None:
    scales = [c.body_scale for c in children(120, 2.0, tumour="none")]
    assert np.median(scales) == pytest.approx(1.0, abs=0.02)


def test_sides_and_sizes_are_not_alike() -> None:
    drawn = children(80, 3.0, tumour="none", kidneys="separate")
    gaps = np.array([c.kidneys[1].length_mm - c.kidneys[0].length_mm for c in drawn])
    assert (gaps != 0).all() and gaps.mean() > 0.3, "the left kidney is the longer one"
    lower = np.mean([c.kidneys[0].centre_mm[2] < c.kidneys[1].centre_mm[2] for c in drawn])
    assert lower > 0.9, "the right kidney lies lower"
    for child in drawn:
        right, left = child.kidneys
        assert right.side == "right" and right.centre_mm[0] > 0 > left.centre_mm[0]
        assert all(k.centre_mm[1] < 0 for k in child.kidneys), "behind the middle"


def test_forms_by_option() -> None:
    rng = np.random.default_rng(0)
    assert draw_anatomy(rng, 2.0, tumour="none").tumours == ()
    assert len(draw_anatomy(rng, 2.0, tumour="one-sided").tumours) == 1
    both = draw_anatomy(rng, 2.0, tumour="bilateral", kidneys="separate").tumours
    assert {t.side for t in both} == {"left", "right"}
    assert len(draw_anatomy(rng, 2.0, kidneys="single").kidneys) == 1
    joined = draw_anatomy(rng, 2.0, kidneys="horseshoe")
    assert joined.form == "horseshoe" and all(k.coronal_deg < 0 for k in joined.kidneys)


@pytest.mark.parametrize("age", [0.0, 4.0, 50.0])
def test_fused_kidneys_lie_on_one_side_and_meet(age: float) -> None:
    """The lower pole of the upper one lies in the lower one, along one axis, above the pelvis."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drawn = draw_anatomy(rng, age, tumour="bilateral", kidneys="fused", broad=seed % 2 == 0)
        upper, lower = drawn.kidneys
        assert upper.side == lower.side == "right" and drawn.form == "fused"
        apart = np.subtract(upper.centre_mm, lower.centre_mm)
        assert apart[2] > 0 and upper.centre_mm[0] > 0
        both = upper.length_mm + lower.length_mm
        assert np.linalg.norm(apart) == pytest.approx(0.4 * both), "a fifth overlaps"
        assert lower.centre_mm[2] - lower.length_mm / 2 > drawn.modelled_mm[0]
        assert len(drawn.tumours) >= 2 and {t.side for t in drawn.tumours} == {"right"}


@pytest.mark.parametrize("age", [0.0, 4.0, 50.0])
def test_without_kidneys_there_is_no_disease_of_them(age: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drawn = draw_anatomy(rng, age, tumour="bilateral", kidneys="absent", broad=seed % 2 == 0)
        assert drawn.kidneys == drawn.tumours == drawn.cysts == drawn.look.stones == ()


def test_forms_by_share() -> None:
    drawn = children(600, 3.0, tumour="none")
    for form, share in (("single", SINGLE_KIDNEY_SHARE), ("horseshoe", HORSESHOE_SHARE)):
        assert np.mean([c.form == form for c in drawn]) == pytest.approx(share, abs=0.02)
    assert 0.02 < BILATERAL_SHARE < 0.2


def test_tumour_volumes_are_log_normal_capped_and_smaller_in_babies() -> None:
    rng = np.random.default_rng(4)
    older = np.array([draw_tumour_volume_ml(rng, 4.0, 1e6) for _ in range(3000)])
    babies = np.array([draw_tumour_volume_ml(rng, 0.2, 1e6) for _ in range(3000)])
    assert 250 < np.median(older) < 400 and np.median(babies) < 0.6 * np.median(older)
    assert older.min() >= 10 and older.max() <= 1500
    assert max(draw_tumour_volume_ml(rng, 4.0, 200.0) for _ in range(300)) <= 200.0


@pytest.mark.parametrize("age", [-0.1, 90.5])
def test_ages_outside_the_range_are_refused(age: float) -> None:
    with pytest.raises(ValueError, match="not within 0 to 90"):
        draw_anatomy(np.random.default_rng(0), age)


def test_same_seed_same_child_and_plain_data() -> None:
    one, two = (draw_anatomy(np.random.default_rng(9), 1.5) for _ in range(2))
    assert one == two
    data = json.loads(json.dumps(one.as_dict()))
    assert data["kidneys"][0]["side"] == one.kidneys[0].side
    for kidney in one.kidneys:
        low = kidney.centre_mm[2] - kidney.length_mm / 2
        assert one.modelled_mm[0] < low < low + kidney.length_mm < one.modelled_mm[1]
    for tumour in one.tumours:
        reach = 1.05 * tumour.radius_mm * max(abs(z) + r for _, _, z, r in tumour.lobes)
        assert one.modelled_mm[0] < tumour.centre_mm[2] - reach
    assert one.crest_mm < 0 < one.dome_mm < one.modelled_mm[1]


def test_organ_numbers_fit_a_byte_and_names_are_unique() -> None:
    assert all(0 < number < 256 for number in ORGANS)
    assert len(set(ORGANS.values())) == len(ORGANS)
