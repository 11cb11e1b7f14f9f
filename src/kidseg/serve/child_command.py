"""Commands of kidseg, each in a process of its own that ends with the server."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

from kidseg.errors import Finding
from kidseg.records import parsed
from kidseg.workers import end_with_parent

__all__ = ["run_command"]

_TICK_S = 0.1
_PATIENCE_S = 30.0
_SPOKEN = "kidseg: "


def run_command(
    arguments: Sequence[str],
    log: Path,
    is_wanted: Callable[[], bool],
    on_line: Callable[[str], None],
) -> Finding | None:
    """Run a command in a process of its own, and wait for its end.

    Args:
        arguments: as on the command line, without "kidseg".
        log: file for what it says; the result is in a file of this name that ends in .json.
        is_wanted: whether to go on; otherwise the process is ended, as by SIGTERM.
        on_line: called with each line that it writes to standard error.

    Returns:
        Why it failed; None: it did not.
    """
    process = get_context("spawn").Process(target=_run, args=(tuple(arguments), log))
    log.write_bytes(b"")  # what an earlier command said is not passed on again
    process.start()
    assert process.pid is not None
    with log.open(encoding="utf-8", errors="replace") as said:
        line, ending = "", 0.0
        while True:
            alive = process.is_alive()
            line += said.read()
            *lines, line = line.split("\n")
            for each in lines:
                on_line(each)
            if not alive:
                break
            if not is_wanted():
                if not ending:
                    process.terminate()
                    ending = time.monotonic()
                elif time.monotonic() - ending > _PATIENCE_S:
                    process.kill()
            process.join(_TICK_S)
    if process.exitcode == 0:
        return None
    return _failure(log, process.exitcode)


def _run(arguments: tuple[str, ...], log: Path) -> None:
    """In the process: the command line itself."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for path, stream in ((log, 2), (log.with_suffix(".json"), 1)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.argv = ["kidseg", *arguments]
    runpy.run_module("kidseg", run_name="__main__")


def _failure(log: Path, code: int | None) -> Finding:
    """The error that a command has printed, or that it was killed."""
    try:
        error = parsed(log.with_suffix(".json").read_bytes())["error"]
        known = {key: str(error[key]) for key in ("code", "path", "cause", "next_step")}
        return Finding(**known, severity="error")
    except (OSError, ValueError, KeyError, TypeError):
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix(_SPOKEN) for line in said if line.startswith(_SPOKEN)]
        cause = errors[-1] if errors else f"the process ended with code {code}"
        return Finding(
            code="process-failed",
            path="",
            cause=cause,
            next_step="Try again; if it ends in the same way, run that command of kidseg by hand.",
            severity="error",
        )
