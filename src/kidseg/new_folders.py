"""Folders that this process created, so that a command that fails leaves none of them empty.

Several processes may use one folder. Each holds a shared lock on what it uses, and a folder is
removed under an exclusive one only: never while another process is about to write into it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["create", "removed_if_empty"]

_MOST = 50
"""So many folders are noted: a command is refused before it has made more; a server makes more."""

_TRIES = 10
"""So often a folder is created that others remove at the same moment."""


@dataclass(eq=False)
class _Noted:
    """What was created, and the descriptors that hold the locks."""

    created: list[Path] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


_noted: list[_Noted] = []
"""One for each `removed_if_empty` that has not ended, the innermost last."""


def create(path: Path) -> None:
    """Create a folder with its parents if it is missing.

    Raises:
        OSError, ValueError: it cannot be created.
    """
    if not _noted or len(_noted[-1].held) >= _MOST:
        path.mkdir(parents=True, exist_ok=True)
        return
    noted = _noted[-1]
    for remaining in reversed(range(_TRIES)):
        noted.created.extend(folder for folder in (path, *path.parents) if not folder.exists())
        try:
            path.mkdir(parents=True, exist_ok=True)
            noted.held.extend(_held(path))
            return
        except FileNotFoundError:  # another process has removed it, or a parent
            if not remaining:
                raise


@contextmanager
def removed_if_empty() -> Iterator[None]:
    """If anything fails meanwhile, remove what `create` has created and what is empty.

    `SystemExit` fails unless its code is 0. What another process uses stays.
    """
    noted = _Noted()
    _noted.append(noted)
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            _remove(noted)
        raise
    else:
        for outer in _noted[-2:-1]:  # which may fail yet
            outer.created += noted.created
    finally:
        _noted.remove(noted)
        _release(noted)


def _held(path: Path) -> tuple[int, ...]:
    """A descriptor of a folder with a shared lock; () if it cannot be opened.

    Raises:
        FileNotFoundError: it was removed before it was locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return ()
    try:
        _lock(descriptor, is_exclusive=False)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return (descriptor,)


def _remove(noted: _Noted) -> None:
    _release(noted)
    for folder in sorted(set(noted.created), key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError, ValueError):  # used, not empty, or it could not be created
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                _lock(descriptor, is_exclusive=True)
                folder.rmdir()
            finally:
                os.close(descriptor)


def _release(noted: _Noted) -> None:
    while noted.held:
        os.close(noted.held.pop())


def _lock(descriptor: int, *, is_exclusive: bool) -> None:
    """Lock a folder; without effect on a disk that has no locks.

    Raises:
        BlockingIOError: another process uses what is to be locked exclusively.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if is_exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        raise
    except OSError:
        pass
