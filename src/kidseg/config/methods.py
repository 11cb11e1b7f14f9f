"""Settings that methods share, and those of "plain" and "plain3d"."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.config.networks import UNetConfig, check_batch
from kidseg.config.randomization import StyleConfig
from kidseg.config.stages import StageConfig

__all__ = [
    "BlocksConfig",
    "BodyConfig",
    "CohortConfig",
    "DiceOver",
    "MethodConfig",
    "Plain3dConfig",
    "PlainConfig",
    "PostprocessConfig",
    "ViewConfig",
    "check_sampling",
]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ViewConfig:
    """The base grid on which networks process a scan, before any pose."""

    size: int = Field(default=128, ge=8)
    """Pixels along each side of the base grid, centred on the body."""
    pixel_mm: float | None = Field(default=None, gt=0)
    """Pixel size of the base grid. None: the plan's pixel spacing (nnU-Net's), or coarser so that
    the cohort's median field of view fits into `size` pixels.
    """
    bone_hu: float = 220.0
    """Voxels above this value in HU inside the body are bone (or contrast medium)."""
    bone_min_volume_ml: float = Field(default=0.5, ge=0)
    """Components of bone below this volume are removed; for the size of an adult's body."""
    bone_blur_mm: float = Field(default=4.0, ge=0)
    """SD of the in-plane Gaussian blur of the bone mask, so that masks that do not overlap still
    have a gradient.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CohortConfig:
    """Cases for training and validation, and sampling of batches.

    Source: one third kidney, one third tumour: La Barbera et al., ISBI 2021.
    """

    of_one_training: ClassVar[tuple[str, ...]] = ("validation_share",)
    """Settings that a model does not pass on to a training that starts from it."""

    validation_share: float = Field(default=0.2, gt=0, lt=1)
    """Fraction of the patients used for validation."""
    label_share: float = Field(default=1 / 3, ge=0, le=1)
    """Minimum fraction of each batch that shows kidney, and the same of tumour, of either side and
    whatever other labels there are; of each label if none means kidney or tumour. If the batch has
    no room for all shares, they are reduced in proportion, and rounded down. For the methods
    `plain`, `homogenized` and `cascade` alone.
    """
    small_share: float = Field(default=0.0, ge=0, le=1)
    """Minimum fraction of each batch that shows a small section of kidneys and tumours: less than a
    quarter of the patient's largest, or a tumour alone. For the methods `plain` and `homogenized`
    alone.
    """
    hard_share: float = Field(default=0.0, ge=0, le=1)
    """Fraction of each batch drawn from hard slices: of `hard_candidates` random slices, those on
    which the network, before each epoch, labels most background. 0: no mining of hard slices. For
    the methods `plain` and `homogenized` alone.
    """
    hard_candidates: int = Field(default=400, ge=1)
    """Slices that are segmented before each epoch to find the hard ones; a quarter is kept."""
    selection: tuple[str, ...] = ()
    """Regions whose mean Dice selects the weights; empty: those of the default schema except
    "kidney", if the data set has them, else all.
    """
    cyst: Literal["tumour", "kidney", "background"] | None = None
    """What a cyst counts as, if there are cysts. None: a label of its own."""
    target: Literal["labels", "merged", "two", "tumour"] = "labels"
    """What networks give: each label (or region of a region-based data set), kidney and tumour
    "merged", or as "two" without sides (cysts count as kidney), or the "tumour" alone.
    """
    clip_hu: tuple[float, float] | None = None
    """Range to which the Hounsfield units of CT are clipped. None: the 0.5 to 99.5 percentile of
    the labelled tissue (nnU-Net's). In both cases, mean and standard deviation of the labelled
    tissue, before it is clipped, then become 0 and 1 (nnU-Net's, too). Without effect on MR.
    """

    @model_validator(mode="after")
    def _check_range(self) -> CohortConfig:
        if self.clip_hu is not None and not self.clip_hu[0] < self.clip_hu[1]:
            raise ValueError("clip_hu must be a range, the minimum first")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PostprocessConfig:
    """Removal of components that are no kidney or tumour from a segmentation."""

    min_volume_ml: float = Field(default=3.0, ge=0)
    """Components (of all labels together) below this volume are removed, in a body of
    `body_radius_mm`; scaled with the cube of the body's radius. 0 removes nothing.
    """
    body_radius_mm: float = Field(default=150.0, gt=0)
    """Geometric mean of the semi-axes of an adult's trunk."""
    min_voxels: int | None = Field(default=None, ge=0)
    """Components of fewer voxels, of the grid on which the network predicted, are removed, in a
    body of any size, in the first and last slice, too. None: those below `min_volume_ml` instead.
    """
    lone_tumour_ml: float = Field(default=0.0, ge=0)
    """Components with tumour below this volume, in a body of `body_radius_mm`, are removed if they
    have no kidney: less parenchyma than a tenth of this volume, and no kidney within `within_mm`.
    A tumour that has replaced its kidney, so that no parenchyma is left, is larger than a kidney,
    which has 100 ml or more (Cheong et al., CJASN 2007: 154 ml, SD 33, in women). 0 removes none.
    """
    within_mm: float = Field(default=5.0, ge=0)
    """Distance to a kidney up to which a tumour may be part of it: a thick slice."""
    stack_mm: float = Field(default=40.0, gt=0)
    """In a scan that covers less along the patient, tumours without a kidney are kept: their
    kidneys may lie outside it.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MethodConfig:
    """Settings common to all methods."""

    of_one_training: ClassVar[tuple[str, ...]] = ("budget_s", "budget_clock", "workers")
    """Settings that a model does not pass on to a training that starts from it."""

    cohort: CohortConfig = CohortConfig()
    """Cases for training and validation, and sampling of batches."""
    budget_s: float | None = Field(default=None, gt=0)
    """Time limit of the complete training, including planning and reading; every stage stops at it,
    and the last stage gets the remaining time. The stages of "multistage" and "cascade" share it:
    in proportion to their own budgets if all have one, otherwise equally. None: no limit.
    """
    budget_clock: Literal["wall", "processor"] = "wall"
    """How seconds of a training are measured: "wall" time, or the "processor" time of this process,
    which other work on the same cores hardly affects.
    """
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks; "auto" is bf16 if the device supports it, otherwise fp32."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that prefetch batches; the result is bit-identical. None: none on the CPU or with
    budget_clock "processor", otherwise one per further core, at most 8.
    """
    test_time_flip: bool = False
    """At inference, also segment the left-right flipped image, and average the probabilities; takes
    twice the time.
    """
    postprocess: PostprocessConfig = PostprocessConfig()
    """Removal of components from the result."""

    @model_validator(mode="after")
    def _check_clock(self) -> MethodConfig:
        if self.budget_clock == "processor" and self.workers:
            raise ValueError("budget_clock 'processor' does not count workers; set workers to 0")
        return self


DiceOver = Literal["batch", "sample"]
"""What the sums of a Dice loss are over."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PlainConfig(MethodConfig):
    """The baseline: a U-Net on the scan without normalized pose, with or without augmentation."""

    view: ViewConfig = ViewConfig()
    """The base grid on which the network processes a scan."""
    unet: UNetConfig = UNetConfig()
    """The network; its depth follows `view.size`."""
    reach: int = Field(default=0, ge=0)
    """Neighbouring slices on either side that are input channels, too (2.5D)."""
    apart_mm: float = Field(default=0.0, ge=0)
    """Distance of these neighbours from each other: so many whole slices of the scan, at least one;
    0: adjacent slices.
    """
    smooth_mm: float = Field(default=0.0, ge=0)
    """At inference, smooth the probabilities across the slices of a scan by a Gaussian of this
    standard deviation, so that no slice contradicts those beside it. 0: each slice by itself.
    """
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    """Training of the network."""
    dice_over: DiceOver = "batch"
    """Dice of the loss over the batch (nnU-Net's), or the mean over its slices, in which small
    sections count as much as large ones.
    """
    augment: Literal["none", "nnunet", "style"] = "none"
    """Augmentation; "nnunet" is nnU-Net's own, spatial and of intensities; "style" is domain
    randomization of CT, for training on digital patients.
    """
    style: StyleConfig = StyleConfig()
    """Ranges of augment "style"."""

    @model_validator(mode="after")
    def _check_sides(self) -> PlainConfig:
        side = self.input_size
        self.unet.check_input(side)
        check_batch("segment", (side, side), self.network.multiple, self.segment.batch_size)
        return self

    @property
    def input_size(self) -> int:
        """Side of the network's own input in pixels."""
        return self.view.size

    @property
    def network(self) -> UNetConfig:
        """The network for its own input."""
        return self.unet.sized(self.input_size)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BlocksConfig:
    """Blocks on which a 3D network processes a scan; None: the plan's value.

    Source: one third on labels, overlap one half: nnU-Net v2.
    """

    spacing_mm: tuple[float, float, float] | None = None
    """Voxel size (slice, row, column). None: the plan's."""
    patch: tuple[int, int, int] | None = None
    """Voxels of a block; rounded up to multiples of the network's strides. None: the plan's."""
    features: int | None = Field(default=None, ge=1)
    """Feature maps of the first stage; doubled at each stage. None: the plan's."""
    max_features: int | None = Field(default=None, ge=1)
    """Upper limit of the feature maps. None: the plan's."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Minimum overlap of neighbouring blocks at inference, as a fraction of the block."""
    foreground_share: float = Field(default=1 / 3, ge=0, le=1)
    """Fraction of a batch's blocks that are centred on a label."""

    @model_validator(mode="after")
    def _check_positive(self) -> BlocksConfig:
        if min(*(self.spacing_mm or (1,)), *(self.patch or (1,)), 1) <= 0:
            raise ValueError("spacing_mm and patch must be positive")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BodyConfig:
    """Size and pose to which the body in each CT is brought before a 3D network sees it, by the
    moments of the body mask; by default it keeps its own. A radius is the geometric mean of the
    semi-axes of the trunk's sections, about 50 mm in a newborn and 150 mm in an adult.
    """

    min_radius_mm: float | None = Field(default=None, gt=0)
    """Smaller bodies are enlarged to this radius. None: they keep their size."""
    max_radius_mm: float | None = Field(default=None, gt=0)
    """Larger bodies are reduced to this radius. None: they keep their size."""
    upright: bool = False
    """Turn bodies about their long axis until the principal axes of their sections are upright."""

    @model_validator(mode="after")
    def _check_order(self) -> BodyConfig:
        if (self.min_radius_mm or 0) > (self.max_radius_mm or float("inf")):
            raise ValueError("min_radius_mm must not be larger than max_radius_mm")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Plain3dConfig(MethodConfig):
    """The 3D baseline: the plan's network on blocks of the scan; on request on bodies of one size
    and pose.

    Source: nnU-Net v2's trainer: 1000 epochs of 250 steps, two blocks each.
    """

    blocks: BlocksConfig = BlocksConfig()
    """Blocks of the scan, the input of the network."""
    body: BodyConfig = BodyConfig()
    """Size and pose of the bodies; voxels and blocks are in millimetres of bodies of that size."""
    segment: StageConfig = StageConfig(epochs=1000, min_epochs=0, batch_size=2, steps=250)
    """Training of the network."""
    augment: Literal["none", "nnunet"] = "nnunet"
    """Augmentation; "nnunet" is nnU-Net's own, spatial and of intensities."""

    @model_validator(mode="after")
    def _check_cohort(self) -> Plain3dConfig:
        check_sampling(self.cohort, instead="blocks.foreground_share")
        return self


def check_sampling(cohort: CohortConfig, *, instead: str | None = None) -> None:
    """Refuse shares of what a method does not draw by them: they would have no effect.

    Args:
        cohort: its settings.
        instead: what fills batches in place of `label_share`; None: that does.

    Raises:
        ValueError: there is a share of hard slices or of small sections, or another `label_share`
            than the default, which counts `instead`.
    """
    for name, drawn in (("hard_share", "hard slices"), ("small_share", "small sections")):
        if getattr(cohort, name):
            raise ValueError(
                f"cohort.{name} must be 0: only methods 'plain' and 'homogenized' draw {drawn}"
            )
    if instead is not None and cohort.label_share != CohortConfig.label_share:
        raise ValueError(f"cohort.label_share has no effect here: {instead} fills the batches")
