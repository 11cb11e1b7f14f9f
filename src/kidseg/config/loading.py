"""Load configurations from presets, files and overrides, and write them as text."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from kidseg.errors import InputError, UsageError
from kidseg.registry import PRESETS, presets

__all__ = ["CHECKED", "dump", "load", "preset", "schema"]

CHECKED = ConfigDict(extra="forbid", strict=True)
"""Validation of every configuration: unknown keys and values of another type are errors."""

_NULL = "null"
Config = TypeVar("Config")


def preset(name: str, method: str) -> dict[str, Any]:
    """The settings of a preset for a method: its table "common", then the method's own table.

    Raises:
        UsageError: "unknown-preset": no preset of this name, or none for this method.
    """
    tables = {each: _read_toml(PRESETS / f"{each}.toml") for each in presets()}
    known = [each for each, table in tables.items() if method in table]
    if name not in known:
        raise UsageError(
            f"unknown preset '{name}' for {method}",
            next_step=f"Choose one of {', '.join(known)}." if known else "Leave it out.",
            code="unknown-preset",
        )
    return _merged(tables[name].get("common", {}), tables[name][method])


def load(
    kind: type[Config],
    *,
    base: Mapping[str, Any] | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Build a configuration from defaults, a preset, a TOML file and overrides, in this order.

    Args:
        kind: the dataclass, for example `PhantomConfig`.
        base: the settings of a `preset`.
        file: a TOML file; tables are nested dataclasses.
        overrides: "a.b=3"; the value is parsed as TOML, or taken as text if that fails.

    TOML has no null; "null" stands for None, in files and overrides.

    Raises:
        InputError: the file is missing or invalid.
        UsageError: an unknown key, a value of the wrong type or out of range.
    """
    data = _merged(base or {}, {} if file is None else _read_toml(file))
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key.strip():
            raise UsageError(
                f"'{override}' is not a setting",
                next_step="Write it as key=value.",
                code="bad-setting",
            )
        _assign(data, key.strip().split("."), _value(text.strip()), override)
    try:
        # Via JSON, where strict validation refuses text for numbers but accepts lists for tuples.
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
    """The complete configuration as TOML, which `load` can read. None is "null"."""
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
            f"not valid TOML: {error}", path=file, next_step="Fix that line.", code="not-toml"
        ) from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; values of `over` take precedence."""
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
    """Plain data with all occurrences of a value replaced."""
    if isinstance(node, dict):
        return {key: _replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_replaced(value, old, new) for value in node]
    return new if node == old else node
