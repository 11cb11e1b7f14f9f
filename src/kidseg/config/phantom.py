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
    """Which digital patients to make.

    Attributes:
        ages_years: youngest and oldest, 0 to 16.
        size: pixels along each side of a slice; the field of view stays when they are fewer.
        max_slices: at most so many slices; the scan is made with thicker slices, not cut short.
        slice_mm: thinnest and thickest slice.
        max_angle_deg: largest rotation about the long axis, either way.
        phase: contrast phase of all, or "mixed" as in practice.
        tumour_share: part of the patients with a tumour.
    """

    ages_years: tuple[float, float] = (0.0, 16.0)
    size: int = Field(default=512, ge=32, le=1024)
    max_slices: int | None = Field(default=None, ge=1)
    slice_mm: tuple[float, float] = (0.5, 5.0)
    max_angle_deg: float = Field(default=25.0, ge=0.0, le=180.0)
    phase: Phase | Literal["mixed"] = "mixed"
    tumour_share: float = Field(default=0.95, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _check_ranges(self) -> PhantomConfig:
        low, high = self.ages_years
        if not 0 <= low <= high <= 16:
            raise ValueError("ages_years must rise within 0 to 16 years")
        thin, thick = self.slice_mm
        if not 0.5 <= thin <= thick <= 5:
            raise ValueError("slice_mm must rise within 0.5 to 5 mm")
        return self
