"""The files of an evaluation: `cases.csv`, a row per case and structure, and `summary.json`.

Each file is written atomically, and equal results give equal bytes, but for
the date in the summary. The summary is written last and
removed first, so a folder with a summary is complete.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from kidseg.csv_table import csv_text, original_text
from kidseg.errors import InputError
from kidseg.io.atomic import (
    check_writable,
    json_bytes,
    make_folder,
    place_with_record,
    staging,
    write_text,
)
from kidseg.records import PartialRecord, checked, parsed

__all__ = [
    "COLUMNS",
    "METRICS",
    "Row",
    "Run",
    "prepare_output",
    "read_run",
    "write_csv",
    "write_outputs",
]

METRICS = ("dice", "hd95_mm", "surface_dice", "volume_error_ml")
"""The metrics of a row, as columns of `cases.csv` and keys of `summary.json`."""

_VOLUMES = ("reference_ml", "predicted_ml")
COLUMNS = ("case", "patient", "age_years", "time_point", "structure", *_VOLUMES, *METRICS)
_EARLIER = tuple(name for name in COLUMNS if name != "time_point")  # tables before it was added


@dataclass(frozen=True, kw_only=True)
class Row:
    """One structure of one case; a figure is None if it is undefined or excluded."""

    case: str
    patient: str
    age_years: float | None
    structure: str
    reference_ml: float
    predicted_ml: float
    figures: Mapping[str, float | None]
    time_point: str = ""

    @property
    def both_empty(self) -> bool:
        """Are both masks empty?"""
        return self.reference_ml == 0 and self.predicted_ml == 0

    def values(self) -> tuple[str | float | None, ...]:
        """The values in the order of the columns."""
        return (
            self.case,
            self.patient,
            self.age_years,
            self.time_point,
            self.structure,
            self.reference_ml,
            self.predicted_ml,
            *(self.figures[metric] for metric in METRICS),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """An evaluated output folder."""

    path: Path
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class _Figures(PartialRecord):
    """A metric of a structure in a summary."""

    mean: float | None
    sd: float | None
    n: NonNegativeInt
    n_empty: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class _Structure(PartialRecord):
    dice: _Figures
    hd95_mm: _Figures
    surface_dice: _Figures
    volume_error_ml: _Figures


@dataclass(frozen=True, kw_only=True)
class _Finding(PartialRecord):
    code: str


@dataclass(frozen=True, kw_only=True)
class _Summary(PartialRecord):
    protocol: str
    structures: Mapping[str, _Structure]
    rules: Mapping[str, Any]
    findings: tuple[_Finding, ...] = ()
    not_evaluated: tuple[str, ...] = ()


def prepare_output(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Create the folder and check that these files can be written to it.

    Raises:
        UsageError: "output-exists".
        InputError, ResourceError: see `make_folder`.
    """
    make_folder(out)
    for name in names:
        check_writable(out / name, overwrite=overwrite)


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, overwrite: bool
) -> None:
    """Write a table as UTF-8; see `csv_text`."""
    write_text(path, csv_text(header, rows), overwrite=overwrite)


def write_outputs(
    record: Path, content: Mapping[str, Any], texts: Mapping[str, str], *, overwrite: bool
) -> None:
    """Write texts and the record of them, all or none: what was there stays if one fails.

    Args:
        record: to write as JSON.
        content: of the record.
        texts: {name: text} of the files beside it.
        overwrite: replace existing files.

    Raises:
        UsageError: "output-exists".
        ResourceError: "disk-full".
    """
    out = record.parent
    with staging(out) as folder:
        files = {folder / name: out / name for name in texts}
        for temporary, text in zip(files, texts.values(), strict=True):
            write_text(temporary, text)
        for output in (record, *files.values()):
            check_writable(output, overwrite=overwrite)
        place_with_record(record, json_bytes(content), files)


def read_run(folder: Path) -> Run:
    """Read the results of `evaluate`.

    Raises:
        InputError: "not-evaluated": the files are missing; "damaged-table": the files are invalid;
            the message names the line.
    """
    try:
        summary = parsed((folder / "summary.json").read_bytes())
        checked(_Summary, summary)
        text = (folder / "cases.csv").read_text(encoding="utf-8-sig")  # as Excel saves it
    except OSError as error:
        raise InputError(
            f"not an evaluated folder: cannot read {error.filename} ({error.strerror})",
            path=folder,
            code="not-evaluated",
            next_step="Run kidseg evaluate on it first.",
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(folder / "cases.csv", "not text in UTF-8") from error
    except ValueError as error:
        raise _damaged(
            folder / "summary.json",
            f"not the summary of an evaluation by this version of kidseg: {error}",
        ) from error
    table, lines = folder / "cases.csv", list(csv.reader(io.StringIO(text, newline="")))
    if not lines or tuple(lines[0]) not in (COLUMNS, _EARLIER):
        raise _damaged(table, f"line 1: the columns are not {', '.join(COLUMNS)}")
    head, *others = lines
    rows = tuple(_row(head, cells, table, number) for number, cells in enumerate(others, start=2))
    keys = [(row.case, row.structure) for row in rows]
    if len(set(keys)) != len(keys):
        raise _damaged(table, "a combination of case and structure occurs twice")
    if unknown := sorted({row.structure for row in rows} - set(summary["structures"])):
        raise _damaged(table, f"structure '{unknown[0]}' is not in the summary")
    return Run(path=folder, summary=summary, rows=rows)


def _row(columns: Sequence[str], cells: Sequence[str], path: Path, number: int) -> Row:
    try:
        content = dict(zip(columns, map(original_text, cells), strict=True))
        volumes = {name: _number(content[name]) for name in _VOLUMES}
        age_years = _number(content["age_years"])
        if age_years is not None and age_years < 0:
            raise ValueError(f"negative age {age_years:g}")
        if not content["case"] or not content["structure"] or None in volumes.values():
            raise ValueError("a required cell is empty")
        return Row(
            case=content["case"],
            patient=content["patient"],
            age_years=age_years,
            time_point=content.get("time_point", ""),
            structure=content["structure"],
            reference_ml=volumes["reference_ml"] or 0.0,
            predicted_ml=volumes["predicted_ml"] or 0.0,
            figures={metric: _number(content[metric]) for metric in METRICS},
        )
    except ValueError as error:
        raise _damaged(path, f"line {number}: {error}") from error


def _number(text: str) -> float | None:
    if not text:
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not finite")
    return value


def _damaged(path: Path, cause: str) -> InputError:
    return InputError(cause, path=path, code="damaged-table", next_step="Evaluate again.")
