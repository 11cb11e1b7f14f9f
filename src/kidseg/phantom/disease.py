"""Draw what varies between people besides sizes: fat, bowel, liver, spine, vessels, cysts, stones.

Shares are those of practice unless said otherwise; every case occurs in a cohort of some hundred.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kidseg.phantom.anatomy import (
    Anatomy,
    Body,
    Cyst,
    Kidney,
    Lesion,
    Look,
    Stone,
    Tumour,
    Viscera,
)
from kidseg.phantom.kidneys import Frame

__all__ = [
    "FATTY_LIVER_SHARE",
    "HYDRONEPHROSIS_SHARE",
    "STONE_SHARE",
    "draw_cysts",
    "draw_look",
    "draw_oral_contrast_hu",
    "hollowed",
    "necrotic",
    "varied_child",
]

STONE_SHARE = 0.08
"""Source: 7.8 % of adults without symptoms, Boyce et al., J Urol 183 (2010) 1017-1021."""
HYDRONEPHROSIS_SHARE = 0.07
"""Share of people with one obstructed kidney; more than in practice: a distractor."""
FATTY_LIVER_SHARE = 0.30
"""Source: steatosis in CT of 26 to 31 % of adults, Boyce et al., AJR 194 (2010) 623-628."""
_ORAL_CONTRAST_SHARE = 0.30
# Chosen: rare, but in a cohort of some hundred.
_SCREWS_SHARE = 0.015
# Share of adults with simple cysts at 20 and at 85 years. Source: CT, Carrim and Murchison, Clin
# Radiol 58 (2003) 626-629: from under 10 % to over half.
_CYST_SHARES = (0.06, 0.55)


def draw_oral_contrast_hu(rng: np.random.Generator) -> float:
    """Attenuation that oral contrast adds to the bowel, 0 for most people.

    Source: 4 of 13 patients of the KiTS19 slices have it, 150 HU to beyond their window of 255.
    """
    return float(rng.uniform(60.0, 450.0) if rng.random() < _ORAL_CONTRAST_SHARE else 0.0)


def draw_look(
    rng: np.random.Generator,
    age: float,
    body: Body,
    viscera: Viscera,
    kidneys: tuple[Kidney, ...],
    muscle_fat: float,
) -> Look:
    """Draw the look of an adult; spine and aorta degenerate with age."""
    inside = body.visceral_fat
    fatty = rng.random() < FATTY_LIVER_SHARE
    worn = float(np.interp(age, (25.0, 85.0), (0.0, 1.0)))
    return Look(
        # The Mayo adhesive probability score grades the fat behind the kidney as below 10 mm, 10 to
        # 19, and 20 or more (Davidiuk et al., Eur Urol 66 (2014) 1165-1171); the range is chosen to
        # fill all three.
        perirenal_mm=float(np.clip((4.0 + 36.0 * inside) * np.exp(0.45 * rng.normal()), 1.5, 45.0)),
        bowel_share=float(np.clip(rng.beta(2.2, 1.8) * 1.05 - 0.25 * (inside - 0.5), 0.12, 1.0)),
        bowel_apart_mm=float(rng.uniform(0.0, 2.5) + 3.5 * inside * rng.random()),
        collapsed=float(rng.beta(2.0, 1.2)),
        mesenteric_vessels=int(rng.integers(6, 16)),
        muscle_fat=muscle_fat,
        # Source: unenhanced liver of 0 to 40 HU in steatosis (Boyce 2010); -10 is iron or glycogen.
        liver_fat_hu=float(rng.uniform(10.0, 60.0) if fatty else rng.uniform(-10.0, 8.0)),
        lesions=_draw_lesions(rng, body, viscera),
        # Source: trabecular bone of L1, 230 HU at 20 to 90 HU at 85 years, Jang et al., Radiology
        # 291 (2019) 360-367; a child's is 190 here.
        marrow=float(np.interp(age, (16.0, 90.0), (1.2, 0.65)) * np.exp(0.15 * rng.normal())),
        trabeculae_hu=float(rng.uniform(10.0, 55.0)),
        # Source: osteophytes in 84 % of men and 74 % of women from 50 years on, larger with age,
        # O'Neill et al., J Rheumatol 26 (1999) 842-848; the size is chosen.
        osteophytes=float(np.clip(worn * rng.beta(2.0, 1.5) * 1.2, 0.0, 1.0)),
        # Source: CT shows calcium in the abdominal aorta of under 16 % below 45 years and of nearly
        # 90 % from 65 on, of 1656 without risk factors, Chuang et al., Am J Cardiol 110 (2012)
        # 891-896; here from 46 years on in everybody, mostly little.
        calcification=float(np.clip((worn - 0.35) * 2.2, 0.0, 1.0) * rng.beta(1.0, 1.2)),
        stones=_draw_stones(rng, kidneys),
        screws=bool(rng.random() < _SCREWS_SHARE),
    )


def varied_child(rng: np.random.Generator, child: Anatomy, *, treated: bool) -> Anatomy:
    """A child with the variety of the broad cohort; treated tumours are more necrotic."""
    inside = child.body.visceral_fat
    look = Look(
        perirenal_mm=float((1.0 + 9.0 * inside * child.body_scale) * rng.uniform(0.4, 1.4)),
        bowel_share=float(np.clip(rng.beta(3.0, 1.2), 0.2, 1.0)),
        bowel_apart_mm=float(rng.uniform(0.0, 1.5)),
        collapsed=float(rng.beta(1.2, 1.8)),
        mesenteric_vessels=int(rng.integers(4, 12)),
        muscle_fat=float(0.2 * rng.random()),
        liver_fat_hu=float(rng.uniform(-10.0, 12.0)),
        marrow=float(np.exp(0.15 * rng.normal())),
        trabeculae_hu=float(rng.uniform(0.0, 30.0)),
    )
    kidneys = hollowed(rng, child.kidneys)
    tumours = child.tumours
    if treated:
        tumours = tuple(necrotic(rng, tumour) for tumour in tumours)
    viscera = replace(child.viscera, oral_contrast_hu=draw_oral_contrast_hu(rng))
    return replace(child, look=look, kidneys=kidneys, tumours=tumours, viscera=viscera)


def necrotic(rng: np.random.Generator, tumour: Tumour) -> Tumour:
    """A tumour after chemotherapy: mostly necrotic, with calcifications in a third.

    Source: usual CT after vincristine and actinomycin D.
    """
    necrosis = float(rng.uniform(0.3, 0.95))
    return replace(tumour, necrosis=necrosis, calcified=bool(rng.random() < 0.3))


def hollowed(rng: np.random.Generator, kidneys: tuple[Kidney, ...]) -> tuple[Kidney, ...]:
    """With some probability one of the kidneys is hydronephrotic: pelvis and calyces are wide."""
    if rng.random() >= HYDRONEPHROSIS_SHARE or not kidneys:
        return kidneys
    sick = int(rng.integers(len(kidneys)))
    grade = rng.uniform(0.3, 1.0)
    kidney = kidneys[sick]
    wide = replace(
        kidney,
        pelvis_mm=float(kidney.length_mm * (0.04 + 0.09 * grade)),
        calyces=float(0.45 + 0.35 * grade),
        sinus=float(min(kidney.sinus * (1.0 + 0.3 * grade), 0.8)),
        cortex_mm=float(kidney.cortex_mm * (1.0 - 0.3 * grade)),
    )
    return (*kidneys[:sick], wide, *kidneys[sick + 1 :])


def draw_cysts(
    rng: np.random.Generator, age: float, kidneys: tuple[Kidney, ...]
) -> tuple[Cyst, ...]:
    """Simple cysts of adults: more with age, mostly small, in or on the kidney.

    Sizes are chosen, larger than in healthy donors, of whom 7.9 % have one of 10 mm and 1.6 % one
    of 20 mm or more (Rule et al., Am J Kidney Dis 59 (2012) 611-618), a fifth; here it is a half.
    """
    if rng.random() >= np.interp(age, (20.0, 85.0), _CYST_SHARES) or not kidneys:
        return ()
    cysts = []
    for _ in range(int(rng.geometric(0.45))):
        kidney = kidneys[int(rng.integers(len(kidneys)))]
        frame = Frame.of(kidney)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        direction[0] = abs(direction[0]) if rng.random() < 0.85 else -0.5 * abs(direction[0])
        radius = float(np.clip(rng.lognormal(2.1, 0.65), 2.0, 45.0))
        surface = frame.anatomy_mm(*direction)
        out = (surface - frame.centre) / np.linalg.norm(surface - frame.centre)
        x, y, z = (float(v) for v in surface + out * radius * rng.uniform(-0.8, 0.6))
        cysts.append(Cyst(side=kidney.side, centre_mm=(x, y, z), radius_mm=radius))
    return tuple(cysts)


def _draw_stones(rng: np.random.Generator, kidneys: tuple[Kidney, ...]) -> tuple[Stone, ...]:
    """Stones of 2 to 20 mm in calyces or pelvis, of 400 (urate) to 1500 HU (calcium).

    Source: uric acid 409 HU (SD 118), calcium oxalate 1645 (SD 238), Mostafavi et al., J Urol 159
    (1998) 673-675; 2.1 stones per person of 1 to 20 mm, mean 3.0 (Boyce 2010). Here two, and about
    twice as large: smaller ones are seldom seen.
    """
    if rng.random() >= STONE_SHARE or not kidneys:
        return ()
    stones = []
    for _ in range(int(rng.geometric(0.5))):
        frame = Frame.of(kidneys[int(rng.integers(len(kidneys)))])
        place = (rng.uniform(-0.5, 0.0), rng.uniform(-0.25, 0.25), rng.uniform(-0.65, 0.65))
        x, y, z = (float(v) for v in frame.anatomy_mm(*place))
        size = float(np.clip(rng.lognormal(1.0, 0.55), 1.0, 10.0))
        a, b, c = (float(v) for v in size * rng.uniform(0.6, 1.2, size=3))
        hu = float(rng.uniform(400.0, 1500.0))
        stones.append(Stone(centre_mm=(x, y, z), half_mm=(a, b, c), hu=hu))
    return tuple(stones)


def _draw_lesions(rng: np.random.Generator, body: Body, viscera: Viscera) -> tuple[Lesion, ...]:
    """Lesions of the liver in a quarter of adults: cysts, haemangiomas, metastases.

    Source: in up to 15 % of CT studies, and in up to 30 % of people over 40 (Gore et al., J Am Coll
    Radiol 14 (2017) 1429-1437, and reviews that cite it).
    """
    if rng.random() >= 0.25:
        return ()
    a, b, top = body.organ_lateral_mm, body.organ_depth_mm, body.dome_right_mm
    relative = float(rng.choice([-95.0, rng.uniform(-60.0, -20.0), rng.uniform(15.0, 60.0)]))
    found = []
    for _ in range(int(rng.geometric(0.4))):
        centre = (
            float(a * rng.uniform(0.2, 0.85)),
            float(b * rng.uniform(-0.55, 0.5)),
            float(top - viscera.liver_mm * rng.uniform(0.15, 0.9)),
        )
        radius = float(np.clip(rng.lognormal(1.9, 0.7), 2.0, 45.0))
        found.append(Lesion(centre_mm=centre, radius_mm=radius, relative_hu=relative))
    return tuple(found)
