"""The command line, thin: options in, one function called, its result said.

Heavy imports are inside the commands, so that help comes at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from kidseg.cli.data import check, demo, export, phantom, store
from kidseg.cli.models import compare, evaluate, info, segment, train
from kidseg.cli.studies import study
from kidseg.cli.terminal import out_of_memory, refuse, show_plain_warnings, system_refusal
from kidseg.errors import KidsegError, UsageError

__all__ = ["app", "main"]

RESEARCH_ONLY = "For research use only. Not a medical device."

app = typer.Typer(
    name="kidseg",
    help=f"Kidneys and renal tumours in CT, of children first. {RESEARCH_ONLY}",
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

    The other codes stand on the classes in `kidseg.errors`. With --json an error is one JSON object
    too, {"error": {"code", "path", "cause", "next_step", "severity"}}.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    # Where other work shares the cores, threads that spin while they wait make a run ten times
    # slower. To be set before torch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_plain_warnings()
    as_json = "--json" in arguments
    try:
        sys.exit(app(arguments, standalone_mode=not as_json))
    except KidsegError as error:
        refuse(error, as_json)
    except typer.TyperException as error:
        refuse(UsageError(error.format_message(), next_step="See --help.", code="usage"), as_json)
    except MemoryError as error:
        refuse(out_of_memory(error), as_json)
    except OSError as error:
        if (refusal := system_refusal(error)) is None:
            raise
        refuse(refusal, as_json)


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave by an exception, so that temporary files go and nothing is half written."""
    raise KeyboardInterrupt
