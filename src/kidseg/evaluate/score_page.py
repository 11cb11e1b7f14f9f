"""The page of an evaluation: its cases, the worst first, each with a picture of its worst slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.errors import KidsegError
from kidseg.evaluate.pairs import Pair
from kidseg.evaluate.summary import Row
from kidseg.evaluate.volumes import LabelPair
from kidseg.geometry import Grid
from kidseg.io import ReadOptions, read
from kidseg.labels import LabelSchema
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page
from kidseg.report.overlay import Found, draw_case

__all__ = ["PAGE", "counted", "draw_pair", "score_page"]

PAGE = "cohort.html"
_TIMED = ("patient", "time")
_METRICS = (("dice", "Dice", 3), ("hd95_mm", "HD95 mm", 1), ("volume_error_ml", "error ml", 1))


def draw_pair(
    case: Pair, labels: LabelPair, predicted: np.ndarray, names: Mapping[int, str]
) -> Picture:
    """The worst slice of a case; without its image if that is not known or unfit.

    Args:
        case: with its image, if known.
        labels: as read.
        predicted: labels; 0 where there is no prediction.
        names: of the labels.
    """
    return draw_case(
        Found(
            found=predicted,
            grid=labels.grid,
            schema=LabelSchema.from_names(names),
            true=labels.reference,
            image=None if case.image is None else _image(case.image, labels.grid),
        )
    )


def score_page(
    rows: Sequence[Row], pictures: Mapping[str, Picture], summary: Mapping[str, Any]
) -> str:
    """The page, as HTML.

    Args:
        rows: of all cases.
        pictures: by case.
        summary: content of summary.json.
    """
    structures = list(summary["structures"])
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, {})[row.structure] = row
    timed = _timed(rows)
    order = sorted(by_case, key=lambda name: _goodness(by_case[name].values()))
    cases = [
        Case(
            name=name,
            cells=[
                *(Cell(text=text) for text in timed.get(name, ())),
                *(
                    _cell(by_case[name].get(structure), metric, digits)
                    for structure in structures
                    for metric, _, digits in _METRICS
                ),
            ],
            pictures=[pictures[name]] if name in pictures else [],
        )
        for name in order
    ]
    means = ", ".join(
        f"{name} {known['dice']['mean']:.3f}"
        for name, known in summary["structures"].items()
        if known["dice"]["mean"] is not None
    )
    return cohort_page(
        "Evaluation",
        [
            *(_TIMED if timed else ()),
            *(f"{title} {structure}" for structure in structures for _, title, _ in _METRICS),
        ],
        cases,
        about=[
            f"{counted(summary)}, {summary['protocol']} protocol.",
            f"Mean Dice: {means or '-'}.",
        ],
        warnings=[_said(finding) for finding in summary["findings"]],
        note="The worst mean Dice first. Select a case to see its slice with the largest error:"
        " filled is what was found, dashed the reference.",
    )


def _timed(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """{case: its patient and time}, if a patient has several cases; else {}."""
    found = {row.case: (row.patient, row.time_point or "-") for row in rows}
    patients = {patient for patient, _ in found.values()}
    return found if len(patients) < len(found) else {}


def _said(finding: Mapping[str, str]) -> str:
    if finding["severity"] == "error":
        return f"Not evaluated: {Path(finding['path']).name}: {finding['cause']}"
    return finding["cause"]


def counted(summary: Mapping[str, Any]) -> str:
    """How many cases were evaluated, and of how many, in words."""
    n = summary["n_cases"]
    failed = len(summary.get("not_evaluated", ()))
    return f"{n} of {n + failed} case(s)" if failed else f"{n} case(s)"


def _goodness(rows: Any) -> float:
    """Mean Dice of the structures; cases without any come last."""
    values = [v for row in rows if (v := row.figures["dice"]) is not None]
    return sum(values) / len(values) if values else math.inf


def _cell(row: Row | None, metric: str, digits: int) -> Cell:
    value = None if row is None else row.figures[metric]
    return Cell(text="-") if value is None else Cell(text=f"{value:.{digits}f}", value=value)


def _image(path: Path, grid: Grid) -> np.ndarray | None:
    """The voxels of an image on the grid of the labels; None if it is unfit."""
    try:
        volume = read(path, ReadOptions(values="any")).volume
    except KidsegError:
        return None
    if volume.channels != 1 or not volume.grid.same_as(grid):
        return None
    found: np.ndarray = volume.data[0].numpy()
    return found
