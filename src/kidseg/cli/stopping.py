"""Stopping a command: by Ctrl-C (SIGINT, exit code 130) or by the system (SIGTERM, 143).

Both raise KeyboardInterrupt in the main thread, so that temporary files are removed and no file is
incomplete. The command then says what was kept and how to go on.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

__all__ = ["INTERRUPTED", "exit_code", "how_to_resume", "listen", "stoppable"]

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

_received: list[int] = []


def listen() -> None:
    """Let SIGTERM stop the command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop)


def exit_code(code: int) -> int:
    """The exit code of a command; typer knows only that of an interruption."""
    return TERMINATED if code == INTERRUPTED and signal.SIGTERM in _received else code


@contextmanager
def stoppable(go_on: Callable[[], str]) -> Iterator[None]:
    """Say how to go on if the command is stopped.

    Args:
        go_on: returns what was kept and the next step, in a sentence or two.
    """
    try:
        yield
    except KeyboardInterrupt:
        cause = "stopped by SIGTERM" if signal.SIGTERM in _received else "interrupted"
        typer.echo(f"kidseg: {cause}. {go_on()}", err=True)
        raise


def how_to_resume(dataset: Path, out: Path, device: str) -> str:
    """What is kept of a training, and the command that continues it."""
    from kidseg.train.resuming import saved_epoch

    if not (out / "run.json").exists():
        return "Nothing was trained yet, and nothing is kept: start again."
    words = ["kidseg", "train", str(dataset), "-o", str(out), "--resume"]
    words += [] if device == "auto" else ["--device", device]
    saved = saved_epoch(out)
    kept = (
        "The cases that were read are kept"
        if saved is None
        else f"The state after epoch {saved[1]} of stage '{saved[0]}' is saved"
    )
    return f"{kept}. Continue with: {shlex.join(words)}"


def _stop(number: int, frame: object) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt
