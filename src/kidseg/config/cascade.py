"""Settings of the method "cascade"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED
from kidseg.config.methods import CohortConfig, DiceOver, MethodConfig, check_sampling
from kidseg.config.networks import UNetConfig, check_batch
from kidseg.config.stages import OptimizerConfig, StageConfig

__all__ = [
    "CascadeConfig",
    "CoarseConfig",
    "CorrectConfig",
    "FineConfig",
    "RefineConfig",
    "ThresholdConfig",
    "TumourConfig",
]

Loss = Literal["dice", "cross-entropy", "both"]

_ADAM = OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=1e-5)
_STAGE = StageConfig(epochs=100, patience=30, min_epochs=0, batch_size=32, optimizer=_ADAM)
# The network of slices has one output: Ronneberger's has no deep supervision.
_UNET = UNetConfig(size=128, supervised_to=128)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ThresholdConfig:
    """A volume that counts, for the size of the body."""

    min_volume_ml: float = Field(default=18.3, ge=0)
    """In a body of `body_radius_mm`; scaled with the cube of the body's radius if it is smaller.
    Without a body (no CT), as it is.
    """
    body_radius_mm: float = Field(default=150.0, gt=0)
    """Geometric mean of the semi-axes of an adult's trunk."""
    min_voxels: int | None = Field(default=None, ge=0)
    """So many voxels of `spacing_mm`, in a body of any size. None: `min_volume_ml` instead."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CoarseConfig:
    """The coarse network: kidneys (with tumour) in all slices."""

    size: int = Field(default=128, ge=2)
    """Pixels along each side, to which every slice is resized."""
    loss: Loss = "dice"
    """What is minimised: 1 - Dice, the "cross-entropy", or the sum of "both"."""
    stage: StageConfig = _STAGE
    """Training of the network."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CorrectConfig:
    """The correction of abnormal cases: kidneys in sagittal slices.

    These have no left and right: `test_time_flip` does not flip them.
    """

    size: tuple[int, int] = (64, 256)
    """Axial slices and rows of a sagittal slice, around the coarse centroid."""
    iterations: int = Field(default=1, ge=0, le=100)
    """Maximum number of corrections, each around what the one before found; 0: never."""
    loss: Loss = "dice"
    """As `coarse.loss`."""
    stage: StageConfig = _STAGE
    """Training of the network."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FineConfig:
    """The fine network: each kidney separately, in axial slices."""

    size: int = Field(default=160, ge=2)
    """Pixels along each side of a crop around the centroid of a kidney."""
    grow: bool = True
    """Enlarge the crop at inference where a kidney with its tumour is larger. Otherwise it is cut.
    """
    margin_mm: float = Field(default=15.0, ge=0)
    """How far a crop extends beyond the first and last slice of the kidney; and, if it grows,
    beyond its sides.
    """
    loss: Loss = "dice"
    """As `coarse.loss`."""
    stage: StageConfig = _STAGE
    """Training of the network."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TumourConfig:
    """The 3D network that detects tumours around each kidney."""

    unet: UNetConfig = UNetConfig(
        size=32, features=24, skips="long", supervised_to=32, head_kernel=1, dimensions=3
    )
    """The network: three-dimensional, by default with one long skip connection. `size` only
    determines its depth, together with `bottleneck`.
    """
    patch: tuple[int, int, int] = (16, 64, 64)
    """Slices, rows and columns of a block, in training and at inference."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Minimum overlap of neighbouring blocks at inference, as a fraction of the block."""
    frame_px: int = Field(default=30, ge=0)
    """How far the region extends beyond the kidney in the plane, in pixels of `spacing_mm`."""
    frame_mm: float = Field(default=30.0, ge=0)
    """How far the region extends beyond the kidney along the slices."""
    loss: Loss = "cross-entropy"
    """As `coarse.loss`."""
    stage: StageConfig = StageConfig(
        epochs=100, patience=30, min_epochs=0, batch_size=6, steps=250, optimizer=_ADAM
    )
    """Training of the network. A third of the blocks each is centred on background, on kidney and
    on tumour.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RefineConfig:
    """The 2D network that refines tumours, or searches for them, from CT and kidney mask."""

    size: int = Field(default=160, ge=2)
    """Pixels along each side of a training slice, around the middle of the region."""
    almost_nothing: ThresholdConfig = ThresholdConfig(min_volume_ml=0.5)
    """If the 3D network found less than this in all regions, the 2D network searches in them."""
    inside: Literal["lesion", "box"] = "lesion"
    """Where the 2D network refines otherwise: inside each "lesion" that the 3D network found, or
    inside its bounding "box".
    """
    loss: Loss = "dice"
    """As `coarse.loss`."""
    stage: StageConfig = _STAGE
    """Training of the network. Half of the slices of a batch show tumour; an epoch shows every
    slice with tumour once.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CascadeConfig(MethodConfig):
    """Kidneys coarse to fine with a correction of abnormal cases, then the tumours around them.

    Source: Zhang et al., KiTS19; where the paper is silent, a choice of ours.
    """

    cohort: CohortConfig = CohortConfig(target="two")
    """Cases for training and validation, and sampling of batches; `target` is "two"."""
    spacing_mm: tuple[float, float, float] = (3.0, 0.7816, 0.7816)
    """Voxel size (slice, row, column) to which scans are resampled."""
    kidney: ThresholdConfig = ThresholdConfig()
    """Smaller components are not kidneys. A case with exactly two kidneys is normal."""
    unet: UNetConfig = _UNET
    """The architecture of all networks of slices; the sides of their inputs must be multiples of
    `unet.size / unet.bottleneck`.
    """
    crops: Literal["truth", "predicted"] = "truth"
    """What determines regions and kidney masks in training: the reference labels (the paper's), or
    the networks trained before.
    """
    dice_over: DiceOver = "batch"
    """Dice losses are computed over the batch or, as in the paper, per slice; a slice without
    kidney then teaches nothing.
    """
    coarse: CoarseConfig = CoarseConfig()
    """Kidneys in all slices."""
    correct: CorrectConfig = CorrectConfig()
    """Kidneys in abnormal cases."""
    fine: FineConfig = FineConfig()
    """Each kidney separately."""
    tumour: TumourConfig = TumourConfig()
    """Tumours, detected in three dimensions."""
    refine: RefineConfig = RefineConfig()
    """Tumours, refined or searched for slice by slice."""

    @model_validator(mode="after")
    def _check_together(self) -> CascadeConfig:
        check_sampling(self.cohort)
        if self.cohort.target != "two":
            raise ValueError('cohort.target must be "two": the cascade gives kidney and tumour')
        if min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be positive")
        if None in (self.unet.size, self.tumour.unet.size):
            raise ValueError("unet.size and tumour.unet.size must be set: they determine the depth")
        if (self.unet.dimensions, self.tumour.unet.dimensions) != (2, 3):
            raise ValueError("unet.dimensions must be 2, and tumour.unet.dimensions 3")
        sides = {
            "coarse.size": (self.coarse.size,),
            "correct.size": self.correct.size,
            "fine.size": (self.fine.size,),
            "refine.size": (self.refine.size,),
        }
        for name, values in sides.items():
            if any(side < 1 or side % self.unet.multiple for side in values):
                raise ValueError(f"{name} must be a multiple of {self.unet.multiple}")
            stage = name.partition(".")[0]
            sides_2d = values if len(values) == 2 else values * 2
            size = getattr(self, stage).stage.batch_size
            check_batch(f"{stage}.stage", sides_2d, self.unet.multiple, size)
        if any(side < 1 or side % self.tumour.unet.multiple for side in self.tumour.patch):
            raise ValueError(f"tumour.patch must be multiples of {self.tumour.unet.multiple}")
        size, multiple = self.tumour.stage.batch_size, self.tumour.unet.multiple
        check_batch("tumour.stage", self.tumour.patch, multiple, size)
        return self
