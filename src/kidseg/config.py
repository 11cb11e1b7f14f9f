"""Every setting of kidseg, as plain data: frozen dataclasses with named, checked fields.

A configuration comes from its defaults, then a TOML file, then `key=value` overrides, each winning
over the one before. Unknown keys and wrong types are refused by name. This module imports no torch,
so that it can be read anywhere.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from kidseg.errors import InputError, UsageError

__all__ = [
    "CohortConfig",
    "CropConfig",
    "HomogenizedConfig",
    "LocalizerConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "PlainConfig",
    "PoseConfig",
    "PostprocessConfig",
    "StageConfig",
    "UNetConfig",
    "ViewConfig",
    "dump",
    "load",
    "preset",
    "presets",
    "schema",
]

_PRESETS = Path(__file__).parent / "configs"
_NULL = "null"
_CHECKED = ConfigDict(extra="forbid", strict=True)
Config = TypeVar("Config")

Phase = Literal["early-arterial", "portal-venous", "excretory", "unenhanced"]


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
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


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class UNetConfig:
    """The segmentation network of System A.

    Attributes:
        size: pixels along each side of the training images; fixes the depth. Once built, the
            network takes any image whose sides are multiples of `size / bottleneck`.
        bottleneck: side of the deepest level; halving `size` must reach it.
        features: maps at the finest level; they double per level.
        max_features: at most so many maps.
        skips: levels joined from encoder to decoder: "all", or 32 for those with at least 32 pixels
            along each side of a training image.
        supervised_to: side of the coarsest level that is trained directly (deep supervision).
        head_kernel: side of the output convolutions.
        dimensions: 2 for slices, 3 for volumes.
    """

    size: int = Field(default=512, ge=2)
    bottleneck: int = Field(default=8, ge=1)
    features: int = Field(default=32, ge=1)
    max_features: int = Field(default=512, ge=1)
    skips: Literal["all", 32] = "all"
    supervised_to: int = Field(default=32, ge=1)
    head_kernel: Literal[1, 3] = 3
    dimensions: Literal[2, 3] = 2

    @model_validator(mode="after")
    def _check_depth(self) -> UNetConfig:
        if self.bottleneck << self.halvings != self.size or self.halvings < 1:
            raise ValueError(
                f"halving {self.size} pixels does not reach {self.bottleneck}; "
                f"size must be {self.bottleneck} times 2, 4, 8, ..."
            )
        return self

    @property
    def halvings(self) -> int:
        """Levels below the finest: 4 for 128 pixels, 5 for 256, 6 for 512."""
        return max(0, (self.size // self.bottleneck).bit_length() - 1)

    @property
    def supervised(self) -> int:
        """N, the coarsest level with an output: 2 for 128 pixels, 3 for 256, 4 for 512.

        At most the finest level above the bottleneck; 0, only the finest, for small images.
        """
        sides = [self.size >> level for level in range(self.halvings)]
        return max(0, sum(side >= self.supervised_to for side in sides) - 1)


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class LocalizerConfig:
    """The localisation network of a spatial transformer (STN1, STN2), and what its outputs mean.

    Attributes:
        size: pixels along each side of its input, a multiple of 4.
        maps: feature maps of the two convolutions.
        kernels: their sides, odd.
        head: "pooled" averages the maps to a fixed grid before the hidden layers; "dense" hands
            them over whole (the paper's).
        pooled: side of that grid; divides `size / 4`, or is it where that is smaller.
        hidden: units of the two hidden layers.
        scales: 2 scales a pose along x and y, 1 in both alike (a similarity).
        scale_limit: scales lie in 1 / limit .. limit.
        shift_limit: shifts lie in -limit .. limit, in half images.
        angle_limit_deg: angles lie in -limit .. limit.
        square: crops are square (in parts of the image).
        least_side: smallest side of a crop, as a part of the image.
        margin: how much a crop is widened at inference, as a part of its side.
    """

    size: int = Field(default=512, ge=8, multiple_of=4)
    maps: tuple[int, int] = (8, 10)
    kernels: tuple[int, int] = (7, 5)
    head: Literal["pooled", "dense"] = "pooled"
    pooled: int = Field(default=16, ge=1)
    hidden: tuple[int, int] = (128, 64)
    scales: Literal[1, 2] = 2
    scale_limit: float = Field(default=2.0, gt=1.0)
    shift_limit: float = Field(default=1.0, gt=0.0)
    angle_limit_deg: float = Field(default=180.0, gt=0.0, le=180.0)
    square: bool = True
    least_side: float = Field(default=0.25, gt=0.0, le=1.0)
    margin: float = Field(default=0.1, ge=0.0)

    @model_validator(mode="after")
    def _check_layers(self) -> LocalizerConfig:
        if min(*self.maps, *self.hidden) < 1:
            raise ValueError("maps and hidden must be at least 1")
        if min(self.kernels) < 1 or not all(kernel % 2 for kernel in self.kernels):
            raise ValueError("kernels must be odd, so that they have a middle")
        if self.size // 4 % min(self.pooled, self.size // 4):
            raise ValueError(f"pooled must divide a quarter of size, {self.size // 4}")
        return self

    @property
    def mapped(self) -> int:
        """Side of the feature maps that the hidden layers see."""
        quarter = self.size // 4
        return quarter if self.head == "dense" else min(self.pooled, quarter)


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class OptimizerConfig:
    """How weights are changed.

    Attributes:
        name: "sgd" (with Nesterov momentum) or "adam".
        learning_rate: at the start.
        momentum: of SGD; 0 is plain gradient descent.
        weight_decay: coupled L2, added to the gradient.
        poly_power: the rate falls as (1 - epoch / epochs) ** power; 0 keeps it.
        clip_norm: gradients are scaled down to this norm; None leaves them.

    Source: defaults of nnU-Net v2's trainer; poly as in Chen et al., DeepLab, TPAMI 2018.
    """

    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    weight_decay: float = Field(default=3e-5, ge=0)
    poly_power: float = Field(default=0.9, ge=0)
    clip_norm: float | None = Field(default=12.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class StageConfig:
    """How long and how one network is trained.

    Attributes:
        epochs: at most so many.
        min_epochs: early stopping not before.
        patience: stop after so many epochs without a better validation score; None never stops.
        batch_size: slices (or patches) per step, over all processes.
        steps: optimizer steps per epoch; None: every training slice once.
        budget_s: stop after the epoch in which this much training time was used; None: no limit.
        optimizer: see `OptimizerConfig`.
    """

    epochs: int = Field(default=50, ge=1)
    min_epochs: int = Field(default=50, ge=0)
    patience: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=12, ge=1)
    steps: int | None = Field(default=None, ge=1)
    budget_s: float | None = Field(default=None, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
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


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
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


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class PostprocessConfig:
    """Which pieces of a segmentation are removed.

    Attributes:
        least_ml: components (of all labels together) below this volume go, in a body of
            `body_radius_mm`; scaled with the cube of the body's radius. 0 removes nothing.
        body_radius_mm: geometric mean of the semi-axes of an adult's trunk.
    """

    least_ml: float = Field(default=3.0, ge=0)
    body_radius_mm: float = Field(default=150.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class PlainConfig:
    """The baseline: a U-Net on the scan as it lies, with or without augmentation.

    Attributes:
        view: the base grid.
        cohort: cases and batches.
        unet: the network; `view.size` is a multiple of `unet.size / unet.bottleneck`.
        segment: its training.
        augment: "nnunet" is nnU-Net's own augmentation, spatial and of intensities.
        precision: "auto" is bf16 where the device computes with it, else fp32.
        postprocess: of the result.
    """

    view: ViewConfig = ViewConfig()
    cohort: CohortConfig = CohortConfig()
    unet: UNetConfig = UNetConfig(size=128)
    segment: StageConfig = StageConfig(epochs=250, patience=50, batch_size=32)
    augment: Literal["none", "nnunet"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    postprocess: PostprocessConfig = PostprocessConfig()

    @model_validator(mode="after")
    def _check_sides(self) -> PlainConfig:
        _check_input(self.view.size, self.unet)
        return self


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class PoseConfig:
    """The first spatial transformer: pose and size.

    Attributes:
        start: what the network corrects: the scan as it lies, or as the moments of the body mask
            put it upright, centred and in size.
        moments: taken per volume (a patient lies as one) or per slice.
        target: masks that are to agree with the reference's: the body, or body and bone.
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
        teacher: weight, beside the overlap, of the distance to the pose that registration of the
            masks with the reference's finds for each training patient. The overlap alone hardly
            changes with the angle of a nearly round body. 0 trains by the overlap alone.
        jitter_deg, jitter_scale, jitter_shift: in training the start is turned, scaled and shifted
            at random by up to so much: degrees, logarithm, half images.
    """

    start: Literal["identity", "moments"] = "moments"
    moments: Literal["volume", "slice"] = "volume"
    target: Literal["body", "body+bone"] = "body+bone"
    localizer: LocalizerConfig = LocalizerConfig(size=128)
    stage: StageConfig = StageConfig(
        batch_size=32,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    )
    fill: float | None = Field(default=0.85, gt=0, le=1)
    reference: str | None = None
    reference_mode: Literal["slice", "volume"] = "volume"
    levels: int = Field(default=32, ge=1)
    iterations: int = Field(default=2, ge=1)
    per: Literal["volume", "slice"] = "volume"
    teacher: float = Field(default=1.0, ge=0)
    jitter_deg: float = Field(default=15.0, ge=0)
    jitter_scale: float = Field(default=0.15, ge=0)
    jitter_shift: float = Field(default=0.1, ge=0)


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
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


@dataclass(frozen=True, kw_only=True, config=_CHECKED)
class HomogenizedConfig:
    """System A: pose and size homogenized, cropped, segmented.

    Attributes:
        view: the base grid.
        cohort: cases and batches.
        pose: the first transformer.
        crop: the second; None does without.
        unet: the network; its input is `view.size`, or what `crop.output` leaves of it.
        segment: its training.
        schedule: "joint" trains all networks together once each is trained on its own.
        joint: that training.
        loss_space: where labels are compared: on the "original" base grid, after the inverse warp
            (the paper's), or on the grid the "network" sees.
        augment: "nnunet" augments what the U-Net sees; needs loss_space "network".
        precision: "auto" is bf16 where the device computes with it, else fp32.
        postprocess: of the result.
    """

    view: ViewConfig = ViewConfig()
    cohort: CohortConfig = CohortConfig()
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
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    postprocess: PostprocessConfig = PostprocessConfig()

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
    multiple = unet.size // unet.bottleneck
    if side % multiple:
        raise ValueError(f"the U-Net takes multiples of {multiple} pixels, not {side}")


def presets() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    return tuple(sorted(file.stem for file in _PRESETS.glob("*.toml")))


def preset(name: str, method: str) -> dict[str, Any]:
    """What a preset sets for a method: its table "common", then the one named like the method.

    Raises:
        UsageError: "unknown-preset": there is none of this name, or it is not for this method.
    """
    for_method = name in presets() and (tables := _read_toml(_PRESETS / f"{name}.toml"))
    if not for_method or method not in tables:
        raise UsageError(
            f"there is no preset '{name}' for {method}",
            next_step=f"Choose one of {', '.join(presets())}.",
            code="unknown-preset",
        )
    return _merged(tables.get("common", {}), tables[method])


def load(
    kind: type[Config],
    *,
    base: Mapping[str, Any] | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """A configuration from defaults, a preset, a TOML file and overrides, in this order.

    Args:
        kind: the dataclass, for example `PhantomConfig`.
        base: what a `preset` sets.
        file: a TOML file; tables are nested dataclasses.
        overrides: "a.b=3"; the value is read as TOML, or as text if it is none.

    TOML has no null; "null" stands for None, in files and overrides.

    Raises:
        InputError: the file is missing or no TOML.
        UsageError: an unknown key, a value of the wrong type or outside its range.
    """
    data = _merged(base or {}, {} if file is None else _read_toml(file))
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key.strip():
            raise UsageError(
                f"'{override}' is no setting",
                next_step="Write it as key=value.",
                code="bad-setting",
            )
        _assign(data, key.strip().split("."), _value(text.strip()), override)
    try:
        # Through JSON, where strict means: no number from text, but a list may be a tuple.
        return TypeAdapter(kind).validate_json(
            json.dumps(_replaced(data, _NULL, None), default=str), strict=True
        )
    except ValidationError as error:
        problems = "; ".join(_problem(entry) for entry in error.errors())
        raise UsageError(
            f"{kind.__name__}: {problems}",
            path=file,
            next_step=f"Known keys: {', '.join(_keys(schema(kind)))}.",
            code="bad-setting",
        ) from None


def dump(config: Any) -> str:
    """The whole configuration as TOML; `load` reads it back to an equal one. None is "null"."""
    return tomli_w.dumps(_replaced(asdict(config), None, _NULL))


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a configuration."""
    return TypeAdapter(kind).json_schema()


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            path=file,
            next_step="Check its name and permissions.",
            code="unreadable",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is no TOML: {error}", path=file, next_step="Mend the line it names.", code="not-toml"
        ) from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; of two values the upper wins."""
    out = copy.deepcopy(dict(under))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else copy.deepcopy(value)
    return out


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise UsageError(f"'{override}': '{key}' is a value, not a table", code="bad-setting")
    data[keys[-1]] = value


def _problem(entry: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key '{where}'"
    return f"'{where}': {entry['msg']}" if where else str(entry["msg"])


def _keys(node: Mapping[str, Any]) -> list[str]:
    return sorted(node.get("properties", {}))


def _replaced(node: Any, old: Any, new: Any) -> Any:
    """Plain data with one value replaced by another wherever it stands."""
    if isinstance(node, dict):
        return {key: _replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_replaced(value, old, new) for value in node]
    return new if node == old else node
