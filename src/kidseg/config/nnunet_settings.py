"""Settings of the method "nnunet"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.config.methods import BodyConfig, MethodConfig, check_sampling
from kidseg.config.stages import StageConfig

__all__ = ["NnUnetConfig", "ResizingConfig"]

_AXES = ("IS", "AP", "LR")  # of slices, rows and columns of a canonical scan


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ResizingConfig:
    """How images are resampled to the network's voxels, and logits back to the scan's.

    Source: nnU-Net v2, resampling functions of a plan.
    """

    image_order: Literal[1, 3] = 3
    """Order of the splines for the normalised image: 1 linear, 3 cubic."""
    logits_order: Literal[1, 3] = 1
    """Order of the splines for the logits."""
    by_slice: bool | None = None
    """Resample slice by slice across the axis of the thickest slices, with the nearest slice along
    it. None: if spacings differ by more than a factor of three.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NnUnetConfig(MethodConfig):
    """nnU-Net's network in 2D or 3D, with nnU-Net's own inference; for imported models.

    Source: nnU-Net v2's trainer: 1000 epochs of 250 steps, one third of a batch on labels.
    """

    configuration: str = "2d"
    """Which of the networks in the plan: "2d", "3d_fullres", or that of the imported model."""
    axes: str = "SPL"
    """Directions in which the network's slices, rows and columns run: Superior or Inferior,
    Posterior or Anterior, Left or Right, in the order of its axes.
    """
    mirror_axes: tuple[int, ...] | None = None
    """Axes of the network's input along which test_time_flip mirrors, in all combinations; counted
    from 0, rows first in 2D. None: all.
    """
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Minimum overlap of neighbouring windows at inference, as a fraction of the window."""
    resizing: ResizingConfig | None = ResizingConfig()
    """Resampling at inference, of image and logits. None: the scan's values are interpolated once,
    and the probabilities once, as by other methods.
    """
    body: BodyConfig = BodyConfig()
    """Size and pose to which bodies are brought before the network sees them: a choice of its
    voxels, on which the scan's values are interpolated once, whatever `resizing` says.
    """
    foreground_share: float = Field(default=1 / 3, ge=0, le=1)
    """Fraction of a batch's patches that are centred on a label."""
    segment: StageConfig = StageConfig(epochs=1000, min_epochs=0, batch_size=2, steps=250)
    """Training of the network."""
    augment: Literal["none", "nnunet"] = "nnunet"
    """Augmentation; "nnunet" is nnU-Net's own, spatial and of intensities."""

    @property
    def interpolates_once(self) -> bool:
        """Whether the scan's values are interpolated once, and the probabilities once."""
        return self.resizing is None or self.body != BodyConfig()

    @property
    def canonical_axes(self) -> tuple[int, ...]:
        """Numbers of the network's axes along the slices, rows and columns of a canonical scan."""
        return tuple(
            next(k for k, letter in enumerate(self.axes) if letter in pair) for pair in _AXES
        )

    @model_validator(mode="after")
    def _check_together(self) -> NnUnetConfig:
        check_sampling(self.cohort, instead="foreground_share")
        known = [sum(letter in pair for letter in self.axes) for pair in _AXES]
        if len(self.axes) != 3 or known != [1, 1, 1]:
            raise ValueError('axes must be three letters such as "SPL"')
        mirrored = self.mirror_axes or ()
        if len(set(mirrored)) != len(mirrored) or not set(mirrored) <= {0, 1, 2}:
            raise ValueError("mirror_axes must be different numbers of 0, 1, 2")
        return self
