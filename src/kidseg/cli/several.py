"""What commands on one label file do with several: each for itself, then a table of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from kidseg.cli.terminal import print_result
from kidseg.errors import BatchError, Finding, KidsegError, UsageError
from kidseg.table import wrapped

__all__ = ["KEPT", "Failed", "end_of_several", "is_several", "one_only", "scans_of"]

Failed = Sequence[tuple[Path, KidsegError]]

KEPT = "Files that were written are complete. To go on, leave them out, or run it with --overwrite."
"""How to go on with several label files after a stop."""


def is_several(inputs: Sequence[Path]) -> bool:
    """Are these more than one label file?"""
    return len(inputs) != 1 or inputs[0].is_dir()


def one_only(options: Mapping[str, Any]) -> None:
    """Refuse options that can concern one case only.

    Args:
        options: {option: its value}.

    Raises:
        UsageError: "one-file-only".
    """
    if given := [name for name, value in options.items() if value not in (None, (), [])]:
        raise UsageError(
            f"{', '.join(given)}: of one case, and several label files are given",
            code="one-file-only",
            next_step="Leave it out, or name one label file.",
        )


def scans_of(files: Collection[Path], scans: Path | None) -> dict[Path, Path | None]:
    """The scan of each label file in a folder of scans or a data set; None without.

    That of a DICOM object is the folder itself: which of its series, the object says.

    Raises:
        UsageError: "one-file-only": it is one scan.
        InputError: see `scans_of_labels`.
    """
    from kidseg.cases.scan_files import scans_of_labels
    from kidseg.measure.annotated_labels import is_annotated

    if scans is None:
        return dict.fromkeys(files)
    if scans.is_file():
        one_only({"--ct with one scan": scans})
    found: dict[Path, Path | None] = {path: scans for path in files if is_annotated(path)}
    if volumes := [path for path in files if path not in found]:
        found |= scans_of_labels(scans, volumes)
    return found


def end_of_several(
    result: dict[str, Any],
    lines: Sequence[str],
    failed: Failed,
    *,
    warned: Sequence[Finding] = (),
    total: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print what was done, warnings of it and what failed; exit with 4 if any failed."""
    listed = [line for one in warned for line in wrapped(f"warning: {one}", indent="  ")]
    listed += [line for _, error in failed for line in wrapped(f"error: {error}", indent="  ")]
    result = {**result, "failed": [error.as_finding().as_dict() for _, error in failed]}
    print_result(result, "\n".join([*lines, *listed]), as_json, quiet)
    if failed:
        typer.echo(f"kidseg: {len(failed)} of {total} label files failed", err=True)
        raise typer.Exit(BatchError.exit_code)
