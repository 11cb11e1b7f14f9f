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
    """The base grid on which networks process a scan, before any pose.

    Attributes:
        size: pixels along each side of the base grid, centred on the body.
        pixel_mm: of the base grid; None: the plan's pixel spacing (nnU-Net's), or coarser so that
            the cohort's median field of view fits into `size` pixels.
        bone_hu: voxels above this value inside the body are bone (or contrast medium).
        bone_least_ml: smaller components of bone are removed; for the size of an adult's body.
        bone_blur_mm: SD of the in-plane Gaussian blur of the bone mask, so that masks that do not
            overlap still have a gradient.
    """

    size: int = Field(default=128, ge=8)
    pixel_mm: float | None = Field(default=None, gt=0)
    bone_hu: float = 220.0
    bone_least_ml: float = Field(default=0.5, ge=0)
    bone_blur_mm: float = Field(default=4.0, ge=0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CohortConfig:
    """Cases for training and validation, and sampling of batches.

    Attributes:
        validation_share: fraction of the patients used for validation.
        label_share: minimum fraction of each batch that shows each label, if the number of labels
            allows it.
        selection: regions whose mean Dice selects the weights; empty: those of the default schema
            except "kidney", if the data set has them, else all.
        cyst: what a cyst counts as, if there are cysts.
        target: what networks give: each label (or region of a region-based data set), kidney and
            tumour "merged", or the "tumour" alone.

    Source: one third kidney, one third tumour: La Barbera et al., ISBI 2021.
    """

    validation_share: float = Field(default=0.2, gt=0, lt=1)
    label_share: float = Field(default=1 / 3, ge=0, le=1)
    selection: tuple[str, ...] = ()
    cyst: Literal["tumour", "kidney", "background"] | None = None
    target: Literal["labels", "merged", "tumour"] = "labels"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PostprocessConfig:
    """Removal of small components from a segmentation.

    Attributes:
        least_ml: components (of all labels together) below this volume are removed, in a body of
            `body_radius_mm`; scaled with the cube of the body's radius. 0 removes nothing.
        body_radius_mm: geometric mean of the semi-axes of an adult's trunk.
    """

    least_ml: float = Field(default=3.0, ge=0)
    body_radius_mm: float = Field(default=150.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MethodConfig:
    """Settings common to all methods.

    Attributes:
        cohort: cases and batches.
        budget_s: time limit of the complete training, including planning and reading; every stage
            stops at it, and the last stage gets the remaining time. None: no limit.
        budget_clock: how seconds of a training are measured: "wall" time, or the "processor" time
            of this process, which other work on the same cores hardly affects.
        precision: "auto" is bf16 if the device supports it, otherwise fp32.
        workers: processes that prefetch batches; the result is bit-identical. None: none on the CPU
            or with budget_clock "processor", otherwise one per further core, at most 8.
        postprocess: applied to the result.
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
    """The baseline: a U-Net on the scan without normalized pose, with or without augmentation.

    Attributes:
        view: the base grid.
        unet: the network; `view.size` must be a multiple of `unet.size / unet.bottleneck`.
        reach: neighbouring slices on either side that are input channels, too (2.5D).
        segment: training of the network.
        augment: "nnunet": nnU-Net's own augmentation, spatial and of intensities.
    """

    view: ViewConfig = ViewConfig()
    unet: UNetConfig = UNetConfig(size=128)
    reach: int = Field(default=0, ge=0)
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    augment: Literal["none", "nnunet"] = "none"

    @model_validator(mode="after")
    def _check_sides(self) -> PlainConfig:
        _check_input(self.view.size, self.unet)
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BlocksConfig:
    """Blocks on which a 3D network processes a scan; None: the plan's value.

    Attributes:
        spacing_mm: of the voxels, (slice, row, column).
        patch: voxels of a block; rounded up to multiples of the network's strides.
        features: feature maps of the first stage; doubled at each stage.
        max_features: upper limit of the feature maps.
        overlap: minimum overlap of neighbouring blocks at inference, as a fraction of the block.
        foreground_share: fraction of a batch's blocks that are centred on a label.

    Source: one third on labels, overlap one half: nnU-Net v2.
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
    """The 3D baseline: the plan's network on blocks of the scan, without normalized pose.

    Attributes:
        blocks: input of the network.
        segment: training of the network.
        augment: "nnunet": nnU-Net's own augmentation, spatial and of intensities.

    Source: nnU-Net v2's trainer: 1000 epochs of 250 steps, two blocks each.
    """

    blocks: BlocksConfig = BlocksConfig()
    segment: StageConfig = StageConfig(epochs=1000, min_epochs=0, batch_size=2, steps=250)
    augment: Literal["none", "nnunet"] = "nnunet"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PoseConfig:
    """The first spatial transformer: pose and size.

    Attributes:
        start: initial pose that the network corrects: "identity", or the pose by the "moments" of
            the body mask, which makes the body upright, centred and of standard size.
        moments: computed per volume (a patient has one pose) or per slice.
        target: masks for input and loss: the body, or body and bone.
        localizer: the network; its `size` is the resolution of input and loss.
        stage: training of the network.
        fill: width of the reference's body as a fraction of the field of view; None keeps the field
            of the base grid (the paper's).
        reference: id of the reference case; None: the medoid of the training cases.
        reference_mode: "slice" compares all slices with the reference's slice at kidney level,
            "volume" with the slice at the same relative height in the labelled region.
        levels: number of slices in a reference volume.
        iterations: number of corrections at inference.
        per: at inference, "volume" applies the median correction of all slices, "slice" one per
            slice.
        bone: weight of the overlap of the bone masks, relative to that of the body masks. The ribs
            of two patients seldom coincide, and aligning them does not improve a pose.
        symmetry: weight of the masks' overlap with their own mirror image, relative to that of the
            body masks with the reference: it determines the rotation of a trunk. It also makes the
            reference upright. 0: not used.
        teacher: weight of the distance to the best pose found by registration of the masks, for
            each training patient, added to the overlap losses. 0: overlap losses alone.
        mirrored: also use flipped images: at random in training, both at inference.
        jitter_deg, jitter_scale, jitter_shift: maximum random rotation, scaling and shift of the
            initial pose in training: degrees, logarithm, half images.
        cut: fraction of the training slices shown with a field of view that truncates the body.
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
        localizer: the network; its `size` is the resolution of its input.
        stage: training of the network.
        target: target box: one per "patient", over all slices, or one per "slice".
        empty: with target "slice", the target box of slices without labels: that of the "patient"
            over all slices, or the full image ("identity").
        output: sides of the crop in pixels, as a fraction of `view.size`.
        per: at inference, "volume" applies the median box of all slices, "slice" one per slice.
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
        """`view.size` divided by the side of the crop in pixels."""
        return {"full": 1, "half": 2, "quarter": 4}[self.output]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HomogenizedConfig(MethodConfig):
    """System A: homogenize pose and size, crop, segment.

    Attributes:
        view: the base grid.
        pose: the first transformer.
        crop: the second transformer; None: no crop.
        unet: the segmentation network; the side of its input is that of `crop.output`, or
            `view.size` without a crop.
        segment: training of the U-Net.
        schedule: "joint" trains all networks together after training each of them.
        joint: the joint training.
        loss_space: grid of the loss: the "original" base grid after the inverse warp (the
            paper's), or the "network"'s input grid.
        augment: "nnunet" augments the input of the U-Net; requires loss_space "network".
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
            raise ValueError("augment requires loss_space 'network': it transforms the labels too")
        if self.schedule == "joint" and (
            self.pose.per == "volume" or (self.crop is not None and self.crop.per == "volume")
        ):
            raise ValueError("schedule 'joint' requires pose.per and crop.per 'slice'")
        if self.schedule == "joint" and self.augment != "none":
            raise ValueError("schedule 'joint' does not support augment")
        return self

    @property
    def divisor(self) -> int:
        """`view.size` divided by the side of the U-Net's input."""
        return 1 if self.crop is None else self.crop.divisor


def _check_input(side: int, unet: UNetConfig) -> None:
    if side % unet.multiple:
        raise ValueError(f"U-Net input must be a multiple of {unet.multiple} pixels, not {side}")


_CONFIGS: tuple[type[MethodConfig], ...] = (HomogenizedConfig, PlainConfig, Plain3dConfig)

METHODS: dict[str, type[MethodConfig]] = dict(zip(registry.METHODS, _CONFIGS, strict=True))
"""Configuration class of each method, by name."""
