"""Settings of digital patients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED

__all__ = ["KidneyForm", "PhantomConfig", "Phase"]

KidneyForm = Literal["separate", "single", "horseshoe", "fused", "absent"]
Phase = Literal["early-arterial", "portal-venous", "excretory", "unenhanced"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PhantomConfig:
    """Digital patients to generate."""

    ages_years: tuple[float, float] = (0.0, 16.0)
    """Minimum and maximum age, within 0 to 90. Patients older than 16 are adults."""
    size: int = Field(default=512, ge=32, le=1024)
    """Pixels along each side of a slice; does not change the field of view."""
    max_slices: int | None = Field(default=None, ge=1)
    """Maximum number of slices; they become thicker, the extent is unchanged. None: no maximum."""
    slice_mm: tuple[float, float] = (0.5, 5.0)
    """Minimum and maximum slice thickness, within 0.5 to 5."""
    max_angle_deg: float = Field(default=25.0, ge=0.0, le=180.0)
    """Maximum rotation about the long axis, in either direction."""
    phase: Phase | Literal["mixed"] = "mixed"
    """Contrast phase of all scans, or "mixed" as in practice."""
    tumour_share: float = Field(default=0.95, ge=0.0, le=1.0)
    """Fraction of the patients with a tumour."""
    tumours: Literal["mixed", "one-sided", "bilateral"] = "mixed"
    """In a patient with a tumour: in one of the kidneys ("one-sided"), in each ("bilateral"), or
    "mixed" as in practice.
    """
    kidneys: KidneyForm | Literal["mixed"] = "mixed"
    """Form of the kidneys of all patients: "separate", a "single" one, "horseshoe", "fused" (both
    on one side, one below the other), "absent"; or "mixed": the first three as in practice.
    """
    variety: Literal["auto", "children", "broad"] = "auto"
    """The cohort: "children" as in surgery; "broad" with wide ranges of anatomy, disease and
    acquisition; "auto" is broad if the ages reach beyond 16 years."""
    window_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the scans whose HU are clipped to a display window (0 to 255 among them)."""
    trunk_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the scans that show more than the abdomen: the pelvis, the heart, or both."""
    displaced_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the patients whose tumour, if it is large enough, moves and turns its kidney as a
    whole instead of spreading it out.
    """
    implant_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the patients with implants: surgical clips, a ureteral stent, a nephrostomy, an
    aortic stent graft; and where `trunk_share` shows them, hip prostheses and a port catheter.
    """
    neighbour_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the patients with what lies beside kidneys: tips of liver and spleen, masses of
    the adrenal glands, duodenum, lymph nodes; and tumours that grow far out of their kidney.
    """
    apposed_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the patients in whom liver and spleen lie at the kidneys, without fat between."""
    timepoints: Literal[1, 2] = 1
    """Scans of each patient: 2 are one before and one after a first chemotherapy, of children."""

    @property
    def is_broad(self) -> bool:
        """Whether anatomy, disease and acquisition vary widely."""
        return self.variety == "broad" or (self.variety == "auto" and self.ages_years[1] > 16)

    @model_validator(mode="after")
    def _check_ranges(self) -> PhantomConfig:
        low, high = self.ages_years
        if not 0 <= low <= high <= 90:
            raise ValueError("ages_years must be ascending and within 0 to 90 years")
        if self.variety == "children" and high > 16:
            raise ValueError('variety "children" ends at 16 years; older patients need "broad"')
        if self.timepoints == 2 and high > 16:
            raise ValueError("timepoints 2, before and after chemotherapy, ends at 16 years")
        if self.timepoints == 2 and self.displaced_share:
            raise ValueError("displaced_share is for one timepoint: kidneys do not move back")
        thin, thick = self.slice_mm
        if not 0.5 <= thin <= thick <= 5:
            raise ValueError("slice_mm must be ascending and within 0.5 to 5 mm")
        return self
