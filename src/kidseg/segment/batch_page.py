"""The page of a folder of results: a row and a picture for each scan, the failed ones first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from kidseg.errors import KidsegError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import write_text
from kidseg.io.label_formats import FORMATS
from kidseg.labels import LabelSchema
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page, pictures_in
from kidseg.report.overlay import Found, draw_case
from kidseg.segment.index import Entry, Index, read_index

__all__ = ["PAGE", "draw_result", "write_batch_page"]

PAGE = "cohort.html"
_VOLUMES = ("nii", "nrrd", "mha")
_REPORT = FORMATS["html"].ending


def draw_result(entry: Entry, labels: Volume, scan: Volume, schema: LabelSchema) -> Picture:
    """The picture of a result on the page, while its scan is in memory.

    Args:
        entry: of the result.
        labels: of the scan.
        scan: as read.
        schema: of the labels.
    """
    image = np.asarray(scan.data[0].numpy())
    found = Found(found=labels.data[0].numpy(), grid=labels.grid, schema=schema, image=image)
    return draw_case(found, _made_of(entry))


def write_batch_page(out: Path, drawn: Mapping[str, Picture] | None = None) -> None:
    """Write the page of a folder of results, if it has several scans.

    Only pictures that are neither drawn nor on the earlier page are drawn now, from labels and
    scans; where a scan cannot be read again, the picture has its labels only.

    Args:
        out: the folder.
        drawn: pictures of results, by the name of the scan; see `draw_result`.

    Raises:
        ModelError: see `read_index`.
        InputError, ResourceError: see `kidseg.io.atomic.writing`.
    """
    index = read_index(out)
    if len({*index.scans, *index.failed}) < 2:
        return
    known = pictures_in(out / PAGE)
    known |= {name: [picture] for name, picture in (drawn or {}).items()}
    page = _page(index, {name: _pictures(e, out, known) for name, e in index.scans.items()})
    write_text(out / PAGE, page, overwrite=True)


def _page(index: Index, pictures: Mapping[str, list[Picture]]) -> str:
    parts = list(dict.fromkeys(part for e in index.scans.values() for part in _volumes(e)))
    failed = [
        Case(
            name=name, cells=_cells({}, parts, str(entry["cause"])), pictures=pictures.get(name, ())
        )
        for name, entry in sorted(index.failed.items())
    ]
    done = sorted(
        (entry for name, entry in index.scans.items() if name not in index.failed),
        key=lambda entry: (-len(entry["warnings"]), str(entry["name"])),
    )
    cases = [
        Case(name=str(e["name"]), cells=_cells(e, parts, "done"), pictures=pictures[e["name"]])
        for e in done
    ]
    return cohort_page(
        "Segmented scans",
        ["status", *(f"{part} ml" for part in parts), "warnings", "seconds", "report"],
        [*failed, *cases],
        about=[f"{len(done)} scan(s) segmented, {len(failed)} failed at the last attempt."],
        note="Failed scans and those with most warnings come first. Select a scan to see the slice"
        " with most labels.",
    )


def _cells(entry: Entry, parts: list[str], status: str) -> list[Cell]:
    volumes = _volumes(entry)
    report = f"{entry['name']}{_REPORT}" if entry else ""
    seconds = sum(entry["seconds"].values()) if entry else None
    return [
        Cell(text=status),
        *(_number(volumes.get(part), 1) for part in parts),
        _number(len(entry["warnings"]) if entry else None, 0),
        _number(seconds, 1),
        Cell(text="open", path=quote(report)) if report in entry.get("outputs", ()) else _NONE,
    ]


_NONE = Cell(text="-")


def _number(value: float | None, digits: int) -> Cell:
    return _NONE if value is None else Cell(text=f"{value:.{digits}f}", value=value)


def _volumes(entry: Entry) -> dict[str, float]:
    """Volumes by side where they are known, else of the structures."""
    sides = entry.get("sides")
    if not sides:
        return dict(entry.get("volumes_ml", {}))
    return {
        f"{side} {name}": volume
        for side in ("right", "left")
        for name, volume in sides[side]["volumes_ml"].items()
    }


def _pictures(entry: Entry, out: Path, known: Mapping[str, list[Picture]]) -> list[Picture]:
    """The picture of a result; that of the earlier page if it is of the same result."""
    name = str(entry["name"])
    made_of = _made_of(entry)
    if name in known and known[name][0].made_of == made_of:
        return known[name]
    files = [f"{name}{FORMATS[kind].ending}" for kind in _VOLUMES]
    labelled = next((out / file for file in files if file in entry["outputs"]), None)
    if labelled is None:
        return []
    try:
        labels = read(labelled, ReadOptions(values="labels")).volume
    except KidsegError:  # removed since
        return []
    found = Found(
        found=labels.data[0].numpy(),
        grid=labels.grid,
        schema=LabelSchema.from_names({int(n): name for n, name in entry["labels"].items()}),
        image=_image(entry, labels.grid),
    )
    return [draw_case(found, made_of)]


def _made_of(entry: Entry) -> str:
    """Identifies a result."""
    return f"{entry['sha256']} {entry['model']['sha256']} {entry['date']}"


def _image(entry: Entry, grid: Grid) -> np.ndarray | None:
    """The scan, read as it was; None if that is not possible any more."""
    reading: dict[str, Any] = dict(entry.get("reading", {}))
    spacing = reading.pop("spacing_mm", None)
    reading["series"] = entry.get("series_uid") or reading.get("series")
    try:
        options = ReadOptions(
            **reading, values="any", spacing_mm=None if spacing is None else tuple(spacing)
        )
        volume = read(Path(str(entry["path"])), options).volume
    except (KidsegError, TypeError, OSError):
        return None
    same = volume.grid.same_as(grid)
    return np.asarray(volume.data[0].numpy()) if same else None
