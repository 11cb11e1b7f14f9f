"""Options that had another name: whoever uses the old one is told the new one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kidseg.errors import UsageError

__all__ = ["RENAMED", "chosen_series", "new_name"]

RENAMED: Mapping[tuple[str, str], str] = {
    ("convert", "--number"): "--series",
    ("segment", "--reference"): "--reference-labels",
}
"""{(command, old name): new name}."""


def new_name(command: str, option: str) -> str | None:
    """The name that an option has now; None if it had no other."""
    return RENAMED.get((command, option))


def chosen_series(series: str | None) -> str | None:
    """What --series of `kidseg convert` chooses, which was the folder of the series before.

    Raises:
        UsageError: "renamed-option": it is a folder or file.
    """
    if series is None or re.fullmatch(r"[\d./]+", series) or not Path(series).exists():
        return series
    raise UsageError(
        "it is the name of a file or folder; --series says which of several series: number or UID",
        path=series,
        code="renamed-option",
        next_step="Name it with --ct, which was --series in earlier versions.",
    )
