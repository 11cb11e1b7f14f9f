"""Stopping a command: by Ctrl-C (SIGINT, exit code 130) or by the system (SIGTERM, 143).

Both raise KeyboardInterrupt in the main thread, so that temporary files are removed and no file is
incomplete. The command then says what was kept and how to go on.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from kidseg.errors import Finding

__all__ = ["INTERRUPTED", "end", "how_to_resume", "listen", "stoppable", "was_stopped"]

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

_AGAIN_S = 0.5
"""A stop that nothing has noticed by then is raised again."""

_AGAIN = "No file is incomplete. Run the same command again."

_received: list[int] = []
_said: list[str] = []


def listen() -> None:
    """Let SIGTERM stop the command as Ctrl-C does."""
    _received.clear()
    _said.clear()
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _stop_again)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, _stop)


def was_stopped() -> bool:
    """Whether a signal was received. An import that it interrupts may fail with any error."""
    return bool(_received)


def end(code: int | None, as_json: bool) -> NoReturn:
    """Exit with the code of a command; a stop is always said, with --json also as JSON.

    Args:
        code: of the command; None: done. typer knows only that of an interruption.
        as_json: print {"error": ...} on standard output if the command was stopped.
    """
    _repeat(0)
    if code == INTERRUPTED:
        if signal.SIGTERM in _received:
            code = TERMINATED
        if not _said:
            _say(_AGAIN)
        if as_json:
            finding = Finding(
                code="stopped" if code == TERMINATED else "interrupted",
                path="",
                cause=_cause(),
                next_step=_said[-1],
                severity="error",
            )
            typer.echo(json.dumps({"error": finding.as_dict()}))
    # Where KeyboardInterrupt passed through an exec, as in dataclasses, `python -m` would end by
    # SIGINT whatever the exit code is. Source: CPython, Modules/main.c, Py_RunMain.
    exec("")  # noqa: S102 - resets that
    sys.exit(code or 0)


@contextmanager
def stoppable(go_on: Callable[[], str]) -> Iterator[None]:
    """Say how to go on if the command is stopped.

    Args:
        go_on: returns what was kept and the next step, in a sentence or two.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:  # an import that it interrupts may fail anyhow
        _repeat(0)
        if was_stopped() or isinstance(error, KeyboardInterrupt):
            _say(go_on())
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
        else f"The state after epoch {saved[1] + 1} of stage '{saved[0]}' is saved"
    )
    return f"{kept}. Continue with: {shlex.join(words)}"


def _cause() -> str:
    return "stopped by SIGTERM" if signal.SIGTERM in _received else "interrupted"


def _say(go_on: str) -> None:
    _said.append(go_on)
    typer.echo(f"kidseg: {_cause()}. {go_on}".rstrip(), err=True)


def _stop(number: int, frame: object) -> NoReturn:
    _received.append(number)
    _repeat(_AGAIN_S)
    raise KeyboardInterrupt


def _stop_again(number: int, frame: object) -> None:
    """Send the signal again, unless the command is being stopped.

    Compiled code may discard the exception, as hasattr() does in C before Python 3.13; the command
    would then run on as if nothing had been said.
    """
    _repeat(_AGAIN_S)
    if not _is_stopping(sys.exc_info()[1]):
        signal.raise_signal(_received[-1])


def _is_stopping(handled: BaseException | None) -> bool:
    """Whether an interruption is being handled: files are removed, the state is said."""
    while handled is not None and not isinstance(handled, KeyboardInterrupt):
        handled = handled.__context__
    return handled is not None


def _repeat(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
