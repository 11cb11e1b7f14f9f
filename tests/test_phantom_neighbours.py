"""What lies beside kidneys: who has what, where it is, and that labels of kidneys remain."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from anatomies import shown, without_and_with
from kidseg.phantom.adjacent import Neighbours, Nodule
from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.mass import draw_mass
from kidseg.phantom.neighbours import with_neighbours
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.render import KIDNEY, TUMOUR, Rendering

STEP_MM = 4.0
SEEDS = range(30)
NUMBER = {name: number for number, name in ORGANS.items()}


@cache
def person(age: float = 60.0) -> Anatomy:
    rng = np.random.default_rng(4)
    return draw_anatomy(rng, age, tumour="none", kidneys="separate", broad=True)


@cache
def drawn(age: float = 60.0) -> tuple[Anatomy, ...]:
    return tuple(with_neighbours(np.random.default_rng(k), person(age)) for k in SEEDS)


@cache
def plain() -> Rendering:
    return shown(person(), STEP_MM)


@pytest.mark.ci
def test_without_the_setting_nobody_changes_and_with_it_only_neighbours_and_tumours() -> None:
    for before, after in without_and_with("neighbour_share"):
        assert before.neighbours is None and after.neighbours is not None
        assert replace(after, neighbours=None, tumours=before.tumours) == before


@pytest.mark.ci
def test_neighbours_without_anything_change_no_bit_but_the_bowel() -> None:
    """The hollow, the glands and the order of painting are as before."""
    empty = shown(replace(person(), neighbours=Neighbours()), STEP_MM)
    assert np.array_equal(empty.labels, plain().labels)
    bowel = np.isin(plain().organs, [NUMBER["small bowel"]])
    near = np.zeros_like(bowel)
    for axis in range(3):
        for way in (-1, 1):
            near |= np.roll(bowel, way, axis)
    far = ~(bowel | near)
    assert np.array_equal(empty.organs[far], plain().organs[far])


@pytest.mark.parametrize("age", [1.0, 60.0])
def test_each_kind_occurs_and_each_is_missing_in_some(age: float) -> None:
    found: dict[str, int] = {}
    for anatomy in drawn(age):
        neighbours = anatomy.neighbours
        assert neighbours is not None
        kinds = {part.organ for part in neighbours.extensions}
        kinds |= {f"nodule of {nodule.organ}" for nodule in neighbours.nodules}
        kinds |= {"duodenum"} if neighbours.duodenum else set()
        kinds |= {"jejunum"} if neighbours.jejunum else set()
        kinds |= {"gonadal veins"} if neighbours.gonadal_mm else set()
        kinds |= {"thick adrenals"} if neighbours.adrenals[0] > 1 else set()
        for kind in kinds:
            found[kind] = found.get(kind, 0) + 1
    assert len(found) == 10
    assert all(0 < count < len(SEEDS) for count in found.values())


def test_parts_lie_on_their_side_and_nodules_where_they_belong() -> None:
    centre = {kidney.side: np.array(kidney.centre_mm) for kidney in person().kidneys}
    for anatomy in drawn():
        assert anatomy.neighbours is not None
        body = anatomy.body
        for part in anatomy.neighbours.extensions:
            x, _, z = np.array(part.points_mm).T
            assert (x > 0).all() if part.organ == "liver" else (x < 0).all()
            if part.organ in ("liver", "spleen"):
                side = "right" if part.organ == "liver" else "left"
                assert (np.abs(x) > abs(centre[side][0])).all(), "lateral of the kidney"
                assert z[-1] < centre[side][2] < z[0] and z[-1] >= anatomy.crest_mm - 1
                assert part.radii_mm[-1] < 0.6 * part.radii_mm[0], "tapered"
        for nodule in anatomy.neighbours.nodules:
            if nodule.organ == "adrenal":
                side = "right" if nodule.centre_mm[0] > 0 else "left"
                away = np.array(nodule.centre_mm) - centre[side]
                assert away[2] > 0 and abs(nodule.centre_mm[0]) < abs(centre[side][0])
                assert nodule.centre_mm[2] < anatomy.dome_mm
            if nodule.organ == "lymph node":
                assert abs(nodule.centre_mm[0]) < 1.5 * body.vertebra_mm


def test_an_adrenal_mass_is_no_tumour_and_no_kidney_and_is_there() -> None:
    pole = Frame.of(person().kidneys[0]).anatomy_mm(0.0, 0.0, 1.0)
    x, y, z = (float(v) for v in pole + np.array([0.0, 30.0, 30.0]))
    mass = Nodule(organ="adrenal", centre_mm=(x, y, z), half_mm=(18.0,) * 3, plain_hu=40.0)
    anatomy = replace(person(), neighbours=Neighbours(nodules=(mass,)))
    with_mass = shown(anatomy, STEP_MM)
    assert not (with_mass.labels == TUMOUR).any()
    assert np.array_equal(with_mass.labels, plain().labels)
    more = (with_mass.organs == NUMBER["adrenal"]) & (plain().organs != NUMBER["adrenal"])
    # The wall of the abdomen may cut it.
    assert 0.6 < more.sum() * STEP_MM**3 / (4 / 3 * np.pi * 18.0**3) < 1.1


@pytest.mark.ci
def test_rendered_neighbours_keep_the_kidneys_and_stay_in_the_abdomen() -> None:
    changed: set[int] = set()
    for anatomy in drawn()[:4]:
        rendering = shown(anatomy, STEP_MM)
        kidney = plain().labels == KIDNEY
        kept = (rendering.labels == KIDNEY)[kidney].mean()
        assert kept > 0.99 and (rendering.labels == KIDNEY).sum() < 1.01 * kidney.sum()
        new = rendering.organs != plain().organs
        wall = [NUMBER[name] for name in ("skin", "muscle", "spine", "ribs", "lung")]
        assert np.isin(plain().organs[new], wall).mean() < 0.02
        changed |= set(np.unique(rendering.organs[new]))
    assert {NUMBER[name] for name in ("liver", "small bowel", "adrenal", "spleen")} <= changed


@pytest.mark.ci
def test_outgrown_tumours_reach_beyond_the_upper_pole_or_the_front() -> None:
    moved = 0
    kidney = person().kidneys[0]
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        mass = draw_mass(rng, person().body, kidney, 60.0)
        after = with_neighbours(rng, replace(person(), tumours=(mass,))).tumours[0]
        assert after.volume_ml == mass.volume_ml
        if after == mass:
            continue
        moved += 1
        frame = Frame.of(kidney)
        local = frame.axes @ (np.array(after.centre_mm) - frame.centre) / frame.half
        assert np.linalg.norm(local) > 1.0, "the centre is outside the kidney"
        assert local[2] > 0.3 or local[1] > 0.8
    assert 8 <= moved <= 22
