"""What expressions of the source can be as text, read from its syntax trees.

What is known only while the program runs is "…".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path

UNKNOWN = "…"
PASSED_ON = "code of another error"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Module:
    """A file of the source."""

    name: str
    dotted: str
    tree: ast.Module

    @cached_property
    def nodes(self) -> Sequence[ast.AST]:
        return tuple(ast.walk(self.tree))

    @cached_property
    def parents(self) -> Mapping[ast.AST, ast.AST]:
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    @cached_property
    def imports(self) -> Mapping[str, tuple[str, str]]:
        """{name: (module it comes from, its name there)}."""
        found = [node for node in self.nodes if isinstance(node, ast.ImportFrom)]
        return {
            a.asname or a.name: (node.module or "", a.name) for node in found for a in node.names
        }

    def knows(self, other: Module) -> bool:
        """Does it import from another, or from its package?"""
        dotted = {f"{place}.{name}" for place, name in self.imports.values()}
        known = {place for place, _ in self.imports.values()} | dotted
        return not known.isdisjoint({other.dotted, other.dotted.rpartition(".")[0]})

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out."""
        while (outer := self.parents.get(node)) is not None:
            yield outer
            node = outer

    def function(self, node: ast.AST) -> Function | None:
        """The innermost function around a node."""
        return next((outer for outer in self.around(node) if isinstance(outer, Function)), None)


@dataclass(frozen=True, eq=False)
class Value:
    """An expression of a module, and what some names around it stand for."""

    node: ast.expr
    module: Module
    given: Mapping[str, Value] = field(default_factory=dict)

    def part(self, node: ast.expr) -> Value:
        """A part of the expression, or another in the same place."""
        return replace(self, node=node)


class Source:
    """All modules, and what their expressions can be.

    Attributes:
        modules: by their dotted names.
        calls: by the last name of what is called, with their modules.
    """

    def __init__(self, package: Path) -> None:
        self.modules: dict[str, Module] = {}
        self.calls: dict[str, list[tuple[ast.Call, Module]]] = {}
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package).with_suffix("").parts
            dotted = ".".join(("kidseg", *parts)).removesuffix(".__init__")
            tree = ast.parse(file.read_text(encoding="utf-8"))
            module = Module("/".join(parts).removesuffix("/__init__"), dotted, tree)
            self.modules[dotted] = module
            for node in module.nodes:
                if isinstance(node, ast.Call):
                    self.calls.setdefault(called(node), []).append((node, module))

    def values(self, value: Value) -> list[Value]:
        """What a name can stand for: in its function, those around it, its module, or another."""
        assert isinstance(value.node, ast.Name)
        name, module = value.node.id, value.module
        if name in value.given:
            return [value.given[name]]
        known = assigned(name, value.node, module)
        if not known and name in module.imports:
            other, its_name = module.imports[name]
            if other in self.modules:
                module = self.modules[other]
                known = assigned(its_name, module.tree, module)
        return [replace(value, node=node, module=module) for node in known]

    def elements(self, value: Value) -> Iterator[Value]:
        """What a list, or the items of a mapping, consist of, if that stands in the source."""
        match value.node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                yield from map(value.part, elements)
            case ast.Name():
                for known in self.values(value):
                    yield from self.elements(known)
            case ast.Call(func=ast.Attribute(value=mapping, attr="items")):
                for known in self._dictionaries(value.part(mapping)):
                    for pair in zip(known.node.keys, known.node.values, strict=True):
                        yield known.part(ast.Tuple(list(pair), ast.Load()))

    def _dictionaries(self, value: Value) -> list[Value]:
        known = self.values(value) if isinstance(value.node, ast.Name) else [value]
        return [each for each in known if isinstance(each.node, ast.Dict)]

    # ---- texts ---------------------------------------------------------------------------------

    def texts(self, value: Value) -> tuple[str, ...]:
        """What an expression can be as text, each once."""
        return tuple(dict.fromkeys(self._texts(value)))

    def _texts(self, value: Value) -> Iterator[str]:
        match value.node:
            case ast.Constant(value=None):
                yield ""
            case ast.Constant(value=str() | int() | float() as known):
                yield str(known)
            case ast.JoinedStr(values=parts):
                yield from self._joined(value, parts)
            case ast.FormattedValue(value=inner):
                known = self.texts(value.part(inner))
                yield from known if {UNKNOWN, PASSED_ON, ""}.isdisjoint(known) else (UNKNOWN,)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self._joined(value, [left, right])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                truth = self._truth(value.part(test))
                if truth is not False:
                    yield from self._texts(value.part(body))
                if not truth:
                    yield from self._texts(value.part(orelse))
            case ast.BoolOp(op=ast.Or(), values=parts):
                for part in parts:
                    yield from filter(None, self._texts(value.part(part)))
            case ast.Name():
                known = self.values(value)
                for each in known:
                    yield from self._texts(each)
                if not known:
                    yield UNKNOWN
            case ast.Attribute(attr="code" | "__name__"):  # the class of one without a code
                yield PASSED_ON
            case ast.Subscript(value=mapping):
                yield from self._items(value.part(mapping))
            case ast.Call(func=ast.Attribute(value=mapping, attr="get"), args=[_, default]):
                yield from self._items(value.part(mapping))
                yield from self._texts(value.part(default))
            case _:
                yield UNKNOWN

    def _items(self, mapping: Value) -> Iterator[str]:
        """The texts of a dictionary that stands in the source."""
        known = self._dictionaries(mapping)
        parts = [one.part(each) for one in known for each in one.node.values]
        for part in parts:
            yield from self._texts(part)
        if not parts:
            yield UNKNOWN

    def _joined(self, value: Value, parts: Sequence[ast.expr]) -> Iterator[str]:
        for texts in product(*(self.texts(value.part(part)) for part in parts)):
            yield "".join(texts)

    def _truth(self, test: Value) -> bool | None:
        """Whether a condition holds, if that is known."""
        known = test.given.get(ast.unparse(test.node))
        return bool(known.node.value) if known and isinstance(known.node, ast.Constant) else None


# ---- syntax ------------------------------------------------------------------------------------


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def parameters_of(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def matched(target: ast.expr, value: Value) -> dict[str, Value]:
    """{name: what it stands for} of an assignment, also of tuples."""
    match target, value.node:
        case ast.Name(id=name), _:
            return {name: value}
        case ast.Tuple(elts=names), ast.Tuple(elts=nodes):
            pairs = zip(names, nodes, strict=False)
            return {k: v for a, b in pairs for k, v in matched(a, value.part(b)).items()}
    return {}


def blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """The lists of statements of a node."""
    found = (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
    return [block for block in found if isinstance(block, list)]


def bound(statement: ast.stmt, value: Value) -> dict[str, Value]:
    """What an assignment binds."""
    match statement:
        case (
            ast.Assign(targets=[target], value=node)
            | ast.AnnAssign(target=target, value=ast.expr() as node)
        ):
            return matched(target, value.part(node))
    return {}


def assigned(name: str, at: ast.AST, module: Module) -> list[ast.expr]:
    """What a name was assigned, seen from a node: in its function, or around it."""
    found: list[ast.expr] = []
    for node, outer in pairwise((at, *module.around(at))):
        if isinstance(outer, ast.Module):
            break
        for block in blocks(outer):
            if node in block:
                for statement in reversed(block[: block.index(node)]):
                    found += _assignments(name, statement, module)
                    if found and isinstance(statement, ast.Assign | ast.AnnAssign):
                        return found
        if isinstance(outer, Function) and (
            found or name in {each.arg for each in parameters_of(outer)}
        ):
            return found
    return [node for each in module.tree.body for node in _assignments(name, each, module)]


def _assignments(name: str, statement: ast.stmt, module: Module) -> Iterator[ast.expr]:
    """What a statement, or one within it, assigns to a name."""
    if isinstance(statement, Function | ast.ClassDef):
        return
    if known := bound(statement, Value(ast.Constant(None), module)).get(name):
        yield known.node
    for inner in ast.iter_child_nodes(statement):
        if isinstance(inner, ast.stmt):
            yield from _assignments(name, inner, module)
