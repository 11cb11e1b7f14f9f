"""The table of a cohort: a row for each scan of a folder of results, as `summary.csv`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.csv_table import csv_text
from kidseg.io.atomic import write_text
from kidseg.segment.index import Entry, Index, locked, read_index

__all__ = ["SUMMARY", "CohortRow", "cohort_facts", "cohort_rows", "write_summary"]

SUMMARY = "summary.csv"

_FIRST = ("name", "status", "error")
_LAST = ("warnings", "seconds")


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """A scan of a cohort.

    Attributes:
        name: of the scan.
        error: code of its error; None if it was segmented. A scan that failed at its last attempt
            has an error only; an earlier result, if any, stays in `result.json`.
        volumes_ml: of each structure.
        intervals_ml: of each structure whose opinions were compared, (from, to).
        warnings: their number.
        seconds: wall time of its segmentation.
    """

    name: str
    error: str | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    intervals_ml: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    warnings: int | None = None
    seconds: float | None = None

    @property
    def status(self) -> str:
        """ "done" or "failed"."""
        return "done" if self.error is None else "failed"

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        intervals = {name: list(interval) for name, interval in self.intervals_ml.items()}
        return {
            "name": self.name,
            "status": self.status,
            "error": self.error,
            "volumes_ml": dict(self.volumes_ml),
            "intervals_ml": intervals,
            "warnings": self.warnings,
            "seconds": self.seconds,
        }


def cohort_rows(index: Index) -> list[CohortRow]:
    """The scans of a folder of results by name, those that failed at their last attempt too.

    Args:
        index: of the folder; see `kidseg.segment.index.read_index`.
    """
    rows = {name: _row(entry) for name, entry in index.scans.items()}
    rows |= {name: CohortRow(name=name, error=str(e["code"])) for name, e in index.failed.items()}
    return [rows[name] for name in sorted(rows)]


def cohort_facts(rows: Sequence[CohortRow]) -> dict[str, Any]:
    """The cohort in a few numbers, as plain data.

    Returns:
        {"scans", "done", "failed": {code: count}, "warned", "volumes_ml": {structure: {"n",
        "median", "least", "most"}} of those in which it was found, "seconds": {"median", "most"}}.
    """
    done = [row for row in rows if row.error is None]
    volumes: dict[str, list[float]] = {}
    for row in done:
        for name, volume in row.volumes_ml.items():
            volumes.setdefault(name, [])
            if volume > 0:
                volumes[name].append(volume)
    seconds = [row.seconds for row in done if row.seconds is not None]
    return {
        "scans": len(rows),
        "done": len(done),
        "failed": dict(Counter(row.error for row in rows if row.error is not None)),
        "warned": sum(bool(row.warnings) for row in done),
        "volumes_ml": {
            name: {"n": len(found), **_spread(found)} for name, found in volumes.items()
        },
        "seconds": _spread(seconds),
    }


def write_summary(out: Path) -> None:
    """Write the table of a folder of results as it is now, if it has several scans.

    Columns: name, status, error, the volume of each structure in ml ("kidney_ml"), with its
    interval where opinions were compared ("kidney_ml_from", "kidney_ml_to"), warnings, seconds.

    Args:
        out: the folder.

    Raises:
        ModelError: see `read_index`.
        InputError, ResourceError: see `kidseg.io.atomic.writing`.
    """
    with locked(out):
        rows = cohort_rows(read_index(out))
        if len(rows) > 1:
            write_text(out / SUMMARY, _csv(rows), overwrite=True)


def _csv(rows: Sequence[CohortRow]) -> str:
    structures = list(dict.fromkeys(name for row in rows for name in row.volumes_ml))
    judged = {name for row in rows for name in row.intervals_ml}
    header = [*_FIRST, *(each for name in structures for each in _columns(name, judged)), *_LAST]
    lines = []
    for row in rows:
        cells = [cell for name in structures for cell in _cells(row, name, judged)]
        lines.append([row.name, row.status, row.error, *cells, row.warnings, row.seconds])
    return csv_text(header, lines)


def _row(entry: Entry) -> CohortRow:
    structures = (entry.get("review") or {}).get("structures", {})
    intervals = {name: figures["interval_ml"] for name, figures in structures.items()}
    seconds = entry.get("seconds", {})
    return CohortRow(
        name=entry["name"],
        volumes_ml=entry.get("volumes_ml", {}),
        intervals_ml={name: tuple(ends) for name, ends in intervals.items() if ends},
        warnings=len(entry.get("warnings", ())),
        seconds=round(sum(seconds.values()), 2) if seconds else None,
    )


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "least": None, "most": None}
    return {
        "median": round(statistics.median(values), 4),
        "least": min(values),
        "most": max(values),
    }


def _columns(name: str, judged: set[str]) -> list[str]:
    return [f"{name}_ml", *([f"{name}_ml_from", f"{name}_ml_to"] if name in judged else [])]


def _cells(row: CohortRow, name: str, judged: set[str]) -> list[float | None]:
    interval = row.intervals_ml.get(name, (None, None))
    return [row.volumes_ml.get(name), *(interval if name in judged else ())]
