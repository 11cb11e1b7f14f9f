"""Codes of all errors and warnings, read from the syntax trees of the source.

They stand in calls of `Finding` and of the exceptions of kidseg, or in calls of functions that pass
them on to these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from source_texts import (
    PASSED_ON,
    Function,
    Module,
    Source,
    Value,
    assigned,
    blocks,
    bound,
    matched,
    parameters_of,
)

_FIELDS = ("code", "cause", "next_step", "severity")


@dataclass(frozen=True, kw_only=True, order=True)
class Origin:
    """One place of the source that an error or a warning comes from.

    Attributes:
        code: its name; with "…" if it does not stand in the source; "" if it has none.
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
    return _Codes(Source(package)).origins()


class _Codes:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text_types = {"str", "str | None", "bool", *self._literals()}

    def origins(self) -> list[Origin]:
        found: set[Origin] = set()
        for maker, positional in self._makers().items():
            for call, module in self.source.calls.get(maker, ()):
                if any(each.arg is None for each in call.keywords):  # read from a record
                    continue
                said = {k: v for k, v in _arguments(call, positional).items() if k in _FIELDS}
                for value in self._reached(call, module, said):
                    found.update(self._read(maker, said, value))
        return sorted(found)

    def _literals(self) -> Iterator[str]:
        """Names of types with a few allowed texts, such as `Side`."""
        for node in (node for module in self.source.modules.values() for node in module.tree.body):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript(value=kind)):
                    if ast.unparse(kind) == "Literal":
                        yield name

    def _makers(self) -> Mapping[str, Sequence[str]]:
        """{class: its positional arguments} of `Finding` and of the exceptions with a code."""
        nodes = [node for module in self.source.modules.values() for node in module.nodes]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        found: dict[str, Sequence[str]] = {"Finding": ()}

        def add(name: str, inherited: Sequence[str]) -> None:
            for one in (each for each in classes if each.name == name):
                created = [f for f in one.body if isinstance(f, Function) and f.name == "__init__"]
                found[name] = _positional(created[0]) if created else inherited
                for each in classes:
                    if any(isinstance(base, ast.Name) and base.id == name for base in each.bases):
                        add(each.name, found[name])

        add("KidsegError", ())
        return found

    def _read(self, maker: str, said: Mapping[str, ast.expr], call: Value) -> Iterator[Origin]:
        def texts(name: str) -> tuple[str, ...]:
            return self.source.texts(call.part(said[name])) if name in said else ("",)

        kinds = texts("severity") if maker == "Finding" else (maker,)
        for code, kind, cause, step in product(
            texts("code"), kinds, texts("cause"), texts("next_step")
        ):
            if code != PASSED_ON and (code or "code" not in said):
                yield Origin(
                    code=code,
                    kind=kind or "warning",
                    module=_stated(call.part(said.get("code", call.node))).name,
                    cause=cause,
                    next_step=step,
                )

    # ---- names ---------------------------------------------------------------------------------

    def _reached(
        self,
        call: ast.Call,
        module: Module,
        said: Mapping[str, ast.expr],
        within: tuple[Function, ...] = (),
    ) -> Iterator[Value]:
        """A call with what names around it stand for, each way in which it is reached.

        The names are the parameters of text of its function, if the arguments use them; the targets
        of a loop over what stands in the source; and what is assigned beside the code.
        """
        for given in self._callers(call, module, list(said.values()), within):
            for loop in list(self._loops(call, module)) or [{}]:
                yield from _branches(said.get("code"), Value(call, module, given | loop))

    def _callers(
        self, call: ast.Call, module: Module, used: Sequence[ast.expr], within: tuple[Function, ...]
    ) -> Iterator[dict[str, Value]]:
        function = module.function(call)
        needed = self._parameters(used, function, module)
        if function is None or not needed or function in within:
            yield {}
            return
        is_called = False
        for site, place, given in self._sites(function, module):
            is_called = True
            said = {name: node for name, node in given.items() if name in needed}
            for value in self._reached(site, place, said, (*within, function)):
                yield {name: value.part(node) for name, node in said.items()}
        if not is_called:
            yield {}

    def _sites(
        self, function: Function, module: Module
    ) -> Iterator[tuple[ast.Call, Module, dict[str, ast.expr]]]:
        """The calls of a function, their modules and arguments.

        They are those of its name, with its parameters, in its module or one that imports from it.
        """
        private = function.name.startswith("_") or module.function(function) is not None
        parameters = {each.arg for each in parameters_of(function)} - {"self", "cls"}
        for call, place in self.source.calls.get(function.name, ()):
            given = {**_defaults(function), **_arguments(call, _positional(function))}
            if place is not module and (private or not place.knows(module)):
                continue
            if given.keys() == parameters:
                yield call, place, given

    def _parameters(
        self, used: Sequence[ast.expr], function: Function | None, module: Module
    ) -> set[str]:
        """Parameters of a function that may be texts and that expressions depend on."""
        if function is None:
            return set()
        names: set[str] = set()
        waiting = list(used)
        while waiting:
            for node in ast.walk(waiting.pop()):
                if isinstance(node, ast.Name) and node.id not in names:
                    names.add(node.id)
                    waiting += assigned(node.id, node, module)
        return {
            each.arg
            for each in parameters_of(function)
            if each.arg in names - {"self", "cls"}
            and (each.annotation is None or ast.unparse(each.annotation) in self.text_types)
        }

    def _loops(self, call: ast.Call, module: Module) -> Iterator[dict[str, Value]]:
        for outer in module.around(call):
            if isinstance(outer, ast.For):
                for element in self.source.elements(Value(outer.iter, module)):
                    yield matched(outer.target, element)
            if isinstance(outer, Function):
                return


def _positional(function: Function) -> list[str]:
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _defaults(function: Function) -> dict[str, ast.expr]:
    every = function.args
    last = _positional(function)[::-1]
    found = dict(zip(last, every.defaults[::-1], strict=False))
    keyword = zip(every.kwonlyargs, every.kw_defaults, strict=True)
    return found | {each.arg: node for each, node in keyword if node is not None}


def _arguments(call: ast.Call, positional: Sequence[str]) -> dict[str, ast.expr]:
    named = {each.arg: each.value for each in call.keywords if each.arg is not None}
    return dict(zip(positional, call.args, strict=False)) | named


def _branches(code: ast.expr | None, call: Value) -> Iterator[Value]:
    """A call for each code that it can have, with what belongs to that.

    That is what is assigned beside it, and what depends on the same condition.
    """
    function = call.module.function(call.node)
    found = False
    if isinstance(code, ast.Name) and code.id not in call.given and function is not None:
        for block in (block for node in ast.walk(function) for block in blocks(node)):
            assignments = [bound(statement, call) for statement in block]
            for assigned_code in (each[code.id] for each in assignments if code.id in each):
                found = True
                for one in _decided(assigned_code.node, call):
                    beside = {k: v for statement in block for k, v in bound(statement, one).items()}
                    yield replace(one, given={**one.given, **beside})
    if not found:
        yield from _decided(code, call)


def _decided(code: ast.expr | None, call: Value) -> Iterator[Value]:
    """A call under each truth of the condition that its code depends on."""
    if not isinstance(code, ast.IfExp):
        yield call
        return
    for truth in (True, False):
        decided = {ast.unparse(code.test): Value(ast.Constant(truth), call.module)}
        yield replace(call, given={**call.given, **decided})


def _stated(code: Value) -> Module:
    """The module in which a code stands."""
    while isinstance(code.node, ast.Name) and code.node.id in code.given:
        code = code.given[code.node.id]
    return code.module
