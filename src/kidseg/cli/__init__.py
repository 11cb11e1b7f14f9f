"""The command line. Each command parses options, calls one function and prints its result.

Heavy imports are inside the commands, so that --help is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from kidseg.cli.data import check, demo, export, phantom, store
from kidseg.cli.models import compare, evaluate, info, segment, train
from kidseg.cli.stopping import INTERRUPTED, exit_code, listen
from kidseg.cli.studies import study
from kidseg.cli.terminal import (
    convert_memory_error,
    convert_os_error,
    exit_with,
    show_plain_warnings,
)
from kidseg.errors import KidsegError, UsageError

__all__ = ["app", "main"]

RESEARCH_ONLY = "For research use only. Not a medical device."

app = typer.Typer(
    name="kidseg",
    help=f"Segment kidneys and renal tumours in CT, above all of children. {RESEARCH_ONLY}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    phantom,
    check,
    export,
    store,
    train,
    segment,
    evaluate,
    compare,
    study,
    info,
    demo,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("kidseg"))
        raise typer.Exit


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
    show_plain_warnings()
    as_json = "--json" in arguments
    try:
        sys.exit(app(arguments, standalone_mode=not as_json))
    except KeyboardInterrupt:
        sys.exit(exit_code(INTERRUPTED))
    except SystemExit as end:
        sys.exit(exit_code(end.code) if isinstance(end.code, int) else end.code)
    except KidsegError as error:
        exit_with(error, as_json)
    except typer.TyperException as error:
        usage = UsageError(error.format_message(), next_step="See --help.", code="usage")
        exit_with(usage, as_json)
    except MemoryError as error:
        exit_with(convert_memory_error(error), as_json)
    except OSError as error:
        if (converted := convert_os_error(error)) is None:
            raise
        exit_with(converted, as_json)
