"""The command line. Each command parses options, calls one function and prints its result.

Heavy imports are inside the commands, so that --help is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from kidseg import new_folders
from kidseg.cli.completion import complete
from kidseg.cli.contour_table import contours
from kidseg.cli.conversion import convert
from kidseg.cli.data import check, demo, export, phantom, store
from kidseg.cli.derived import calibrate, ensemble, export_onnx, import_nnunet
from kidseg.cli.hospital import dicomweb, node
from kidseg.cli.machine import doctor
from kidseg.cli.measure import measure
from kidseg.cli.models import compare, evaluate, info, segment, train
from kidseg.cli.serving import serve
from kidseg.cli.settings import config
from kidseg.cli.stopping import INTERRUPTED, end, listen, was_stopped
from kidseg.cli.studies import study
from kidseg.cli.terminal import (
    RESEARCH_ONLY,
    accept_any_text,
    exit_with,
    show_plain_warnings,
    usage_error,
)
from kidseg.errors import KidsegError, UsageError, converted
from kidseg.extras import missing

__all__ = ["app", "main"]

app = typer.Typer(
    name="kidseg",
    help=f"Segment kidneys and renal tumours in CT, above all of children. {RESEARCH_ONLY}",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Segment and measure": (segment, complete, measure, convert, contours),
    "Data": (check, phantom, store, export),
    "Train and evaluate": (
        *(train, evaluate, compare, study),
        *(calibrate, ensemble, import_nnunet, export_onnx),
    ),
    "Serve": (serve, dicomweb, node),
    "About": (demo, info, config, doctor),
}
"""The commands, by the groups of --help."""

for group, commands in COMMANDS.items():
    for command in commands:
        app.command(epilog=RESEARCH_ONLY, rich_help_panel=group)(command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("kidseg"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 usage, 3 bad input, 5 resources, 130 interrupted, ...

    143 is stopped by SIGTERM; the classes in `kidseg.errors` define the other exit codes. With
    --json an error is also printed as one JSON object,
    {"error": {"code", "path", "cause", "next_step", "severity"}}.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    listen()
    # On shared cores, busy-waiting threads slow down a run by a factor of ten. Must be set before
    # torch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    accept_any_text()
    show_plain_warnings()
    as_json = "--json" in arguments
    with new_folders.removed_if_empty():
        try:
            end(app(arguments, prog_name="kidseg", standalone_mode=False), as_json)
        except KeyboardInterrupt:
            end(INTERRUPTED, as_json)
        except Exception as error:
            if was_stopped():
                end(INTERRUPTED, as_json)
            if (known := _known(error)) is None:
                raise
            exit_with(known, as_json)


def _known(error: Exception) -> KidsegError | None:
    """The error as one of kidseg's; None if it is a fault of the program."""
    if isinstance(error, KidsegError):
        return error
    if isinstance(error, typer.TyperException):
        return usage_error(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "kidseg").startswith("kidseg"):
        step = "Install it, or the extra of kidseg that 'kidseg doctor' lists for this."
        return missing("this", [str(error.name)], step)
    return converted(error) if isinstance(error, MemoryError | OSError) else None
