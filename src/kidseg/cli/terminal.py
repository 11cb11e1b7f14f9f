"""Terminal output: results on standard output, errors and warnings on standard error."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
from contextlib import suppress
from traceback import walk_tb
from typing import Any, NoReturn

import typer

from kidseg.cli.old_options import new_name
from kidseg.errors import (
    KidsegError,
    KidsegWarning,
    ResourceError,
    UsageError,
    is_disk_full,
    printable,
)

__all__ = [
    "RESEARCH_ONLY",
    "accept_any_text",
    "exit_with",
    "print_result",
    "show_plain_warnings",
    "tell_missing_gpu",
    "usage_error",
]

RESEARCH_ONLY = "For research use only. Not a medical device."


def accept_any_text() -> None:
    """Print escapes for what a terminal cannot show, such as names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_result(result: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    """Print a result as one JSON object, or as text unless quiet.

    Raises:
        ResourceError: "disk-full": standard output is a file on a full disk.
    """
    if as_json:
        _print(json.dumps(result, indent=2, allow_nan=False))
    elif not quiet:
        _print(printable(text))


def tell_missing_gpu(device: str, silent: bool) -> None:
    """Say on standard error, unless silent, that "auto" found no GPU where one was expected."""
    from kidseg.device import missing_gpu

    if not silent and (line := missing_gpu(device)):
        typer.echo(f"kidseg: {line}", err=True)


def exit_with(error: KidsegError, as_json: bool = False) -> NoReturn:
    """Print an error, with --json also as one JSON object, and exit with its code."""
    finding = error.as_finding()
    if as_json:
        with suppress(ResourceError):  # standard error says it in any case
            _print(json.dumps({"error": finding.as_dict()}))
    typer.echo(f"kidseg: {error}", err=True)
    sys.exit(error.exit_code)


def usage_error(error: typer.TyperException) -> UsageError:
    """An error of typer about the command line, with the usage of the command."""
    context = getattr(error, "ctx", None) or _parsed_context(error)
    command = "kidseg" if context is None else context.command_path
    usage = "" if context is None else f"{' '.join(context.get_usage().split())}; "
    cause = " ".join(error.format_message().split()).replace("Value error, ", "")
    cause = cause.replace("Input should be", "it must be").rstrip(".")
    cause = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", cause)
    option = getattr(error, "option_name", "")
    if renamed := new_name(command.rpartition(" ")[2], option):
        cause = f"{option} is now {renamed}"
    return UsageError(
        cause[:1].lower() + cause[1:],
        next_step=f"{usage}'{command} --help' explains it.",
        code="usage",
    )


def _parsed_context(error: BaseException) -> Any:
    """The context of the command whose options were read; typer's parser leaves it out.

    None if there was none yet.
    """
    frames = [frame.f_locals.get("ctx") for frame, _ in walk_tb(error.__traceback__)]
    return next((found for found in reversed(frames) if hasattr(found, "command_path")), None)


def _print(text: str) -> None:
    """Print on standard output."""
    try:
        typer.echo(text)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # What could not be written would be tried again, and fail again, when Python exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise ResourceError(
            "standard output cannot be written: the disk is full",
            next_step="Free some space, or send the output elsewhere, and run again.",
            code="disk-full",
        ) from error


def show_plain_warnings() -> None:
    """Format the warnings of kidseg as one line, without the source location."""
    default = warnings.formatwarning

    def plain(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if issubclass(category, KidsegWarning):
            return f"kidseg: {message}\n"
        return default(message, category, filename, lineno, line)

    warnings.formatwarning = plain
