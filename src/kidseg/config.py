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

__all__ = ["PhantomConfig", "dump", "load", "schema"]

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
