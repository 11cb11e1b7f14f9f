"""Folders that this process created, so that a command that failed leaves none of them empty."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["create", "remove_empty"]

_MOST = 1000
"""So many folders are noted: a command is refused before it has made more; a server makes more."""

_created: list[Path] = []


def create(path: Path) -> None:
    """Create a folder with its parents if it is missing.

    Raises:
        OSError, ValueError: it cannot be created.
    """
    if len(_created) < _MOST:
        _created.extend(folder for folder in (path, *path.parents) if not folder.exists())
    path.mkdir(parents=True, exist_ok=True)


def remove_empty() -> None:
    """Remove the folders that `create` created and that are empty. Call it when a command ends."""
    for folder in sorted(set(_created), key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError, ValueError):  # something is in it, or it could not be made
            folder.rmdir()
    _created.clear()
