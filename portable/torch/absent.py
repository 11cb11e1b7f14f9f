"""What this package does not have: it can be imported, and says when called what it needs."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, ClassVar

__all__ = ["install", "named", "needs_pytorch"]


def needs_pytorch(what: str, next_step: str = "Use kidseg with PyTorch.") -> Exception:
    """The error for what this package does not have."""
    from kidseg.errors import UsageError

    return UsageError(
        f"{what} needs PyTorch, which this installation of kidseg does without",
        code="needs-pytorch",
        next_step=next_step,
    )


class _Names(type):
    def __getattr__(cls, name: str) -> Any:
        return named(f"{cls.__module__}.{cls.__name__}.{name}")

    def __getitem__(cls, _: Any) -> Any:
        return cls


class _Absent(metaclass=_Names):
    def __init__(self, *_: Any, **__: Any) -> None:
        raise needs_pytorch(f"{type(self).__module__}.{type(self).__name__}")


def named(name: str) -> Any:
    """A class of this name, to derive from and to compare with; making one raises.

    Raises:
        AttributeError: a special name, by which Python asks for a property of modules.
    """
    room, _, last = name.rpartition(".")
    if last.startswith("__"):
        raise AttributeError(name)
    return _Names(last, (_Absent,), {"__module__": room})


class _Module(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return named(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules below torch that are not there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if not name.startswith("torch."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """After all other finders."""
    sys.meta_path.append(_Finder())
