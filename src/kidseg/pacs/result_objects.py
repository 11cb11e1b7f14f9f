"""The objects that go back to the archive: SEG, SR, and a report as an encapsulated PDF."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kidseg.errors import InputError, ResourceError
from kidseg.io import ReadOptions
from kidseg.io.dicom_pdf import write_encapsulated_pdf
from kidseg.io.dicom_source import read_source
from kidseg.io.origin import Origin
from kidseg.provenance import RESEARCH_USE
from kidseg.report.annotation import plain_text
from kidseg.segment.index import read_index
from kidseg.serve.child_command import run_command

__all__ = ["make_results", "report_pdf"]

_PAPER_INCH = (8.27, 11.69)  # A4
_LINES = 48  # on a page


def make_results(
    place: Path, model: str, device: str, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Segment the series in `place`/images; its objects are then in `place`/results.

    Runs in a process of its own, so that a crash costs this series only.

    Raises:
        InputError: the error of the segmentation; its code tells which.
        ResourceError: "process-failed": the process was killed.
    """
    results = place / "results"
    words = ["segment", str(place / "images"), "-m", model, "-o", str(results)]
    words += ["--formats", "dicomseg,sr", "--figures", "--device", device, "--json", "--quiet"]
    failure = run_command(words, place / "segment.log", is_wanted, lambda line: None)
    if failure is not None:
        kind = ResourceError if failure.code == "process-failed" else InputError
        raise kind(failure.cause, path=place, code=failure.code, next_step=failure.next_step)
    (entry,) = read_index(results).scans.values()
    (figure,) = results.glob("*_steps.png")
    source = read_source(place / "images", ReadOptions())
    origin = Origin(
        method=entry["model"]["method"],
        model_sha256=entry["model"]["sha256"],
        scan_sha256=entry["sha256"],
    )
    path = results / f"{entry['name']}_pages.dcm"
    with path.open("wb") as file:
        write_encapsulated_pdf(report_pdf(entry, figure), source.headers[0], origin, file)


@plain_text()
def report_pdf(entry: Mapping[str, Any], figure: Path) -> bytes:
    """Pages for people: warnings, volumes and origin; and the picture of the steps.

    Args:
        entry: of the scan in result.json.
        figure: PNG file of the steps.
    """
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    written = io.BytesIO()
    with PdfPages(written, metadata={"Title": "kidseg report", "Creator": "kidseg"}) as pages:
        lines = list(_lines(entry))
        for first in range(0, len(lines), _LINES):
            page = Figure(figsize=_PAPER_INCH)
            page.text(0.08, 0.94, "Kidneys and renal tumours: automatic segmentation", size=15)
            page.text(0.08, 0.915, RESEARCH_USE, size=11, weight="bold", color="#a00000")
            for k, line in enumerate(lines[first : first + _LINES]):
                page.text(0.08, 0.88 - 0.017 * k, line, size=9, family="monospace", va="top")
            pages.savefig(page)
        page = Figure(figsize=_PAPER_INCH)
        page.text(0.08, 0.95, RESEARCH_USE, size=11, weight="bold", color="#a00000")
        axes = page.add_axes((0.05, 0.05, 0.9, 0.88))
        axes.imshow(imread(figure))
        axes.set_axis_off()
        pages.savefig(page, dpi=200)
    return written.getvalue()


def _lines(entry: Mapping[str, Any]) -> Iterator[str]:
    from textwrap import wrap

    warnings = entry["warnings"]
    yield f"Warnings: {len(warnings) or 'none'}"
    for warning in warnings:
        yield from wrap(f"{warning['cause']}. {warning['next_step']}", 86, initial_indent="- ")
    yield ""
    yield "Volume, ml"
    for name, volume in entry["volumes_ml"].items():
        yield f"  {name:<24}{volume:9.1f}"
    for side in ("right", "left"):
        found = (entry["sides"] or {}).get(side)
        if isinstance(found, Mapping):
            partial = "  (cut by the field of view)" if found["partial"] else ""
            for name, volume in found["volumes_ml"].items():
                yield f"  {side + ' ' + name:<24}{volume:9.1f}{partial}"
    yield ""
    if use := entry["model"].get("use"):
        yield f"Model {entry['model'].get('name', '')}: {use}"
    yield f"Method {entry['model']['method']}, kidseg {entry['versions']['kidseg']}"
    yield f"Model SHA-256 {entry['model']['sha256']}"
    yield f"Scan SHA-256  {entry['sha256']}"
    yield f"Made {entry['date']}"
