"""Every setting of kidseg, as plain data: frozen dataclasses with named, checked fields.

A configuration comes from its defaults, then a TOML file, then `key=value` overrides, each winning
over the one before. Unknown keys and wrong types are refused by name. This module imports no torch,
so that it can be read anywhere.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from kidseg.errors import InputError, UsageError

__all__ = [
    "LocalizerConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "StageConfig",
    "UNetConfig",
    "dump",
    "load",
    "schema",
]

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


def load(kind: type[Config], *, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A configuration from defaults, a TOML file and `key=value` overrides, in this order.

    Args:
        kind: the dataclass, for example `PhantomConfig`.
        file: a TOML file; tables are nested dataclasses.
        overrides: "a.b=3"; the value is read as TOML, or as text if it is none.

    Raises:
        InputError: the file is missing or no TOML.
        UsageError: an unknown key, a value of the wrong type or outside its range.
    """
    data: dict[str, Any] = {} if file is None else _read_toml(file)
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
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        problems = "; ".join(_problem(entry) for entry in error.errors())
        raise UsageError(
            f"{kind.__name__}: {problems}",
            path=file,
            next_step=f"Known keys: {', '.join(_keys(schema(kind)))}.",
            code="bad-setting",
        ) from None


def dump(config: Any) -> str:
    """The whole configuration as TOML; `load` reads it back to an equal one. None is left out."""
    return tomli_w.dumps(_without_none(asdict(config)))


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a configuration."""
    return TypeAdapter(kind).json_schema()


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, code="unreadable"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is no TOML: {error}", path=file, next_step="Mend the line it names.", code="not-toml"
        ) from error


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


def _without_none(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_none(value) for key, value in node.items() if value is not None}
    if isinstance(node, list | tuple):
        return [_without_none(value) for value in node]
    return node
