"""Draw and paint the organs of the pelvis: bladder, uterus, ovaries, prostate, rectum, vessels.

They are in view in most CT of the abdomen, contain what is as bright as kidneys or as dark as their
tumours, and are neither.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kidseg.config import Phase
from kidseg.phantom.anatomy import Anatomy, Body, Kidney, Pelvis
from kidseg.phantom.bowel import Loop
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.growth import vary
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.pelvis import hip_centre_mm, sacrum_front_mm, symphysis_mm
from kidseg.phantom.shapes import ellipsoid, smooth_max
from kidseg.phantom.vessels import Vessel

__all__ = [
    "bladder_mm",
    "draw_pelvis",
    "paint_pelvic_organs",
    "pelvic_vessels_of",
    "rectum_of",
    "ureter_mm",
]

BLADDER, UTERUS, PROSTATE, COLON, OTHER, OVARY, URETER = 31, 32, 33, 16, 20, 35, 36

# Volume of a bladder in CT, adults: median, spread of its logarithm. Children hold 30 ml for each
# year of age and 30 more. Source: Koff, Urology 21 (1983) 248; of the rest, usual values.
_BLADDER_ML, _BLADDER_LOG_SD, _BLADDER_RANGE_ML = 170.0, 0.75, (8.0, 750.0)
_CHILD_CAPACITY_ML, _FILLING = 30.0, (0.15, 1.0)
_EARLIER_CONTRAST_SHARE = 0.10
# Ultrasound finds fibroids in 51 % of women of 35 to 49 years; fewer here, because CT shows fewer.
# Source: Baird et al., Am J Obstet Gynecol 188 (2003) 100-107. The other shares are chosen.
_FIBROIDS_SHARE = 0.25
_OVARIAN_CYST_SHARE = 0.15
_HYSTERECTOMY_SHARE = 0.15


def draw_pelvis(rng: np.random.Generator, anatomy: Anatomy) -> Pelvis:
    """Draw the pelvis of a person by age and sex.

    Args:
        rng: random generator.
        anatomy: of the person; not its pelvis.
    """
    age, female = anatomy.age_years, anatomy.sex == "female"
    adult = age > 16
    if adult:
        spread = np.exp(_BLADDER_LOG_SD * np.clip(rng.normal(), -2.5, 2.0))
        bladder = float(np.clip(_BLADDER_ML * spread, *_BLADDER_RANGE_ML))
    else:
        bladder = _CHILD_CAPACITY_ML * (age + 1) * float(rng.uniform(*_FILLING))
    grown = float(np.interp(age, (8.0, 16.0, 50.0, 70.0), (0.45, 1.0, 1.0, 0.7)))
    # Length of the uterus: 72 mm at 40 years, 42 at 80 (here 50 from 70 on). Source: 5466 women,
    # Verguts et al., Ultrasound Obstet Gynecol 42 (2013) 713-717.
    removed = adult and rng.random() < _HYSTERECTOMY_SHARE
    uterus = vary(rng, 72.0, 0.15) * grown if female and not removed else 0.0
    ageing = float(np.interp(age, (10.0, 18.0, 45.0, 85.0), (0.4, 0.9, 1.0, 1.35)))
    earlier = rng.random() < _EARLIER_CONTRAST_SHARE
    return Pelvis(
        hip=float(rng.uniform(1.03, 1.15) if female and adult else rng.uniform(0.98, 1.06)),
        bladder_ml=bladder,
        urine_level=float(rng.choice([rng.uniform(0.1, 0.9), 1.1], p=[0.65, 0.35])),
        urine_hu=float(rng.uniform(40.0, 700.0)) if earlier else 0.0,
        uterus_mm=float(uterus),
        prostate_mm=0.0 if female else float(vary(rng, 45.0, 0.15) * ageing),
        masses=_draw_fibroids(rng, uterus) if uterus and adult else (),
        ovarian_mm=_draw_ovarian_mm(rng) if female and adult else (0.0, 0.0),
        rectum_mm=float(anatomy.viscera.colon_mm * rng.uniform(0.75, 1.5)),
        rectum_gas=float(np.clip(rng.normal(0.3, 0.3), 0.0, 0.9)),
        rectum_stool=float(rng.beta(1.2, 1.2)),
    )


def _draw_fibroids(
    rng: np.random.Generator, uterus_mm: float
) -> tuple[tuple[float, float, float, float, float], ...]:
    if rng.random() >= _FIBROIDS_SHARE:
        return ()
    found = []
    for _ in range(int(rng.integers(1, 4))):
        way = rng.normal(size=3)
        x, y, z = way / np.linalg.norm(way) * uterus_mm * rng.uniform(0.15, 0.4)
        radius = uterus_mm * float(np.exp(rng.uniform(np.log(0.1), np.log(0.55))))
        found.append((float(x), float(y), float(z), radius, float(rng.normal(-8.0, 18.0))))
    return tuple(found)


def _draw_ovarian_mm(rng: np.random.Generator) -> tuple[float, float]:
    has = rng.random(2) < _OVARIAN_CYST_SHARE
    radii = np.exp(rng.uniform(np.log(7.0), np.log(40.0), size=2)) * has
    return float(radii[0]), float(radii[1])


def rectum_of(anatomy: Anatomy, pelvis: Pelvis, rng: np.random.Generator) -> list[Loop]:
    """Sigmoid colon and rectum, from the end of the descending colon to the pelvic floor."""
    body = anatomy.body
    a, b, w, segment = body.organ_lateral_mm, body.organ_depth_mm, body.vertebra_mm, body.segment_mm
    radius = pelvis.rectum_mm / 2

    def before(level: float) -> float:
        return sacrum_front_mm(body, level) + 0.10 * w + radius

    way = np.array(
        [
            [-0.34 * a, 0.10 * b, -4.2 * segment],
            [-0.20 * a, 0.25 * b, -4.9 * segment],
            [0.15 * a, 0.20 * b, -4.6 * segment],
            [0.20 * a, before(5.0) + 0.4 * w, -5.2 * segment],
            [0.02 * a, before(5.4), -5.5 * segment],
            [0.0, before(6.0), -6.0 * segment],
            [0.0, before(6.4), -6.5 * segment],
            [0.0, before(6.5) + 0.15 * w, -7.0 * segment],
            [0.0, before(6.5) + 0.10 * w, -7.6 * segment],
        ]
    )
    way[1:5] += rng.normal(0.0, 0.05, size=(4, 3)) * (a, b, segment)
    radii = radius * np.array([0.7, 0.7, 0.75, 0.8, 1.0, 1.15, 1.1, 0.7, 0.4])
    radii = radii * rng.uniform(0.85, 1.15, size=len(radii))
    loops = []
    for k in range(0, len(way) - 1, 2):
        stretch = slice(k, k + 3)
        low = k >= 6
        gas = 0.0 if low else float(np.clip(pelvis.rectum_gas + rng.normal(0, 0.2), 0.0, 0.95))
        loops.append(
            Loop(way[stretch], radii[stretch], gas, pelvis.rectum_stool, 0.7 if low else 1.1, 0.2)
        )
    return loops


def pelvic_vessels_of(anatomy: Anatomy, phase: Phase, rng: np.random.Generator) -> list[Vessel]:
    """Iliac arteries and veins to the groins; the ureters, where urine is bright."""
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    w, y0, segment = body.vertebra_mm, body.spine_y_mm, body.segment_mm
    cx, cy, cz = hip_centre_mm(body)
    fork = y0 + 0.36 * w + 0.60 * width
    found = []
    for sign in (1.0, -1.0):
        kink = rng.normal(0.0, 0.06 * w, size=(3, 3))
        outer = np.array(
            [
                [-0.10 * w, fork, -2.0 * segment],
                [sign * 0.95 * w, y0 + 0.55 * w, -3.7 * segment],
                [sign * 1.05 * w, cy + 0.75 * w, -4.9 * segment],
                [sign * (cx - 0.35 * w), cy + 1.20 * w, cz],
                [sign * (cx - 0.05 * w), cy + 1.25 * w, cz - 2.2 * w],
            ]
        )
        outer[1:4] += kink
        behind_hip = [[sign * 0.95 * w, y0 + 0.05 * w, -4.7 * segment]]
        behind_hip += [[sign * 1.0 * w, y0 - 0.2 * w, -5.5 * segment]]
        inner = np.stack([outer[1], *behind_hip])
        radii = width * np.array([0.33, 0.31, 0.26, 0.24, 0.21])
        behind = np.array([sign * 0.10 * w, -0.32 * width, 0.0])
        vein = outer + behind + np.array([0.0, -0.15 * width, 0.0])
        vein[0] = (0.38 * w, fork - 0.1 * width, -2.1 * segment)
        vein[2:] += np.array([-sign * 0.30 * w, -0.05 * w, 0.0])
        found += [
            Vessel(vein, 1.15 * radii, "vena cava", OTHER),
            Vessel(inner + behind, 0.6 * radii[:3], "vena cava", OTHER),
            Vessel(outer, radii, "aorta", OTHER),
            Vessel(inner, 0.55 * radii[:3], "aorta", OTHER),
        ]
    return found + (_ureters(anatomy, rng) if phase == "excretory" else [])


def _ureters(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """From each kidney along the psoas into the bladder; peristalsis empties parts of them."""
    w = anatomy.body.vertebra_mm
    found = []
    for kidney in anatomy.kidneys:
        way = ureter_mm(anatomy, kidney)
        way[1:4] += rng.normal(0.0, 0.05 * w, size=(3, 3))
        radius = 0.028 * w + 0.3
        for k in range(len(way) - 1):
            if rng.random() < 0.7:
                ends = way[k : k + 2]
                found.append(Vessel(ends, np.full(2, radius), "urine", URETER))
    return found


def ureter_mm(anatomy: Anatomy, kidney: Kidney) -> np.ndarray:
    """(5, 3) points of a ureter, from the hilum along the psoas into the bladder."""
    body = anatomy.body
    w, y0, segment = body.vertebra_mm, body.spine_y_mm, body.segment_mm
    sy, sz = symphysis_mm(body)
    sign = kidney.sign
    start = Frame.of(kidney).anatomy_mm(-1.15, 0.0, -0.1)
    return np.array(
        [
            start,
            (sign * 0.95 * w, y0 + 0.55 * w, start[2] - 1.6 * segment),
            (sign * 0.90 * w, y0 + 0.75 * w, -3.6 * segment),
            (sign * 1.15 * w, y0 + 0.10 * w, -5.2 * segment),
            (sign * 0.45 * w, sy - 1.1 * w, sz + 0.6 * segment),
        ]
    )


def paint_pelvic_organs(
    canvas: Canvas,
    anatomy: Anatomy,
    pelvis: Pelvis,
    up: np.ndarray,
    hu: dict[str, float],
    phase: Phase,
) -> None:
    """Paint prostate, uterus, ovaries and bladder.

    Args:
        canvas: the slab.
        anatomy: the person.
        pelvis: of the person.
        up: (4,) maps anatomy (x, y, z, 1) to height in the scanner, against gravity.
        hu: of the tissues.
        phase: contrast phase.
    """
    centre, half = bladder_mm(anatomy.body, pelvis)
    _paint_male(canvas, anatomy.body, pelvis, centre, half, hu)
    _paint_female(canvas, anatomy.body, pelvis, centre, half, hu)
    patch = _around(canvas, centre, half.max() + 6)
    if patch is None:
        return
    f = ellipsoid(patch.place, centre, half)
    bulge = (patch.z - centre[2]).clamp(max=0.0) / half[2]
    f = f + 0.12 * half[0] * bulge * bulge + 0.4 * patch.noise("large", halo=True)
    f = smooth_max(f, patch.pelvis + 1.0, 2.0)
    fine = patch.noise("fine")
    full = (pelvis.bladder_ml / 60.0) ** (1 / 3)
    wall = max(1.2, 0.065 * anatomy.body.vertebra_mm / max(full, 0.6))
    patch.paint(patch.cover(f), 0.75 * hu["bowel wall"] + 8.0 + 4.0 * fine, BLADDER)
    lumen = patch.cover(f + wall)
    plain = min(hu["urine"], 15.0)
    patch.paint(lumen, plain + 3.0 * fine, BLADDER)
    bright = 0.8 * hu["urine"] if phase == "excretory" else plain + pelvis.urine_hu
    if bright > plain + 1.0:
        # Contrast agent is heavier than urine and lies below it.
        height = float(np.asarray(centre) @ up[:3] + up[3])
        level = height + (2.0 * pelvis.urine_level - 1.0) * float(half[1])
        dense = ((level - patch.up_mm) / 3.0 + 0.5).clamp(0.0, 1.0)[None]
        patch.paint(lumen * dense, bright + 4.0 * fine, BLADDER)


def bladder_mm(body: Body, pelvis: Pelvis) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half-axes (x, y, z) of the bladder, which rises behind the symphysis."""
    radius = (pelvis.bladder_ml * 1000.0 * 3 / (4 * np.pi)) ** (1 / 3)
    half = radius * np.array([1.15, 0.95, 0.92])
    y, z = symphysis_mm(body)
    w = body.vertebra_mm
    bottom = z - 0.2 * body.segment_mm
    return np.array([0.0, y - 0.35 * w - half[1], bottom + half[2]]), half


def _around(canvas: Canvas, centre: np.ndarray, reach: float) -> Patch | None:
    return canvas.patch((centre - reach, centre + reach))


def _ball(patch: Patch, centre: np.ndarray, radius: float) -> Tensor:
    return ellipsoid(patch.place, centre, (radius,) * 3)


def _paint_male(
    canvas: Canvas,
    body: Body,
    pelvis: Pelvis,
    bladder: np.ndarray,
    half: np.ndarray,
    hu: dict[str, float],
) -> None:
    """Prostate below the bladder, seminal vesicles behind it."""
    size = pelvis.prostate_mm
    if size <= 0:
        return
    centre = np.array([0.0, bladder[1] - 0.25 * half[1], bladder[2] - half[2] - 0.30 * size])
    patch = _around(canvas, centre, 1.6 * size + half[1])
    if patch is None:
        return
    fine, middle = patch.noise("fine"), patch.noise("middle")
    f = ellipsoid(patch.place, centre, (0.5 * size, 0.38 * size, 0.45 * size))
    patch.paint(patch.cover(f), hu["muscle"] + 22.0 + 5.0 * fine + 6.0 * middle, PROSTATE)
    inner = _ball(patch, centre + np.array([0.0, 0.08, 0.1]) * size, 0.3 * size)
    patch.paint(patch.cover(inner), hu["muscle"] + 40.0 + 10.0 * middle, PROSTATE)
    for sign in (1.0, -1.0):
        middle_mm = centre + np.array([sign * 0.45, -0.35, 0.62]) * size
        vesicle = ellipsoid(patch.place, middle_mm, (0.42 * size, 0.16 * size, 0.20 * size))
        patch.paint(patch.cover(vesicle), hu["muscle"] - 15.0 + 5.0 * fine, PROSTATE)


def _paint_female(
    canvas: Canvas,
    body: Body,
    pelvis: Pelvis,
    bladder: np.ndarray,
    half: np.ndarray,
    hu: dict[str, float],
) -> None:
    """Uterus above and behind the bladder with fibroids; cysts of the ovaries beside it."""
    w, size = body.vertebra_mm, pelvis.uterus_mm
    back = sacrum_front_mm(body, 5.6) + 0.5 * w
    y = min(max((bladder[1] - half[1] + back) / 2, back), bladder[1])
    centre = np.array([0.06 * w, y, max(-5.7 * body.segment_mm, bladder[2] - 0.2 * half[2])])
    if size > 0:
        centre[2] += 0.15 * size
        masses = [(centre + np.array(m[:3]), m[3], m[4]) for m in pelvis.masses]
        reach = max([0.6 * size, *(0.5 * size + r for _, r, _ in masses)]) + 3
        patch = _around(canvas, centre, reach)
        if patch is not None:
            fine, middle = patch.noise("fine"), patch.noise("middle")
            limit = patch.pelvis + 1.0
            tilted = (patch.x, patch.y - 0.5 * (patch.z - centre[2]), patch.z)
            f = ellipsoid(tilted, centre, (0.34 * size, 0.30 * size, 0.46 * size))
            base = 1.05 * hu["bowel wall"] + 8.0
            uterus = base + 5.0 * fine + 5.0 * middle
            patch.paint(patch.cover(torch.maximum(f, limit)), uterus, UTERUS)
            lining = ellipsoid(tilted, centre, (0.13 * size, 0.06 * size, 0.26 * size))
            patch.paint(patch.cover(lining), 0.5 * base + 4.0 * fine, UTERUS)
            for place, radius, contrast in masses:
                f = _ball(patch, place, radius)
                value = base + contrast + 10.0 * middle + 5.0 * fine
                patch.paint(patch.cover(torch.maximum(f, limit)), value, UTERUS)
    for sign, radius in zip((1.0, -1.0), pelvis.ovarian_mm, strict=True):
        if radius <= 0:
            continue
        ovary = np.array([sign * (0.95 * w), centre[1] + 0.1 * w, -5.2 * body.segment_mm])
        patch = _around(canvas, ovary, radius + 4)
        if patch is None:
            continue
        f = torch.maximum(_ball(patch, ovary, radius), patch.pelvis + 1.0)
        patch.paint(patch.cover(f), hu["muscle"] + 5.0, OVARY)
        patch.paint(patch.cover(f + 1.2), hu["cyst"] + 6.0 + 3.0 * patch.noise("fine"), OVARY)
