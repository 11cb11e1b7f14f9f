"""Codes of all errors and warnings, read from the syntax trees of the source.

They stand in calls of `Finding` and of the exceptions of kidseg, or in calls of functions that pass
them on to these: as literals, in the same call as their cause.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

UNKNOWN = "…"
"""What is known only while the program runs."""

_PASSED_ON = "\0"  # the code of another error
_PARAMETER = re.compile("\1(.*?)\1")  # of the function around: known where that is called

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, order=True)
class Origin:
    """One place of the source that an error or a warning comes from.

    Attributes:
        code: its name; with "…" if it is not stated as a literal; "" if it has none.
        kind: "warning", "error" or the name of an exception.
        module: that states it, such as "io/nifti".
        cause: as far as it stands in the source.
        next_step: the same.
    """

    code: str
    kind: str
    module: str
    cause: str
    next_step: str


def origins_in(package: Path) -> list[Origin]:
    """All errors and warnings of the source of kidseg, sorted, each once."""
    source = _Source(_Module(file, package) for file in package.rglob("*.py"))
    return sorted({one for one in source.origins() if one.code != _PASSED_ON})


class _Module:
    """A file of the source, its syntax tree, and what each node stands in."""

    def __init__(self, file: Path, package: Path) -> None:
        self.name = file.relative_to(package).with_suffix("").as_posix().removesuffix("/__init__")
        self.tree = ast.parse(file.read_text(encoding="utf-8"))
        self.nodes = list(ast.walk(self.tree))
        self.outer = {inner: node for node in self.nodes for inner in ast.iter_child_nodes(node)}
        self.imported = {
            each.asname or each.name: (node.module or "").removeprefix("kidseg.").replace(".", "/")
            for node in self.nodes
            if isinstance(node, ast.ImportFrom)
            for each in node.names
        }

    def function(self, node: ast.AST) -> Function | None:
        """The innermost function around a node."""
        while (node := self.outer.get(node, self.tree)) is not self.tree:
            if isinstance(node, Function):
                return node
        return None

    def block(self, node: ast.AST | None) -> list[ast.stmt]:
        """The statements that a node stands among."""
        while node in self.outer:
            inner, node = node, self.outer[node]
            for block in (getattr(node, each, None) for each in ("body", "orelse")):
                if isinstance(block, list) and inner in block:
                    return block
        return []

    def assigned(self, name: str, at: ast.AST) -> list[ast.expr]:
        """What a variable may have been assigned last before a node, or in the module."""
        found: list[ast.expr] = []
        while at is not self.tree:
            inner, at = at, self.outer[at]
            if isinstance(inner, ast.stmt):
                block = self.block(inner)
                before = block if at is self.tree else block[: block.index(inner)]
                for statement in reversed(before):
                    found += _assignments(name, statement)
                    if found and isinstance(statement, ast.Assign | ast.AnnAssign):
                        return found
            if found and isinstance(at, Function):
                break
        return found


class _Source:
    def __init__(self, modules: Iterable[_Module]) -> None:
        self.modules = {each.name: each for each in modules}
        self.calls: dict[str, list[tuple[ast.Call, _Module]]] = {}
        self.branch: list[ast.stmt] = []  # in which the code was assigned that is looked at
        for module in self.modules.values():
            for call in (node for node in module.nodes if isinstance(node, ast.Call)):
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                self.calls.setdefault(name, []).append((call, module))

    def origins(self) -> Iterator[Origin]:
        for maker, positional in {"Finding": [], **self._exceptions("KidsegError", [])}.items():
            kind = ast.Constant("warning" if maker == "Finding" else maker)
            for call, module in self.calls.get(maker, ()):
                given = {"severity": kind, **_arguments(call, positional)}
                code, *parts = (given.get(n) for n in ("code", "severity", "cause", "next_step"))
                assigned = module.assigned(code.id, code) if isinstance(code, ast.Name) else []
                if any(each.arg is None for each in call.keywords):  # read from a record
                    continue
                for one in assigned or [code]:
                    self.branch = module.block(one) if assigned else []
                    for texts in product(*(self.texts(part, module) for part in (one, *parts))):
                        yield from self._reached(texts, call, module)

    def _exceptions(self, name: str, positional: list[str]) -> dict[str, list[str]]:
        """An exception and those derived from it, with their positional arguments."""
        classes = [
            node
            for module in self.modules.values()
            for node in module.tree.body
            if isinstance(node, ast.ClassDef)
        ]
        for node in (node for one in classes if one.name == name for node in one.body):
            if isinstance(node, Function) and node.name == "__init__":
                positional = _positional(node)
        found = {name: positional}
        for one in classes:
            if name in map(ast.unparse, one.bases):
                found |= self._exceptions(one.name, positional)
        return found

    def _reached(
        self, texts: tuple[str, ...], at: ast.AST, module: _Module, place: str = ""
    ) -> Iterator[Origin]:
        """An origin for each way in which the parameters in its texts are given."""
        function = module.function(at)
        used = sorted({name for text in texts for name in _PARAMETER.findall(text)})
        if not _PARAMETER.fullmatch(texts[0]):
            place = place or module.name
        sites = list(self._sites(function, module)) if function and used else []
        for call, where, given in sites:
            for values in product(*(self.texts(*given[name]) for name in used)):
                known = dict(zip(used, values, strict=True))
                said = tuple(_filled(text, known) for text in texts)
                yield from self._reached(said, call, where, place)
        if not sites:
            code, *said = (_PARAMETER.sub(UNKNOWN, text) for text in texts)
            kind, cause, step = (text.replace(_PASSED_ON, UNKNOWN) for text in said)
            place = place or module.name
            yield Origin(code=code, kind=kind, module=place, cause=cause, next_step=step)

    def _sites(
        self, function: Function, module: _Module
    ) -> Iterator[tuple[ast.Call, _Module, Mapping[str, tuple[ast.expr, _Module]]]]:
        """Calls of a function, in its module or those that import from it, and its parameters."""
        names = {*_positional(function), *(each.arg for each in function.args.kwonlyargs)}
        private = function.name.startswith("_") or module.function(function) is not None
        for call, place in self.calls.get(function.name, ()):
            said = _arguments(call, _positional(function))
            given = {name: (node, module) for name, node in _defaults(function).items()}
            given |= {name: (node, place) for name, node in said.items()}
            known = place is module or (not private and module.name in place.imported.values())
            if known and given.keys() == names and place.function(call) is not function:
                yield call, place, given

    def texts(self, node: ast.expr | None, module: _Module) -> list[str]:
        """What an expression can be as text, each once."""
        return list(dict.fromkeys(self._texts(node, module)))

    def _texts(self, node: ast.expr | None, module: _Module) -> Iterator[str]:
        match node:
            case None | ast.Constant(value=None):
                yield ""
            case ast.Constant(value=value):
                yield str(value)
            case ast.JoinedStr(values=parts):
                yield from map("".join, product(*(self.texts(each, module) for each in parts)))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                both = self.texts(left, module), self.texts(right, module)
                yield from map("".join, product(*both))
            case ast.FormattedValue(value=inner):
                for text in self._texts(inner, module):
                    yield UNKNOWN if text in ("", "0") else text
            case ast.IfExp(body=one, orelse=other):
                yield from (*self._texts(one, module), *self._texts(other, module))
            case ast.BoolOp(op=ast.Or(), values=parts):
                yield from (text for each in parts for text in self._texts(each, module) if text)
            case ast.Attribute(attr="code" | "__name__"):  # the class of one without a code
                yield _PASSED_ON
            case ast.Name(id=name):
                yield from self._named(name, node, module)
            case _:
                yield UNKNOWN

    def _named(self, name: str, at: ast.AST, module: _Module) -> Iterator[str]:
        function, found = module.function(at), module.assigned(name, at)
        found = [each for each in found if module.block(each) is self.branch] or found
        own = [each for each in found if module.function(each) is function]
        if (
            function
            and not own
            and name in {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
        ):
            yield f"\1{name}\1"
            return
        origin = self.modules.get(module.imported.get(name, ""))
        if not found and origin:
            found, module = origin.assigned(name, origin.tree.body[-1]), origin
        for each in found:
            yield from self._texts(each, module)
        if not found:
            yield UNKNOWN


def _filled(text: str, known: Mapping[str, str]) -> str:
    """A text with values of parameters."""
    if whole := _PARAMETER.fullmatch(text):
        return known[whole[1]]
    return _PARAMETER.sub(lambda match: known[match[1]] or UNKNOWN, text)


def _positional(function: Function) -> list[str]:
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _defaults(function: Function) -> dict[str, ast.expr]:
    every = function.args
    last = zip(_positional(function)[::-1], every.defaults[::-1], strict=False)
    keyword = zip(every.kwonlyargs, every.kw_defaults, strict=True)
    return dict(last) | {each.arg: node for each, node in keyword if node is not None}


def _arguments(call: ast.Call, positional: list[str]) -> dict[str, ast.expr]:
    named = {each.arg: each.value for each in call.keywords if each.arg is not None}
    return dict(zip(positional, call.args, strict=False)) | named


def _assignments(name: str, statement: ast.stmt) -> Iterator[ast.expr]:
    """What a statement, or one within it, assigns to a variable."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            pairs = zip(targets, values, strict=False)
            yield from (v for t, v in pairs if isinstance(t, ast.Name) and t.id == name)
        case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
            yield value
    for inner in ast.iter_child_nodes(statement):
        if isinstance(inner, ast.stmt):
            yield from _assignments(name, inner)
