"""Terminal output: results on standard output, errors and warnings on standard error."""

from __future__ import annotations

import json
import re
import sys
import warnings
from typing import Any, NoReturn

import typer

from kidseg.errors import KidsegError, KidsegWarning, UsageError

__all__ = [
    "exit_with",
    "print_result",
    "show_plain_warnings",
    "usage_error",
]


def print_result(result: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    """Print a result as one JSON object, or as text unless quiet."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    elif not quiet:
        typer.echo(text)


def exit_with(error: KidsegError, as_json: bool) -> NoReturn:
    """Print an error, with --json also as one JSON object, and exit with its code."""
    finding = error.as_finding()
    if as_json:
        typer.echo(json.dumps({"error": finding.as_dict()}))
    typer.echo(f"kidseg: {error}", err=True)
    sys.exit(error.exit_code)


def usage_error(error: typer.TyperException) -> UsageError:
    """An error of typer about the command line, with the usage of the command."""
    context = getattr(error, "ctx", None)
    command = "kidseg" if context is None else context.command_path
    usage = "" if context is None else f"{' '.join(context.get_usage().split())}; "
    cause = " ".join(error.format_message().split()).replace("Value error, ", "")
    cause = cause.replace("Input should be", "it must be").rstrip(".")
    cause = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", cause)
    return UsageError(
        cause[:1].lower() + cause[1:],
        next_step=f"{usage}'{command} --help' explains it.",
        code="usage",
    )


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
