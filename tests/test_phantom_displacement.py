"""Kidneys that a tumour moves as a whole: where they come to lie, and what moves with them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from anatomies import shown
from kidseg.config import PhantomConfig
from kidseg.phantom import make_patient
from kidseg.phantom.anatomy import Anatomy, Cyst, Kidney, Stone
from kidseg.phantom.displacement import SMALLEST_RADIUS, displaced
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.mass import draw_mass
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.render import KIDNEY, TUMOUR
from kidseg.phantom.surfaces import cavity, spine_clearance

STEP_MM = 3.0
SEEDS = tuple(range(12))
FAR_MM = 6.0
"""Two voxels: a distance at which two things in a scan no longer touch."""


@cache
def adult(seed: int, volume_ml: float = 150.0) -> Anatomy:
    """An adult with a mass in the right kidney, and a cyst and a stone in it."""
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng, 60.0, tumour="none", kidneys="separate", broad=True)
    kidney = right_of(anatomy)
    frame = Frame.of(kidney)
    x, y, z = (float(v) for v in frame.anatomy_mm(0.5, 0.0, 0.5))
    return replace(
        anatomy,
        tumours=(draw_mass(rng, anatomy.body, kidney, volume_ml),),
        cysts=(Cyst(side="right", centre_mm=(x, y, z), radius_mm=8.0),),
        look=replace(
            anatomy.look,
            stones=(Stone(centre_mm=(x, y, z), half_mm=(2.0, 2.0, 2.0), hu=900.0),),
        ),
    )


@cache
def moved(seed: int) -> Anatomy:
    return displaced(np.random.default_rng(seed), adult(seed))


def right_of(anatomy: Anatomy) -> Kidney:
    return next(kidney for kidney in anatomy.kidneys if kidney.side == "right")


@pytest.mark.ci
def test_most_kidneys_find_a_place_and_it_is_forwards() -> None:
    old = np.array([right_of(adult(seed)).centre_mm for seed in SEEDS])
    new = np.array([right_of(moved(seed)).centre_mm for seed in SEEDS])
    assert (np.abs(new - old).max(axis=1) > 10).sum() >= 10
    forwards = (new - old)[:, 1]
    assert np.median(forwards) > 15


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kidney_stays_in_the_cavity_on_its_side_beside_the_spine(seed: int) -> None:
    anatomy = moved(seed)
    x, y, _ = (torch.tensor(v) for v in right_of(anatomy).centre_mm)
    assert x > 0 and cavity(anatomy.body, x, y) < 0.8
    assert spine_clearance(anatomy.body, x, y) > 0


@pytest.mark.ci
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_kidney_and_tumour_touch_and_the_kidney_is_not_spread_out(seed: int) -> None:
    anatomy = moved(seed)
    labels = shown(anatomy, STEP_MM).labels
    halves = np.array_split(labels, 2, axis=2)
    healthy, ill = sorted(halves, key=lambda half: np.count_nonzero(half == TUMOUR))
    away_mm = ndimage.distance_transform_edt(ill != TUMOUR) * STEP_MM
    assert away_mm[ill == KIDNEY].min() < FAR_MM
    assert (ill == TUMOUR).sum() * STEP_MM**3 / 1000 == pytest.approx(150.0, rel=0.25)
    # Half the thickness of the parenchyma: its deepest point.
    deepest, other = (
        (ndimage.distance_transform_edt(half == KIDNEY)).max() for half in (ill, healthy)
    )
    assert deepest > 0.5 * other


def test_what_is_in_the_kidney_moves_with_it() -> None:
    before, after = adult(0), moved(0)
    old, new = Frame.of(right_of(before)), Frame.of(right_of(after))
    for place, there in (
        (before.cysts[0].centre_mm, after.cysts[0].centre_mm),
        (before.look.stones[0].centre_mm, after.look.stones[0].centre_mm),
    ):
        local = old.axes @ (np.asarray(place) - old.centre)
        np.testing.assert_allclose(new.axes @ (np.asarray(there) - new.centre), local, atol=1e-6)
        assert place != there


def test_the_rest_of_the_person_is_the_same() -> None:
    before, after = adult(0), moved(0)
    assert after.body == before.body and after.viscera == before.viscera
    left = [kidney for kidney in before.kidneys if kidney.side == "left"]
    assert [kidney for kidney in after.kidneys if kidney.side == "left"] == left
    assert after.tumours[0].volume_ml == before.tumours[0].volume_ml
    sizes = ("length_mm", "width_mm", "thickness_mm", "bend", "sinus")
    assert all(getattr(right_of(after), s) == getattr(right_of(before), s) for s in sizes)


def test_small_joined_and_several_leave_the_kidney_where_it_is() -> None:
    rng = np.random.default_rng(0)
    small = adult(0, 4.0)
    assert small.tumours[0].radius_mm < SMALLEST_RADIUS * right_of(small).length_mm
    assert displaced(rng, small) == small
    joined = replace(adult(0), form="horseshoe")
    assert displaced(rng, joined) == joined
    several = replace(adult(0), tumours=adult(0).tumours * 2)
    assert displaced(rng, several) == several
    healthy = replace(adult(0), tumours=())
    assert displaced(rng, healthy) == healthy


def test_a_kidney_without_room_stays() -> None:
    anatomy = adult(0)
    body = replace(anatomy.body, dome_right_mm=-500.0, dome_left_mm=-500.0)
    crowded = replace(anatomy, body=body)
    assert displaced(np.random.default_rng(0), crowded) == crowded


@pytest.mark.ci
def test_only_the_share_is_moved() -> None:
    config = PhantomConfig(size=32, slice_mm=(5.0, 5.0), ages_years=(3.0, 3.0))
    without, everyone = (
        make_patient(replace(config, displaced_share=share), seed=5, index=4) for share in (0, 1)
    )
    plain = make_patient(config, seed=5, index=4)
    assert torch.equal(without.scan.data, plain.scan.data)
    same, other = without.truth["anatomy"], everyone.truth["anatomy"]
    assert same["kidneys"] != other["kidneys"]
    assert same["body"] == other["body"] and same["viscera"] == other["viscera"]


def test_two_timepoints_are_refused() -> None:
    with pytest.raises(ValueError, match="displaced_share is for one timepoint"):
        PhantomConfig(timepoints=2, displaced_share=0.5)
