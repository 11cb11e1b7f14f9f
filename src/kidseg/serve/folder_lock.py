"""One process at a time works in a folder of jobs or series."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kidseg.errors import UsageError

__all__ = ["locked_folder"]

_LOCK = ".lock"


@contextmanager
def locked_folder(folder: Path, who: str) -> Iterator[None]:
    """Keep other processes out of a folder; the system ends this when the process ends.

    Args:
        folder: exists.
        who: works in it, for the error, such as "server".

    Raises:
        UsageError: "folder-in-use".
    """
    with (folder / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another {who} works in this folder",
                path=folder,
                code="folder-in-use",
                next_step="Stop it, or choose another folder.",
            ) from error
        yield
