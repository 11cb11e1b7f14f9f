"""Which inputs formats need besides the labels: the scan, facts of the patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kidseg.errors import UsageError
from kidseg.io import label_formats
from kidseg.io.label_formats import FORMATS
from kidseg.measure.criteria import entered_facts, read_criteria
from kidseg.measure.measuring import Request
from kidseg.measure.person import Patient
from kidseg.report.templates import check_viewer

__all__ = ["check_formats", "check_scan", "shows_scan"]


def check_formats(formats: Sequence[str]) -> None:
    """Check that the formats can be written of labels.

    Raises:
        UsageError: "no-formats", "unknown-format", "missing-extra", "no-probabilities".
    """
    if not formats:
        raise UsageError(
            "no formats are given", code="no-formats", next_step="Name at least one: --formats."
        )
    label_formats.check_formats(formats)
    if unknown := [name for name in formats if FORMATS[name].needs_entropy]:
        raise UsageError(
            f"{', '.join(unknown)} shows probabilities, which labels do not have",
            code="no-probabilities",
            next_step="Request it when the scan is segmented: kidseg segment --formats.",
        )


def check_scan(formats: Sequence[str], ct: str | Path | None) -> None:
    """Check that the scan is given if the formats need it, and only then.

    Args:
        formats: that exist.
        ct: the scan.

    Raises:
        UsageError: "series-required", "scan-required", "scan-unused".
    """
    referring = [name for name in formats if FORMATS[name].needs_series]
    is_needed = bool(referring) or any(FORMATS[name].is_page for name in formats)
    if ct is not None and not is_needed:
        raise UsageError(
            "none of the formats refers to the scan or shows it",
            path=ct,
            code="scan-unused",
            next_step="Leave --ct out, or request dicomseg, labelmap, rtstruct, sr or html.",
        )
    if ct is not None or not is_needed:
        return
    if referring:
        raise UsageError(
            f"{', '.join(referring)} refers to the images of a DICOM series, and none is given",
            code="series-required",
            next_step="Give its folder or zip: --ct DICOM",
        )
    raise UsageError(
        "html shows the scan with its labels, and no scan is given",
        code="scan-required",
        next_step="Give it: --ct SCAN",
    )


def shows_scan(formats: Sequence[str], known: Request) -> bool:
    """Is there a report? If so, check what it needs.

    Raises:
        UsageError: "facts-unused", "bad-entered"; see `kidseg.report.templates.check_viewer`.
    """
    if any(FORMATS[name].is_page for name in formats):
        entered_facts(known.entered, read_criteria(known.criteria))
        check_viewer()
        return True
    if known.person != Patient() or known.entered:
        raise UsageError(
            "none of the formats says what is known of the patient",
            code="facts-unused",
            next_step="Leave these facts out, or request html.",
        )
    return False
