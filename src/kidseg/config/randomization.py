"""Settings of domain randomization."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED

__all__ = ["StyleConfig"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StyleConfig:
    """Ranges of the domain randomization (augment "style"); those of pose are uniform.

    Wider than what scanners and patients do, so that a real scan is one more variation.
    Source: Tobin et al., Domain Randomization, IROS 2017; Billot et al., SynthSeg, MedIA 2023.
    """

    rotation_deg: float = Field(default=20.0, ge=0, le=180)
    """Maximum rotation in the plane, in either direction."""
    zoom: tuple[float, float] = (0.75, 1.3)
    """Minimum and maximum size of the body, relative to the original."""
    stretch: float = Field(default=0.1, ge=0)
    """Maximum ratio of width to height, relative to the original, as a logarithm."""
    shift_mm: float = Field(default=30.0, ge=0)
    """Maximum shift along rows and columns."""
    flip: bool = True
    """Flip left and right in half of the samples."""
    gain: float = Field(default=0.2, ge=0)
    """Maximum change of the contrast, as a logarithm."""
    offset_hu: float = Field(default=15.0, ge=0)
    """Maximum change of all values."""
    tone: float = Field(default=0.35, ge=0)
    """SD of the logarithms of the slopes of a random monotone curve over soft tissue."""
    bias_hu: float = Field(default=12.0, ge=0)
    """Maximum SD of a smooth field added to the image."""
    label_hu: float = Field(default=15.0, ge=0)
    """SD of a change of the values of each label, separately."""
    texture_hu: float = Field(default=15.0, ge=0)
    """Maximum SD of a texture added to each label, separately."""
    noise_hu: float = Field(default=25.0, ge=0)
    """Maximum SD of noise, white to correlated over neighbouring pixels."""
    blur_px: float = Field(default=1.2, ge=0)
    """Maximum SD of a Gaussian blur; as many samples are sharpened as blurred."""
    window_share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the samples clipped to a display window."""
    single_share: float = Field(default=0.4, ge=0, le=1)
    """With neighbouring slices: fraction of the samples that show the middle slice in their place.
    """

    @model_validator(mode="after")
    def _check_zoom(self) -> StyleConfig:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError("zoom must be positive, the minimum first")
        return self
