"""The back end that the settings describe, within 3D Slicer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .container import Container
from .job import BackEnd
from .local_command import LocalCommand
from .problems import KidSegError
from .server import Server

__all__ = ["KINDS", "Settings", "back_end_of"]

KINDS = ("command", "server", "container")


@dataclass(frozen=True)
class Settings:
    """Where kidseg runs; of the machine, not of the scene.

    Attributes:
        kind: one of `KINDS`.
        command: see `LocalCommand`.
        address: see `Server`.
        token: see `Server`.
        unencrypted: see `Server`.
        engine: see `Container`.
        image: see `Container`.
    """

    kind: str = "command"
    command: str = ""
    address: str = ""
    token: str = field(default="", repr=False)
    unencrypted: bool = False
    engine: str = ""
    image: str = ""


def back_end_of(settings: Settings) -> BackEnd:
    """The back end with these settings.

    Raises:
        KidSegError: "unknown-back-end".
    """
    if settings.kind == "command":
        return LocalCommand(outside_environment(), settings.command.strip(), _within_slicer())
    if settings.kind == "server":
        return Server(settings.address.strip(), settings.token.strip(), settings.unencrypted)
    if settings.kind == "container":
        return Container(outside_environment(), settings.image.strip(), settings.engine.strip())
    raise KidSegError(
        f"there is no back end '{settings.kind}'",
        f"Choose of {', '.join(KINDS)}.",
        code="unknown-back-end",
    )


def outside_environment() -> dict[str, str]:
    """The environment as it was before 3D Slicer started.

    3D Slicer sets paths of libraries and of Python, with which other programs fail.
    """
    import slicer

    try:
        return dict(slicer.util.startupEnvironment())
    except AttributeError:  # without the application there is nothing to leave out
        return dict(os.environ)


def _within_slicer() -> tuple[Sequence[str], Mapping[str, str]] | tuple[()]:
    """kidseg in the Python of 3D Slicer, if it was installed there."""
    if importlib.util.find_spec("kidseg") is None:
        return ()
    python = shutil.which("PythonSlicer") or sys.executable
    return [python, "-m", "kidseg"], dict(os.environ)
