"""Run a program; whatever happens, it and its children have ended afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from .problems import CancelledError, KidSegError
from .watch import Watch

__all__ = ["Ended", "run_child"]

_TICK_S = 0.1
_GRACE_S = 10.0
_DYING_S = 1.0
_PIPES_S = 5.0
_KEPT_LINES = 40
_WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        output: what it wrote on standard output.
        log: the last lines that it wrote on standard error.
    """

    code: int
    output: str
    log: str


def run_child(
    argv: Sequence[str],
    watch: Watch,
    environment: Mapping[str, str],
    shown: Callable[[str], str] = str,
) -> Ended:
    """Run a program. The lines that it writes on standard error are told as they come.

    Args:
        argv: command line.
        watch: told the lines, and asked whether to stop.
        environment: of the program.
        shown: makes a line readable for the user.

    Raises:
        KidSegError: "not-started".
        CancelledError: the user cancelled; the program was asked to end (SIGTERM, on which kidseg
            removes what is half done), and after 10 s made to.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            encoding="utf-8",
            errors="replace",
            **_own_group(),
        )
    except OSError as error:
        raise KidSegError(
            f"'{argv[0]}' could not be started ({error.strerror or error})",
            "Check the path of the program under 'Where kidseg runs'.",
            code="not-started",
        ) from error
    assert process.stdout is not None and process.stderr is not None
    output: list[str] = []
    log: deque[str] = deque(maxlen=_KEPT_LINES)
    readers = [
        _reading(process.stdout, output.append),
        _reading(process.stderr, lambda line: _told(shown(line), log, watch)),
    ]
    try:
        while True:
            try:
                code = process.wait(_TICK_S)
                break
            except subprocess.TimeoutExpired:
                if watch.is_cancelled:
                    raise CancelledError from None
    finally:
        _end(process)
    for reader in readers:
        reader.join(_PIPES_S)
    return Ended(code, "".join(output), "\n".join(log))


def _own_group() -> dict[str, Any]:
    """Arguments that make the program the head of a group, which can be ended as a whole."""
    if _WINDOWS:
        flags = ("CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW")
        return {"creationflags": sum(getattr(subprocess, flag) for flag in flags)}
    return {"start_new_session": True}


def _end(process: subprocess.Popen[str]) -> None:
    """End the program and its children, if they still run."""
    if process.poll() is not None:
        return
    if _WINDOWS:
        subprocess.run(  # noqa: S603
            ["taskkill", "/T", "/F", "/PID", str(process.pid)],  # noqa: S607
            check=False,
            capture_output=True,
        )
    else:
        _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        # The program may be a script, which ends before the one that it started.
        while _signal(process, 0) and time.monotonic() < deadline:
            process.poll()
            time.sleep(_TICK_S / 10)
        # Also children that outlive it; they must not write any more when this returns.
        deadline = time.monotonic() + _DYING_S
        while _signal(process, signal.SIGKILL) and time.monotonic() < deadline:
            process.poll()
            time.sleep(_TICK_S / 10)
    process.wait()


def _signal(process: subprocess.Popen[str], number: int) -> bool:
    """Send a signal to the group, 0: none; False if there is no group any more."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS: the latter, of those that have ended
        return False
    return True


def _told(line: str, log: deque[str], watch: Watch) -> None:
    if line := line.rstrip():
        log.append(line)
        watch.say(line)


def _reading(stream: IO[str], take: Callable[[str], None]) -> threading.Thread:
    def read() -> None:
        with stream:
            for line in stream:
                take(line)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
