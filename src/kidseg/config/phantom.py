"""Settings of digital patients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.loading import CHECKED

__all__ = ["PhantomConfig", "Phase"]

Phase = Literal["early-arterial", "portal-venous", "excretory", "unenhanced"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PhantomConfig:
    """Digital patients to generate.

    Attributes:
        ages_years: minimum and maximum age, 0 to 90. Patients older than 16 are adults.
        variety: "children" as the children's surgical cohort; "broad" with wide ranges of anatomy,
            disease and acquisition; "auto" is "broad" if the ages reach beyond 16 years.
        size: pixels along each side of a slice; does not change the field of view.
        max_slices: maximum number of slices; slices become thicker, the extent is unchanged.
        slice_mm: minimum and maximum slice thickness.
        max_angle_deg: maximum rotation about the long axis, in either direction.
        phase: contrast phase of all scans, or "mixed" as in practice.
        tumour_share: fraction of the patients with a tumour.
        window_share: fraction of the scans whose HU are clipped to a display window, as in data
            sets of pictures (0 to 255 among them).
    """

    ages_years: tuple[float, float] = (0.0, 16.0)
    size: int = Field(default=512, ge=32, le=1024)
    max_slices: int | None = Field(default=None, ge=1)
    slice_mm: tuple[float, float] = (0.5, 5.0)
    max_angle_deg: float = Field(default=25.0, ge=0.0, le=180.0)
    phase: Phase | Literal["mixed"] = "mixed"
    tumour_share: float = Field(default=0.95, ge=0.0, le=1.0)
    variety: Literal["auto", "children", "broad"] = "auto"
    window_share: float = Field(default=0.0, ge=0.0, le=1.0)

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
        thin, thick = self.slice_mm
        if not 0.5 <= thin <= thick <= 5:
            raise ValueError("slice_mm must be ascending and within 0.5 to 5 mm")
        return self
