"""One child, drawn: every size and position that rendering needs, as plain data.

Anatomy coordinates are millimetres (x, y, z), RAS+, of the child lying straight: x = 0 is the
mid-line, y = 0 the middle of the body from front to back, z = 0 the middle of the second lumbar
vertebra. Positions are those *before* a tumour pushes them, except the tumours' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kidseg.phantom import growth

__all__ = [
    "ORGANS",
    "Anatomy",
    "Body",
    "Cyst",
    "Kidney",
    "KidneyForm",
    "Side",
    "Tumour",
    "TumourForm",
    "Viscera",
]

Side = Literal["right", "left"]
KidneyForm = Literal["separate", "single", "horseshoe"]
TumourForm = Literal["none", "one-sided", "bilateral"]

ORGANS: Mapping[int, str] = {
    1: "skin",
    2: "fat",
    3: "muscle",
    4: "spine",
    5: "ribs",
    6: "pelvis",
    7: "spinal canal",
    8: "lung",
    9: "heart",
    10: "liver",
    11: "gallbladder",
    12: "spleen",
    13: "pancreas",
    14: "stomach",
    15: "small bowel",
    16: "colon",
    17: "aorta",
    18: "vena cava",
    19: "portal vein",
    20: "other vessels",
    21: "adrenal",
    22: "renal cortex",
    23: "renal medulla",
    24: "renal pelvis",
    25: "renal sinus fat",
    26: "tumour",
    27: "cyst",
    28: "arm",
    29: "diaphragm",
    30: "intervertebral disc",
}
"""Values of `Rendering.organs`; 0 is outside of the body."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """Trunk: half-axes of its surfaces and the spine's measures, all mm.

    `half_*` is skin to middle; `fat_*` the fat under the skin; `wall_*` the muscle inside it.
    """

    half_lateral_mm: float
    half_depth_mm: float
    skin_mm: float
    fat_lateral_mm: float
    fat_front_mm: float
    fat_back_mm: float
    wall_lateral_mm: float
    wall_front_mm: float
    wall_back_mm: float
    front_roundness: float
    back_roundness: float
    groove_mm: float
    segment_mm: float
    vertebra_mm: float
    spine_y_mm: float
    lordosis_mm: float
    bone_share: float
    muscularity: float
    visceral_fat: float
    dome_right_mm: float
    dome_left_mm: float


@dataclass(frozen=True, kw_only=True)
class Kidney:
    """One kidney, as an ellipsoid bent around its hilum.

    Attributes:
        side: the patient's.
        length_mm, width_mm, thickness_mm: along its long axis, hilum to outer border, and across.
        centre_mm: (x, y, z).
        coronal_deg: upper pole towards the mid-line; negative in a horseshoe kidney.
        sagittal_deg: upper pole backwards.
        hilum_deg: how far the hilum looks forward from the mid-line; 75 in a horseshoe kidney.
        bend: how far the poles lean to the hilum, part of half the width.
        cortex_mm: thickness of the outer cortex.
        sinus: size of the sinus, part of the kidney's half-axes.
        lobulation: depth of the foetal lobes, part of the radius.
        pelvis_mm: half the depth of the renal pelvis.
    """

    side: Side
    length_mm: float
    width_mm: float
    thickness_mm: float
    centre_mm: tuple[float, float, float]
    coronal_deg: float
    sagittal_deg: float
    hilum_deg: float
    bend: float
    cortex_mm: float
    sinus: float
    lobulation: float
    pelvis_mm: float


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """A renal tumour that grew from one point of its kidney.

    Attributes:
        side: of the kidney.
        volume_ml: of the rendered shape.
        origin_mm: where in the undeformed anatomy it began.
        centre_mm: its middle, grown.
        radius_mm: scale of the shape that gives the volume.
        lobes: (x, y, z, radius) of the rounded parts, in units of radius_mm, about the centre.
        necrosis, haemorrhage: part of the tumour, 0-1.
        septa: strength of the bright septa, 0-1.
        rim_mm: thickness of the pseudocapsule.
        calcified: a few small calcifications?
    """

    side: Side
    volume_ml: float
    origin_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    radius_mm: float
    lobes: tuple[tuple[float, float, float, float], ...]
    necrosis: float
    haemorrhage: float
    septa: float
    rim_mm: float
    calcified: bool


@dataclass(frozen=True, kw_only=True)
class Cyst:
    """A simple cyst: a sphere in or on a kidney, water inside."""

    side: Side
    centre_mm: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, kw_only=True)
class Viscera:
    """Sizes and filling of the other organs. Scales are relative to the mean for the body."""

    liver_mm: float
    left_lobe: float
    spleen_mm: float
    aorta_mm: float
    cava_flatness: float
    stomach: float
    stomach_gas: float
    gallbladder_mm: float
    small_bowel_mm: float
    small_bowel_gas: float
    colon_mm: float
    colon_gas: float
    colon_stool: float
    heart: float
    oral_contrast_hu: float


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A child before lying down in the scanner. See the module for the coordinates."""

    age_years: float
    sex: Literal["female", "male"]
    height_mm: float
    form: KidneyForm
    body: Body
    viscera: Viscera
    kidneys: tuple[Kidney, ...]
    tumours: tuple[Tumour, ...]
    cysts: tuple[Cyst, ...]
    detail_seed: int

    @property
    def lateral_mm(self) -> float:
        """Skin to skin across, without arms and without a tumour's bulge."""
        return 2 * self.body.half_lateral_mm

    @property
    def ap_mm(self) -> float:
        """Skin to skin from front to back."""
        return 2 * self.body.half_depth_mm

    @property
    def effective_diameter_mm(self) -> float:
        """Diameter of the circle of the same area as the ellipse of both diameters.

        Source: AAPM Report 204 (2011): the square root of their product.
        """
        return float(np.sqrt(self.lateral_mm * self.ap_mm))

    @property
    def body_scale(self) -> float:
        """Size of the body relative to the mean two-year-old's."""
        reference = growth.effective_diameter_mm(growth.REFERENCE_AGE_YEARS)
        return self.effective_diameter_mm / reference

    @property
    def dome_mm(self) -> float:
        """z of the top of the diaphragm."""
        return max(self.body.dome_right_mm, self.body.dome_left_mm)

    @property
    def crest_mm(self) -> float:
        """z of the top of the iliac crests, at the fourth lumbar vertebra."""
        return -2.0 * self.body.segment_mm

    @property
    def modelled_mm(self) -> tuple[float, float]:
        """z between which the anatomy is drawn: first sacral vertebra to the lung bases."""
        return -4.6 * self.body.segment_mm, self.dome_mm + 1.5 * self.body.segment_mm

    @property
    def kidneys_mm(self) -> tuple[float, float]:
        """(low, high) z of kidneys and tumours."""
        ends = [(k.centre_mm[2], k.length_mm / 2) for k in self.kidneys]
        ends += [
            (t.centre_mm[2], 1.05 * t.radius_mm * max(abs(z) + r for _, _, z, r in t.lobes))
            for t in self.tumours
        ]
        return min(z - h for z, h in ends), max(z + h for z, h in ends)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)
