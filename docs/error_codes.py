"""Codes of all errors and warnings, read from calls in the source.

They make a `Finding` or an exception with a literal code, or call a function that takes a code or a
cause and makes one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN = "…"
"""What is known only while the program runs."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scopes = tuple[Any, ...]
"""The function around (or the module), the module, and those that it imports from."""


class Origin(NamedTuple):
    """A code where it is stated, with the kind ("warning", "error" or an exception) and texts."""

    code: str
    kind: str
    module: str
    causes: list[str]
    next_steps: list[str]


def origins_in(package: Path) -> list[Origin]:
    """All errors and warnings of the source of kidseg, sorted by code."""
    trees, functions = {}, {}
    for file in package.rglob("*.py"):
        name = file.relative_to(package).with_suffix("").as_posix().removesuffix("/__init__")
        trees[name] = tree = ast.parse(file.read_text(encoding="utf-8"))
        functions[name] = {each.name: each for each in ast.walk(tree) if isinstance(each, Function)}
    found = []
    for module, tree in trees.items():
        imports = [str(each.module) for each in tree.body if isinstance(each, ast.ImportFrom)]
        names = [name.removeprefix("kidseg.").replace(".", "/") for name in imports]
        names = [name for name in names if name in trees]
        known = {k: v for name in (*names, module) for k, v in functions[name].items()}
        for call, scopes in _calls(tree, (tree, tree, *(trees[name] for name in names))):
            texts = _texts_of(call, scopes, known)
            said = (texts.get(name, []) for name in ("code", "severity", "cause", "next_step"))
            codes, kinds, causes, steps = said
            for code in {*codes} - {UNKNOWN}:
                found += [Origin(code, kind, module, causes, steps) for kind in kinds]
    return sorted(found)


def _calls(node: ast.AST, scopes: Scopes) -> Iterator[tuple[ast.Call, Scopes]]:
    """All calls in a node, each with where its names may be assigned."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Call):
            yield inner, scopes
        yield from _calls(inner, (inner, *scopes[1:]) if isinstance(inner, Function) else scopes)


def _texts_of(call: ast.Call, scopes: Scopes, known: dict[str, Any]) -> dict[str, list[str]]:
    """The arguments of a call that makes an error or a warning; {}: it makes none."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    maker, parameters, made = known.get(name), ["cause"], {}
    if name == "Finding" or name.endswith("Error"):
        made = {"severity": ["warning" if name == "Finding" else name]}
        given = dict(zip(parameters, call.args[-1:], strict=False))
    elif maker not in (None, scopes[0]):
        every = (*maker.args.args, *maker.args.kwonlyargs)
        parameters = [each.arg for each in every if each.arg != "self"]
        given = dict(zip(parameters, call.args, strict=False))
        for inner, within in _calls(maker, (maker, *scopes[1:])):
            passed = map(ast.unparse, [*inner.args, *(each.value for each in inner.keywords)])
            if {"code", "cause"}.intersection(parameters, passed):
                made = made or _texts_of(inner, within, known)
    if not made:
        return {}
    given |= {each.arg: each.value for each in call.keywords}
    return made | {name: _texts(node, scopes) for name, node in given.items()}


def _texts(node: ast.expr, scopes: Scopes) -> list[str]:
    """What an expression may be as text."""
    match node:
        case ast.Constant(value=value):
            return [str(value)] if value else []
        case ast.JoinedStr(values=parts):
            return ["".join(p.value if isinstance(p, ast.Constant) else UNKNOWN for p in parts)]
        case ast.IfExp(body=one, orelse=other):
            several = [one, other]
        case ast.Call(func=ast.Attribute(value=ast.Name() as one, attr="get"), args=[_, other]):
            several = [one, other]
        case ast.BoolOp(values=several) | ast.Dict(values=several):
            pass
        case ast.Subscript(value=one):
            several = [one]
        case ast.Name():
            several = next(filter(None, (_assigned(node, scope) for scope in scopes)), [])
        case _:
            several = []
    return [text for each in several for text in _texts(each, scopes)] if several else [UNKNOWN]


def _assigned(name: ast.Name, scope: Any) -> list[ast.expr]:
    """What a variable was assigned last before its use, or in the module; or else its default."""
    values, nodes = {}, scope.body
    if isinstance(scope, Function):
        nodes = [each for each in ast.walk(scope) if getattr(each, "lineno", 0) < name.lineno]
        every = scope.args
        values = dict(zip(every.args[::-1], every.defaults[::-1], strict=False))
        values |= dict(zip(every.kwonlyargs, every.kw_defaults, strict=True))
    found = [node for parameter, node in values.items() if node and parameter.arg == name.id]
    for each in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            if each.value and name.id in map(ast.unparse, targets):
                found = [each.value]
    return found
