"""The page of a cohort: a sortable table of its cases, and a picture of the chosen one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.report.templates import data_uri, filled

__all__ = ["Case", "Cell", "Picture", "cohort_page", "pictures_in"]

_MOST_BYTES = 10_000_000  # of all pictures of a page
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.S)
_PNG = "data:image/png;base64,"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a case.

    Attributes:
        png: the file.
        alt: what it shows, in words.
        made_of: identifies what was drawn, so that it need not be drawn again; "": unknown.
    """

    png: bytes
    alt: str
    made_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: that is shown.
        value: by which it is sorted; None: not known, which comes last, or a text.
        path: of a page that it leads to, relative to this one.
    """

    text: str
    value: float | None = None
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table.

    Attributes:
        name: of the case.
        cells: one for each column.
        pictures: of the case.
    """

    name: str
    cells: Sequence[Cell]
    pictures: Sequence[Picture] = ()


def cohort_page(
    title: str,
    columns: Sequence[str],
    cases: Sequence[Case],
    *,
    about: Sequence[str] = (),
    warnings: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    note: str = "",
) -> str:
    """The page of a cohort, as HTML; one file that loads nothing.

    Pictures are left out, from the last case on, when they have more than 10 MB together.

    Args:
        title: of the page.
        columns: their titles, without that of the cases.
        cases: in the order in which they are shown: the worst first.
        about: paragraphs above the table.
        warnings: sentences.
        links: {name: path} of other pages, relative to this one.
        note: what the order and the pictures mean.
    """
    images, bytes_left, without = {}, _MOST_BYTES, 0
    for k, case in enumerate(cases):
        size = sum(len(picture.png) for picture in case.pictures)
        if size > bytes_left:
            without += 1
            continue
        bytes_left -= size
        images[f"case-{k}"] = [
            {"uri": data_uri(p.png), "alt": p.alt, "made_of": p.made_of, "case": case.name}
            for p in case.pictures
        ]
    if without:
        note = (
            f"{note} The pictures of {without} case(s) are left out: the page would be too large."
        )
    return filled(
        "cohort.html",
        "cohort.js",
        title=title,
        head=list(columns),
        cases=[
            {"key": f"case-{k}", "name": case.name, "cells": list(case.cells)}
            for k, case in enumerate(cases)
        ],
        about=list(about),
        warnings=list(warnings),
        links=[{"name": name, "path": path} for name, path in (links or {}).items()],
        note=note.strip(),
        data={"images": images},
    )


def pictures_in(page: Path) -> dict[str, list[Picture]]:
    """{case: its pictures} of a page that `cohort_page` wrote; {} if it is none, or cannot be read.

    Args:
        page: the file.
    """
    try:
        match = _DATA.search(page.read_text(encoding="utf-8"))
        images: Any = {} if match is None else json.loads(match.group(1))["images"]
        found: dict[str, list[Picture]] = {}
        for shown in images.values():
            for each in shown:
                if not each["uri"].startswith(_PNG):
                    raise ValueError("not a picture of this page")
                png = base64.b64decode(each["uri"].removeprefix(_PNG), validate=True)
                picture = Picture(png=png, alt=str(each["alt"]), made_of=str(each["made_of"]))
                found.setdefault(str(each["case"]), []).append(picture)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # pictures are not results: they are drawn again
    return found
