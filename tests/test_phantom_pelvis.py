"""The pelvis: its organs lie and look as they should, and nothing above it changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from kidseg.config import PhantomConfig, Phase
from kidseg.geometry import Grid
from kidseg.phantom import make_patient
from kidseg.phantom.anatomy import ORGANS, Anatomy, Pelvis
from kidseg.phantom.pelvic_organs import draw_pelvis
from kidseg.phantom.pelvis import hip_centre_mm, sacrum_front_mm, symphysis_mm
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.posture import Pose
from kidseg.phantom.render import Rendering, render

NUMBER = {name: number for number, name in ORGANS.items()}
STEP_MM = 4.0


def person(sex: str, *, seed: int = 0, age: float = 40.0, **changes: object) -> Anatomy:
    rng = np.random.default_rng(seed)
    while True:
        anatomy = draw_anatomy(rng, age, tumour="none", kidneys="separate", broad=True)
        if anatomy.sex == sex:
            pelvis = draw_pelvis(rng, anatomy)
            return replace(anatomy, pelvis=replace(pelvis, **changes))  # type: ignore[arg-type]


def grid_of(anatomy: Anatomy) -> Grid:
    """From below the pelvic floor to the crest."""
    low, high = anatomy.modelled_mm[0], anatomy.crest_mm
    side = int(1.3 * anatomy.lateral_mm / STEP_MM)
    shape = (int((high - low) / STEP_MM), side, side)
    return Grid.from_spacing(shape, (STEP_MM,) * 3, (0.0, 0.0, (low + high) / 2))


def shown(anatomy: Anatomy, phase: Phase = "portal-venous") -> Rendering:
    return render(anatomy, Pose(), grid_of(anatomy), phase, np.random.default_rng(1))


@cache
def woman() -> tuple[Anatomy, Rendering]:
    anatomy = person("female", uterus_mm=70.0, ovarian_mm=(25.0, 0.0), bladder_ml=180.0)
    return anatomy, shown(anatomy)


@cache
def man(phase: Phase = "portal-venous") -> tuple[Anatomy, Rendering]:
    anatomy = person("male", bladder_ml=300.0, urine_level=0.5, urine_hu=0.0)
    return anatomy, shown(anatomy, phase)


def volume_ml(rendering: Rendering, name: str) -> float:
    return float((rendering.organs == NUMBER[name]).sum()) * STEP_MM**3 / 1000


def middle_mm(anatomy: Anatomy, rendering: Rendering, name: str, side: int = 0) -> np.ndarray:
    """Centre of an organ (x, y, z); side 1 or -1: only its right or left half."""
    places = grid_of(anatomy).mm(np.argwhere(rendering.organs == NUMBER[name]).astype(float))
    found = places.numpy()
    return np.asarray(found[found[:, 0] * side >= 0].mean(axis=0))


@pytest.mark.ci
def test_organs_are_those_of_the_sex_and_no_kidney_is_among_them() -> None:
    for (anatomy, rendering), there, missing in (
        (woman(), {"uterus", "ovary"}, {"prostate"}),
        (man(), {"prostate"}, {"uterus", "ovary"}),
    ):
        names = {ORGANS[n] for n in np.unique(rendering.organs) if n}
        assert names >= there | {"bladder", "femur", "pelvis", "colon", "other vessels", "muscle"}
        assert not names & missing and not rendering.labels.any()
        assert anatomy.pelvis is not None


def test_organs_lie_where_they_belong() -> None:
    anatomy, rendering = man()
    head = hip_centre_mm(anatomy.body)
    right = middle_mm(anatomy, rendering, "femur", 1)
    left = middle_mm(anatomy, rendering, "femur", -1)
    np.testing.assert_allclose(right * (-1, 1, 1), left, atol=6.0)
    assert right[0] > head[0] and right[2] < head[2], "head, neck and shaft lead out and down"
    bladder, prostate = (middle_mm(anatomy, rendering, name) for name in ("bladder", "prostate"))
    assert abs(bladder[0]) < 6 and prostate[2] < bladder[2]
    front = symphysis_mm(anatomy.body)[0]
    assert sacrum_front_mm(anatomy.body, 6.0) < bladder[1] < front
    anatomy, rendering = woman()
    uterus, bladder = (middle_mm(anatomy, rendering, name) for name in ("uterus", "bladder"))
    assert uterus[1] < bladder[1] and middle_mm(anatomy, rendering, "ovary")[0] > 0


def test_the_bladder_has_its_volume() -> None:
    for anatomy, rendering in (woman(), man()):
        assert anatomy.pelvis is not None
        wall = volume_ml(rendering, "bladder") / anatomy.pelvis.bladder_ml
        assert 0.75 < wall < 1.15  # drawn smaller where the walls of the pelvis press on it


def test_contrast_agent_lies_below_urine() -> None:
    _, rendering = man("excretory")
    bladder = rendering.organs == NUMBER["bladder"]
    rows = np.argwhere(bladder)[:, 1]
    middle = int(np.median(rows))
    inside = bladder & (np.abs(rendering.hu - 15) < 400)
    front = rendering.hu[:, : middle - 4][bladder[:, : middle - 4]]
    back = rendering.hu[:, middle + 4 :][bladder[:, middle + 4 :]]
    assert inside.any() and np.median(back) > 200 and np.median(front) < 60


def test_bones_are_bright_and_muscles_are_not() -> None:
    for _, rendering in (woman(), man()):
        bones = np.isin(rendering.organs, [NUMBER["femur"], NUMBER["pelvis"]])
        assert np.median(rendering.hu[bones]) > 130
        assert 20 < np.median(rendering.hu[rendering.organs == NUMBER["muscle"]]) < 100
        assert volume_ml(rendering, "femur") > 60


@pytest.mark.parametrize("age", [0.5, 6.0])
def test_the_pelvis_of_a_child_is_in_proportion(age: float) -> None:
    anatomy = person("male", age=age)
    rendering = shown(anatomy)
    there = {ORGANS[n] for n in np.unique(rendering.organs) if n}
    assert there >= {"femur", "bladder", "pelvis"}
    assert anatomy.pelvis is not None and anatomy.pelvis.bladder_ml < 30 * (age + 1)
    # Nothing of the femurs reaches the skin.
    outside = rendering.organs == 0
    femur = np.argwhere(rendering.organs == NUMBER["femur"])
    for offset in (-2, 2):
        columns = (femur[:, 2] + offset).clip(0, outside.shape[2] - 1)
        assert not outside[femur[:, 0], femur[:, 1], columns].mean() > 0.03


@pytest.mark.ci
def test_only_the_share_has_a_pelvis_and_the_person_is_the_same() -> None:
    few = PhantomConfig(size=32, slice_mm=(5.0, 5.0), ages_years=(1.0, 1.0))
    some = replace(few, trunk_share=1.0)
    plain, trunk = (make_patient(config, seed=5, index=1) for config in (few, some))
    assert plain.truth["anatomy"]["pelvis"] is None
    assert Pelvis(**trunk.truth["anatomy"]["pelvis"]).bladder_ml > 0
    changed = {"pelvis"}
    for key, value in plain.truth["anatomy"].items():
        assert key in changed or trunk.truth["anatomy"][key] == value
    assert trunk.scan.grid.shape[0] > plain.scan.grid.shape[0]
    assert trunk.truth["kidney_ml"] == pytest.approx(plain.truth["kidney_ml"], rel=0.1)


def test_fibroids_and_cysts_occur_and_age_matters() -> None:
    rng = np.random.default_rng(3)
    groups = (("female", 45.0), ("male", 80.0), ("male", 12.0))
    people = [person(sex, age=age) for sex, age in groups]
    grown, old, young = ([draw_pelvis(rng, one) for _ in range(60)] for one in people)
    assert any(p.masses for p in grown) and any(max(p.ovarian_mm) > 0 for p in grown)
    assert any(p.uterus_mm == 0 for p in grown), "after hysterectomy"
    prostates = [np.mean([p.prostate_mm for p in group]) for group in (old, young)]
    assert prostates[0] > 1.5 * prostates[1]
