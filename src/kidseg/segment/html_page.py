"""The report of a scan that was segmented: measures its labels, and writes the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.config import dump
from kidseg.errors import Finding, KidsegError, ModelError, ResourceError, UsageError
from kidseg.geometry import Volume
from kidseg.io.atomic import writing
from kidseg.labels import LabelSchema
from kidseg.measure.measuring import Request, measure_labelled
from kidseg.measure.parts import Labelled, Parts, tracked_lesions
from kidseg.report.scan_page import Content, write_report
from kidseg.segment.outputs import Outputs, Written
from kidseg.segment.predictor import Predictor, Segmentation

__all__ = ["Seen", "WithPage", "labelled_of", "with_page"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the page shows.

    Attributes:
        scan: as segmented.
        result: what was found in it.
        predictor: by what.
        labelled: the labels, to be measured.
        parts: finds their structures, once.
    """

    scan: Volume
    result: Segmentation
    predictor: Predictor
    labelled: Labelled
    parts: Callable[[], Parts]


@dataclass(frozen=True, kw_only=True)
class WithPage:
    """Outputs of a scan with its report.

    Attributes:
        files: {temporary file: output}.
        entry: for result.json, with "report": how the view in the page differs from the data.
    """

    files: Mapping[Path, Path]
    entry: dict[str, Any]


def labelled_of(result: Segmentation, schema: LabelSchema, scan: Path) -> Labelled:
    """The labels of a segmentation, to be measured as `kidseg measure` does.

    Args:
        result: of the segmentation.
        schema: of the labels.
        scan: for findings.
    """
    return Labelled(
        labels=result.labels,
        schema=schema,
        midline=result.midline,
        path=scan,
        tracking=tracked_lesions(schema),
    )


def with_page(
    folder: Path,
    outputs: Outputs,
    written: Written,
    entry: Mapping[str, Any],
    seen: Seen,
    draw: Callable[[Path], Finding | None],
) -> WithPage:
    """Write the report into a temporary folder, if one was requested.

    Whatever fails in it, the labels are right: then there is the finding "no-report".

    Args:
        folder: see `kidseg.io.atomic.staging`.
        outputs: of the scan.
        written: the other outputs.
        entry: for result.json.
        seen: the scan, and what was found in it.
        draw: writes the figure of the steps; see `kidseg.segment.outputs.draw_figure`.

    Raises:
        ResourceError: memory or disk are full.
        UsageError, ModelError: see `kidseg.report.templates.viewer_script`.
    """
    page = next((file.path for file in outputs.labels if file.is_page), None)
    if page is None:
        return WithPage(files=written.files, entry=dict(entry))
    start = time.perf_counter()
    files, drawn = dict(written.files), folder / page.name
    try:
        content = _content(folder, outputs, written, entry, seen, draw)
        with writing(drawn) as file:
            facts: dict[str, Any] = {"report": write_report(content, file)}
    except (ResourceError, UsageError, ModelError):
        raise
    except Exception as error:  # whatever fails in a page, the labels are right
        failed = _failed(error, str(entry["path"]))
        facts = {"warnings": [*entry["warnings"], failed.as_dict()]}
    else:
        files[drawn] = page
    seconds = {**entry["seconds"], "report": round(time.perf_counter() - start, 4)}
    names = [file.name for file in files.values()]
    return WithPage(files=files, entry={**entry, "outputs": names, **facts, "seconds": seconds})


def _content(
    folder: Path,
    outputs: Outputs,
    written: Written,
    entry: Mapping[str, Any],
    seen: Seen,
    draw: Callable[[Path], Finding | None],
) -> Content:
    result, labelled = seen.result, replace(seen.labelled, record=entry)
    _, measurement = measure_labelled(labelled, Request(), parts=seen.parts())
    return Content(
        name=str(entry["name"]),
        scan=seen.scan,
        labels=result.labels,
        schema=labelled.schema,
        record=entry,
        measured=measurement.as_dict(),
        steps=_steps(folder, outputs, written, draw),
        settings=dump(seen.predictor.method.config),
        is_ct=result.channels[0].scheme == "ct",
    )


def _steps(
    folder: Path, outputs: Outputs, written: Written, draw: Callable[[Path], Finding | None]
) -> bytes | None:
    """The figure of the steps, drawn now if it was not requested; None if it cannot be drawn."""
    drawn = {path: temporary for temporary, path in written.files.items()}
    if outputs.figure is not None:
        return drawn[outputs.figure].read_bytes() if outputs.figure in drawn else None
    temporary = folder / "report-steps.png"
    if draw(temporary) is not None:
        return None
    found = temporary.read_bytes()
    temporary.unlink()
    return found


def _failed(error: Exception, path: str) -> Finding:
    cause = error.cause if isinstance(error, KidsegError) else str(error)
    first = next(iter(cause.splitlines()), "") or type(error).__name__
    return Finding(
        code="no-report",
        path=path,
        cause=f"the report could not be written: {first}",
        next_step="The labels are written. Fix the cause, and run 'kidseg convert --formats html'.",
    )
