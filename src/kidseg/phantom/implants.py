"""Draw the implants of a person: clips, stents, catheters, hip prostheses, stent grafts.

Where no source is named, sizes are those in catalogues, and shares are chosen: `implant_share` says
how many patients have any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from kidseg.phantom.anatomy import Anatomy, Body, Kidney, Side
from kidseg.phantom.devices import Implant, ImplantKind, Piece
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.pelvic_organs import bladder_mm, ureter_mm
from kidseg.phantom.pelvis import femur_mm, hip_centre_mm
from kidseg.phantom.shapes import rounded
from kidseg.phantom.surfaces import skin
from kidseg.phantom.vessels import aorta_at, cava_at

__all__ = ["pieces_of", "with_implants"]

MUSCLE, AORTA = 3, 17

# Of people with implants, those with each; one is drawn if none is. More stents and nephrostomies
# than in practice, because they touch the kidney.
_ADULT_SHARES: dict[ImplantKind, float] = {
    "cholecystectomy clips": 0.35,
    "nephrectomy clips": 0.7,
    "ureteral stent": 0.25,
    "nephrostomy": 0.15,
    "port catheter": 0.2,
    # In the population 2.3 % from 50 years on, 5.3 % at 80. Source: Maradit Kremers et al., J Bone
    # Joint Surg Am 97 (2015) 1386-1397.
    "hip prosthesis": 0.35,
    "stent graft": 0.15,
}
_CHILD_SHARES: dict[ImplantKind, float] = {
    "nephrectomy clips": 0.7,
    "ureteral stent": 0.3,
    "nephrostomy": 0.3,
    "port catheter": 0.6,
}
_GRAFT_AGE_YEARS, _HIP_AGE_YEARS = 50.0, 40.0
_BOTH_HIPS_SHARE = 0.25

_FRENCH_MM = 1.0 / 3.0
# (smallest, largest) outer diameter.
_STENT_MM = (4.8 * _FRENCH_MM, 8.0 * _FRENCH_MM)
_NEPHROSTOMY_MM = (8.0 * _FRENCH_MM, 12.0 * _FRENCH_MM)
_PORT_MM = (5.0 * _FRENCH_MM, 9.6 * _FRENCH_MM)
_CLIP_LENGTH_MM = (5.0, 11.0)
_CLIP_RADIUS_MM = 0.9
# Relative to the width of a vertebra: a head of the femur is as wide as that.
_CUP = (1.06, 1.2)
# Relative to the aorta: grafts are 10 to 20 % wider than the neck that they seal.
_GRAFT = (1.1, 1.25)
# Of the sac around it; repair is advised from 55 mm (men) or 50 mm (women), and sacs shrink after.
# Source: Wanhainen et al., Eur J Vasc Endovasc Surg 57 (2019) 8-93.
_ANEURYSM_MM = (40.0, 72.0)


def with_implants(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """The same person with one or more implants, each where it can be in the modelled anatomy.

    After a cholecystectomy there is no gallbladder. A person in whom none has a place stays.
    """
    shares = _possible(anatomy)
    if not shares:
        return anatomy
    kinds, weights = list(shares), np.array(list(shares.values()))
    has = rng.random(len(kinds)) < weights
    if not has.any():
        has[rng.choice(len(kinds), p=weights / weights.sum())] = True
    implants: list[Implant] = []
    for kind in (kind for kind, there in zip(kinds, has, strict=True) if there):
        implants += _drawn(rng, kind, anatomy)
    viscera = anatomy.viscera
    if any(implant.kind == "cholecystectomy clips" for implant in implants):
        viscera = replace(viscera, gallbladder_mm=0.0)
    return replace(anatomy, viscera=viscera, implants=tuple(implants))


def _possible(anatomy: Anatomy) -> dict[ImplantKind, float]:
    """The kinds that this person may have, with their shares."""
    age, trunk = anatomy.age_years, anatomy.pelvis is not None
    impossible: dict[ImplantKind, bool] = {
        "nephrectomy clips": anatomy.form != "single",
        "ureteral stent": not anatomy.kidneys,
        "nephrostomy": not anatomy.kidneys,
        "port catheter": not trunk,
        "hip prosthesis": not trunk or age < _HIP_AGE_YEARS,
        "stent graft": age < _GRAFT_AGE_YEARS or anatomy.form == "horseshoe",
    }
    shares = _ADULT_SHARES if age > 16 else _CHILD_SHARES
    return {kind: share for kind, share in shares.items() if not impossible.get(kind, False)}


def _drawn(rng: np.random.Generator, kind: ImplantKind, anatomy: Anatomy) -> list[Implant]:
    sides: list[Side] = ["right", "left"]
    if kind == "hip prosthesis":
        size = anatomy.body.vertebra_mm * float(rng.uniform(*_CUP))
        both = rng.random() < _BOTH_HIPS_SHARE
        chosen = sides if both else [sides[int(rng.integers(2))]]
        return [Implant(kind=kind, size_mm=size, side=side) for side in chosen]
    if kind == "stent graft":
        size = anatomy.viscera.aorta_mm * float(rng.uniform(*_GRAFT))
        return [Implant(kind=kind, size_mm=size)]
    if kind == "nephrectomy clips":
        missing: Side = "left" if anatomy.kidneys[0].side == "right" else "right"
        return [Implant(kind=kind, size_mm=float(rng.uniform(*_CLIP_LENGTH_MM)), side=missing)]
    ranges = {
        "cholecystectomy clips": _CLIP_LENGTH_MM,
        "ureteral stent": _STENT_MM,
        "nephrostomy": _NEPHROSTOMY_MM,
        "port catheter": _PORT_MM,
    }
    size = float(rng.uniform(*ranges[kind]))
    if kind in ("cholecystectomy clips", "port catheter"):
        return [Implant(kind=kind, size_mm=size)]
    kidney = anatomy.kidneys[int(rng.integers(len(anatomy.kidneys)))]
    return [Implant(kind=kind, size_mm=size, side=kidney.side)]


def pieces_of(anatomy: Anatomy) -> list[Piece]:
    """The pieces of all implants of a person, in the order in which they are painted."""
    rng = np.random.default_rng([anatomy.detail_seed, 7])
    makers: dict[ImplantKind, Callable[..., list[Piece]]] = {
        "cholecystectomy clips": _gallbladder_clips,
        "nephrectomy clips": _hilum_clips,
        "ureteral stent": _ureteral_stent,
        "nephrostomy": _nephrostomy,
        "port catheter": _port_catheter,
        "hip prosthesis": _hip_prosthesis,
        "stent graft": _stent_graft,
    }
    return [
        piece
        for implant in anatomy.implants
        for piece in makers[implant.kind](rng, anatomy, implant)
    ]


def _gallbladder_clips(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """Three to six clips at the stump of the cystic duct."""
    body, viscera = anatomy.body, anatomy.viscera
    low = body.dome_right_mm - 0.55 * viscera.liver_mm
    neck = np.array([0.27 * body.organ_lateral_mm, 0.08 * body.organ_depth_mm, low])
    return _clips(rng, neck, 6.0, int(rng.integers(3, 7)), implant)


def _hilum_clips(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """Three to eight clips at the stumps of the vessels of a removed kidney."""
    w = anatomy.body.vertebra_mm
    centre = aorta_at(anatomy, 0.7) + np.array([_sign(implant.side) * 0.75 * w, -0.1 * w, 0.0])
    return _clips(rng, centre, 0.22 * w, int(rng.integers(3, 9)), implant)


def _clips(
    rng: np.random.Generator, centre: np.ndarray, apart_mm: float, count: int, implant: Implant
) -> list[Piece]:
    found = []
    for _ in range(count):
        middle = centre + np.clip(rng.normal(size=3), -1.5, 1.5) * apart_mm
        along = rng.normal(size=3)
        along *= implant.size_mm / 2 / np.linalg.norm(along)
        ends = np.stack([middle - along, middle + along])
        found.append(_wire(ends, _CLIP_RADIUS_MM, "titanium"))
    return found


def _ureteral_stent(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """A double J: a coil in the renal pelvis, down the ureter, a coil in the bladder."""
    kidney = _kidney_of(anatomy, implant)
    ureter = ureter_mm(anatomy, kidney)
    way = [_coil_in(kidney), rounded(rounded(ureter))]
    if anatomy.pelvis is not None:
        centre, half = bladder_mm(anatomy.body, anatomy.pelvis)
        sign = _sign(implant.side)
        across = np.array([sign, 0.0, 0.0])
        deep = np.array([0.0, 0.8, 0.6])
        radius = min(9.0, 0.4 * float(half.min()))
        middle = centre - half * np.array([0.0, 0.35, 0.35])
        way.append(_coil(middle, across, deep, radius, 0.0, 1.3))
    return _catheter(np.concatenate(way), implant.size_mm, "urine")


def _nephrostomy(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """A coil in the renal pelvis, out through the back of the kidney, then along the skin."""
    kidney, body = _kidney_of(anatomy, implant), anatomy.body
    sign = _sign(implant.side)
    out = Frame.of(kidney).anatomy_mm(0.45, -0.80, -0.40)
    heading = np.array([sign * 0.45, -0.89])
    s = np.arange(0.0, 2.0 * body.half_depth_mm, 0.5)
    line = out[:2] + s[:, None] * heading
    x, y = torch.from_numpy(line.T.copy())
    outside = skin(body, x, y).numpy() > 1.0
    exit_mm = line[int(np.argmax(outside))] if outside.any() else line[-1]
    start = float(np.arctan2(sign * exit_mm[0], -exit_mm[1]))
    level = float(out[2]) - 6.0
    taped = [
        (*_on_skin(body, start + turn, implant.size_mm, sign), level - 30.0 * turn)
        for turn in np.linspace(0.05, 0.6, 8)
    ]
    way = [
        _coil_in(kidney),
        out[None],
        np.array([[exit_mm[0], exit_mm[1], level]]),
        np.array(taped),
    ]
    return _catheter(np.concatenate(way), implant.size_mm, "urine")


def _on_skin(body: Body, angle: float, off_mm: float, sign: float) -> tuple[float, float]:
    """(x, y) on the skin, `off_mm` outside, at an angle from the back to the side."""
    r = np.arange(1.0, 1.5 * max(body.half_lateral_mm, body.half_depth_mm), 0.5)
    x, y = sign * np.sin(angle) * r, -np.cos(angle) * r
    within = skin(body, torch.from_numpy(x), torch.from_numpy(y)).numpy() < 1.0
    reach = float(r[within][-1]) + off_mm
    return float(sign * np.sin(angle) * reach), float(-np.cos(angle) * reach)


def _port_catheter(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """A venous line from above, whose tip is where the caval veins meet the heart."""
    segment = anatomy.body.segment_mm
    tip = anatomy.dome_mm / segment + float(rng.uniform(0.3, 1.6))
    levels = np.linspace(anatomy.modelled_mm[1] / segment + 2.0, tip, 8)
    way = np.stack([cava_at(anatomy, level) for level in levels])
    way[:, :2] += rng.normal(0.0, 0.05 * anatomy.body.vertebra_mm, size=2)
    return _catheter(rounded(way), implant.size_mm, "water")


def _hip_prosthesis(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """Cup with liner, head and stem in place of the joint; scar where head and neck were."""
    body, w, sign = anatomy.body, anatomy.body.vertebra_mm, _sign(implant.side)
    mirror = np.array([sign, 1.0, 1.0])
    centre = np.array(hip_centre_mm(body)) * mirror
    _, base, shaft, below = np.array(femur_mm(body)) * mirror
    facing = np.array([0.70 * sign, 0.22, -0.68])
    facing /= np.linalg.norm(facing)
    collar = centre + 0.62 * (base - centre)
    cup = implant.size_mm / 2
    head = min(float(rng.choice([14.0, 16.0, 18.0])) * w / 48.0, cup - 7.0 * w / 48.0)
    scale = w / 48.0

    def half_ball(radius: float, material: str, shift_mm: float) -> Piece:
        # The ball's centre is on the plane that cuts it, but for the rim of the liner.
        points = np.stack([centre + shift_mm * facing, centre])
        return Piece(points=points, radii=np.full(2, radius), material=material, facing=facing)

    return [
        _ball(centre, 0.56 * w, "muscle", MUSCLE),
        Piece(
            points=np.stack([centre, collar]),
            radii=np.array([0.42, 0.42]) * w,
            material="muscle",
            organ=MUSCLE,
        ),
        half_ball(cup, "titanium", 0.0),
        half_ball(cup - 4.0 * scale, "polyethylene", 2.0 * scale),
        _ball(centre, head, "cobalt chrome"),
        _wire(np.stack([centre, collar]), 6.5 * scale, "cobalt chrome"),
        Piece(
            points=np.stack([collar, base, shaft, shaft + 0.4 * (below - shaft)]),
            radii=np.array([7.0, 10.0, 7.5, 5.5]) * scale,
            material="titanium",
        ),
    ]


def _stent_graft(rng: np.random.Generator, anatomy: Anatomy, implant: Implant) -> list[Piece]:
    """An aneurysm below the renal arteries, in it a stented tube with two limbs."""
    trunk = implant.size_mm / 2
    limb = max(4.0, 0.28 * implant.size_mm)
    stem = np.stack([aorta_at(anatomy, level) for level in np.linspace(0.4, -0.9, 6)])
    limbs = [_limb(anatomy, sign, limb, stem[-1]) for sign in (1.0, -1.0)]
    pieces = _aneurysm(rng, anatomy, trunk)
    pieces += [_wire(stem, trunk, "aorta", AORTA)]
    pieces += [_wire(way, limb, "aorta", AORTA) for way in limbs]
    pieces += _struts(stem, trunk, 10)
    for way in limbs:
        pieces += _struts(way, limb, 7)
    return pieces


def _limb(anatomy: Anatomy, sign: float, radius: float, start: np.ndarray) -> np.ndarray:
    """(n, 3) axis of a limb, to the end of the aorta; with a pelvis into the iliac artery."""
    body, w = anatomy.body, anatomy.body.vertebra_mm
    aside = np.array([sign * 1.05 * radius, 0.0, 0.0])
    levels = (-1.2, -1.6, -2.0)
    way = [start + 0.6 * aside, *(aorta_at(anatomy, level) + aside for level in levels)]
    if anatomy.pelvis is not None:
        fork = aorta_at(anatomy, -2.0)
        iliac = np.array([sign * 0.95 * w, body.spine_y_mm + 0.55 * w, -3.7 * body.segment_mm])
        way.append(fork + 0.45 * (iliac - fork))
    return rounded(np.stack(way))


def _aneurysm(rng: np.random.Generator, anatomy: Anatomy, trunk_mm: float) -> list[Piece]:
    """A sac of thrombus around the graft, to the front and the left of the spine."""
    scale = anatomy.body.vertebra_mm / 48.0
    radius = max(float(rng.uniform(*_ANEURYSM_MM)) / 2 * scale, 1.25 * trunk_mm)
    levels, shares = (-0.1, -0.6, -1.1, -1.5, -1.9), np.array([0.55, 0.9, 1.0, 0.85, 0.5])
    radii = np.maximum(radius * shares, 1.1 * trunk_mm * np.array([1.0, 1.0, 1.0, 1.0, 0.8]))
    away = np.array([-0.35, 0.75, 0.0])
    points = np.stack(
        [
            aorta_at(anatomy, level) + away * max(r - trunk_mm, 0.0)
            for level, r in zip(levels, radii, strict=True)
        ]
    )
    return [
        Piece(points=points, radii=radii, material="muscle", organ=AORTA),
        Piece(points=points, radii=radii - 1.3 * scale, material="thrombus", organ=AORTA),
    ]


def _struts(axis: np.ndarray, radius: float, apices: int) -> list[Piece]:
    """Rings of zigzag wire in the wall of a tube, 11 mm apart."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(axis, axis=0), axis=1))])
    found = []
    turn = np.linspace(0.0, 2 * np.pi, 2 * apices + 1)
    zigzag = 4.0 * np.where(np.arange(len(turn)) % 2 == 0, 1.0, -1.0)
    for at in np.arange(5.0, length[-1] - 3.0, 11.0):
        x, y, z = (np.interp(at, length, axis[:, k]) for k in range(3))
        ring = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn), z + zigzag], axis=1)
        found.append(_wire(ring, 0.3, "nitinol"))
    return found


def _catheter(way: np.ndarray, diameter_mm: float, contents: str) -> list[Piece]:
    """A plastic tube along (n, 3) points, with a lumen of 0.6 of its width."""
    radius = diameter_mm / 2
    return [_wire(way, radius, "catheter"), _wire(way, 0.6 * radius, contents)]


def _wire(points: np.ndarray, radius: float, material: str, organ: int | None = None) -> Piece:
    return Piece(points=points, radii=np.full(len(points), radius), material=material, organ=organ)


def _ball(centre: np.ndarray, radius: float, material: str, organ: int | None = None) -> Piece:
    return _wire(np.stack([centre, centre]), radius, material, organ)


def _coil_in(kidney: Kidney) -> np.ndarray:
    """(n, 3) points of a coil in the sinus of a kidney, which ends towards its hilum."""
    frame = Frame.of(kidney)
    radius = min(10.0, 0.11 * kidney.length_mm)
    return _coil(
        frame.anatomy_mm(-0.50, 0.0, 0.0), -frame.axes[0], frame.axes[2], radius, -1.6, -0.25
    )


def _coil(
    centre: np.ndarray,
    across: np.ndarray,
    along: np.ndarray,
    radius: float,
    start: float,
    stop: float,
) -> np.ndarray:
    """(n, 3) points of a flat coil between two angles, in turns from `across` to `along`."""
    turn = 2 * np.pi * np.linspace(start, stop, 22)[:, None]
    points: np.ndarray = centre + radius * (np.cos(turn) * across + np.sin(turn) * along)
    return points


def _kidney_of(anatomy: Anatomy, implant: Implant) -> Kidney:
    return next(kidney for kidney in anatomy.kidneys if kidney.side == implant.side)


def _sign(side: Side | None) -> float:
    return -1.0 if side == "left" else 1.0
