"""Settings of the method "homogenized"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.config.methods import DiceOver, MethodConfig, ViewConfig
from kidseg.config.networks import LocalizerConfig, UNetConfig, check_batch
from kidseg.config.randomization import StyleConfig
from kidseg.config.stages import OptimizerConfig, StageConfig

__all__ = ["CropConfig", "HomogenizedConfig", "PoseConfig"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PoseConfig:
    """The first spatial transformer: pose and size."""

    start: Literal["identity", "moments"] = "moments"
    """Initial pose that the network corrects: "identity", or the pose by the "moments" of the body
    mask, which makes the body upright, centred and of standard size.
    """
    moments: Literal["volume", "slice"] = "volume"
    """Are the moments computed per volume (a patient has one pose) or per slice?"""
    target: Literal["body", "body+bone"] = "body+bone"
    """Masks for input and loss: the body, or body and bone."""
    localizer: LocalizerConfig = LocalizerConfig(size=64)
    """The network; its `size` is the resolution of input and loss."""
    stage: StageConfig = StageConfig(
        epochs=16,
        min_epochs=0,
        batch_size=32,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    )
    """Training of the network."""
    body_width: float | None = Field(default=0.85, gt=0, le=1)
    """Width of the reference's body as a fraction of the field of view. None: keeps the field of
    the base grid (the paper's).
    """
    reference: str | None = None
    """Id of the reference case. None: the medoid of the training cases, among the half of the
    patients in the middle of the ages, where at least half of the ages are known.
    """
    unlabelled: bool = True
    """Scans of the data set without labels (nnU-Net's imagesTs), if no cases are named, join the
    training of the pose, which needs no labels.
    """
    reference_mode: Literal["slice", "volume"] = "volume"
    """With "slice", all slices are compared with the reference's slice at kidney level; with
    "volume", with the slice at the same relative height in the labelled region.
    """
    reference_slices: int = Field(default=32, ge=1)
    """Number of slices in a reference volume."""
    iterations: int = Field(default=2, ge=1)
    """Number of corrections at inference."""
    per: Literal["volume", "slice"] = "volume"
    """At inference, "volume" applies the median correction of all slices, "slice" one per slice."""
    only_better: bool = True
    """With per "volume": a correction is applied only if the masks then agree better with the
    reference, and with their mirror image, than without it.
    """
    bone: float = Field(default=0.0, ge=0)
    """Weight of the overlap of the bone masks, relative to that of the body masks. The ribs of two
    patients seldom coincide, and aligning them does not improve a pose.
    """
    symmetry: float = Field(default=1.0, ge=0)
    """Weight of the masks' overlap with their own mirror image, relative to that of the body masks
    with the reference: it determines the rotation of a trunk. It also makes the reference upright.
    0: not used.
    """
    teacher: float = Field(default=1.0, ge=0)
    """Weight of the distance to the best pose found by registration of the masks, for each training
    patient, added to the overlap losses. 0: overlap losses alone.
    """
    loss_scale: float = Field(default=1.0, gt=0)
    """Factor of the overlap losses; with plain gradient descent, of its steps. The paper's is 100.
    """
    flip: bool = True
    """Also use flipped images: at random in training, both at inference."""
    jitter_deg: float = Field(default=15.0, ge=0)
    """Maximum random rotation of the initial pose in training."""
    jitter_scale: float = Field(default=0.15, ge=0)
    """Maximum random scaling of the initial pose in training, as a logarithm."""
    jitter_shift: float = Field(default=0.1, ge=0)
    """Maximum random shift of the initial pose in training, in half images."""
    cut: float = Field(default=0.25, ge=0, le=1)
    """Fraction of the training slices shown with a field of view that truncates the body."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CropConfig:
    """The second spatial transformer: the square around kidneys and tumour."""

    localizer: LocalizerConfig = LocalizerConfig(size=128)
    """The network; its `size` is the resolution of its input."""
    stage: StageConfig = StageConfig(
        batch_size=32,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    )
    """Training of the network."""
    target: Literal["patient", "slice"] = "patient"
    """Target box: one per "patient", over all slices, or one per "slice"."""
    empty: Literal["patient", "identity"] = "patient"
    """With target "slice", the target box of slices without labels: that of the "patient" over all
    slices, or the full image ("identity").
    """
    output: Literal["full", "half", "quarter"] = "full"
    """Sides of the crop in pixels, as a fraction of `view.size`."""
    per: Literal["volume", "slice"] = "volume"
    """At inference, "volume" applies the median box of all slices, "slice" one per slice."""

    @property
    def divisor(self) -> int:
        """`view.size` divided by the side of the crop in pixels."""
        return {"full": 1, "half": 2, "quarter": 4}[self.output]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HomogenizedConfig(MethodConfig):
    """Bring all bodies to one pose and size, crop on request, segment."""

    view: ViewConfig = ViewConfig()
    """The base grid on which the networks process a scan, before any pose."""
    pose: PoseConfig = PoseConfig()
    """The first spatial transformer: pose and size."""
    crop: CropConfig | None = None
    """The second spatial transformer: the square around kidneys and tumour. None: no crop."""
    unet: UNetConfig = UNetConfig()
    """The segmentation network; its depth follows its own input, `view.size` or what `crop.output`
    makes of it.
    """
    reach: int = Field(default=0, ge=0)
    """Neighbouring slices on either side that are channels of the U-Net's input, too (2.5D)."""
    apart_mm: float = Field(default=0.0, ge=0)
    """Distance of these neighbours from each other, as for the method "plain"."""
    smooth_mm: float = Field(default=0.0, ge=0)
    """Smoothing of the probabilities across slices at inference, as for the method "plain", on the
    U-Net's own grid: with pose.per or crop.per "slice", slices there do not lie exactly above each
    other.
    """
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    """Training of the U-Net."""
    schedule: Literal["sequential", "joint"] = "sequential"
    """Order of the training; "joint" trains all networks together after training each of them."""
    joint: StageConfig = StageConfig(
        epochs=20, min_epochs=0, batch_size=32, optimizer=OptimizerConfig(learning_rate=0.001)
    )
    """The joint training, with schedule "joint"."""
    loss_space: Literal["original", "network"] = "original"
    """Grid of the loss: the "original" base grid after the inverse warp (the paper's), or the
    "network"'s input grid.
    """
    supervision: Literal["paper", "normalised"] = "normalised"
    """Deep supervision with loss_space "original": "paper", each level warped to the complete
    original grid, with weights 1 / 2^level; or "normalised", each level on the original grid at its
    own resolution, with weights that sum to 1 (nnU-Net's).
    """
    dice_over: DiceOver = "batch"
    """Dice of the loss, as for the method "plain"."""
    augment: Literal["none", "nnunet", "style"] = "none"
    """Augmentation of the U-Net's input, as for the method "plain"; with loss_space "original", the
    inverse warp undoes it, too.
    """
    style: StyleConfig = StyleConfig()
    """Ranges of augment "style"."""

    @model_validator(mode="after")
    def _check_together(self) -> HomogenizedConfig:
        if self.view.size % self.divisor:
            raise ValueError(f"view.size must be a multiple of {self.divisor} for this crop")
        side = self.input_size
        self.unet.check_input(side)
        check_batch("segment", (side, side), self.network.multiple, self.segment.batch_size)
        if self.schedule == "joint":
            check_batch("joint", (side, side), self.network.multiple, self.joint.batch_size)
        if self.supervision == "paper" and self.loss_space == "network":
            raise ValueError("supervision 'paper' requires loss_space 'original'")
        if self.schedule == "joint" and (
            self.pose.per == "volume" or (self.crop is not None and self.crop.per == "volume")
        ):
            raise ValueError("schedule 'joint' requires pose.per and crop.per 'slice'")
        if self.schedule == "joint" and self.augment != "none":
            raise ValueError("schedule 'joint' does not support augment")
        if self.schedule == "joint" and self.reach:
            raise ValueError("schedule 'joint' requires reach 0")
        return self

    @property
    def divisor(self) -> int:
        """`view.size` divided by the side of the U-Net's input."""
        return 1 if self.crop is None else self.crop.divisor

    @property
    def input_size(self) -> int:
        """Side of the U-Net's own input in pixels."""
        return self.view.size // self.divisor

    @property
    def network(self) -> UNetConfig:
        """The segmentation network for its own input."""
        return self.unet.sized(self.input_size)
