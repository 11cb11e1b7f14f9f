"""Draw the anatomy of one child: sizes by age, forms and tumours by frequency, with variation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kidseg.phantom import growth
from kidseg.phantom.anatomy import (
    Anatomy,
    Body,
    Cyst,
    Kidney,
    KidneyForm,
    Side,
    TumourForm,
    Viscera,
)
from kidseg.phantom.forms import formed, with_tumour
from kidseg.phantom.tumour import draw_tumour

__all__ = [
    "AFTER_CHEMOTHERAPY",
    "AT_SURGERY",
    "BEFORE_CHEMOTHERAPY",
    "BILATERAL_SHARE",
    "CYST_SHARE",
    "FIRST_OF_TWO",
    "HORSESHOE_SHARE",
    "ORAL_CONTRAST_SHARE",
    "SINGLE_KIDNEY_SHARE",
    "TUMOUR_MEDIAN_ML",
    "WilmsVolumes",
    "draw_child",
    "draw_treated_volume_ml",
    "draw_tumour_volume_ml",
    "trunk_ml",
]

BILATERAL_SHARE = 0.08
"""Share of children with a tumour.

Source: 5-8 % of Wilms tumours are bilateral, Breslow et al., Med Pediatr Oncol 21 (1993) 172-181.
"""
SINGLE_KIDNEY_SHARE = 0.02
"""More than in newborns, so that small cohorts include the case.

Source: 1 in about 2000, Westland et al., Nephrol Dial Transplant 28 (2013) 1844-1855.
"""
HORSESHOE_SHARE = 0.02
"""More than the 1 in 400 to 600 of people, for the same reason.

Source: Shah and Ojili, Indian J Radiol Imaging 27 (2017) 133-140.
"""
CYST_SHARE = 0.12
"""Share of children with one or more simple cysts: distractors, more than in practice."""
TUMOUR_MEDIAN_ML = 320.0
"""Median volume from the age of three.

Source: in the trial SIOP WT 2001 at diagnosis 382 ml in Germany (n = 951, middle half 198-628), 572
in the United Kingdom (n = 616, 335-904), Pritchard-Jones et al., Arch Dis Child 101 (2016) 417-420.
Chosen lower: at surgery some have had chemotherapy.
"""

ORAL_CONTRAST_SHARE = 0.10
"""Share of children with oral contrast, which makes some loops of small bowel bright."""


# Volume after the first chemotherapy relative to before: log-normal. Source: 259 children with two
# scans (COG trials AREN0532-0534): change -78 %, middle half -89 to -54 %; 240 tumours shrank.
_RESPONSE_MEDIAN, _RESPONSE_LOG_SD = 0.218, 1.04
_LEAST_ML = 2.0


@dataclass(frozen=True, kw_only=True)
class WilmsVolumes:
    """Distribution of tumour volumes from the age of three: log-normal within a range.

    share_of_trunk is the largest fraction of the trunk between diaphragm and pelvis that the
    tumours fill.
    """

    median_ml: float
    log_sd: float
    range_ml: tuple[float, float]
    share_of_trunk: float


AT_SURGERY = WilmsVolumes(
    median_ml=TUMOUR_MEDIAN_ML, log_sd=0.75, range_ml=(10.0, 1500.0), share_of_trunk=0.16
)
BEFORE_CHEMOTHERAPY = WilmsVolumes(
    median_ml=551.0, log_sd=0.79, range_ml=(10.0, 2200.0), share_of_trunk=0.20
)
"""Source: 259 children with two scans (COG trials AREN0532-0534): middle half 299-864 ml.

From the age of three, where the body has room; of all ages drawn 375 ml, middle half 241-525.
"""
FIRST_OF_TWO = WilmsVolumes(
    median_ml=780.0, log_sd=0.9, range_ml=(10.0, 2200.0), share_of_trunk=0.32
)
"""Of pairs: the same figures, for children of all ages here, whose tumours are smaller in the first
years and limited by the body: quartiles of about 350, 570 and 840 ml. Source: the same."""
AFTER_CHEMOTHERAPY = WilmsVolumes(
    median_ml=110.0, log_sd=1.21, range_ml=(2.0, 1500.0), share_of_trunk=0.20
)
"""Source: the same children after the first chemotherapy: middle half 49-252 ml.

Of all ages drawn 91 ml, middle half 44-201.
"""


def draw_child(
    rng: np.random.Generator,
    age_years: float,
    *,
    tumour: TumourForm | None = None,
    kidneys: KidneyForm | None = None,
    volumes: WilmsVolumes = AT_SURGERY,
) -> Anatomy:
    """Draw a child of this age.

    Args:
        rng: random generator.
        age_years: 0 to 16.
        tumour: "one-sided", "bilateral" or "none"; by default one-sided or bilateral at random.
        kidneys: form; by default "separate", "single" or "horseshoe" at random.
        volumes: of the tumours.
    """
    shares = [1 - SINGLE_KIDNEY_SHARE - HORSESHOE_SHARE, SINGLE_KIDNEY_SHARE, HORSESHOE_SHARE]
    drawn_form = str(rng.choice(["separate", "single", "horseshoe"], p=shares))
    drawn_tumour: TumourForm = "bilateral" if rng.random() < BILATERAL_SHARE else "one-sided"
    form: Any = kidneys or drawn_form
    sex: Any = str(rng.choice(["female", "male"]))
    body = _draw_body(rng, age_years)
    viscera = _draw_viscera(rng, age_years, body)
    both = formed(_draw_kidneys(rng, age_years, body, form), form)
    chosen = with_tumour(rng, both, tumour or drawn_tumour)
    largest_ml = volumes.share_of_trunk * trunk_ml(body)
    tumours = []
    for kidney in chosen:
        most = largest_ml / len(chosen)
        volume_ml = draw_tumour_volume_ml(rng, age_years, most, volumes) / len(chosen)
        tumours.append(draw_tumour(rng, body, kidney, volume_ml))
    return Anatomy(
        age_years=float(age_years),
        sex=sex,
        height_mm=growth.vary(rng, growth.height_mm(age_years), 0.04),
        form=form,
        body=body,
        viscera=viscera,
        kidneys=both,
        tumours=tuple(tumours),
        cysts=_draw_cysts(rng, both),
        detail_seed=int(rng.integers(2**31)),
    )


def draw_tumour_volume_ml(
    rng: np.random.Generator,
    age_years: float,
    largest_ml: float,
    volumes: WilmsVolumes = AT_SURGERY,
) -> float:
    """Draw a log-normal volume, smaller in the first years and limited by the size of the body."""
    median = volumes.median_ml * float(np.interp(age_years, (0.0, 1.0, 3.0), (0.3, 0.75, 1.0)))
    low, high = volumes.range_ml
    volume = median * float(np.exp(rng.normal(0.0, volumes.log_sd)))
    if volume > largest_ml:
        volume = largest_ml * rng.uniform(0.6, 1.0)
    return float(np.clip(volume, low, high))


def draw_treated_volume_ml(rng: np.random.Generator, before_ml: float, body: Body) -> float:
    """Draw the volume of a tumour after the first chemotherapy; a few grow.

    Limited by the size of the body, as before.
    """
    volume = before_ml * _RESPONSE_MEDIAN * float(np.exp(rng.normal(0.0, _RESPONSE_LOG_SD)))
    most = max(before_ml, AFTER_CHEMOTHERAPY.share_of_trunk * trunk_ml(body))
    return float(np.clip(volume, min(_LEAST_ML, before_ml), most))


def trunk_ml(body: Body) -> float:
    """Volume between diaphragm and pelvis."""
    length = body.dome_right_mm + 4.0 * body.segment_mm
    return float(np.pi * body.half_lateral_mm * body.half_depth_mm * length / 1000.0)


def _draw_body(rng: np.random.Generator, age: float) -> Body:
    diameter = growth.vary(rng, growth.effective_diameter_mm(age), 0.055)
    aspect = float(np.clip(growth.vary(rng, growth.body_aspect(age), 0.05), 1.1, 1.65))
    lateral, depth = diameter * np.sqrt(aspect) / 2, diameter / np.sqrt(aspect) / 2
    plump = float(np.clip(growth.vary(rng, 1.0, 0.38), 0.45, 2.2))
    fat = float(np.interp(age, (0, 1, 3, 6, 10, 16), (4.0, 5.5, 5.0, 5.5, 8.0, 11.0))) * plump
    segment = growth.vary(rng, growth.lumbar_segment_mm(age), 0.035)
    vertebra = growth.vary(rng, growth.vertebra_width_mm(age), 0.05)
    muscularity = growth.vary(rng, 1.0, 0.15)
    spine_y = -depth + 1.5 + 0.9 * fat + 1.38 * vertebra
    thickness = 0.42 * growth.kidney_length_mm(age)
    back = -(spine_y - 0.30 * vertebra - thickness / 2 - 1.0 - 0.15 * fat)
    return Body(
        half_lateral_mm=float(lateral),
        half_depth_mm=float(depth),
        skin_mm=float(np.interp(age, (0, 16), (1.1, 1.9))),
        fat_lateral_mm=fat,
        fat_front_mm=fat * rng.uniform(0.7, 1.1),
        fat_back_mm=fat * rng.uniform(0.8, 1.1),
        wall_lateral_mm=float(0.085 * lateral * muscularity),
        wall_front_mm=float(0.075 * depth * muscularity),
        wall_back_mm=float(max(0.12 * depth, depth - 0.95 * fat - back)),
        front_roundness=float(rng.uniform(1.45, 1.85)),
        back_roundness=float(rng.uniform(0.8, 1.15)),
        groove_mm=float(vertebra * rng.uniform(0.10, 0.22)),
        segment_mm=segment,
        vertebra_mm=vertebra,
        spine_y_mm=float(spine_y),
        lordosis_mm=float(vertebra * rng.uniform(0.05, 0.25) * np.interp(age, (0, 3), (0.2, 1.0))),
        bone_share=float(np.interp(age, (0, 1, 4, 16), (0.58, 0.66, 0.73, 0.78))),
        muscularity=muscularity,
        visceral_fat=float(
            np.clip(np.interp(age, (0, 2, 8, 16), (0.15, 0.3, 0.5, 0.8)) * plump, 0.05, 1.3)
        ),
        dome_right_mm=float(segment * rng.uniform(4.4, 5.2)),
        dome_left_mm=float(segment * rng.uniform(4.0, 4.7)),
    )


def _draw_viscera(rng: np.random.Generator, age: float, body: Body) -> Viscera:
    def vary(mean: float, sd: float) -> float:
        return growth.vary(rng, mean, sd)

    return Viscera(
        liver_mm=vary(growth.liver_span_mm(age), 0.10),
        left_lobe=float(rng.uniform(0.75, 1.15)),
        spleen_mm=vary(growth.spleen_length_mm(age), 0.13),
        aorta_mm=vary(growth.aorta_diameter_mm(age), 0.08),
        cava_flatness=float(rng.uniform(0.5, 0.95)),
        stomach=vary(1.0, 0.2),
        stomach_gas=float(rng.uniform(0.05, 0.6)),
        # Source: length 25 mm in the first year, 42 from 2 to 5, 61 from 12 to 16 (38-80), McGahan
        # et al., Radiology 144 (1982) 873-875.
        gallbladder_mm=vary(float(np.interp(age, (0, 2, 16), (22.0, 40.0, 70.0))), 0.2),
        small_bowel_mm=vary(float(np.interp(age, (0, 2, 16), (12.5, 16.0, 26.0))), 0.1),
        small_bowel_gas=float(rng.beta(1.2, 4.0)),
        colon_mm=vary(float(np.interp(age, (0, 2, 16), (15.0, 22.0, 36.0))), 0.12),
        colon_gas=float(rng.beta(2.0, 2.0)),
        colon_stool=float(rng.beta(2.0, 2.0)),
        heart=vary(1.0, 0.08),
        oral_contrast_hu=float(rng.uniform(120, 300) if rng.random() < ORAL_CONTRAST_SHARE else 0),
    )


def _draw_kidneys(
    rng: np.random.Generator, age: float, body: Body, form: KidneyForm
) -> tuple[Kidney, ...]:
    low, high = growth.KIDNEY_LENGTH_SD_MM
    sd = float(np.interp(age, growth.CHILD_AGES_YEARS, (low, high)))
    common = float(np.clip(rng.normal(0.0, 0.85 * sd), -2 * sd, 2 * sd))
    # The left kidney is slightly longer. Source: Konus et al., AJR 171 (1998): 0.1 to 0.2 cm.
    difference = {"right": -0.7, "left": 0.7}
    only: Side = "left" if rng.random() < 0.5 else "right"
    made = []
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        own = float(np.clip(rng.normal(0.0, 0.5 * sd), -sd, sd))
        length = growth.kidney_length_mm(age) + common + own + difference[side]
        # A single kidney grows larger to compensate. Source: Rottenberg et al., 1996.
        length *= 1.18 if form == "single" else 1.0
        kidney = _draw_kidney(rng, age, body, side, float(length), form)
        if form != "single" or side == only:
            made.append(kidney)
    return tuple(made)


def _draw_kidney(
    rng: np.random.Generator, age: float, body: Body, side: Side, length: float, form: KidneyForm
) -> Kidney:
    horseshoe = form == "horseshoe"
    sign = 1.0 if side == "right" else -1.0
    width = length * rng.uniform(0.47, 0.54)
    thickness = length * rng.uniform(0.40, 0.46)
    lateral = 0.5 * body.vertebra_mm + 0.20 * body.vertebra_mm * body.muscularity + 0.55 * width
    lateral += rng.normal(0.0, 0.02) * body.half_lateral_mm + 2.0 * body.visceral_fat
    lateral = min(lateral, 0.94 * _cavity_lateral(body) - 0.47 * width)
    z = {"right": 0.10, "left": 0.55}[side] + rng.normal(0.0, 0.2) - (0.9 if horseshoe else 0.0)
    y = body.spine_y_mm - 0.30 * body.vertebra_mm + rng.normal(0.0, 0.03) * length
    if horseshoe:
        y += 0.18 * length
    return Kidney(
        side=side,
        length_mm=length,
        width_mm=float(width),
        thickness_mm=float(thickness),
        centre_mm=(float(sign * lateral), float(y), float(z * body.segment_mm)),
        coronal_deg=float(-rng.uniform(14, 22) if horseshoe else rng.normal(14.0, 4.0)),
        sagittal_deg=float(rng.normal(9.0, 4.0)),
        hilum_deg=float(rng.normal(75.0, 8.0) if horseshoe else rng.normal(44.0, 10.0)),
        bend=float(rng.uniform(0.15, 0.40)),
        cortex_mm=float(length * rng.uniform(0.046, 0.062)),
        sinus=float(np.interp(age, (0, 3, 16), (0.30, 0.38, 0.48)) * rng.uniform(0.88, 1.12)),
        lobulation=float(np.interp(age, (0, 1, 4), (0.045, 0.03, 0.008)) * rng.uniform(0.5, 1.3)),
        pelvis_mm=float(length * 0.035 * (rng.uniform(1.5, 3.0) if rng.random() < 0.12 else 1.0)),
    )


def _cavity_lateral(body: Body) -> float:
    return body.half_lateral_mm - body.fat_lateral_mm - body.skin_mm - body.wall_lateral_mm


def _draw_cysts(rng: np.random.Generator, kidneys: tuple[Kidney, ...]) -> tuple[Cyst, ...]:
    if rng.random() >= CYST_SHARE or not kidneys:
        return ()
    cysts = []
    for _ in range(int(rng.integers(1, 4))):
        kidney = kidneys[int(rng.integers(len(kidneys)))]
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        sign = kidney.sign
        direction[0] = sign * abs(direction[0])
        half = np.array([kidney.width_mm, kidney.thickness_mm, 0.9 * kidney.length_mm]) / 2
        place = np.asarray(kidney.centre_mm) + rng.uniform(0.7, 1.05) * direction * half
        radius = float(np.clip(kidney.length_mm * rng.lognormal(-2.6, 0.45), 2.5, 25.0))
        x, y, z = (float(v) for v in place)
        cysts.append(Cyst(side=kidney.side, centre_mm=(x, y, z), radius_mm=radius))
    return tuple(cysts)
