"""The command contours, and its result as a table."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kidseg.cli.options import AsJson, Quiet, argument
from kidseg.cli.progress import show_progress
from kidseg.cli.terminal import print_result
from kidseg.errors import BatchError, KidsegError
from kidseg.table import text_table, wrapped

if TYPE_CHECKING:
    from kidseg.contours import ContourVolume

__all__ = ["contours"]

_HEAD = ("file", "structure", "side", "no.", "tracking id", "time point", "planes", "mm", "ml")
_CHECKED = ("stored ml", "difference")
_LONGEST = 24


def contours(
    files: Annotated[
        list[Path], argument(help="RTSTRUCT files, or folders of them.", metavar="RTSTRUCT")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Volumes of the structures of RT Structure Sets, from contours alone: no images are needed.

    The volume that the file states (ROI Volume) is beside it. What cannot be told is said. The exit
    code is 4 if a file could not be read, or the contours of a structure have errors.

    Example: kidseg contours annotations/
    """
    from kidseg.contours import measure_contours

    with show_progress("files", quiet or as_json) as advance:
        volumes, failed = measure_contours(files, advance)
    if not volumes and len(failed) == 1:
        raise failed[0][1]
    result = {
        "structures": [one.as_dict() for one in volumes],
        "failed": [error.as_finding().as_dict() for _, error in failed],
    }
    print_result(result, contours_text(volumes, failed), as_json, quiet)
    wrong = [one for one in volumes if any(f.severity == "error" for f in one.findings)]
    if failed:
        count = len({one.path for one in volumes}) + len(failed)
        typer.echo(f"kidseg: {len(failed)} of {count} files could not be read", err=True)
    if wrong:
        count = len(volumes)
        typer.echo(f"kidseg: {len(wrong)} of {count} structures have errors", err=True)
    if failed or wrong:
        raise typer.Exit(BatchError.exit_code)


def contours_text(
    volumes: Sequence[ContourVolume], failed: Sequence[tuple[Path, KidsegError]]
) -> str:
    """The table, what cannot be told, the findings and the files that could not be read."""
    names = _names({one.path for one in volumes})
    cells = [[names[one.path], *_cells(one)] for one in volumes]
    empty = [k for k, _ in enumerate(_HEAD) if not any(row[k] for row in cells)]
    head = [name for k, name in enumerate((*_HEAD, *_CHECKED)) if k not in empty]
    rows = [[cell for k, cell in enumerate(row) if k not in empty] for row in cells]
    lines = text_table(head, rows, keys=2) if rows else []
    for one in volumes:
        if one.reason:
            name = f"{names[one.path]}, '{one.structure.name}'"
            lines += wrapped(f"cannot tell: {name}: {one.reason}", indent="  ")
        for finding in one.findings:
            lines += wrapped(f"{finding.severity}: {finding}", indent="  ")
    for _, error in failed:
        lines += wrapped(f"error: {error}", indent="  ")
    return "\n".join(lines)


def _names(paths: Collection[Path]) -> dict[Path, str]:
    """The name of each file; below the folder of all, if two have the same."""
    if len({path.name for path in paths}) == len(paths):
        return {path: path.name for path in paths}
    top = os.path.commonpath([path.absolute().parent for path in paths])
    return {path: str(path.absolute().relative_to(top)) for path in paths}


def _cells(one: ContourVolume) -> list[str]:
    structure, stored, change = one.structure, one.structure.stored_ml, one.difference
    return [
        structure.name[:_LONGEST],
        structure.side or "",
        "" if structure.counted is None else str(structure.counted),
        structure.tracking_id[:_LONGEST],
        one.time_point[:_LONGEST],
        str(one.n_planes),
        "" if one.spacing_mm is None else f"{one.spacing_mm:.3g}",
        "cannot tell" if one.volume_ml is None else f"{one.volume_ml:.2f}",
        "" if stored is None else f"{stored:.2f}",
        "" if change is None else f"{change:+.1%}",
    ]
