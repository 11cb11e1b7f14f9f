"""The anatomy of one person: all sizes and positions for rendering, as plain data.

Anatomy coordinates are millimetres (x, y, z), RAS+, of the person in a straight position: x = 0 is
the mid-line, y = 0 the centre of the body from front to back, z = 0 the centre of the second lumbar
vertebra. Positions are those *before* displacement by a tumour, except those of tumours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kidseg.config import KidneyForm
from kidseg.phantom import growth
from kidseg.phantom.adjacent import Neighbours
from kidseg.phantom.devices import Implant

__all__ = [
    "ORGANS",
    "Anatomy",
    "Body",
    "Cyst",
    "Kidney",
    "KidneyForm",
    "Lesion",
    "Look",
    "Pelvis",
    "Side",
    "Stone",
    "Tissue",
    "Tumour",
    "TumourForm",
    "Viscera",
]

Side = Literal["right", "left"]
TumourForm = Literal["none", "one-sided", "bilateral"]
Tissue = Literal["wilms", "solid", "cystic", "fatty"]

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
    31: "bladder",
    32: "uterus",
    33: "prostate",
    34: "femur",
    35: "ovary",
    36: "ureter",
}
"""Values of `Rendering.organs`; 0 is outside the body."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """Trunk: half-axes of its surfaces and dimensions of the spine, all mm.

    `half_*` is the distance from the centre to the skin, `fat_*` the thickness of the fat under the
    skin, `wall_*` that of the muscle inside it. `outer_fat_*` is the part of the fat that is more
    than a slim body's: positions of organs are relative to the body without it.
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
    outer_fat_lateral_mm: float = 0.0
    outer_fat_depth_mm: float = 0.0

    @property
    def organ_lateral_mm(self) -> float:
        """Lateral half-axis to which positions and sizes of organs are relative."""
        return self.half_lateral_mm - self.outer_fat_lateral_mm

    @property
    def organ_depth_mm(self) -> float:
        """The same from front to back."""
        return self.half_depth_mm - self.outer_fat_depth_mm


@dataclass(frozen=True, kw_only=True)
class Kidney:
    """One kidney, as an ellipsoid bent around its hilum.

    Attributes:
        side: side of the patient.
        length_mm, width_mm, thickness_mm: along the long axis, from hilum to outer border, and
            perpendicular to both.
        centre_mm: (x, y, z).
        coronal_deg: tilt of the upper pole to the mid-line; negative in a horseshoe kidney.
        sagittal_deg: tilt of the upper pole backwards.
        hilum_deg: angle of the hilum from the mid-line to the front; 75 in a horseshoe kidney.
        bend: displacement of the poles towards the hilum, as a fraction of half the width.
        cortex_mm: thickness of the outer cortex.
        sinus: size of the sinus, as a fraction of the kidney's half-axes.
        lobulation: depth of the foetal lobes, as a fraction of the radius.
        pelvis_mm: half the depth of the renal pelvis.
        calyces: width of the calyces relative to the pelvis; more if they are obstructed.
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
    calyces: float = 0.45

    @property
    def sign(self) -> float:
        """The sign of x on its side: 1 on the right, -1 on the left."""
        return 1.0 if self.side == "right" else -1.0


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """A renal tumour that grew from one point of its kidney.

    Attributes:
        side: side of the kidney.
        volume_ml: volume of the rendered shape.
        origin_mm: its origin in the undeformed anatomy.
        centre_mm: its centre after growth.
        radius_mm: scale of the shape, which determines the volume.
        lobes: (x, y, z, radius) of the lobes, in units of radius_mm, relative to the centre.
        necrosis, haemorrhage: fraction of the tumour, 0-1.
        septa: strength of the bright septa, 0-1.
        rim_mm: thickness of the pseudocapsule.
        calcified: whether it has a few small calcifications.
        tissue: "wilms", or a mass of adults: "solid", "cystic" (fluid with septa) or "fatty"
            (angiomyolipoma).
        uptake: enhancement of a mass relative to that of its kidney, 0-1.
        structure_hu: standard deviation of its texture.
        grain_mm: size of the texture's details.
        vascular: strength of its bright vessels, 0-1.
        replaced: fraction of its volume that replaces tissue; the rest displaces it.
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
    tissue: Tissue = "wilms"
    uptake: float = 0.0
    structure_hu: float = 0.0
    grain_mm: float = 0.0
    vascular: float = 0.0
    replaced: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cyst:
    """A simple cyst: a sphere of water in or on a kidney."""

    side: Side
    centre_mm: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, kw_only=True)
class Stone:
    """A kidney stone: a bright ellipsoid in the collecting system."""

    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    hu: float


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A round lesion of the liver: cyst, haemangioma or metastasis; HU relative to the liver."""

    centre_mm: tuple[float, float, float]
    radius_mm: float
    relative_hu: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """What varies between people besides sizes. The defaults are a healthy child's.

    Attributes:
        perirenal_mm: thickness of the fat behind the kidneys; None as a child of that fat.
        bowel_share: fraction of the small bowel that is in view, in clusters; 1 fills the cavity.
        bowel_apart_mm: further fat between loops.
        collapsed: fraction of the loops without visible lumen.
        mesenteric_vessels: branches of each mesenteric trunk.
        muscle_fat: fat in the muscles of the back, 0-1.
        liver_fat_hu: attenuation of the liver that fat takes away.
        lesions: of the liver.
        marrow: attenuation of the marrow relative to a child's.
        trabeculae_hu: further coarse texture of the marrow.
        osteophytes: size of the spurs at the vertebral end plates, 0-1.
        calcification: extent of the aorta's calcified plaques, 0-1.
        stones: in the kidneys.
        screws: whether the lower lumbar spine is fused with pedicle screws and rods.
    """

    perirenal_mm: float | None = None
    bowel_share: float = 1.0
    bowel_apart_mm: float = 0.0
    collapsed: float = 0.0
    mesenteric_vessels: int = 6
    muscle_fat: float = 0.0
    liver_fat_hu: float = 0.0
    lesions: tuple[Lesion, ...] = ()
    marrow: float = 1.0
    trabeculae_hu: float = 0.0
    osteophytes: float = 0.0
    calcification: float = 0.0
    stones: tuple[Stone, ...] = ()
    screws: bool = False


@dataclass(frozen=True, kw_only=True)
class Viscera:
    """Sizes and contents of the other organs. Scales are relative to the mean for the body."""

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
class Pelvis:
    """Sizes and contents of the pelvis; see `kidseg.phantom.pelvic_organs`.

    Attributes:
        hip: width of the hips relative to the trunk's.
        bladder_ml: volume of the bladder.
        urine_level: height of contrast agent in the bladder, as a fraction of it, if there is any.
        urine_hu: contrast agent in the bladder from an earlier injection; 0 for most people.
        uterus_mm, prostate_mm: length of the uterus and width of the prostate; 0 without.
        masses: (x, y, z, radius, HU relative to the uterus) of fibroids, mm from its centre.
        ovarian_mm: radius of a cyst of the right and of the left ovary, 0 without.
        rectum_mm, rectum_gas, rectum_stool: width and contents of rectum and sigmoid colon.
    """

    hip: float
    bladder_ml: float
    urine_level: float
    urine_hu: float
    uterus_mm: float
    prostate_mm: float
    masses: tuple[tuple[float, float, float, float, float], ...]
    ovarian_mm: tuple[float, float]
    rectum_mm: float
    rectum_gas: float
    rectum_stool: float


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A person before posing. The module docstring defines the coordinates.

    With a pelvis the trunk is modelled from the pelvic floor to the heart, otherwise the abdomen.
    """

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
    look: Look = Look()
    pelvis: Pelvis | None = None
    implants: tuple[Implant, ...] = ()
    neighbours: Neighbours | None = None

    @property
    def lateral_mm(self) -> float:
        """Lateral distance from skin to skin, without arms and without bulging by a tumour."""
        return 2 * self.body.half_lateral_mm

    @property
    def ap_mm(self) -> float:
        """Distance from skin to skin from front to back."""
        return 2 * self.body.half_depth_mm

    @property
    def effective_diameter_mm(self) -> float:
        """Diameter of the circle with the same area as the ellipse of both diameters.

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
        """(low, high) z of the modelled anatomy.

        The first sacral vertebra to the lung bases; with a pelvis its floor to above the heart.
        """
        if self.pelvis is not None:
            return -7.6 * self.body.segment_mm, self.dome_mm + 2.6 * self.body.segment_mm
        return -4.6 * self.body.segment_mm, self.dome_mm + 1.5 * self.body.segment_mm

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)
