"""Settings of the method "multistage"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.config.methods import (
    CohortConfig,
    MethodConfig,
    PostprocessConfig,
    check_sampling,
)
from kidseg.config.networks import ResidualConfig, check_batch
from kidseg.config.stages import OptimizerConfig, StageConfig

__all__ = ["MultistageConfig", "SliceAugmentationConfig", "StagedNetConfig"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SliceAugmentationConfig:
    """Augmentation of slices with tumour; other slices stay as they are."""

    rotation_deg: float = Field(default=30.0, ge=0, le=180)
    """Maximum rotation in the plane, in either direction."""
    rotated_share: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the slices that are rotated."""
    flipped_share: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the slices that are mirrored left to right."""
    cropped_share: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the slices of which only the centre is shown, enlarged to the full size."""
    min_centre: float = Field(default=0.7, gt=0, le=1)
    """Smallest centre that is shown, as a fraction of the side; the largest is 1."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StagedNetConfig:
    """A network and its training."""

    net: ResidualConfig = ResidualConfig()
    """The architecture."""
    weights: tuple[float, float, float] = (0.3, 1.0, 3.0)
    """Weights of background, kidney (with all other labels that are learned) and tumour in the
    cross entropy.
    """
    augmentation: SliceAugmentationConfig = SliceAugmentationConfig()
    """Augmentation of slices with tumour."""
    stage: StageConfig = StageConfig(
        epochs=250,
        min_epochs=0,
        patience=50,
        batch_size=32,
        optimizer=OptimizerConfig(
            name="adam", learning_rate=1e-4, weight_decay=1e-5, decayed="kernels"
        ),
    )
    """Training of the network."""

    @model_validator(mode="after")
    def _check_weights(self) -> StagedNetConfig:
        if min(self.weights) < 0 or max(self.weights) == 0:
            raise ValueError("weights must not be negative, and not all 0")
        return self


_RESNET = StagedNetConfig(
    net=ResidualConfig(blocks=2, skips="added", dropout=0.5, init="he_uniform"),
    weights=(0.2, 0.25, 0.55),
    augmentation=SliceAugmentationConfig(flipped_share=0.0),
    stage=StageConfig(
        epochs=250,
        min_epochs=0,
        patience=50,
        batch_size=32,
        optimizer=OptimizerConfig(
            name="adam", learning_rate=1e-3, weight_decay=1e-5, decayed="kernels"
        ),
    ),
)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MultistageConfig(MethodConfig):
    """Find the kidneys in small slices, then segment each with two networks and average them.

    Labels that are neither kidney, tumour nor cyst are found in the regions around kidneys alone.

    Source: Santini et al., KiTS19.
    """

    cohort: CohortConfig = CohortConfig(clip_hu=(-30.0, 300.0))
    """Cases for training and validation. Without `label_share`: stage 1 draws a third of each
    batch from slices without kidney, with kidney alone, and with tumour; stage 2 half of each batch
    from slices with kidney alone, and with tumour.
    """
    slice_mm: float | None = Field(default=3.0, gt=0)
    """Distance of the slices to which scans are resampled. None: the scan's own."""
    pixel_mm: float | None = Field(default=None, gt=0)
    """Pixel size to which scans are resampled. None: the scan's own."""
    reach: int = Field(default=2, ge=0)
    """Neighbouring slices on either side that are input channels, too (2.5D)."""
    reduction: int = Field(default=2, ge=1)
    """How many times larger the pixels of stage 1 are, along each side."""
    coarse_size: int = Field(default=256, ge=1)
    """Pixels along each side of a slice in the training of stage 1, centred on the scan; at
    inference the slices of a scan are shown in full.
    """
    box: int = Field(default=256, ge=1)
    """Pixels along each side of the region around a kidney; more where it is larger."""
    postprocess: PostprocessConfig = PostprocessConfig()
    """Removal of small components from what each network of stage 2 found, and from the result."""
    kidneys: PostprocessConfig = PostprocessConfig(min_volume_ml=9.2)
    """Removal of small components from what stage 1 found."""
    regions: Literal["truth", "predicted"] = "truth"
    """Where the networks of stage 2 are trained: around the kidneys of the reference labels, or
    those that stage 1 found; where it found none in a case, around those of the labels.
    """
    hard_negatives: float = Field(default=0.0, ge=0, le=1 / 3)
    """Fraction of a batch with cysts and no tumour, in place of other slices with kidney; requires
    a label for cysts. 0: as they come.
    """
    coarse: StagedNetConfig = StagedNetConfig()
    """Stage 1: a Res-UNet that sees full slices."""
    resunet: StagedNetConfig = StagedNetConfig(
        augmentation=SliceAugmentationConfig(cropped_share=0.66)
    )
    """Stage 2: a Res-UNet that sees the region around a kidney."""
    resnet: StagedNetConfig = _RESNET
    """Stage 2: a ResNet that sees the region around a kidney."""
    ensemble: tuple[Literal["resunet", "resnet"], ...] = ("resunet", "resnet")
    """Stage 3: the networks of stage 2 that are trained; the mean of their probabilities is the
    result.
    """

    @model_validator(mode="after")
    def _check_together(self) -> MultistageConfig:
        check_sampling(self.cohort, instead="a fixed share of each kind of slice")
        if self.cohort.target == "tumour":
            raise ValueError('cohort.target must not be "tumour": stage 1 finds kidneys')
        if not self.ensemble or len(set(self.ensemble)) < len(self.ensemble):
            raise ValueError("ensemble must name at least one network, each once")
        sides = [("coarse_size", self.coarse_size, self.coarse)]
        sides += [("box", self.box, getattr(self, name)) for name in self.ensemble]
        for name, side, known in sides:
            if side % known.net.multiple:
                raise ValueError(f"{name} must be a multiple of {known.net.multiple}, not {side}")
        for stage, side in (("coarse", self.coarse_size), *((n, self.box) for n in self.ensemble)):
            trained: StagedNetConfig = getattr(self, stage)
            size, multiple = trained.stage.batch_size, trained.net.multiple
            check_batch(f"{stage}.stage", (side, side), multiple, size)
        return self
