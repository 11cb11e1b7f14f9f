"""Implants: who has which, where they lie and how bright they are, and that no label changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from kidseg.config import PhantomConfig
from kidseg.geometry import Grid
from kidseg.phantom import make_patient
from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.canvas import Canvas, Locator
from kidseg.phantom.devices import MATERIALS_HU, Implant, ImplantKind, Piece, paint_pieces
from kidseg.phantom.implants import pieces_of, with_implants
from kidseg.phantom.pelvic_organs import draw_pelvis
from kidseg.phantom.pelvis import hip_centre_mm
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.posture import Pose
from kidseg.phantom.render import Rendering, render
from kidseg.phantom.splines import Splines

STEP_MM = 4.0
NUMBER = {name: number for number, name in ORGANS.items()}
ALL = (
    Implant(kind="cholecystectomy clips", size_mm=8.0),
    Implant(kind="ureteral stent", size_mm=2.6, side="right"),
    Implant(kind="nephrostomy", size_mm=4.0, side="left"),
    Implant(kind="port catheter", size_mm=3.0),
    Implant(kind="hip prosthesis", size_mm=54.0, side="left"),
    Implant(kind="stent graft", size_mm=25.0),
)


@cache
def person(age: float = 65.0, *, trunk: bool = True, seed: int = 1) -> Anatomy:
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng, age, tumour="one-sided", kidneys="separate", broad=True)
    return replace(anatomy, pelvis=draw_pelvis(rng, anatomy) if trunk else None)


def grid_of(anatomy: Anatomy) -> Grid:
    low, high = anatomy.modelled_mm
    side = int(1.3 * anatomy.lateral_mm / STEP_MM)
    shape = (int((high - low) / STEP_MM), side, side)
    return Grid.from_spacing(shape, (STEP_MM,) * 3, (0.0, 0.0, (low + high) / 2))


@cache
def shown(*implants: Implant) -> Rendering:
    anatomy = replace(person(), implants=implants)
    rng = np.random.default_rng(1)
    return render(anatomy, Pose(), grid_of(anatomy), "portal-venous", rng, broad=True)


def points_mm(implant: Implant) -> np.ndarray:
    """(n, 3) points of the implant's pieces that are no tissue."""
    pieces = pieces_of(replace(person(), implants=(implant,)))
    return np.concatenate([p.points for p in pieces if p.material in MATERIALS_HU])


def canvas(side: int, step_mm: float) -> Canvas:
    """Air in which the reference anatomy is the scanner."""
    grid = Grid.from_spacing((side,) * 3, (step_mm,) * 3)
    reach = side * step_mm / 2 + 12.0
    mm = torch.arange(-reach, reach + 4.0, 4.0)
    z, y, x = torch.meshgrid(mm, mm, mm, indexing="ij")
    field = Splines.through(torch.stack([x, y, z]), (-reach,) * 3, 4.0)
    return Canvas(grid, field, Locator(field.coefficients), {}, lambda x, y, z: (x, x))


def painted_ml(piece: Piece) -> float:
    drawn = canvas(40, 1.0)
    paint_pieces(drawn, [piece], {})
    return float((drawn.hu + 1000.0).sum()) / (MATERIALS_HU[piece.material] + 1000.0) / 1000.0


def test_balls_halves_and_rods_have_their_volume() -> None:
    radius, origin = 12.0, np.zeros((2, 3))
    whole = Piece(points=origin, radii=np.full(2, radius), material="titanium")
    ball_ml = 4 / 3 * np.pi * radius**3 / 1000
    assert painted_ml(whole) == pytest.approx(ball_ml, rel=0.02)
    facing = np.array([0.6, 0.0, -0.8])
    assert painted_ml(replace(whole, facing=facing)) == pytest.approx(ball_ml / 2, rel=0.03)
    rod = replace(whole, points=np.array([[-9.0, 0, 0], [9.0, 0, 0]]), radii=np.full(2, 4.0))
    rod_ml = (18 * np.pi * 4**2 + 4 / 3 * np.pi * 4**3) / 1000
    assert painted_ml(rod) == pytest.approx(rod_ml, rel=0.03)


def test_tissue_of_an_implant_replaces_no_kidney_and_metal_no_organ() -> None:
    points = np.zeros((2, 3))
    for organ, changes in ((NUMBER["renal cortex"], False), (NUMBER["small bowel"], True)):
        drawn = canvas(20, 1.0)
        drawn.organs.fill_(organ)
        sac = Piece(points=points, radii=np.full(2, 6.0), material="thrombus", organ=17)
        paint_pieces(drawn, [sac], {})
        assert bool((drawn.organs == 17).any()) is changes
        assert bool((drawn.hu > -999).any()) is changes
        organs = drawn.organs.clone()
        metal = Piece(points=points, radii=np.full(2, 5.0), material="titanium")
        paint_pieces(drawn, [metal], {})
        assert drawn.hu.max() == MATERIALS_HU["titanium"]
        assert torch.equal(drawn.organs, organs)


@pytest.mark.ci
def test_labels_are_the_same_with_all_implants_and_each_is_bright() -> None:
    with_all, without = shown(*ALL), shown()
    assert without.labels.any() and np.array_equal(with_all.labels, without.labels)
    brighter = with_all.hu - without.hu > 150
    new = grid_of(person()).mm(np.argwhere(brighter).astype(float)).numpy()
    for implant in ALL:
        near = np.linalg.norm(new[:, None] - points_mm(implant)[None], axis=2).min(axis=1) < 8
        assert near.any(), implant.kind
    aorta_ml = [
        (r.organs == NUMBER["aorta"]).sum() * STEP_MM**3 / 1000 for r in (without, with_all)
    ]
    assert aorta_ml[1] > aorta_ml[0] + 40, "the aneurysm"


def test_implants_lie_where_they_belong() -> None:
    anatomy = person()
    places = {implant.kind: points_mm(implant) for implant in ALL}
    segment, w = anatomy.body.segment_mm, anatomy.body.vertebra_mm
    x, y, z = hip_centre_mm(anatomy.body)
    hip = places["hip prosthesis"]
    assert np.linalg.norm(hip - np.array([-x, y, z]), axis=1).min() < 1
    assert (hip[:, 0] < 0).all() and hip[:, 2].min() < z - w, "the stem leads down"
    centre = {kidney.side: np.array(kidney.centre_mm) for kidney in anatomy.kidneys}
    stent = places["ureteral stent"]
    assert np.linalg.norm(stent - centre["right"], axis=1).min() < 30
    assert (stent[:, 0] > -20).all() and stent[:, 2].min() < -5 * segment
    tube = places["nephrostomy"]
    assert np.linalg.norm(tube - centre["left"], axis=1).min() < 30
    assert (tube[:, 0] < 0).all() and tube[:, 1].min() < -0.7 * anatomy.body.half_depth_mm
    graft = places["stent graft"]
    assert np.abs(graft[:, 0]).max() < 1.3 * w and graft[:, 2].max() < segment
    assert places["port catheter"][:, 2].min() > anatomy.dome_mm
    clips = places["cholecystectomy clips"]
    assert (clips[:, 0] > 0).all() and np.ptp(clips, axis=0).max() < 50


@pytest.mark.parametrize("trunk", [False, True])
def test_people_have_only_what_they_can_have(trunk: bool) -> None:
    found: dict[str, set[ImplantKind]] = {}
    for name, age in (("child", 3.0), ("young", 30.0), ("old", 75.0)):
        anatomy = person(age, trunk=trunk)
        drawn = [with_implants(np.random.default_rng(k), anatomy) for k in range(40)]
        assert all(one.implants for one in drawn)
        found[name] = {implant.kind for one in drawn for implant in one.implants}
    assert found["child"] <= {"ureteral stent", "nephrostomy", "port catheter"}
    assert not found["young"] & {"hip prosthesis", "stent graft", "nephrectomy clips"}
    assert ("hip prosthesis" in found["old"]) is trunk
    assert ("port catheter" in found["old"]) is trunk
    assert "stent graft" in found["old"]


def test_forms_of_kidneys_decide_too() -> None:
    rng = np.random.default_rng(2)
    single = draw_anatomy(rng, 60.0, tumour="none", kidneys="single", broad=True)
    kinds = set()
    for seed in range(30):
        for implant in with_implants(np.random.default_rng(seed), single).implants:
            kinds.add(implant.kind)
            if implant.kind == "nephrectomy clips":
                assert implant.side != single.kidneys[0].side
    assert "nephrectomy clips" in kinds
    none = draw_anatomy(rng, 3.0, tumour="none", kidneys="absent", broad=True)
    assert with_implants(rng, none) == none


@pytest.mark.ci
def test_after_cholecystectomy_there_is_no_gallbladder() -> None:
    anatomy = person()
    seeds = (np.random.default_rng(k) for k in range(40))
    drawn = [with_implants(rng, anatomy) for rng in seeds]
    for one in drawn:
        removed = any(i.kind == "cholecystectomy clips" for i in one.implants)
        assert (one.viscera.gallbladder_mm == 0.0) is removed
        assert replace(one, implants=(), viscera=anatomy.viscera) == anatomy
    bare = replace(anatomy, viscera=replace(anatomy.viscera, gallbladder_mm=0.0))
    rng = np.random.default_rng(1)
    organs = render(bare, Pose(), grid_of(bare), "portal-venous", rng).organs
    assert not (organs == NUMBER["gallbladder"]).any()
    assert (shown().organs == NUMBER["gallbladder"]).any()


def test_pieces_are_the_same_for_the_same_person() -> None:
    anatomy = replace(person(), implants=ALL)
    for one, other in zip(pieces_of(anatomy), pieces_of(anatomy), strict=True):
        assert np.array_equal(one.points, other.points) and one.material == other.material


@pytest.mark.slow
def test_only_the_share_has_implants_and_metal_makes_streaks() -> None:
    config = PhantomConfig(size=64, slice_mm=(5.0, 5.0), ages_years=(60.0, 80.0), trunk_share=1.0)
    plain = make_patient(config, seed=9, index=9)
    everyone = make_patient(replace(config, implant_share=1.0), seed=9, index=9)
    assert plain.truth["anatomy"]["implants"] == ()
    kinds = {implant["kind"] for implant in everyone.truth["anatomy"]["implants"]}
    assert "hip prosthesis" in kinds
    assert torch.equal(plain.labels.data, everyone.labels.data)
    for key in ("body", "kidneys", "tumours", "cysts", "pelvis", "look"):
        assert plain.truth["anatomy"][key] == everyone.truth["anatomy"][key]
    # The noise is the same, so that the difference is metal and its streaks.
    change = (everyone.scan.data - plain.scan.data)[0].float()
    metal = int((change > 500).sum(dim=(1, 2)).argmax())
    muscle = plain.organs.data[0] == NUMBER["muscle"]
    assert change[metal][muscle[metal]].std() > 15
