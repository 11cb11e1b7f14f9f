"""The page of several evaluations: each case in all of them, where they differ most first."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from kidseg.evaluate import Row, Run
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page, pictures_in

__all__ = ["comparison_page", "relative"]


_FIRST = {
    True: "The cases in which Dice differs most come first.",
    False: "The worst mean Dice first.",
}
"""What the order of the cases is, by whether there are several evaluations."""


def comparison_page(
    title: str,
    runs: Mapping[str, Run],
    pages: Mapping[str, Path],
    out: Path,
    *,
    about: Sequence[str] = (),
    more: Mapping[str, Path] | None = None,
) -> str:
    """The page, as HTML: Dice of each structure of each case in each run.

    Args:
        title: of the page.
        runs: by name.
        pages: {name: page of an evaluation}, from which pictures are taken and to which links
            lead, if they exist.
        out: folder of this page.
        about: paragraphs above the table.
        more: {name: other page or file} to link to.
    """
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for name, run in runs.items():
        for row in run.rows:
            found.setdefault(row.case, {})[row.structure, name] = row
    structures = list(dict.fromkeys(row.structure for run in runs.values() for row in run.rows))
    keys = [(structure, name) for structure in structures for name in runs]
    shown = {name: pictures_in(page) for name, page in pages.items()}
    cases = [
        Case(
            name=case,
            cells=[_cell(found[case].get(key)) for key in keys],
            pictures=_named(shown, case),
        )
        for case in sorted(found, key=lambda case: (*_order(found[case], structures), case))
    ]
    linked = {**{n: p for n, p in pages.items() if p.is_file()}, **(more or {})}
    return cohort_page(
        title,
        [f"Dice {structure}: {name}" for structure, name in keys],
        cases,
        about=about,
        links={name: relative(path, out) for name, path in linked.items()},
        note=f"{_FIRST[len(runs) > 1]} Select a case to see it in each evaluation: filled is what"
        " was found, dashed the reference.",
    )


def relative(path: Path, folder: Path) -> str:
    """The address of a page beside others, from a page in this folder."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _named(shown: Mapping[str, Mapping[str, Sequence[Picture]]], case: str) -> list[Picture]:
    """The pictures of a case in all runs, each with the name of its run."""
    return [
        replace(picture, alt=f"{name}, {picture.alt}")
        for name, pictures in shown.items()
        for picture in pictures.get(case, ())
    ]


def _order(rows: Mapping[tuple[str, str], Row], structures: Sequence[str]) -> tuple[float, float]:
    """Cases with a small key come first: the largest difference of Dice, then the worst mean."""
    found: dict[str, list[float]] = {structure: [] for structure in structures}
    for (structure, _), row in rows.items():
        if (value := row.figures["dice"]) is not None:
            found[structure].append(value)
    known = [values for values in found.values() if values]
    spread = max((max(values) - min(values) for values in known), default=0.0)
    every = [value for values in known for value in values]
    return -spread, sum(every) / len(every) if every else math.inf


def _cell(row: Row | None) -> Cell:
    value = None if row is None else row.figures["dice"]
    return Cell(text="-") if value is None else Cell(text=f"{value:.3f}", value=value)
