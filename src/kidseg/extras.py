"""Packages that an installation of kidseg may lack: those of extras, and of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from kidseg.errors import UsageError

__all__ = ["check_installed", "is_installed", "missing"]


def is_installed(package: str) -> bool:
    """Whether a package is found, by the name of its import; it is not imported."""
    return find_spec(package) is not None


def check_installed(what: str, packages: Sequence[str], install: str, *, step: str = "") -> None:
    """Check that packages are installed, before any work.

    Args:
        what: needs them, such as "the server".
        packages: names of their imports.
        install: what pip is to install, such as "kidseg[serve]".
        step: another way out, such as "or leave it out".

    Raises:
        UsageError: "missing-extra".
    """
    if absent := [package for package in packages if not is_installed(package)]:
        step = f"Run: pip install '{install}'{f', {step}' if step else '.'}"
        raise missing(what, absent, step)


def missing(what: str, packages: Sequence[str], next_step: str) -> UsageError:
    """The error for packages that are not installed."""
    names = ", ".join(package.replace("_", "-") for package in packages)
    verb = "is" if len(packages) == 1 else "are"
    return UsageError(
        f"{what} needs {names}, which {verb} not installed",
        code="missing-extra",
        next_step=next_step,
    )
