"""Load configurations from presets, files and overrides, and write them as text."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from kidseg.config.catalogue import METHODS
from kidseg.config.phantom import PhantomConfig
from kidseg.config.problems import find_problems, next_step_of
from kidseg.config.renamed import as_now
from kidseg.errors import InputError, UsageError
from kidseg.registry import PRESETS, presets

__all__ = ["command_for", "dump", "load", "passed_on", "preset", "schema"]

_NULL = "null"
Config = TypeVar("Config")


def preset(name: str, method: str) -> dict[str, Any]:
    """The settings of a preset for a method: its table "common", then the method's own table.

    Of "common", only what the method has: a view is not a setting of a method without one.

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
    has = {field.name for field in fields(METHODS[method])}
    common = {k: v for k, v in tables[name].get("common", {}).items() if k in has}
    return _merged(common, tables[name][method])


def load(
    kind: type[Config],
    *,
    base: Mapping[str, Any] | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    stored: bool = False,
) -> Config:
    """Build a configuration from defaults, a preset, a TOML file and overrides, in this order.

    Args:
        kind: the dataclass, for example `PhantomConfig`.
        base: the settings of a `preset`, or of a model; those of earlier versions are read.
        file: a TOML file; tables are nested dataclasses.
        overrides: "a.b=3"; the value is parsed as TOML, or taken as text if that fails.
        stored: `file` was written by `dump`, so that those of earlier versions are read there, too.

    TOML has no null; "null" stands for None, in files and overrides.

    Raises:
        InputError: "unreadable"; "not-toml": not TOML, or not UTF-8.
        UsageError: an unknown key, a value of the wrong type or out of range.
    """
    given = {} if file is None else _read_toml(file)
    method = next((name for name, config in METHODS.items() if config is kind), None)
    data = _merged(as_now(base or {}, method), as_now(given, method) if stored else given)
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
            json.dumps(_replaced(_completed(kind, data), _NULL, None), default=str), strict=True
        )
    except ValidationError as error:
        problems = find_problems(schema(kind), error.errors())
        set_ = [tuple(text.partition("=")[0].strip().split(".")) for text in overrides]
        in_file = [p for p in problems if not any(p.keys[: len(keys)] == keys for keys in set_)]
        raise UsageError(
            "; ".join(problem.text for problem in problems),
            path=file if in_file else None,
            next_step=next_step_of(problems, command_for(kind)),
            code="bad-setting",
        ) from None


def passed_on(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What a model's settings pass on to a training that starts from it.

    All but those that say how long its own training was, on how many of its patients it was
    validated, and on what machine it ran (`of_one_training` of each class): a model that a GPU
    trained on 300 patients for a thousand steps an epoch is fine-tuned on five patients elsewhere.
    What is left out has the method's defaults. The size of a batch is passed on, as the learning
    rate is: the one was chosen for the other.

    Args:
        settings: the model's, as plain data; those of earlier versions are read.
        method: its method.
    """
    return _passed_on(METHODS[method], as_now(settings, method))


def dump(config: Any) -> str:
    """The complete configuration as TOML, which `load` can read. None is "null"."""
    return tomli_w.dumps(_replaced(asdict(config), None, _NULL))


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a configuration; "description" is the meaning of a setting."""
    tree = TypeAdapter(kind).json_schema()
    # pydantic reads the docstrings of a class's own fields only.
    for base in kind.__mro__[1:]:
        if is_dataclass(base):
            for name, node in schema(base)["properties"].items():
                tree["properties"][name].setdefault("description", node.get("description", ""))
    return tree


def command_for(kind: type) -> str:
    """The command that prints all settings of a configuration with their meanings."""
    names = {config: name for name, config in METHODS.items()} | {PhantomConfig: "phantom"}
    return f"kidseg config {names[kind]}" if kind in names else "kidseg study --example"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            path=file,
            next_step="Check its name and permissions.",
            code="unreadable",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"line {line} has a byte that is not UTF-8 (0x{error.object[error.start]:02x})",
            path=file,
            next_step="Save the file as UTF-8, or write that line without special characters.",
            code="not-toml",
        ) from error
    except tomllib.TOMLDecodeError as error:
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


def _completed(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the tables of `data` leave out, from the defaults of the fields they are for.

    pydantic would take the defaults of the table's class, so that setting the number of epochs of a
    stage would also reset its optimizer.
    """
    out = dict(data)
    hints = get_type_hints(kind)
    for field in fields(kind):
        table, of = out.get(field.name), _table(hints[field.name])
        if isinstance(table, Mapping) and of is not None:
            own = asdict(field.default) if isinstance(field.default, of) else {}  # type: ignore[call-overload]
            out[field.name] = _completed(of, _merged(own, table))
    return out


def _passed_on(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    dropped: tuple[str, ...] = getattr(kind, "of_one_training", ())
    out = dict(settings)
    for name, value in settings.items():
        of = _table(hints.get(name))
        if name in dropped:
            del out[name]
        elif isinstance(value, Mapping) and of is not None:
            out[name] = _passed_on(of, value)
    return out


def _table(hint: Any) -> type | None:
    """The dataclass of a table that a field has; None of other fields, and of several tables."""
    known = [each for each in _options(hint) if isinstance(each, type) and is_dataclass(each)]
    return known[0] if len(known) == 1 else None


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type by itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if data.get(key) in (None, _NULL):  # a section that is off is switched on
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            raise UsageError(
                f"'{override}': '{key}' is a value, not a table",
                next_step=f"Write it as {key}=value.",
                code="bad-setting",
            )
    data[keys[-1]] = value


def _replaced(node: Any, old: Any, new: Any) -> Any:
    """Plain data with all occurrences of a value replaced."""
    if isinstance(node, dict):
        return {key: _replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_replaced(value, old, new) for value in node]
    return new if node == old else node
