"""Draw the anatomy of one adult: habitus with its fat, sizes by age and sex, disease, masses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kidseg.phantom import growth
from kidseg.phantom.anatomy import Anatomy, Body, Kidney, KidneyForm, Side, TumourForm, Viscera
from kidseg.phantom.disease import draw_cysts, draw_look, draw_oral_contrast_hu, hollowed
from kidseg.phantom.forms import formed, with_tumour
from kidseg.phantom.mass import draw_mass, draw_mass_volume_ml

__all__ = ["BILATERAL_SHARE", "HORSESHOE_SHARE", "SINGLE_SHARE", "draw_adult", "draw_habitus"]

SINGLE_SHARE = 0.06
"""After nephrectomy, or agenesis; more than in practice, so that small cohorts include the case.

Source: agenesis in 1 of about 2000, Westland et al., Nephrol Dial Transplant 28 (2013) 1844-1855.
"""
HORSESHOE_SHARE = 0.01
"""More than the 1 in 400 to 600, for the same reason.

Source: Shah and Ojili, Indian J Radiol Imaging 27 (2017) 133-140.
"""
BILATERAL_SHARE = 0.05
"""Share of adults with a mass.

Source: 4.7 % of 698 operated on for renal cell carcinoma, at once or later, Grimaldi et al., Ann
Surg Oncol 5 (1998) 548-552; but at once only 1.5 % of 10,337, Klatte et al., BJU Int 100 (2007)
21-25.
"""
_SECOND_SHARE = 0.07
"""Share of kidneys with a mass that have another one, which is smaller. Chosen.

Less than the 16 % of one-sided carcinomas that are multifocal in pathology (Klatte et al. 2007).
"""
# Chosen: more than in practice, so that small cohorts include the case.
_ATROPHIC_SHARE = 0.06
_HYPERTROPHIC = 1.12
# Fat beyond this thickness does not move organs outwards.
_SLIM_FAT_MM = 12.0


@dataclass(frozen=True, kw_only=True)
class Habitus:
    """Build: sex, size of the frame relative to the mean, fat under the skin (mm) and inside (0-1).

    Source of the fat: at L3 in CT of 1787 healthy adults men have a median visceral area of 121 cm2
    and a subcutaneous one of 117, women of 67 and 147 (Kong et al., Front Nutr 9 (2022) 871697).
    The range from slim to obese is chosen about that.
    """

    sex: str
    frame: float
    fat_mm: float
    visceral: float
    muscle: float
    muscle_fat: float


def draw_habitus(rng: np.random.Generator, age_years: float) -> Habitus:
    """Draw sex and build: men have more fat inside, women under the skin; both more with age."""
    sex = str(rng.choice(["female", "male"], p=[0.4, 0.6]))  # sexes of KiTS19: 123 F, 177 M of 300
    male = sex == "male"
    plump = float(np.clip(rng.normal(), -2.0, 2.4))
    grown = float(np.interp(age_years, (16.0, 45.0, 90.0), (0.0, 1.0, 0.9)))
    fat = (16.0 if male else 23.0) * np.exp(0.50 * plump) * (0.65 + 0.35 * grown)
    inside = (0.56 if male else 0.38) * np.exp(0.40 * plump + 0.25 * rng.normal())
    lost = float(np.interp(age_years, (16.0, 50.0, 90.0), (0.0, 0.2, 1.0)))
    return Habitus(
        sex=sex,
        frame=float((1.03 if male else 0.95) * np.exp(0.035 * np.clip(rng.normal(), -2, 2))),
        fat_mm=float(np.clip(fat, 3.0, 60.0)),
        visceral=float(np.clip(inside * (0.35 + 0.65 * grown), 0.03, 1.35)),
        muscle=float((1.12 if male else 0.95) * (1 - 0.22 * lost) * np.exp(0.12 * rng.normal())),
        muscle_fat=float(np.clip(rng.beta(1.6, 3.0) * 0.7 + 0.35 * lost, 0.0, 1.0)),
    )


def draw_adult(
    rng: np.random.Generator,
    age_years: float,
    *,
    tumour: TumourForm | None = None,
    kidneys: KidneyForm | None = None,
) -> Anatomy:
    """Draw an adult of this age, 16 to 90 years; see `people.draw_anatomy`."""
    shares = [1 - SINGLE_SHARE - HORSESHOE_SHARE, SINGLE_SHARE, HORSESHOE_SHARE]
    drawn_form: Any = str(rng.choice(["separate", "single", "horseshoe"], p=shares))
    form: KidneyForm = kidneys or drawn_form
    habitus = draw_habitus(rng, age_years)
    body = _draw_body(rng, age_years, habitus)
    viscera = _draw_viscera(rng, age_years, habitus)
    both = formed(_draw_kidneys(rng, age_years, body, form), form)
    look = draw_look(rng, age_years, body, viscera, both, habitus.muscle_fat)
    both = hollowed(rng, both)
    tumours = []
    bilateral = tumour == "bilateral" or (tumour is None and rng.random() < BILATERAL_SHARE)
    chosen = list(both) if bilateral else with_tumour(rng, both, "one-sided")
    for kidney in chosen if tumour != "none" else []:
        largest = draw_mass_volume_ml(rng)
        tumours.append(draw_mass(rng, body, kidney, largest))
        if rng.random() < _SECOND_SHARE:
            volume = min(draw_mass_volume_ml(rng), 0.3 * largest)
            tumours.append(draw_mass(rng, body, kidney, volume))
    sex: Any = habitus.sex
    return Anatomy(
        age_years=float(age_years),
        sex=sex,
        height_mm=growth.height_mm(age_years) * habitus.frame,
        form=form,
        body=body,
        viscera=viscera,
        kidneys=both,
        tumours=tuple(tumours),
        cysts=draw_cysts(rng, age_years, both),
        detail_seed=int(rng.integers(2**31)),
        look=look,
    )


def _draw_body(rng: np.random.Generator, age: float, habitus: Habitus) -> Body:
    """Skeleton and cavity by frame and visceral fat; wall and fat outside it."""
    frame, fat, inside = habitus.frame, habitus.fat_mm, habitus.visceral
    segment = growth.vary(rng, growth.lumbar_segment_mm(age), 0.035) * frame
    vertebra = growth.vary(rng, growth.vertebra_width_mm(age), 0.05) * frame
    fat_back = fat * rng.uniform(0.55, 1.1)
    fat_front = fat * rng.uniform(0.7, 1.3)
    cavity_lateral = frame * growth.vary(rng, 125.0, 0.045) + 24.0 * inside
    # From the middle of a vertebral body to the inner side of the front wall.
    ahead = frame * growth.vary(rng, 90.0, 0.08) + 58.0 * inside
    wall_lateral = 0.095 * cavity_lateral * habitus.muscle
    wall_front = 0.085 * ahead * habitus.muscle / (1.0 + 0.5 * inside)
    skin = 1.9
    behind = vertebra * rng.uniform(1.42, 1.58) + fat_back + skin
    depth = (behind + ahead + wall_front + fat_front + skin) / 2
    lateral = cavity_lateral + wall_lateral + fat + skin
    # Width to depth within what is measured. Source: 1.2 to 1.6, KiTS19 and AMOS slices.
    lateral = float(np.clip(lateral, 1.18 * depth, 1.68 * depth))
    spine_y = behind - depth
    back = depth - behind + 0.62 * vertebra + rng.uniform(0.1, 0.35) * vertebra * (0.5 + inside)
    outer = max(0.0, min(fat_back, fat_front, fat) - _SLIM_FAT_MM)
    return Body(
        half_lateral_mm=lateral,
        half_depth_mm=float(depth),
        skin_mm=skin,
        fat_lateral_mm=fat,
        fat_front_mm=float(fat_front),
        fat_back_mm=float(fat_back),
        wall_lateral_mm=float(wall_lateral),
        wall_front_mm=float(wall_front),
        wall_back_mm=float(max(0.10 * depth, back - fat_back)),
        front_roundness=float(rng.uniform(1.35, 1.95)),
        back_roundness=float(rng.uniform(0.75, 1.2)),
        groove_mm=float(vertebra * rng.uniform(0.08, 0.30)),
        segment_mm=segment,
        vertebra_mm=vertebra,
        spine_y_mm=float(spine_y),
        lordosis_mm=float(vertebra * rng.uniform(0.05, 0.30)),
        bone_share=float(rng.uniform(0.74, 0.86)),
        muscularity=float(np.clip(habitus.muscle * rng.uniform(1.1, 1.7), 0.75, 2.0)),
        visceral_fat=float(np.clip(inside, 0.05, 1.3)),
        dome_right_mm=float(segment * rng.uniform(4.2, 5.2)),
        dome_left_mm=float(segment * rng.uniform(3.9, 4.8)),
        outer_fat_lateral_mm=max(0.0, fat - _SLIM_FAT_MM),
        outer_fat_depth_mm=float(outer),
    )


def _draw_viscera(rng: np.random.Generator, age: float, habitus: Habitus) -> Viscera:
    def vary(mean: float, sd: float) -> float:
        return growth.vary(rng, mean, sd)

    frame = habitus.frame
    return Viscera(
        liver_mm=vary(growth.liver_span_mm(age), 0.14) * frame,
        left_lobe=float(rng.uniform(0.6, 1.25)),
        spleen_mm=vary(growth.spleen_length_mm(age), 0.18) * frame,
        aorta_mm=vary(growth.aorta_diameter_mm(age), 0.12) * frame,
        cava_flatness=float(rng.uniform(0.4, 0.95)),
        stomach=vary(0.85, 0.28),
        stomach_gas=float(rng.uniform(0.05, 0.8)),
        gallbladder_mm=vary(68.0, 0.25),
        # Source: 24.5 mm (SD 4.2) in the jejunum, 19 in the ileum, MR enterography of 65, Cronin et
        # al., Eur J Radiol 75 (2010) 207-211; here all loops are like the jejunum, and vary more.
        small_bowel_mm=vary(25.0, 0.22),
        small_bowel_gas=float(rng.beta(1.0, 5.0)),
        colon_mm=vary(38.0, 0.2),
        colon_gas=float(rng.beta(1.5, 2.0)),
        colon_stool=float(rng.beta(1.6, 1.6)),
        heart=vary(1.0, 0.1),
        oral_contrast_hu=draw_oral_contrast_hu(rng),
    )


def _draw_kidneys(
    rng: np.random.Generator, age: float, body: Body, form: KidneyForm
) -> tuple[Kidney, ...]:
    """Two kidneys of similar size; a single one is larger, an atrophic one smaller."""
    sd = growth.ADULT_KIDNEY_LENGTH_SD_MM
    common = float(np.clip(rng.normal(0.0, 0.85 * sd), -2 * sd, 2 * sd))
    only: Side = "left" if rng.random() < 0.5 else "right"
    sick: Side = "left" if rng.random() < 0.5 else "right"
    atrophic = form == "separate" and rng.random() < _ATROPHIC_SHARE
    shrunk = rng.uniform(0.6, 0.85)
    made = []
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        length = growth.kidney_length_mm(age) + common
        length += float(np.clip(rng.normal(0.0, 0.5 * sd), -sd, sd)) + (1 if side == "left" else -1)
        loss = 0.0
        if form == "single" or (atrophic and side != sick):
            # The other kidney grows to compensate. Source: Rottenberg et al., Clin Radiol 1996.
            length *= _HYPERTROPHIC
        elif atrophic:
            length, loss = length * shrunk, 1.0
        kidney = _draw_kidney(rng, age, body, side, float(length), form, loss)
        if form != "single" or side == only:
            made.append(kidney)
    return tuple(made)


def _draw_kidney(
    rng: np.random.Generator,
    age: float,
    body: Body,
    side: Side,
    length: float,
    form: KidneyForm,
    loss: float,
) -> Kidney:
    """Proportions as of the label volumes of KiTS19: 0.12 x length^3 of parenchyma."""
    horseshoe = form == "horseshoe"
    sign = 1.0 if side == "right" else -1.0
    width = length * rng.uniform(0.49, 0.60)
    thickness = length * rng.uniform(0.45, 0.57)
    vertebra, inside = body.vertebra_mm, body.visceral_fat
    # Distance between the centres of both kidneys from left to right: 118 to 174 mm (5-95
    # percentile of 98 label volumes of KiTS19), more with fat.
    lateral = vertebra * (0.58 + 0.25 * body.muscularity) + 0.50 * width
    lateral += rng.normal(0.0, 5.0) + 12.0 * (inside - 0.4)
    cavity = body.half_lateral_mm - body.fat_lateral_mm - body.skin_mm - body.wall_lateral_mm
    lateral = min(lateral, 0.92 * cavity - 0.45 * width)
    z = {"right": 0.0, "left": 0.35}[side] + rng.normal(0.0, 0.2) - (0.9 if horseshoe else 0.0)
    y = body.spine_y_mm + vertebra * (rng.normal(0.22, 0.12) + 0.40 * inside)
    if horseshoe:
        y += 0.18 * length
    wasted = float(np.interp(age, (40.0, 90.0), (0.0, 0.35))) + 0.5 * loss
    sinus = rng.uniform(0.32, 0.52) * (1.0 + 0.35 * wasted) * (0.9 + 0.2 * inside)
    return Kidney(
        side=side,
        length_mm=length,
        width_mm=float(width),
        thickness_mm=float(thickness),
        centre_mm=(float(sign * lateral), float(y), float(z * body.segment_mm)),
        coronal_deg=float(-rng.uniform(14, 22) if horseshoe else rng.normal(15.0, 6.0)),
        sagittal_deg=float(rng.normal(10.0, 6.0)),
        hilum_deg=float(rng.normal(75.0, 8.0) if horseshoe else rng.normal(38.0, 16.0)),
        bend=float(rng.uniform(0.10, 0.45)),
        cortex_mm=float(length * rng.uniform(0.045, 0.07) * (1.0 - 0.3 * wasted)),
        sinus=float(min(sinus, 0.70)),
        lobulation=float(0.05 * rng.beta(1.0, 3.0) + 0.03 * loss),
        pelvis_mm=float(length * 0.035 * (rng.uniform(1.5, 3.0) if rng.random() < 0.12 else 1.0)),
    )
