"""Terminal output: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from kidseg.errors import (
    DISK_FULL,
    InputError,
    KidsegError,
    KidsegWarning,
    ResourceError,
    printable,
)

__all__ = [
    "accept_any_text",
    "convert_memory_error",
    "convert_os_error",
    "exit_with",
    "print_result",
    "show_plain_warnings",
    "show_progress",
    "show_stages",
]


def accept_any_text() -> None:
    """Print escapes for what a terminal cannot show, such as names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_result(result: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    """Print a result as one JSON object, or as text unless quiet."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    elif not quiet:
        typer.echo(printable(text))


@contextmanager
def show_progress(what: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if it is a terminal; yields (done, total) -> None."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=silent or not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


@contextmanager
def show_stages(silent: bool) -> Iterator[Callable[[str, int, int, Mapping[str, Any]], None]]:
    """Show a progress bar with score for each training stage, as `show_progress`.

    Yields (stage, done, total, log line) -> None.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=silent or not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, score="")
            score = f"score {figures['val_score']:.3f}" if "val_score" in figures else ""
            bar.update(tasks[stage], completed=done, total=total, score=score)

        yield advance


def exit_with(error: KidsegError, as_json: bool) -> NoReturn:
    """Print an error, with --json also as one JSON object, and exit with its code."""
    finding = error.as_finding()
    if as_json:
        typer.echo(json.dumps({"error": finding.as_dict()}))
    typer.echo(f"kidseg: {error}", err=True)
    sys.exit(error.exit_code)


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


def convert_memory_error(error: MemoryError) -> ResourceError:
    """Convert a MemoryError to a KidsegError."""
    return ResourceError(
        f"not enough memory: {error}" if str(error) else "not enough memory",
        next_step="Use fewer --jobs or a larger machine.",
        code="out-of-memory",
    )


def convert_os_error(error: OSError) -> KidsegError | None:
    """Convert an OSError to a KidsegError; None if it does not concern a file."""
    if error.errno in DISK_FULL:
        return ResourceError(
            "the disk is full",
            path=error.filename,
            next_step="Free some space and run again with --overwrite.",
            code="disk-full",
        )
    if error.filename is None:
        return None
    return InputError(
        f"cannot be read or written ({error.strerror})",
        path=error.filename,
        next_step="Check its name and permissions.",
        code="not-accessible",
    )
