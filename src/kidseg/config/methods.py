"""Settings of the methods."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg import registry
from kidseg.config.loading import CHECKED
from kidseg.config.networks import LocalizerConfig, UNetConfig
from kidseg.config.stages import OptimizerConfig, StageConfig

__all__ = [
    "METHODS",
    "BlocksConfig",
    "CohortConfig",
    "CropConfig",
    "HomogenizedConfig",
    "MethodConfig",
    "Plain3dConfig",
    "PlainConfig",
    "PoseConfig",
    "PostprocessConfig",
    "ViewConfig",
]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ViewConfig:
    """Through which window the networks see a scan, before any pose.

    Attributes:
        size: pixels along each side of the base grid, centred on the body.
        pixel_mm: of the base grid; None takes the plan's: nnU-Net's, or as much coarser as it takes
            to bring the cohort's median field of view into `size` pixels.
        bone_hu: what is denser than this inside the body is bone (or contrast medium).
        bone_least_ml: smaller pieces of it are dropped; at the size of an adult's body.
        bone_blur_mm: SD of the blur of the bone mask in its planes, so that two that do not meet
            still attract each other.
    """

    size: int = Field(default=128, ge=8)
    pixel_mm: float | None = Field(default=None, gt=0)
    bone_hu: float = 220.0
    bone_least_ml: float = Field(default=0.5, ge=0)
    bone_blur_mm: float = Field(default=4.0, ge=0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CohortConfig:
    """Which cases a network learns from, and how its batches are drawn.

    Attributes:
        validation_share: part of the patients kept for validation.
        label_share: at least this part of each batch shows each label, if labels leave room for it.
        selection: regions whose mean Dice selects the weights; none: those of the default schema
            but "kidney", where they are known, else all.
        cyst: what a cyst counts as, where there are cysts.

    Source: a third kidney, a third tumour: La Barbera et al., ISBI 2021.
    """

    validation_share: float = Field(default=0.2, gt=0, lt=1)
    label_share: float = Field(default=1 / 3, ge=0, le=1)
    selection: tuple[str, ...] = ()
    cyst: Literal["tumour", "kidney", "background"] | None = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PostprocessConfig:
    """Which pieces of a segmentation are removed.

    Attributes:
        least_ml: components (of all labels together) below this volume go, in a body of
            `body_radius_mm`; scaled with the cube of the body's radius. 0 removes nothing.
        body_radius_mm: geometric mean of the semi-axes of an adult's trunk.
    """

    least_ml: float = Field(default=3.0, ge=0)
    body_radius_mm: float = Field(default=150.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MethodConfig:
    """What all methods have in common.

    Attributes:
        cohort: cases and batches.
        budget_s: no stage goes on when the training as a whole, from planning and reading on, has
            taken so long; the last stage gets what the others leave. None: no limit.
        budget_clock: what all seconds of a training are measured by: "wall", or the "processor"'s
            time for this process, which other work on the same cores hardly lengthens.
        precision: "auto" is bf16 where the device computes with it, else fp32.
        workers: processes that make batches ahead; changes no bit of the result. None: none on the
            CPU or by the processor's clock, else as many as there are other cores, at most 8.
        postprocess: of the result.
    """

    cohort: CohortConfig = CohortConfig()
    budget_s: float | None = Field(default=None, gt=0)
    budget_clock: Literal["wall", "processor"] = "wall"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int | None = Field(default=None, ge=0)
    postprocess: PostprocessConfig = PostprocessConfig()

    @model_validator(mode="after")
    def _check_clock(self) -> MethodConfig:
        if self.budget_clock == "processor" and self.workers:
            raise ValueError("budget_clock 'processor' does not count workers; set workers to 0")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PlainConfig(MethodConfig):
    """The baseline: a U-Net on the scan as it lies, with or without augmentation.

    Attributes:
        view: the base grid.
        unet: the network; `view.size` is a multiple of `unet.size / unet.bottleneck`.
        segment: its training.
        augment: "nnunet" is nnU-Net's own augmentation, spatial and of intensities.
    """

    view: ViewConfig = ViewConfig()
    unet: UNetConfig = UNetConfig(size=128)
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    augment: Literal["none", "nnunet"] = "none"

    @model_validator(mode="after")
    def _check_sides(self) -> PlainConfig:
        _check_input(self.view.size, self.unet)
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BlocksConfig:
    """Through which blocks a three-dimensional network sees a scan; what is None the plan says.

    Attributes:
        spacing_mm: of the voxels, (slice, row, column).
        patch: voxels of a block; enlarged to what the network can halve.
        features: maps at the finest stage; they double per stage.
        max_features: at most so many maps.
        overlap: part by which neighbouring blocks overlap at least, at inference.
        foreground_share: part of the blocks of a batch that are centred on a label.

    Source: a third on labels, overlap one half: nnU-Net v2.
    """

    spacing_mm: tuple[float, float, float] | None = None
    patch: tuple[int, int, int] | None = None
    features: int | None = Field(default=None, ge=1)
    max_features: int | None = Field(default=None, ge=1)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    foreground_share: float = Field(default=1 / 3, ge=0, le=1)

    @model_validator(mode="after")
    def _check_positive(self) -> BlocksConfig:
        if min(*(self.spacing_mm or (1,)), *(self.patch or (1,)), 1) <= 0:
            raise ValueError("spacing_mm and patch must be positive")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Plain3dConfig(MethodConfig):
    """The three-dimensional baseline: the plan's network on blocks of the scan as it lies.

    Attributes:
        blocks: what the network sees.
        segment: its training.
        augment: "nnunet" is nnU-Net's own augmentation, spatial and of intensities.

    Source: nnU-Net v2's trainer: 1000 epochs of 250 steps, two blocks each.
    """

    blocks: BlocksConfig = BlocksConfig()
    segment: StageConfig = StageConfig(epochs=1000, min_epochs=0, batch_size=2, steps=250)
    augment: Literal["none", "nnunet"] = "nnunet"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PoseConfig:
    """The first spatial transformer: pose and size.

    Attributes:
        start: what the network corrects: the scan as it lies, or as the moments of the body mask
            put it upright, centred and in size.
        moments: taken per volume (a patient lies as one) or per slice.
        target: masks that are seen and compared: the body, or body and bone.
        localizer: the network; its `size` is the resolution at which it looks and compares.
        stage: its training.
        fill: the reference's body is this part of the width of the field; None keeps the field of
            the base grid (the paper's).
        reference: case to be the reference; None: the medoid of the training cases.
        reference_mode: "slice" compares all slices with the reference's at kidney level, "volume"
            with the one at the same relative height in the labelled region.
        levels: heights at which a reference volume is kept.
        iterations: how often the network looks and corrects at inference.
        per: at inference, "volume" takes the median correction of all slices, "slice" each its own.
        bone: weight of the bone's overlap with the reference's, where the body's is 1. Ribs of two
            patients seldom meet; a pose that makes them do so is no better for it.
        symmetry: weight of the masks' overlap with their own mirror image, where the body's with
            the reference's is 1: it tells how a trunk is turned. The reference, too, is set upright
            by it. 0 does without.
        teacher: weight, beside the overlaps, of the distance to the pose at which registration of
            the masks finds them best, for each training patient. 0 trains by the overlaps alone.
        mirrored: the network sees mirror images as well: in training at random, at inference both.
        jitter_deg, jitter_scale, jitter_shift: in training the start is turned, scaled and shifted
            at random by up to so much: degrees, logarithm, half images.
        cut: part of the training slices that are shown with a field of view that cuts the body.
    """

    start: Literal["identity", "moments"] = "moments"
    moments: Literal["volume", "slice"] = "volume"
    target: Literal["body", "body+bone"] = "body+bone"
    localizer: LocalizerConfig = LocalizerConfig(size=64)
    stage: StageConfig = StageConfig(
        epochs=16,
        min_epochs=0,
        batch_size=32,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    )
    fill: float | None = Field(default=0.85, gt=0, le=1)
    reference: str | None = None
    reference_mode: Literal["slice", "volume"] = "volume"
    levels: int = Field(default=32, ge=1)
    iterations: int = Field(default=2, ge=1)
    per: Literal["volume", "slice"] = "volume"
    bone: float = Field(default=0.0, ge=0)
    symmetry: float = Field(default=1.0, ge=0)
    teacher: float = Field(default=1.0, ge=0)
    mirrored: bool = True
    jitter_deg: float = Field(default=15.0, ge=0)
    jitter_scale: float = Field(default=0.15, ge=0)
    jitter_shift: float = Field(default=0.1, ge=0)
    cut: float = Field(default=0.25, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CropConfig:
    """The second spatial transformer: the square around kidneys and tumour.

    Attributes:
        localizer: the network; its `size` is the resolution at which it looks.
        stage: its training.
        target: box to aim at: the "patient"'s over all slices, or each "slice"'s own.
        empty: for target "slice", the box to aim at in slices without labels: the "patient"'s over
            all slices, or the whole image ("identity").
        output: sides of the crop in pixels, as a part of `view.size`.
        per: at inference, "volume" takes the median box of all slices, "slice" each its own.
    """

    localizer: LocalizerConfig = LocalizerConfig(size=128)
    stage: StageConfig = StageConfig(
        batch_size=32,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    )
    target: Literal["patient", "slice"] = "patient"
    empty: Literal["patient", "identity"] = "patient"
    output: Literal["full", "half", "quarter"] = "full"
    per: Literal["volume", "slice"] = "volume"

    @property
    def divisor(self) -> int:
        """`view.size` over the side of the crop in pixels."""
        return {"full": 1, "half": 2, "quarter": 4}[self.output]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HomogenizedConfig(MethodConfig):
    """System A: pose and size homogenized, cropped, segmented.

    Attributes:
        view: the base grid.
        pose: the first transformer.
        crop: the second; None does without.
        unet: the network; its input is `view.size`, or what `crop.output` leaves of it.
        segment: its training.
        schedule: "joint" trains all networks together once each is trained on its own.
        joint: that training.
        loss_space: where labels are compared: on the "original" base grid, after the inverse warp
            (the paper's), or on the grid the "network" sees.
        augment: "nnunet" augments what the U-Net sees; needs loss_space "network".
    """

    view: ViewConfig = ViewConfig()
    pose: PoseConfig = PoseConfig()
    crop: CropConfig | None = None
    unet: UNetConfig = UNetConfig(size=128)
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    schedule: Literal["sequential", "joint"] = "sequential"
    joint: StageConfig = StageConfig(
        epochs=20, min_epochs=0, batch_size=32, optimizer=OptimizerConfig(learning_rate=0.001)
    )
    loss_space: Literal["original", "network"] = "original"
    augment: Literal["none", "nnunet"] = "none"

    @model_validator(mode="after")
    def _check_together(self) -> HomogenizedConfig:
        if self.view.size % self.divisor:
            raise ValueError(f"view.size must be a multiple of {self.divisor} for this crop")
        _check_input(self.view.size // self.divisor, self.unet)
        if self.augment != "none" and self.loss_space == "original":
            raise ValueError("augment needs loss_space 'network': its labels are turned as well")
        if self.schedule == "joint" and (
            self.pose.per == "volume" or (self.crop is not None and self.crop.per == "volume")
        ):
            raise ValueError("schedule 'joint' needs pose.per and crop.per 'slice'")
        if self.schedule == "joint" and self.augment != "none":
            raise ValueError("schedule 'joint' does not augment")
        return self

    @property
    def divisor(self) -> int:
        """`view.size` over the side of the U-Net's input."""
        return 1 if self.crop is None else self.crop.divisor


def _check_input(side: int, unet: UNetConfig) -> None:
    if side % unet.multiple:
        raise ValueError(f"the U-Net takes multiples of {unet.multiple} pixels, not {side}")


_CONFIGS: tuple[type[MethodConfig], ...] = (HomogenizedConfig, PlainConfig, Plain3dConfig)

METHODS: dict[str, type[MethodConfig]] = dict(zip(registry.METHODS, _CONFIGS, strict=True))
"""The settings of each method, by its name."""
