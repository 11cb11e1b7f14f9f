"""A configuration as TOML with the meaning of every setting, to edit and give back."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import tomli_w

from kidseg.config.loading import schema
from kidseg.config.problems import Node, children, choices, entries_of, resolve_node

__all__ = ["explain", "meanings"]

_WIDTH = 79
_OFF = (
    'To use it, remove the line {} = "null", and the first "#" of each line of its tables: their '
    'explanations begin with "##", their settings with "#" and no space.'
)


def explain(config: Any, title: str = "") -> str:
    """The complete configuration as TOML that `load` can read, each setting below its meaning.

    A section that is off is listed with its defaults, each line of it after a "#", so that its
    explanations begin with "##".

    Args:
        config: an instance of a configuration.
        title: comment at the top.
    """
    tree = schema(type(config))
    lines = [line for part in title.split("\n\n") if part for line in (*_comment(part), "")]
    lines += _section(tree, tree, config, (), off=False)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def meanings(kind: type) -> dict[str, str]:
    """{path of the setting: meaning} of a configuration; "*" stands for a free name."""
    tree = schema(kind)
    return dict(_meanings(tree, tree, ()))


def _meanings(tree: Node, node: Node, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key, child in (children(tree, node) or {}).items():
        path = (*above, key)
        yield ".".join(path), _meaning(tree, child)
        yield from _meanings(tree, child, path)
        if (entry := entries_of(tree, child)) is not None:
            yield from _meanings(tree, entry, (*path, "*"))


def _section(tree: Node, node: Node, config: Any, path: tuple[str, ...], *, off: bool) -> list[str]:
    """The lines of a table: its values, then its tables."""
    known = children(tree, node) or {}
    own: list[str] = []
    tables: list[str] = []
    for field in fields(config):
        key, value, child = field.name, getattr(config, field.name), known[field.name]
        comment, below = _comment(_meaning(tree, child), off=off), (*path, field.name)
        if (entry := entries_of(tree, child)) is not None:
            tables += comment
            for name, content in value.items():
                tables += _table(tree, entry, content, (*below, name), off=off)
        elif children(tree, child) is None:
            own += [*comment, _assignment(key, value, off=off), ""]
        elif value is not None:
            tables += [*comment, *_table(tree, child, value, below, off=off)]
        else:
            own += [
                *comment,
                *_comment(_OFF.format(key), off=off),
                _assignment(key, None, off=off),
                "",
            ]
            tables += _table(tree, child, _kind_of(config, key)(), below, off=True)
    return [*own, *tables]


def _table(tree: Node, node: Node, config: Any, path: tuple[str, ...], *, off: bool) -> list[str]:
    head = ".".join(key if re.fullmatch(r"[\w-]+", key) else _toml(key) for key in path)
    return [f"{'#' if off else ''}[{head}]", *_section(tree, node, config, path, off=off)]


def _kind_of(config: Any, key: str) -> type:
    """The class of a section that is off."""
    kinds: tuple[type, ...] = get_args(get_type_hints(type(config))[key])
    return next(kind for kind in kinds if is_dataclass(kind))


def _assignment(key: str, value: Any, *, off: bool) -> str:
    return f"{'#' if off else ''}{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    """A value as TOML in one line; None is "null"."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"_": "null" if value is None else value}).partition("= ")[2].rstrip("\n")


def _meaning(tree: Node, node: Node) -> str:
    """What a setting means, and which values it may have."""
    # pydantic drops the docstring of a section if it is that of its class.
    text = resolve_node(tree, node).get("description", "")
    text = re.sub(r"\bNone\b", '"null"', text).replace("`", "")
    listed = [_toml(value) for value in choices(tree, node)]
    if not all(word in text for word in listed):
        text += f" One of {', '.join(listed)}."
    return " ".join(text.split())


def _comment(text: str, *, off: bool = False) -> list[str]:
    mark = "## " if off else "# "
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )
