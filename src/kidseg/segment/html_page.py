"""The report of a scan that was segmented: measures its labels, and writes the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.config import dump
from kidseg.errors import Finding, KidsegError, ModelError, ResourceError, UsageError
from kidseg.geometry import Volume
from kidseg.io.atomic import writing
from kidseg.measure.label_reading import body_midline
from kidseg.measure.measuring import Request, measure_labelled
from kidseg.measure.midline import Midline, estimated_midline
from kidseg.measure.parts import Labelled
from kidseg.report.scan_page import Content, write_report
from kidseg.segment.outputs import Outputs, Written
from kidseg.segment.predictor import Predictor, Segmentation

__all__ = ["WithPage", "with_page"]


@dataclass(frozen=True, kw_only=True)
class WithPage:
    """Outputs of a scan with its report.

    Attributes:
        files: {temporary file: output}.
        entry: for result.json, with "report": how the view in the page differs from the data.
    """

    files: Mapping[Path, Path]
    entry: dict[str, Any]


def with_page(
    folder: Path,
    outputs: Outputs,
    written: Written,
    entry: Mapping[str, Any],
    seen: tuple[Volume, Segmentation, Predictor],
    draw: Callable[[Path], Finding | None],
) -> WithPage:
    """Write the report into a temporary folder, if one was requested.

    Whatever fails in it, the labels are right: then there is the finding "no-report".

    Args:
        folder: see `kidseg.io.atomic.staging`.
        outputs: of the scan.
        written: the other outputs.
        entry: for result.json.
        seen: the scan as segmented, what was found, and by what.
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
    seen: tuple[Volume, Segmentation, Predictor],
    draw: Callable[[Path], Finding | None],
) -> Content:
    scan, result, predictor = seen
    is_ct = result.channels[0].scheme == "ct"
    labelled = Labelled(
        labels=result.labels,
        schema=predictor.schema,
        midline=_midline(scan, result.labels, predictor, is_ct=is_ct),
        path=Path(str(entry["path"])),
        record=entry,
    )
    _, measurement = measure_labelled(labelled, Request())
    return Content(
        name=str(entry["name"]),
        scan=scan,
        labels=result.labels,
        schema=predictor.schema,
        record=entry,
        measured=measurement.as_dict(),
        steps=_steps(folder, outputs, written, draw),
        settings=dump(predictor.method.config),
        is_ct=is_ct,
    )


def _midline(scan: Volume, labels: Volume, predictor: Predictor, *, is_ct: bool) -> Midline:
    """As `kidseg measure` finds it."""
    if not is_ct:
        return estimated_midline(labels, predictor.schema, is_cropped=False)
    return body_midline(Volume(scan.data[:1], scan.grid), labels, predictor.schema)


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
