"""The command `kidseg`, also as `python -m kidseg`."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

__all__ = ["main"]

_TERMINATED = 128 + signal.SIGTERM


def main() -> NoReturn:
    """The command line; see `kidseg.cli.main`.

    The first process of a container is not stopped by a signal that it does not handle itself, such
    as SIGTERM while it imports what the command line needs. Source: kill(2), notes.
    """
    signal.signal(signal.SIGTERM, _end)
    from kidseg.cli import main as command_line

    command_line()


def _end(number: int, frame: object) -> NoReturn:
    """Nothing was begun."""
    os.write(2, b"kidseg: stopped by SIGTERM.\n")
    os._exit(_TERMINATED)


if __name__ == "__main__":
    main()
