"""Invalid settings in the words of the file: which key, what it must be, which keys there are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kidseg.config.renamed import new_name

__all__ = [
    "Problem",
    "children",
    "choices",
    "entries_of",
    "find_problems",
    "next_step_of",
    "resolve_node",
]

Node = Mapping[str, Any]
"""A node of a JSON schema."""

_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_KEY = "[key]"  # after a name in a table with free names
_LONGEST = 60


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One invalid setting.

    Attributes:
        keys: path of the key; empty for a rule over several keys.
        text: what is wrong, with the key.
        known: for an unknown key, the keys of its section.
    """

    keys: tuple[str, ...]
    text: str
    known: tuple[str, ...] = ()


def find_problems(schema: Node, errors: Sequence[Mapping[str, Any]]) -> tuple[Problem, ...]:
    """One problem per key, from the errors of a pydantic validation.

    Args:
        schema: JSON schema of the configuration.
        errors: of `ValidationError.errors()`.
    """
    found: dict[tuple[str, ...], Problem] = {}
    for error in errors:
        within = [other["loc"] for other in errors if len(other["loc"]) > len(error["loc"])]
        if any(loc[: len(error["loc"])] == error["loc"] for loc in within):
            continue  # a consequence of those
        keys, node, section = _locate(schema, error)
        found.setdefault(keys, _problem(schema, error, keys, node, section))
    return tuple(found.values())


def next_step_of(problems: Sequence[Problem], command: str) -> str:
    """The keys of each section with an unknown key, and the command that explains them all."""
    sections = {problem.keys[:-1]: problem.known for problem in problems if problem.known}
    lists = [
        f"Keys of [{'.'.join(keys)}]: {', '.join(known)}."
        if keys
        else f"Keys at the top: {', '.join(known)}."
        for keys, known in sections.items()
    ]
    return " ".join([*lists, f"'{command}' explains every setting."])


def resolve_node(schema: Node, node: Node) -> Node:
    """The node itself, behind references and "or null"."""
    if "$ref" in node:
        target = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return {**resolve_node(schema, target), **{k: v for k, v in node.items() if k != "$ref"}}
    parts = [part for part in node.get("anyOf", ()) if part.get("type") != "null"]
    if len(parts) == 1:
        return {**resolve_node(schema, parts[0]), **{k: v for k, v in node.items() if k != "anyOf"}}
    return node


def children(schema: Node, node: Node) -> Mapping[str, Node] | None:
    """The settings of a section; None if the node is a value or a table with free names."""
    properties: Mapping[str, Node] | None = resolve_node(schema, node).get("properties")
    return properties


def choices(schema: Node, node: Node) -> tuple[Any, ...]:
    """The values that a setting may have besides null; empty if they are not listed."""
    node = resolve_node(schema, node)
    if "const" in node:
        return (node["const"],)
    parts = [choices(schema, part) for part in node.get("anyOf", ()) if part.get("type") != "null"]
    listed = [*node.get("enum", ()), *(value for part in parts for value in part)]
    return tuple(listed) if all(parts) else ()


def _locate(schema: Node, error: Mapping[str, Any]) -> tuple[tuple[str, ...], Node, Node]:
    """(path of keys, its node, the section above) of an error; without pydantic's own parts."""
    keys: list[str] = []
    node = section = schema
    for part in error["loc"]:
        if part == _KEY:
            continue
        known, entry = children(schema, node), entries_of(schema, node)
        if known is not None:
            keys.append(str(part))
            section, node = node, known.get(str(part), {})
        elif entry is not None:
            keys.append(str(part))
            section, node = node, entry
        elif isinstance(part, int) and error["type"] not in _MISSING:
            keys[-1] += f"[{part}]"
    return tuple(keys), node, section


def entries_of(schema: Node, node: Node) -> Node | None:
    """The node of each entry in a table with free names."""
    node = resolve_node(schema, node)
    entry = node.get("additionalProperties") or next(
        iter(node.get("patternProperties", {}).values()), None
    )
    return entry if isinstance(entry, Mapping) else None


def _problem(
    schema: Node, error: Mapping[str, Any], keys: tuple[str, ...], node: Node, section: Node
) -> Problem:
    name, kind = ".".join(keys), error["type"]
    if kind in _UNKNOWN:
        known = tuple(sorted(children(schema, section) or ()))
        table = keys[-2] if len(keys) > 1 else ""
        if (now := new_name(table, keys[-1])) in known:
            text = f"'{name}' is now called '{'.'.join((*keys[:-1], now))}'"
            return Problem(keys=keys, text=text, known=known)
        near = _nearest(schema, keys, known)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        return Problem(keys=keys, text=f"unknown key '{name}'{hint}", known=known)
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return Problem(keys=keys, text=f"'{name}': {text}" if name else text)
    if kind == "string_pattern_mismatch":
        rule = "may have letters, digits and . _ + - only, and begins with a letter or digit"
        return Problem(keys=keys, text=f"the name '{name}' {rule}")
    if kind in _MISSING and isinstance(error["loc"][-1], str):
        return Problem(keys=keys, text=f"'{name}' is missing")
    given = _shown(error["input"])
    return Problem(keys=keys, text=f"'{name}' must be {_wanted(schema, error, node)}, not {given}")


def _wanted(schema: Node, error: Mapping[str, Any], node: Node) -> str:
    if values := choices(schema, node):
        *rest, last = map(_shown, values)
        return f"{', '.join(rest)} or {last}" if rest else last
    node, kind = resolve_node(schema, node), error["type"]
    if kind in (*_MISSING, "too_short", "too_long") and "minItems" in node:
        exactly = node["minItems"] == node.get("maxItems")
        count = f"{'' if exactly else 'at least '}{node['minItems']}"
        return f"a list of {count} {'value' if node['minItems'] == 1 else 'values'}"
    if kind == "too_short":
        return "a table with at least one entry"
    if kind in _MUST_BE:
        return _MUST_BE[kind].format(**error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Input should be ")


def _nearest(schema: Node, keys: tuple[str, ...], known: Sequence[str]) -> list[str]:
    """Similar keys of the section; otherwise this key in other sections."""
    near = get_close_matches(keys[-1], known, n=1)
    if near:
        return [".".join((*keys[:-1], near[0]))]
    return [path for path in _paths(schema, schema, ()) if path.split(".")[-1] == keys[-1]][:3]


def _paths(schema: Node, node: Node, above: tuple[str, ...]) -> Iterator[str]:
    for key, child in (children(schema, node) or {}).items():
        yield ".".join((*above, key))
        yield from _paths(schema, child, (*above, key))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
