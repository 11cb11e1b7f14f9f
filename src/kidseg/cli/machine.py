"""The command `doctor`, which examines this machine."""

from __future__ import annotations

import typer

from kidseg.cli.options import AsJson, Device, Quiet
from kidseg.cli.summaries import checkup_text
from kidseg.cli.terminal import print_result

__all__ = ["doctor"]


def doctor(device: Device = "auto", as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Examine this machine: versions, device, memory, space; test reading and writing.

    Exit code 0 if all is sound, otherwise that of the first problem.

    Example: kidseg doctor
    """
    from kidseg.doctor import examine

    found = examine(device)
    print_result(found.as_dict(), checkup_text(found.as_dict()), as_json, quiet)
    if found.problems:
        raise typer.Exit(found.problems[0].exit_code)
